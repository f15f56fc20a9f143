//! Ending trees and sessions: nothing of them remains, and nothing else is touched.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Error, ProcessProblem, kill_session, kill_tree};
use nix::sys::prctl;

use crate::apart::Apart;

/// A shell with descendants, which prints their number.
const TREE: &str = "
    sleep 1000 & echo $!
    sh -c 'sleep 1000 & echo $!; sleep 1000 & echo $!; wait' & echo $!
    wait
";
const BELOW: usize = 4;

/// Returns the state of a process; `None` if its number is free.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn number(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// Starts a shell with these commands, and reads the first numbers that it prints.
#[track_caller]
fn shell(script: &str, count: usize, prepare: impl FnOnce(&mut Command)) -> (Child, Vec<i32>) {
    let mut command = Command::new("sh");
    prepare(command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let numbers: Vec<i32> = lines.take(count).map(|line| line.unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.len(), count);
    (child, numbers)
}

#[track_caller]
fn wait_until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Kills the tree of our child, and checks that all its numbers except the child's are free.
#[track_caller]
fn assert_frees_its_numbers() {
    let (mut root, below) = shell(TREE, BELOW, |_| {});
    kill_tree(root.id()).unwrap();
    let left: Vec<_> = below.iter().filter(|pid| state(**pid).is_some()).collect();
    assert!(left.is_empty(), "{left:?} of {below:?}");
    assert_eq!(state(number(&root)), Some('Z'), "it is ours to wait for");
    assert_eq!(root.wait().unwrap().signal(), Some(9));
}

#[test]
fn the_numbers_of_a_tree_that_is_ours_are_free_at_once() {
    Apart::new(module_path!(), "the_numbers_of_a_tree_that_is_ours_are_free_at_once").run(|| {
        let mut other = Command::new("true").spawn().unwrap();
        wait_until("the other child has ended", || state(number(&other)) == Some('Z'));
        assert_frees_its_numbers();
        assert!(!prctl::get_child_subreaper().unwrap(), "it is no subreaper afterwards");
        assert!(other.wait().unwrap().success(), "another child is left to its owner");

        prctl::set_child_subreaper(true).unwrap();
        assert_frees_its_numbers();
        assert!(prctl::get_child_subreaper().unwrap(), "it still is a subreaper");
    });
}

#[test]
fn trees_can_be_killed_at_once() {
    Apart::new(module_path!(), "trees_can_be_killed_at_once").run(|| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(assert_frees_its_numbers);
            }
        });
        assert!(!prctl::get_child_subreaper().unwrap());
    });
}

#[test]
fn a_tree_below_a_child_is_reaped_but_for_its_root() {
    Apart::new(module_path!(), "a_tree_below_a_child_is_reaped_but_for_its_root").run(|| {
        let script = format!("sh -c '{}' & echo $!; read line", TREE.replace('\'', "'\"'\"'"));
        let (mut parent, all) = shell(&script, BELOW + 1, |command| {
            command.stdin(Stdio::piped());
        });
        // The shell and its child print at the same time.
        let root = *all.iter().find(|pid| parent_of(**pid) == Some(number(&parent))).unwrap();
        kill_tree(root).unwrap();
        assert!(all.iter().all(|pid| *pid == root || state(*pid).is_none()));
        drop(parent.stdin.take());
        parent.wait().unwrap();
    });
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Makes the command lead a session, as `setsid` does for a shell.
fn leads_a_session(command: &mut Command) {
    #[allow(unsafe_code)]
    // SAFETY: what is called between fork and exec is one system call.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(|_| ()).map_err(Into::into))
    };
}

#[test]
fn what_is_left_of_a_session_is_ended_with_its_trees() {
    let script = "(sleep 1000 & echo $!); sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait";
    let (mut leader, others) = shell(script, 3, leads_a_session);
    let [orphan, child, below] = others[..] else { panic!("{others:?}") };
    wait_until("it is an orphan", || parent_of(orphan) != Some(number(&leader)));
    wait_until("it leads another session", || {
        fs::read_to_string(format!("/proc/{below}/stat")).is_ok_and(|stat| stat.contains("(sleep)"))
    });
    kill_session(leader.id()).unwrap();
    for pid in [orphan, child, below] {
        assert!(matches!(state(pid), None | Some('Z')), "{pid}: {:?}", state(pid));
    }
    assert_eq!(leader.wait().unwrap().signal(), Some(9));
    kill_session(leader.id()).unwrap(); // it has no processes any more
}

#[test]
fn no_session_of_ours_is_ended() {
    for session in [nix::unistd::getsid(None).unwrap().as_raw(), 1, 0, -1] {
        let error = kill_session(session).unwrap_err();
        assert!(matches!(error, Error::Process { .. }), "{error}");
        let ours = matches!(error, Error::Process { problem: ProcessProblem::Ourselves, .. });
        assert!(ours || session < 1, "{error}");
    }
}
