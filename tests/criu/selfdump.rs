//! A process captures itself, and its copy knows that it is one.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

use criu_rpc::{Cause, Digest256, GrownFiles};
use nix::sys::signal::Signal;

use crate::{
    harness::tests,
    places::{Home, family, wait_until},
    talk::{Talk, pipe},
    tree::{OrExplain, Revived, Victim, explain, signal},
};

tests![
    a_process_that_captures_itself_goes_on_and_its_copy_knows_itself,
    the_copy_is_told_by_an_error_where_there_is_no_other_way,
    packets_behind_an_empty_one_come_back,
    a_process_that_leads_no_session_captures_itself,
    a_subreaper_captures_itself,
    a_child_captures_the_tree_around_it,
    a_process_captures_itself_twice,
    a_process_captures_itself_and_another_tree,
    a_process_that_revived_a_tree_captures_itself_and_its_copy_revives_another,
    a_process_cannot_capture_itself_and_end,
    standard_output_in_a_file_that_grew_since_can_be_replaced,
    standard_output_that_is_appended_to_a_file_goes_on_there,
];

/// The digest in a victim's answer.
#[track_caller]
fn digest(answer: &str) -> Digest256 {
    let digest = answer.strip_prefix("stored ").unwrap_or_else(|| panic!("{answer}"));
    digest.parse().unwrap()
}

/// Lets the victim capture itself by `command`, goes on with it, ends it, and revives the copy,
/// which says `greeting`.
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

/// The thread that restores are started from is a part of the copy.
fn a_process_that_revived_a_tree_captures_itself_and_its_copy_revives_another() {
    let home = Home::new();
    let others = [(), ()].map(|()| {
        let victim = Victim::start(&["memory=1"]);
        let pid = victim.pid();
        let digest = home.capture([pid]).capture(&home.store()).or_explain();
        victim.end();
        (pid, digest)
    });
    let revives = |(pid, digest): &(i32, Digest256)| {
        (format!("revive {digest} {}", home.word()), format!("revived {pid} "))
    };
    let mut victim = Victim::start(&["memory=1"]);
    let (request, answer) = revives(&others[0]);
    assert_eq!(victim.ask(&request), answer);
    // criu gives what it revives a time namespace, and dumps no tree with several.
    signal(others[0].0, Signal::SIGKILL);
    assert_eq!(victim.ask("wait"), "signal: 9 (SIGKILL)");
    let digest = digest(&victim.ask(&format!("capture run own {}", home.word())));
    victim.end();

    let mut copy = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(copy.talk.hear(), "revived");
    copy.assert_counts_on(0);
    let (request, answer) = revives(&others[1]);
    assert_eq!(copy.ask(&request), answer);
}

const FLAGS: [&str; 3] = ["children=1", "threads=2", "memory=4"];

fn a_process_that_captures_itself_goes_on_and_its_copy_knows_itself() {
    captures_itself(Victim::start(&FLAGS), "capture run own", "revived");
}

fn the_copy_is_told_by_an_error_where_there_is_no_other_way() {
    captures_itself(Victim::start(&FLAGS), "capture plain own", "revived by error");
}

/// criu takes an empty packet for the end of a queue.
fn packets_behind_an_empty_one_come_back() {
    let home = Home::new();
    let mut victim = Victim::start(&["packets=one,,two,"]);
    let digest = digest(&victim.ask(&format!("capture run own {}", home.word())));
    assert_eq!(victim.ask("packets"), "(one)()(two)()", "in the one that goes on");
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    assert_eq!(revived.ask("packets"), "(one)()(two)()");
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

fn a_process_captures_itself_and_another_tree() {
    let home = Home::new();
    let socket = home.path("socket").display().to_string();
    let other = Victim::start(&["children=1", &format!("serve={socket}")]);
    let ask = |line: &str| {
        let connection = UnixStream::connect(&socket).unwrap();
        Talk::new(connection.try_clone().unwrap(), connection).ask(line)
    };
    let mut victim = Victim::start(&FLAGS);
    let digest = digest(&victim.ask(&format!("capture run own+{} {}", other.pid(), home.word())));
    assert_eq!(ask("tick"), "count 1");
    victim.assert_counts_on(0);
    victim.end();
    other.end();

    let (mut talk, input, output) = Talk::through_pipes();
    let restored = home.restore().stdin(input).stdout(output).restore(&home.store(), &digest).or_explain();
    let silent = || Talk::through_pipes().0;
    let trees: Vec<_> = restored.trees.into_iter().map(|tree| Revived::new(tree, silent())).collect();
    assert_eq!(trees.len(), 2);
    assert_eq!(talk.hear(), "revived");
    assert_eq!(ask("tick"), "count 1");
    assert_eq!(ask("child 0 tick"), "count 1");
    home.assert_staging_empty();
    drop(talk); // and both end
}

fn a_process_cannot_capture_itself_and_end() {
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    let answer = victim.ask(&format!("capture ending own {}", home.word()));
    assert!(answer.starts_with("error leave_running: "), "{answer}");
    victim.assert_counts_on(0);
    home.assert_staging_empty();
}

/// A victim that writes into this file captured itself, wrote a line more, and was ended.
#[track_caller]
fn captured_with_output(home: &Home, append: bool) -> Digest256 {
    let output = home.path("output");
    let file = File::options().write(true).append(append).create_new(true).open(&output).unwrap();
    let (input, to) = pipe();
    let mut command = Command::new("/proc/self/exe");
    command.args(["--victim", "session", "memory=1"]).stdin(input).stdout(file).stderr(Stdio::null());
    let root = command.spawn().unwrap();
    wait_lines(&output, 1);
    let mut victim = Victim::ready(root, Talk::new(to, File::open(&output).unwrap()));
    victim.talk.tell(&format!("capture run own {}", home.word()));
    wait_lines(&output, 2);
    victim.talk.tell("tick");
    wait_lines(&output, 3);
    victim.end();
    digest(read(&output).lines().nth(1).unwrap())
}

fn standard_output_in_a_file_that_grew_since_can_be_replaced() {
    let home = Home::new();
    let digest = captured_with_output(&home, false);
    let text = read(&home.path("output"));
    // The same file again can be refused, and then the error says so.
    let nothing = File::open("/dev/null").unwrap();
    let restore = home.restore().stdin(nothing).grown_files(GrownFiles::Refuse);
    let error = restore.restore(&home.store(), &digest).unwrap_err();
    let cause = error.failure().map(|failure| failure.cause);
    assert_eq!(cause, Some(Cause::FileChanged), "{}", explain(&error));
    assert!(error.advice().is_some());

    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    revived.assert_counts_on(0);
    drop(revived);
    assert_eq!(read(&home.path("output")), text);
}

fn standard_output_that_is_appended_to_a_file_goes_on_there() {
    let home = Home::new();
    let digest = captured_with_output(&home, true);
    let (input, to) = pipe();
    let mut restored = home.restore().stdin(input).restore(&home.store(), &digest).or_explain();
    let mut revived = Revived::new(restored.trees.remove(0), Talk::new(to, pipe().0));
    wait_lines(&home.path("output"), 4);
    revived.talk.hang_up();
    assert!(revived.tree().wait().or_explain().success());
    assert_eq!(read(&home.path("output")).lines().skip(2).collect::<Vec<_>>(), ["count 1", "revived"]);
}

#[track_caller]
fn wait_lines(path: &Path, count: usize) {
    wait_until("the output has grown", || read(path).lines().count() >= count && read(path).ends_with('\n'));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
