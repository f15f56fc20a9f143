//! Checks `docs/failures.md` against the tables. `UPDATE=1 cargo test --lib failures` rewrites it.

use std::{env, fmt::Write, fs, path::Path};

use super::{
    causes::{CHAPTERS, row},
    rules,
};
use crate::Cause;

const HEAD: &str = "\
# When criu fails: causes and cures

An `Error` that comes from criu carries a `Failure`. Its `cause` is one of the causes below.
`advice()` returns the advice, `telling_line()` the line of criu's output that shows the cause, and
`report()` all facts.

In criu's messages, `…` stands for variable text. The last column lists methods of `DumpOptions` and
`RestoreOptions`; `Lend::…` is a file lent for one request; `--…` is an argument for criu, set with
`Criu::argument`. Causes without an option are cured outside of criu. `ProcsCapture::options` sets
options of a capture. `ProcsRestore` finds those that it needs in the images.

`ProcsRestore::preflight` finds many failures of a restore beforehand, with the same causes. A
restore makes the same checks before it starts criu.

This page is made from the tables in `src/diagnose`: edit those, then run
`UPDATE=1 cargo test --lib failures`.
";

#[test]
fn the_page_of_failures_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/failures.md");
    let page = page();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/failures.md is not up to date: run UPDATE=1 cargo test --lib failures");
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (title, causes) in CHAPTERS {
        write!(page, "\n## {title}\n\n| Cause | criu's messages | Advice | Options |\n").unwrap();
        page.push_str("|---|---|---|---|\n");
        for cause in *causes {
            let row = row(*cause);
            let said = quoted(stems(*cause).map(|stem| stem.replace('#', "…").replace('$', "")));
            let options = quoted(row.cure.iter().map(ToString::to_string));
            writeln!(page, "| **{cause:?}**: {} | {said} | {} | {options} |", row.summary, row.advice)
                .unwrap();
        }
    }
    page
}

fn stems(cause: Cause) -> impl Iterator<Item = &'static str> {
    let rules = [rules::CAUSES, rules::HINTS, rules::CONSEQUENCES].concat();
    rules.into_iter().filter(move |(_, of)| *of == cause).map(|(stem, _)| stem)
}

fn quoted(words: impl Iterator<Item = String>) -> String {
    words.map(|word| format!("`{}`", word.trim())).collect::<Vec<_>>().join("<br>")
}

#[test]
fn an_option_that_cures_exists() {
    for cause in CHAPTERS.iter().flat_map(|(_, causes)| *causes) {
        for option in row(*cause).cure {
            assert!(exists(option), "{cause:?} is not cured by {option}, which does not exist");
            let named = row(*cause).advice.contains(option.trim_start_matches("Lend::"));
            assert!(named, "the advice for {cause:?} does not name {option}");
        }
        let quoted = row(*cause).advice.split('`').skip(1).step_by(2);
        for word in quoted {
            let name = word.split(['(', ' ']).next().unwrap_or(word);
            let known = exists(name) || WORDS.contains(&word) || choice_exists(name);
            assert!(known, "the advice for {cause:?} names {word}, which does not exist");
        }
    }
}

/// Words in backticks that are not options of this crate.
const WORDS: &[&str] = &[
    "criu",
    "criu(path)",
    "--version",
    "--privileged",
    "setsid",
    "setsid program",
    "--cap-add SYS_RESOURCE",
    "--security-opt seccomp=unconfined",
    "--device /dev/net/tun",
    "setcap",
    "setcap cap_checkpoint_restore+eip",
    "scripts/install-criu",
    "unshare",
    "unshare --pid --fork setsid program",
    "unshare --mount",
    "unshare --net",
    "unshare --ipc program",
    "ulimit -v",
    "kill_tree",
    "kill_session",
    "unshare --pid --fork --mount-proc",
    "socket:[inode]",
    "ProcsCapture",
    "fg",
    "clone",
    "bind",
];

/// Returns true if an option, a method of `Lend` or an argument of criu has this name.
fn exists(option: &str) -> bool {
    let table = include_str!("../options/table.rs");
    let is_row = |line: &str| {
        let mut words = line.split([' ', ',', ':', ';']).filter(|word| !word.is_empty());
        let kind = words.next().is_some_and(|kind| {
            ["flag", "value", "path", "choice", "seconds", "list", "paths", "each"].contains(&kind)
        });
        kind && words.next() == Some(option)
    };
    match option.split_once("::") {
        Some(("Lend", method)) => include_str!("../rpc/lend.rs").contains(&format!("pub fn {method}")),
        Some(("Criu", method)) => include_str!("../rpc/mod.rs").contains(&format!("pub fn {method}")),
        Some((builder @ ("ProcsCapture" | "ProcsRestore"), method)) => {
            let capture = builder == "ProcsCapture";
            let own =
                if capture { include_str!("../capture/mod.rs") } else { include_str!("../restore/mod.rs") };
            let shared = include_str!("../platform/means.rs");
            [own, shared].iter().any(|source| source.contains(&format!("pub fn {method}(")))
        }
        Some(_) => false,
        None if option.starts_with("--") => {
            ["--allow-uprobes", "--deprecated", "--file-validation"].contains(&option)
        }
        None => table.lines().any(|line| line.starts_with("    ") && is_row(line.trim())),
    }
}

/// Returns true if it is a choice such as `NetworkLock::Skip`.
fn choice_exists(name: &str) -> bool {
    let Some((kind, choice)) = name.split_once("::") else { return false };
    include_str!("../options/choices.rs").contains(&format!("{kind}::{choice} =>"))
}

#[test]
fn every_cause_is_in_one_chapter_and_has_a_line_unless_it_is_not_criu_s() {
    let all: Vec<_> = CHAPTERS.iter().flat_map(|(_, causes)| causes.iter().copied()).collect();
    for cause in &all {
        assert_eq!(all.iter().filter(|other| *other == cause).count(), 1, "{cause:?}");
        let is_ours = matches!(
            cause,
            Cause::NoCriu | Cause::GivenUp | Cause::CriuKilled | Cause::FileReplaced | Cause::MemfdProgram
        );
        assert!(stems(*cause).next().is_some() != is_ours, "{cause:?}");
    }
}

#[test]
fn words_for_people_are_readable() {
    for cause in CHAPTERS.iter().flat_map(|(_, causes)| *causes) {
        let row = row(*cause);
        assert_eq!(cause.to_string(), row.summary);
        assert_eq!((cause.advice(), cause.options()), (row.advice, row.cure));
        for text in [row.summary, row.advice] {
            assert!(!text.contains(['\n', '|']) && !text.contains("  "), "{cause:?}: {text}");
            assert!(!text.ends_with('.') && !text.is_empty(), "{cause:?}: {text}");
        }
        let start = row.summary.chars().next().unwrap();
        assert!(start.is_lowercase() || row.summary.starts_with("System"), "{cause:?}: {}", row.summary);
    }
}
