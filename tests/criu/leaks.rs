//! Nothing leaks: no zombie, no descriptor, no file. Counted in a process of its own, which does
//! nothing else.

use std::process::Command;

use criu_rpc::{Cause, Error};

use crate::{
    harness::tests,
    places::{Home, children, names, wait_until},
    stores::{Failing, Fault},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![a_hundred_captures_and_as_many_failures_leave_nothing_behind];

fn a_hundred_captures_and_as_many_failures_leave_nothing_behind() {
    let output = Command::new("/proc/self/exe").arg("--leaks").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said == "nothing leaked\n", "{said}{complaints}");
}

/// The process in which is counted.
pub(crate) fn main(_: &[String]) {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1", "threads=1"]);
    // What is made once, such as the thread that reaps, does not count.
    round(&home, &mut victim);
    revive_and_let_go(&home);
    let before = (descriptors(), children(own()));
    assert_eq!(before.1, [victim.pid()]);
    // A criu that was left early is reaped by a thread, a moment later on a busy machine.
    let settled = || wait_until("nothing is left behind", || (descriptors(), children(own())) == before);
    for _ in 0..50 {
        round(&home, &mut victim);
        settled();
    }
    for _ in 0..5 {
        revive_and_let_go(&home);
        settled();
    }
    let squatter = fail_to_revive_a_child(&home);
    let expected = [victim.pid(), squatter.pid()];
    assert!(children(own()).iter().all(|pid| expected.contains(pid)), "a zombie is left");
    squatter.end();
    settled();
    victim.end();
    println!("nothing leaked");
}

/// Two captures that succeed, two dumps and a restore that fail, and failures before criu is asked.
fn round(home: &Home, victim: &mut Victim) {
    let store = home.store();
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    home.capture([victim.pid()]).capture(&store).or_explain();

    let failing = Failing { inner: home.store(), fault: Fault::WriteAfter(100_000) };
    home.capture([victim.pid()]).leave_running(false).capture(&failing).unwrap_err();
    home.capture([victim.pid()]).capture(&failing).unwrap_err();
    home.capture([i32::MAX]).capture(&store).unwrap_err();
    let absent = home.capture([victim.pid()]).criu("/nonexistent/criu").capture(&store).unwrap_err();
    assert!(matches!(absent, Error::NoCriu { .. }), "{}", explain(&absent));
    let no_criu = home.capture([victim.pid()]).criu("/bin/true").capture(&store).unwrap_err();
    assert!(matches!(no_criu, Error::Gone(_)), "{}", explain(&no_criu));
    let taken = home.restore().restore(&store, &digest).unwrap_err();
    assert!(taken.failure().is_some_and(|failure| failure.cause == Cause::PidInUse), "{}", explain(&taken));
    home.assert_staging_empty();
    assert!(victim.ask("tick").starts_with("count "));
}

/// Revived trees are our children: none of them stays behind either.
fn revive_and_let_go(home: &Home) {
    let store = home.store();
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    drop(Revived::from(home.restore(), &store, &digest));
    let (tree, mut talk) = Revived::from(home.restore(), &store, &digest).give();
    let pid = tree.pid().as_raw();
    drop(tree);
    talk.hang_up();
    crate::tree::wait_gone(&[pid]);
}

/// The number of a child is taken, so that the root was made already when the restore fails. By
/// whom it was taken.
fn fail_to_revive_a_child(home: &Home) -> Victim {
    let store = home.store();
    let victim = Victim::start(&["children=1"]);
    let child = victim.members()[1];
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    let mut squatter = squat(child);
    let error = home.restore().restore(&store, &digest).unwrap_err();
    assert!(error.failure().is_some_and(|failure| failure.cause == Cause::PidInUse), "{}", explain(&error));
    squatter.assert_counts_on(0);
    squatter
}

/// A victim of this number.
fn squat(pid: i32) -> Victim {
    for _ in 0..200 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let victim = Victim::start(&[]);
        if victim.pid() == pid {
            return victim;
        }
    }
    panic!("others were quicker to take {pid}, 200 times");
}

fn descriptors() -> Vec<String> {
    names("/proc/self/fd".as_ref())
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}
