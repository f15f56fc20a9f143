//! Very many processes: in the session of a tree, and in a tree.
//!
//! `CRIU_MANY` says how many there are. With so many the times are printed; a small number finds
//! what is wrong sooner.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use criu_rpc::{Cause, Criu, DumpOptions, kill_session, kill_tree, preflight::Obstacle};

use crate::{
    apart::{assert_alone_with, inherit_orphans},
    harness::tests,
    places::{Home, children, state, wait_until},
    tree::{OrExplain, Revived, Victim},
};

tests![very_many_processes_in_a_session_and_in_a_tree_are_no_trouble];

const FEWEST: usize = 300;

/// The number of processes that a victim makes at a time.
const AT_ONCE: usize = 100;

/// The most holders of one number that an error names.
const TOLD: usize = 10;

fn very_many_processes_in_a_session_and_in_a_tree_are_no_trouble() {
    crate::apart::apart("many");
}

pub(crate) const APART: &[crate::harness::Test] = &[("many", || {
    inherit_orphans(true);
    in_a_session(how_many());
    in_a_tree(how_many());
})];

fn how_many() -> usize {
    env::var("CRIU_MANY").ok().and_then(|many| many.parse().ok()).unwrap_or(FEWEST).max(FEWEST) / AT_ONCE * AT_ONCE
}

/// A victim in perl that leads a session, and makes [`AT_ONCE`] processes that wait when it hears
/// `go`.
fn breeder(keeps_them: bool) -> Victim {
    let waiting = "close $_ for *STDIN, *STDOUT; sleep while 1";
    let breed = format!("for (1 .. {AT_ONCE}) {{ my $p = fork // die; if (!$p) {{ {waiting} }} }}");
    // Without a parent between them and this process they are orphans.
    let breed = if keeps_them { breed } else { format!("fork or do {{ {breed} POSIX::_exit(0) }}; wait;") };
    let mut command = Command::new("perl");
    let program = format!(
        "use POSIX; POSIX::setsid(); $| = 1; print \"ready $$\\n\"; \
         while (<STDIN>) {{ if ($_ eq \"go\\n\") {{ {breed} }} print \"done\\n\"; }}"
    );
    command.args(["-e", &program]);
    Victim::start_by(command)
}

/// Makes so many processes.
fn breed(victim: &mut Victim, many: usize) {
    for _ in 0..many / AT_ONCE {
        assert_eq!(victim.ask("go"), "done");
    }
}

/// Does it, and prints how long that took.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = work();
    println!("{what}: {:?}", begin.elapsed());
    done
}

fn in_a_session(many: usize) {
    let home = Home::new();
    let store = home.store();
    let mut victim = breeder(false);
    let pid = victim.pid();
    let digest = home.capture([pid]).capture(&store).or_explain();
    breed(&mut victim, many);
    let own = i32::try_from(std::process::id()).unwrap();
    wait_until("all are orphans", || children(own).len() == many + 1);

    let seen = timed("preflight of a tree in a session of many", || {
        Criu::new().preflight(pid, &DumpOptions::default()).or_explain()
    });
    let shared =
        seen.findings.iter().filter(|finding| matches!(finding.obstacle, Obstacle::Shared { .. })).count();
    assert_eq!((seen.processes, shared), (1, 1), "{:?}", seen.findings.len());

    victim.end();
    let error = timed("a restore that fails, because the number of the session is taken", || {
        home.restore().wait_for_pids(Duration::ZERO).restore(&store, &digest).unwrap_err()
    });
    let failure = error.failure().unwrap();
    assert_eq!(failure.cause, Cause::PidInUse);
    let holders = failure.findings.iter().filter(|finding| finding.contains("as a session")).count();
    assert!((1..=TOLD).contains(&holders), "{holders} are named");

    timed("kill_session", || kill_session(pid).or_explain());
    assert_alone_with(&[], "by kill_session");
    drop(Revived::from(home.restore(), &store, &digest));
}

fn in_a_tree(many: usize) {
    let mut victim = breeder(true);
    let pid = victim.pid();
    breed(&mut victim, many);
    let seen = timed("preflight of a tree of many", || {
        Criu::new().preflight(pid, &DumpOptions::default()).or_explain()
    });
    assert_eq!(seen.processes, many + 1);
    timed("kill_tree", || kill_tree(pid).or_explain());
    assert_eq!(state(pid), Some('Z'));
    victim.end();
    assert_alone_with(&[], "by kill_tree");
}
