//! Processes that cannot be dumped: traced, ended, or not to be stopped.

use std::{
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, Pid, Target,
    options::LogLevel,
};

use super::{Dumps, assert_cause, child, odd, odd::syscall, plain};
use crate::{
    harness::tests,
    places::wait_until,
    service::Service,
    tree::{Victim, explain},
};

tests![
    a_pending_trap,
    a_first_thread_that_ended,
    a_process_that_somebody_traces,
    a_process_that_cannot_be_frozen,
    a_control_group_without_a_freezer,
    a_process_that_does_not_exist,
    a_process_that_has_ended,
    threads_without_their_first,
    a_process_that_has_ended_and_a_control_group,
];

fn a_pending_trap() {
    Dumps::new().refused(&mut odd(&["trap"]), &plain(), Cause::PendingTrap);
}

fn a_first_thread_that_ended() {
    let mut victim = odd(&["leaderless"]);
    wait_until("the first thread has ended", || crate::places::state(victim.pid()) == Some('Z'));
    let result = Dumps::new().dump(victim.pid(), &plain());
    assert_cause(result, Cause::UnsupportedThreads, Target::Running);
    assert_eq!(victim.ask("tick"), "count 1");
}

fn a_process_that_somebody_traces() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let pid = victim.pid();
    traced(pid, || refused_as_traced(&mut dumps, &mut victim));
    dumps.cured(&mut victim, plain());

    let mut victim = odd(&["child=cat"]);
    traced(child(&victim), || refused_as_traced(&mut dumps, &mut victim));
    dumps.cured(&mut victim, plain());

    let mut victim = Victim::start(&["threads=2"]);
    let threads = std::fs::read_dir(format!("/proc/{}/task", victim.pid())).unwrap();
    let threads = threads.map(|thread| thread.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let thread: i32 = threads.into_iter().find(|thread| *thread != victim.pid()).unwrap();
    traced(thread, || refused_as_traced(&mut dumps, &mut victim));
    dumps.cured(&mut victim, plain());

    let mut victim = odd(&["child=cat"]);
    let (mut dumps, _service) = by_service();
    traced(child(&victim), || refused_as_traced(&mut dumps, &mut victim));
    // The criu that was asked is not taken for a debugger.
    let options = || plain().freeze_cgroup("/nonexistent");
    dumps.refused(&mut victim, &options(), Cause::NoFreezer);
}

/// Dumps what this process traces in vain, and is told who that is.
#[track_caller]
fn refused_as_traced(dumps: &mut Dumps, victim: &mut Victim) {
    let result = dumps.dump(victim.pid(), &plain());
    let failure = result.as_ref().unwrap_err().failure().unwrap();
    assert_eq!(failure.tracer, Some(Pid::own()), "{}", failure.report());
    let report = failure.report().to_string();
    assert!(report.contains(&format!("the tree:    is traced by process {}\n", Pid::own())), "{report}");
    assert_cause(result, Cause::Untraceable, Target::Traced);
    victim.ask("tick");
}

/// Does it while a thread of ours traces this process.
fn traced(pid: i32, act: impl FnOnce()) {
    let (seized, is_seized) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let end = end; // whatever way this ends, the thread does, and traces no more
        scope.spawn(move || {
            const PTRACE_SEIZE: i64 = 0x4206;
            let result = syscall(libc::SYS_ptrace, [PTRACE_SEIZE, pid.into(), 0, 0, 0]);
            seized.send(result).unwrap();
            let _ = ended.recv(); // never sent
        });
        assert_eq!(is_seized.recv().unwrap(), 0);
        act();
        drop(end);
    });
}

fn a_process_that_cannot_be_frozen() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&["stuck"]);
    wait_until("it is stuck", || crate::places::state(victim.pid()) == Some('D'));
    let started = Instant::now();
    let result = dumps.dump(victim.pid(), &plain().timeout(Duration::from_secs(1)));
    assert!(started.elapsed() < Duration::from_secs(9));
    assert_cause(result, Cause::FreezeTimeout, Target::Running);
    victim.talk.tell("go on");
    assert_eq!(victim.talk.hear(), format!("ready {}", victim.pid()));
    assert_eq!(victim.ask("tick"), "count 1");
}

fn a_control_group_without_a_freezer() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let folder = dumps.home.folder("no-group").display().to_string();
    dumps.refused(&mut victim, &plain().freeze_cgroup(folder), Cause::NoFreezer);
    dumps.cured(&mut victim, plain());
}

fn a_process_that_does_not_exist() {
    let victim = odd(&[]);
    let pid = victim.pid();
    victim.end();
    let (mut dumps, _service) = by_service();
    for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Debug] {
        let result = dumps.dump(pid, &plain().log_level(level));
        assert_cause(result, Cause::NoSuchProcess, Target::Gone);
    }
}

/// Dumps by a service. Before it is asked, the caller cannot tell what it means by a number.
fn by_service() -> (Dumps, Service) {
    let mut dumps = Dumps::new();
    let service = Service::start(&dumps.home);
    dumps.criu = service.criu();
    (dumps, service)
}

fn a_process_that_has_ended() {
    let mut child = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    wait_until("it has ended", || crate::places::state(pid) == Some('Z'));
    let (mut dumps, _service) = by_service();
    let result = dumps.dump(pid, &plain().log_level(LogLevel::Debug));
    child.wait().unwrap();
    assert_cause(result, Cause::NoSuchProcess, Target::Gone);
}

fn threads_without_their_first() {
    let program = std::env::current_exe().unwrap();
    let mut victim = odd(&[&format!("child={} --odd leaderless", program.display())]);
    let inner = child(&victim);
    wait_until("the first thread has ended", || crate::places::state(inner) == Some('Z'));
    Dumps::new().refused(&mut victim, &plain(), Cause::UnsupportedThreads);
}

fn a_process_that_has_ended_and_a_control_group() {
    let Some(group) = super::restores::Group::new("ended") else { return };
    let mut command = Command::new("perl");
    let script = "use POSIX; unless (fork) { setsid; exit } <STDIN>";
    let mut parent = command.args(["-e", script]).stdin(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(parent.id()).unwrap();
    let ended = || {
        let child = crate::places::children(pid).first().copied()?;
        (crate::places::state(child) == Some('Z')).then_some(child)
    };
    wait_until("the child has ended", || ended().is_some());
    // criu does not try to seize it then, and crashes on what it has not learned of it.
    let options = plain().freeze_cgroup(group.0.display().to_string());
    let (mut dumps, _service) = by_service();
    let error = dumps.dump(ended().unwrap(), &options).unwrap_err();
    drop(parent.stdin.take());
    parent.wait().unwrap();
    assert_eq!(error.failure().unwrap().cause, Cause::DeadRoot, "{}", explain(&error));
}
