//! A tree whose standard streams are unix sockets, as Node gives its children, is captured and revived without a word.

use std::{
    io::Write,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    process::Command,
};

use criu_rpc::{Cause, Digest256};

use crate::{
    harness::tests,
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_tree_on_sockets_is_revived_on_pipes,
    a_tree_with_one_socket_as_all_its_streams_is_revived_on_pipes,
    a_tree_whose_log_is_a_socket_of_datagrams_is_revived,
    a_process_on_sockets_captures_itself,
    a_socket_that_is_no_standard_stream_still_needs_a_word,
];

fn victim(streams: [OwnedFd; 3], talk: Talk) -> Victim {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--victim", "session", "children=1", "memory=1"]);
    let [stdin, stdout, stderr] = streams;
    let root = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    drop(command); // it holds the tree's ends
    let mut victim = Victim::ready(root, talk);
    victim.assert_counts_on(0);
    victim
}

/// With a socket for each stream. What is to be kept open beside it is the end of the errors.
fn on_three() -> (Victim, UnixStream) {
    let [(to, stdin), (from, stdout), (errors, stderr)] = [(); 3].map(|()| UnixStream::pair().unwrap());
    (victim([stdin.into(), stdout.into(), stderr.into()], Talk::new(to, from)), errors)
}

/// Captured, gone on with, ended and revived.
#[track_caller]
fn comes_back(mut victim: Victim) {
    let home = Home::new();
    let digest: Digest256 = home.capture([victim.pid()]).capture(&home.store()).or_explain();
    home.assert_staging_empty();
    victim.assert_counts_on(1);
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("child 0 tick"), "count 1");
    assert_eq!(revived.ask("check"), "memory ok 256 pages");
}

fn a_tree_on_sockets_is_revived_on_pipes() {
    let (victim, mut errors) = on_three();
    errors.write_all(b"nobody has read this").unwrap();
    comes_back(victim);
}

fn a_tree_with_one_socket_as_all_its_streams_is_revived_on_pipes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = || theirs.try_clone().unwrap().into();
    let streams = [stream(), stream(), stream()];
    drop(theirs);
    comes_back(victim(streams, Talk::new(ours.try_clone().unwrap(), ours)));
}

fn a_tree_whose_log_is_a_socket_of_datagrams_is_revived() {
    let [(to, stdin), (from, stdout)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    let (_log, stderr) = UnixDatagram::pair().unwrap();
    comes_back(victim([stdin.into(), stdout.into(), stderr.into()], Talk::new(to, from)));
}

fn a_process_on_sockets_captures_itself() {
    let home = Home::new();
    let (mut victim, _errors) = on_three();
    let stored = victim.ask(&format!("capture run own {}", home.word()));
    let digest = stored.strip_prefix("stored ").unwrap_or_else(|| panic!("{stored}")).parse().unwrap();
    victim.assert_counts_on(1);
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    revived.assert_counts_on(1);
}

fn a_socket_that_is_no_standard_stream_still_needs_a_word() {
    let home = Home::new();
    let path = home.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (mut victim, _errors) = on_three();
    victim.ask(&format!("connect {}", path.display()));
    let _accepted = listener.accept().unwrap();
    let error = home.capture([victim.pid()]).capture(&home.store()).unwrap_err();
    assert_eq!(
        error.failure().map(|failure| failure.cause),
        Some(Cause::ExternalUnixSocket),
        "{}",
        explain(&error)
    );
    victim.assert_counts_on(1);
}
