//! A look as such: what it costs, and whom it is refused for.

use std::{
    fs,
    time::{Duration, Instant},
};

use criu_rpc::{Error, ProcessProblem};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};

use super::{defaults, dump, lines, perl};
use crate::{
    harness::{criu, dumps_tcp, tests},
    places::state,
    tree::{OrExplain, Victim},
};

tests![
    a_capture_foresees_what_it_adds_by_itself,captures_that_need_no_options_are_clear, a_process_that_captures_itself_cannot_end, a_mount_namespace_without_a_root_folder_is_refused_before_criu_is_asked, a_clean_tree_is_clear, a_look_takes_milliseconds_and_touches_nothing, a_pid_of_no_process_is_an_error,];

fn a_clean_tree_is_clear() {
    let mut victim = Victim::start(&["children=2", "threads=2", "memory=2", "listen=tcp"]);
    let preflight = criu().preflight(victim.pid(), &defaults()).or_explain();
    assert_eq!(preflight.findings, [], "{}", lines(&preflight.findings));
    assert_eq!((preflight.processes, preflight.blockers().count()), (3, 0));
    if dumps_tcp() {
        dump(victim.pid(), &defaults()).unwrap();
    }
    victim.assert_counts_on(0);
}

/// Fifty processes that sleep.
fn a_look_takes_milliseconds_and_touches_nothing() {
    let mut victim = perl("for (1 .. 49) { unless (fork) { sleep 1000; exit } }");
    let members = victim.members();
    assert_eq!(members.len(), 50);
    let start = Instant::now();
    let preflight = criu().preflight(victim.pid(), &defaults()).or_explain();
    let first = start.elapsed();
    let (start, worked) = (Instant::now(), processor_time());
    for _ in 0..10 {
        assert_eq!(criu().preflight(victim.pid(), &defaults()).or_explain(), preflight);
    }
    let (then, worked) = (start.elapsed() / 10, (processor_time() - worked) / 10);
    // The machine may be busy: what the processor did says more than the clock.
    eprintln!("preflight of {} processes: {first:?}, then {then:?}; at work {worked:?}", preflight.processes);
    assert_eq!(preflight.findings, [], "{}", lines(&preflight.findings));
    assert_eq!(preflight.processes, 50);
    assert!(members.iter().all(|pid| state(*pid) == Some('S')));
    assert_eq!(victim.ask("?"), "here");
}

/// Returns the processor time of this thread.
pub(super) fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap());
    micros(usage.user_time()) + micros(usage.system_time())
}

fn a_pid_of_no_process_is_an_error() {
    for (pid, expected) in [
        (i32::MAX, ProcessProblem::Missing),
        (0, ProcessProblem::Impossible),
        (-1, ProcessProblem::Impossible),
    ] {
        let error = criu().preflight(pid, &defaults()).unwrap_err();
        assert!(matches!(error, Error::Process { problem, .. } if problem == expected), "{error}");
    }
    // Inside a pid namespace there is no thread of the kernel.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        let error = criu().preflight(2, &defaults()).unwrap_err();
        assert!(matches!(error, Error::Process { problem: ProcessProblem::Kernel, .. }), "{error}");
    }
}

/// A job in a session of ours has no session, and a capture takes it all the same.
fn a_capture_foresees_what_it_adds_by_itself() {
    let home = crate::places::Home::new();
    let victim = crate::tree::Victim::start_in_our_session(&[]);
    let capture = home.capture([victim.pid()]);
    let blockers = crate::harness::criu().preflight(victim.pid(), &criu_rpc::DumpOptions::default()).unwrap();
    assert_ne!(blockers.blockers().count(), 0);
    let foresight = capture.preflight().unwrap();
    assert!(foresight.is_clear() && foresight.processes == 1, "{foresight:?}");
    capture.capture(&home.store()).unwrap();

    let victim = super::perl("my $n = \"q$$\"; syscall(240, $n, 0x42, 0600, 0) >= 0 or die; syscall(241, $n)");
    let capture = home.capture([victim.pid()]);
    let foresight = capture.preflight().unwrap();
    assert!(foresight.blocks.iter().any(|line| line.to_string().contains("message queue")), "{foresight:?}");
    capture.capture(&home.store()).unwrap_err();
    let foresight = home.capture([victim.pid()]).criu("/nonexistent/criu").preflight().unwrap();
    assert!(!foresight.is_clear() && foresight.processes == 0, "{foresight:?}");
}

/// The foresight of a capture is clear, and the capture succeeds.
#[track_caller]
fn foreseen_clear(home: &crate::places::Home, pid: i32) {
    let capture = home.capture([pid]);
    let foresight = capture.preflight().or_explain();
    assert!(foresight.is_clear() && foresight.processes > 0, "{foresight:?}");
    capture.capture(&home.store()).or_explain();
}

/// Criu's own preflight blocks them all.
fn captures_that_need_no_options_are_clear() {
    let home = crate::places::Home::new();
    let blocked = |pid: i32| criu().preflight(pid, &defaults()).or_explain().blockers().count() > 0;

    let terminal = crate::program::Terminal::new();
    let mut shell = std::process::Command::new("dash");
    shell.arg("-i");
    let mut program = crate::program::Program::in_terminal(&terminal, &shell);
    program.talk.tell("echo rea''dy");
    program.talk.until("ready");
    assert!(blocked(program.pid()));
    foreseen_clear(&home, program.pid());

    let path = home.path("locked");
    let open = |then: &str| perl(&format!("open(F, '+>', '{}') or die; {then}", path.display()));
    let locks = open("flock(F, 2) or die");
    assert!(blocked(locks.pid()));
    foreseen_clear(&home, locks.pid());
    drop(locks);

    let large = open(&format!("syswrite(F, 'x' x 5_000_000); unlink('{}')", path.display()));
    assert!(blocked(large.pid()));
    foreseen_clear(&home, large.pid());

    let connected = perl(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
         $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; $a = $s->accept",
    );
    assert!(blocked(connected.pid()));
    let foresight = home.capture([connected.pid()]).preflight().or_explain();
    assert!(foresight.is_clear(), "{foresight:?}");
    if dumps_tcp() {
        foreseen_clear(&home, connected.pid());
    }
}

fn a_process_that_captures_itself_cannot_end() {
    let home = crate::places::Home::new();
    let own = i32::try_from(std::process::id()).unwrap();
    let refusals = |leave_running: bool| {
        let foresight = home.capture([own]).leave_running(leave_running).preflight().or_explain();
        foresight.blocks.iter().filter(|line| line.to_string().contains("captures itself")).count()
    };
    assert_eq!((refusals(false), refusals(true)), (1, 0));
    home.capture([own]).leave_running(false).capture(&home.store()).unwrap_err();
}

/// The tree goes on, so its pids are taken, and criu would say that.
fn a_mount_namespace_without_a_root_folder_is_refused_before_criu_is_asked() {
    let home = crate::places::Home::new();
    let victim = super::files::in_mounts("1");
    let capture = home.capture([victim.pid()]);
    let foresight = capture.preflight().or_explain();
    assert!(foresight.is_clear() && foresight.risks.iter().any(|line| line.to_string().contains("root")), "{foresight:?}");
    let cause = |digest| {
        let foresight = home.restore().preflight(&home.store(), &digest).or_explain();
        let foreseen = |finding: &criu_rpc::Foreseen| finding.cause == Some(criu_rpc::Cause::RootFolderNeeded);
        assert!(foresight.blocks.iter().any(foreseen), "{foresight:?}");
        let refused = home.restore().restore(&home.store(), &digest).unwrap_err();
        refused.failure().map(|failure| failure.cause)
    };
    let digest = capture.capture(&home.store()).or_explain();
    assert_eq!(cause(digest), Some(criu_rpc::Cause::RootFolderNeeded));
    let chunked = capture.chunked(criu_rpc::Chunking::default()).capture(&home.store()).or_explain();
    assert_eq!(cause(chunked), Some(criu_rpc::Cause::RootFolderNeeded));
}
