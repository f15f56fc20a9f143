//! A process captures itself, and its copy knows that it is one.

use std::{
    fs::{self, File},
    io::Read,
    process::{Command, Stdio},
};

use criu_rpc::{Cause, Digest256};

use crate::{
    harness::tests,
    places::{Home, family, wait_until},
    talk::{Talk, pipe},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_process_that_captures_itself_goes_on_and_its_copy_knows_itself,
    the_copy_is_told_by_an_error_where_there_is_no_other_way,
    a_process_that_leads_no_session_captures_itself,
    a_subreaper_captures_itself,
    a_child_captures_the_tree_around_it,
    a_process_captures_itself_twice,
    standard_output_in_a_file_that_grew_since_is_replaced,
];

/// The digest in a victim's answer.
#[track_caller]
fn digest(answer: &str) -> Digest256 {
    let digest = answer.strip_prefix("stored ").unwrap_or_else(|| panic!("{answer}"));
    digest.parse().unwrap()
}

/// Lets the victim capture itself by `command`, goes on with it, ends it, and revives the copy, which says `greeting`.
#[track_caller]
fn captures_itself(mut victim: Victim, command: &str, greeting: &str) {
    let home = Home::new();
    for count in 0..3 {
        victim.assert_counts_on(count);
    }
    let members = victim.members();
    let digest = digest(&victim.ask(&format!("{command} {}", home.word())));
    home.assert_staging_empty();
    victim.assert_counts_on(3);
    assert_eq!(victim.ask("check"), "memory ok 1024 pages");
    assert_eq!(victim.members(), members);
    victim.end();

    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), greeting);
    revived.assert_counts_on(3);
    assert_eq!(revived.ask("check"), "memory ok 1024 pages");
    assert_eq!(family(revived.pid()), members);
    home.assert_staging_empty();
}

const FLAGS: [&str; 3] = ["children=1", "threads=2", "memory=4"];

fn a_process_that_captures_itself_goes_on_and_its_copy_knows_itself() {
    captures_itself(Victim::start(&FLAGS), "capture run own", "revived");
}

fn the_copy_is_told_by_an_error_where_there_is_no_other_way() {
    captures_itself(Victim::start(&FLAGS), "capture plain own", "revived by error");
}

fn a_process_that_leads_no_session_captures_itself() {
    captures_itself(Victim::start_in_our_session(&FLAGS), "capture run own", "revived");
}

fn a_subreaper_captures_itself() {
    let flags = [&FLAGS[..], &["subreaper"]].concat();
    captures_itself(Victim::start(&flags), "capture run own", "revived");
}

fn a_child_captures_the_tree_around_it() {
    captures_itself(Victim::start(&FLAGS), "child 0 capture run parent", "revived");
}

fn a_process_captures_itself_twice() {
    let home = Home::new();
    let mut victim = Victim::start(&FLAGS);
    let command = format!("capture run own {}", home.word());
    let first = digest(&victim.ask(&command));
    victim.assert_counts_on(0);
    let second = digest(&victim.ask(&command));
    victim.assert_counts_on(1);
    victim.end();
    for (digest, count) in [(first, 0), (second, 1)] {
        let mut revived = Revived::from(home.restore(), &home.store(), &digest);
        assert_eq!(revived.talk.hear(), "revived");
        revived.assert_counts_on(count);
        // A copy can capture itself as well.
        let third = self::digest(&revived.ask(&command));
        drop(revived);
        let mut revived = Revived::from(home.restore(), &home.store(), &third);
        assert_eq!(revived.talk.hear(), "revived");
        revived.assert_counts_on(count + 1);
    }
}

fn standard_output_in_a_file_that_grew_since_is_replaced() {
    let home = Home::new();
    let output = home.path("output");
    let file = File::options().append(true).create_new(true).open(&output).unwrap();
    let (input, to) = pipe();
    let root = Command::new("/proc/self/exe")
        .args(["--victim", "session", "memory=1"])
        .stdin(input)
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut victim = Victim::ready(root, Talk::new(to, File::open(&output).unwrap()));
    let lines = |count: usize| wait_until("the output has grown", || read(&output).lines().count() == count);
    victim.talk.tell(&format!("capture run own {}", home.word()));
    lines(2);
    victim.talk.tell("tick");
    lines(3);
    let text = read(&output);
    let digest = digest(text.lines().nth(1).unwrap());
    victim.end();

    // The same file again it cannot be, and the error says so.
    let error = home.restore().stdin(File::open("/dev/null").unwrap()).restore(&home.store(), &digest);
    let error = error.unwrap_err();
    assert!(
        error.failure().is_some_and(|failure| failure.cause == Cause::FileChanged),
        "{}",
        explain(&error)
    );

    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    revived.assert_counts_on(0);
    drop(revived);
    assert_eq!(read(&output), text);

    // Back to where it was when it was captured, the file is the same again.
    let size = text.lines().next().unwrap().len() + 1;
    File::options().write(true).open(&output).unwrap().set_len(size as u64).unwrap();
    let (input, to) = pipe();
    let mut restored = home.restore().stdin(input).restore(&home.store(), &digest).or_explain();
    let mut revived = Revived::new(restored.trees.remove(0), Talk::new(to, File::open(&output).unwrap()));
    lines(2);
    revived.talk.hang_up();
    assert!(revived.tree().wait().or_explain().success());
    assert_eq!(read(&output).lines().nth(1), Some("revived"));
}

fn read(path: &std::path::Path) -> String {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    debug_assert!(fs::metadata(path).is_ok());
    text
}
