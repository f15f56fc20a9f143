//! Everything that a process can set comes back, or it is said that it does not.

use std::{collections::BTreeMap, process::Command};

use criu_rpc::{Error, Warning};

use crate::{
    harness::{dumps_tcp, tests},
    places::Home,
    program::on_pipes_warned,
    tree::{OrExplain, explain},
    ways::{Script, WAYS, Way},
};

tests![
    what_a_process_can_set_comes_back_or_is_told,
    a_thread_whose_policy_criu_cannot_restore_is_told_before_the_tree_ends,
];

const PROGRAM: &str = include_str!("everything.py");

/// State that does not come back: the start of the names of values, and words of the warning that
/// tells of those. No words: `docs/platforms.md` alone tells, because nothing outside of the
/// process sees it.
const KNOWN: &[(&str, &str)] = &[
    ("personality", "personality"),
    ("file inotify waiting", "unread events of watched files"),
    ("file semaphore eventfd-semaphore", "semaphore mode of an eventfd"),
    ("file epoll tfd:", "disarmed entries of an epoll"),
    ("ksm", "merge equal memory"),
    ("keyring", ""),
    ("map later", ""),
    ("map onfault", ""),
    // O_DIRECTORY, which means nothing once a folder is open.
    ("file folder flags", ""),
    // The name of anonymous shared memory.
    ("map shared", ""),
];

fn start(home: &Home, what: &[&str]) -> Script {
    let folder = home.path("state");
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).arg(&folder).args(what);
    Script::by(command)
}

fn state(line: &str) -> BTreeMap<String, String> {
    let pairs = line.split('\t').map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The values that differ, and of which no warning tells.
fn different(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    warnings: &[Warning],
) -> Vec<String> {
    let is_told = |words: &str| warnings.iter().any(|warning| warning.to_string().contains(words));
    let is_known = |name: &str| {
        // MADV_WIPEONFORK, which criu keeps since 4.2.
        if !dumps_tcp() && ["map wipeonfork", "map droppable"].contains(&name) {
            return true;
        }
        let mut known = KNOWN.iter().filter(|(known, _)| name.starts_with(known));
        known.any(|(_, words)| words.is_empty() || is_told(words))
    };
    let now = |name: &String| after.get(name).cloned().unwrap_or_default();
    let differ = before.iter().filter(|(name, was)| now(name) != **was && !is_known(name));
    differ.map(|(name, was)| format!("{name}: {was} became {}", now(name))).collect()
}

fn what_a_process_can_set_comes_back_or_is_told() {
    for way in WAYS {
        eprintln!("{way:?}");
        let home = Home::new();
        let what: &[_] = if dumps_tcp() { &["udp", "tcp", "guard"] } else { &[] };
        let mut victim = start(&home, what);
        let members = victim.members();
        let before = state(&victim.ask("?"));
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        if !way.ends {
            let after = state(&victim.ask("?"));
            assert_eq!(different(&before, &after, &[]), [""; 0], "the original");
        }
        victim.end(&members, way);
        let (mut revived, more) = on_pipes_warned(home.restore(), &home.store(), &stored.digest);
        let warnings = [stored.warnings, more].concat();
        let after = state(&revived.ask("?"));
        assert_eq!(different(&before, &after, &warnings), [""; 0], "{warnings:?}");
    }
}

fn a_thread_whose_policy_criu_cannot_restore_is_told_before_the_tree_ends() {
    let home = Home::new();
    let mut victim = start(&home, &["deadline"]);
    let way = Way { ends: true, chunked: true };
    let foreseen = way.capture(&home, victim.pid()).preflight().or_explain();
    let is_told = foreseen.blocks.iter().any(|block| block.problem.contains("SCHED_DEADLINE"));
    assert!(is_told, "{foreseen:?}");
    let error = way.capture(&home, victim.pid()).run(&home.store()).unwrap_err();
    let told = matches!(&error, Error::Unrevivable { problems, .. } if problems[0].contains("SCHED_DEADLINE"));
    assert!(told, "{}", explain(&error));
    assert!(victim.ask("?").contains("thread deadline scheduling=6 "), "it goes on");
}
