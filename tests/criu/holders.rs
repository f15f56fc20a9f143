//! Numbers that a tree is to get back, and what holds them: not only processes, but their groups
//! and sessions.

use std::{
    io::ErrorKind,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Cause, Digest256, Error, FsBlobStore};
use nix::sys::signal::Signal;

use crate::{
    harness::tests,
    places::{Home, family, lives, wait_until},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, signal, wait_gone},
    ways::Way,
};

tests![
    a_number_that_is_a_zombies_group_is_waited_for,
    a_number_that_is_the_group_of_a_living_process_is_told_with_it,
    a_number_that_is_the_session_of_an_orphan_is_told_and_waited_for_once_it_ends,
];

/// A process that this test started, ended and reaped at the latest when this is dropped.
pub(crate) struct Sleeper(pub(crate) Child);

impl Sleeper {
    /// In the process group of this number.
    pub(crate) fn in_group(group: i32) -> Sleeper {
        Sleeper(Command::new("sleep").arg("600").stdin(Stdio::null()).process_group(group).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        match self.0.kill() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => panic!("{error}"),
            _ => drop(self.0.wait()),
        }
    }
}

/// A victim that leads a process group in the session of the tests, captured, and ended once
/// another process is in its group.
pub(crate) fn captured_with_a_follower(home: &Home, store: &FsBlobStore) -> (i32, Digest256, Sleeper) {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--victim").process_group(0);
    let victim = Victim::start_by(command);
    let digest = home.capture([victim.pid()]).capture(store).or_explain();
    let pid = victim.pid();
    let follower = Sleeper::in_group(pid);
    victim.end();
    (pid, digest, follower)
}

#[track_caller]
fn assert_in_use(error: &Error, found: &str) {
    let in_use = error.failure().is_some_and(|failure| failure.cause == Cause::PidInUse);
    assert!(in_use && error.report().to_string().contains(found), "{found}: {}", explain(error));
}

fn a_number_that_is_a_zombies_group_is_waited_for() {
    let home = Home::new();
    let store = home.store();
    let (pid, digest, mut follower) = captured_with_a_follower(&home, &store);
    follower.0.kill().unwrap();
    let patience = Duration::from_millis(300);
    let begin = Instant::now();
    let error = home.restore().wait_for_pids(patience).restore(&store, &digest).unwrap_err();
    assert!(begin.elapsed() >= patience);
    let holder = format!("pid {pid} is held as a process group by process {}, the zombie of `sleep`", follower.0.id());
    assert_in_use(&error, &holder);

    let reaper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        drop(follower);
    });
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
    reaper.join().unwrap();
}

fn a_number_that_is_the_group_of_a_living_process_is_told_with_it() {
    let home = Home::new();
    let store = home.store();
    let (pid, digest, follower) = captured_with_a_follower(&home, &store);
    let begin = Instant::now();
    let error = home.restore().wait_for_pids(Duration::from_secs(600)).restore(&store, &digest).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(300), "a process that lives was waited for");
    let holder = format!("pid {pid} is held as a process group by process {}, `sleep`, which runs", follower.0.id());
    assert_in_use(&error, &holder);
    drop(follower);
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn a_number_that_is_the_session_of_an_orphan_is_told_and_waited_for_once_it_ends() {
    for chunked in [false, true] {
        session_of_an_orphan(Way { ends: false, chunked });
    }
}

#[track_caller]
fn session_of_an_orphan(way: Way) {
    let home = Home::new();
    let store = home.store();
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", "echo ready $$; while read line; do [ \"$line\" = go ] || exit; sh -c 'sleep 600 <&- >&- & echo $!'; done"]);
    let mut victim = Victim::start_by(command);
    let pid = victim.pid();
    let digest = way.capture(&home, pid).capture(&store).or_explain();
    let orphan: i32 = victim.ask("go").parse().unwrap();
    let name = format!("/proc/{orphan}/comm");
    wait_until("it sleeps", || std::fs::read(&name).unwrap() == b"sleep\n");
    wait_until("it is an orphan", || !family(pid).contains(&orphan));
    victim.end();

    let error = home.restore().restore(&store, &digest).unwrap_err();
    assert_in_use(&error, &format!("pid {pid} is held as a session by process {orphan}, `sleep`, which runs"));
    signal(orphan, Signal::SIGKILL);
    wait_until("the orphan has ended", || !lives(orphan));
    // Where init reaps late, the number is still a zombie's session.
    let (mut talk, input, output) = Talk::through_pipes();
    let restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
    let again: i32 = talk.ask("go").parse().unwrap();
    assert!(lives(again));
    signal(again, Signal::SIGKILL);
    drop(Revived::new(restored.trees.into_iter().next().unwrap(), talk));
    wait_gone(&[again]);
}
