//! Signals that the caller's process group gets, as from a terminal, harm no tree.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Cause, Chunking, Digest256, DumpOptions, ProcsCapture, RestoreOptions, options::CgroupMode, rpc::NoHooks};
use nix::{
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
    unistd::{Pid, getpgid, getpgrp, setpgid, setsid, tcgetpgrp, tcsetpgrp, ttyname},
};

use crate::{
    apart::{Whole, apart, random},
    harness::{Test, criu, tests},
    places::{Home, PATIENCE, lives},
    provoked::restores::Group,
    requests::Images,
    talk::Talk,
    terminal::pty,
    tree::{OrExplain, Revived, Victim, wait_gone},
};

tests![
    signals_to_the_group_of_the_caller_harm_no_tree_that_is_captured,
    signals_to_the_group_of_the_caller_harm_no_tree_that_is_revived,
    a_signal_to_the_tree_itself_is_told_and_the_next_capture_is_whole,
    a_job_is_revived_as_the_foreground_job_of_the_terminal,
    control_groups_are_restored_for_a_caller_that_ignores_sigterm,
];

pub(crate) const APART: &[Test] =
    &[("signals-captures", capture), ("signals-restores", restore), ("signals-jobs", revive_jobs), ("signals-groups", revive_in_groups)];

fn signals_to_the_group_of_the_caller_harm_no_tree_that_is_captured() {
    apart("signals-captures");
}

fn signals_to_the_group_of_the_caller_harm_no_tree_that_is_revived() {
    apart("signals-restores");
}

/// SIGCONT to a tree that is being dumped, as of a shell's `fg`, makes criu give up now and then.
fn a_signal_to_the_tree_itself_is_told_and_the_next_capture_is_whole() {
    const MOST: u32 = 300;
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["threads=2", "memory=1"]);
    let pid = victim.pid();
    let (over, mut disturbed) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let status = format!("/proc/{pid}/status");
            while !over.load(Ordering::Relaxed) {
                if fs::read_to_string(&status).is_ok_and(|status| !status.contains("TracerPid:\t0\n")) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        for _ in 0..MOST {
            if let Err(error) = home.capture([pid]).capture(&store) {
                let cause = error.failure().map(|failure| failure.cause);
                assert_eq!(cause, Some(Cause::Disturbed), "{}", error.report());
                disturbed += 1;
            }
            if disturbed > 2 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(disturbed > 0, "no signal reached the tree while criu worked on it");
    victim.assert_counts_on(0);
    let digest = home.capture([pid]).capture(&store).or_explain();
    victim.end();
    Revived::from(home.restore(), &store, &digest).assert_counts_on(1);
}

fn a_job_is_revived_as_the_foreground_job_of_the_terminal() {
    apart("signals-jobs");
}

fn control_groups_are_restored_for_a_caller_that_ignores_sigterm() {
    apart("signals-groups");
}

/// The time for which a test may repeat its captures or restores.
const ROW: Duration = Duration::from_secs(3);

const SIGNALS: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGHUP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGTERM,
];

/// Leads a process group of its own, and handles these signals.
fn lead_a_group() {
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).unwrap();
    handle_signals();
}

fn handle_signals() {
    extern "C" fn handled(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(handled), SaFlags::empty(), SigSet::empty());
    for signal in SIGNALS {
        // SAFETY: the handler does nothing.
        #[allow(unsafe_code)]
        unsafe { sigaction(signal, &action) }.unwrap();
    }
}

/// Works while the whole process group gets a signal about every millisecond.
fn under_fire<T>(work: impl FnOnce() -> T) -> T {
    struct Ceasing<'a>(&'a AtomicBool);
    impl Drop for Ceasing<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ceasing = Ceasing(&over);
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_micros(200 + random(1500)));
                let signal = SIGNALS[usize::try_from(random(SIGNALS.len() as u64)).unwrap()];
                kill(Pid::from_raw(0), signal).unwrap();
            }
        });
        work()
    })
}

/// A victim outside of our process group, which leads a session or only a group.
fn victim(leads_a_session: bool) -> Victim {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--victim");
    match leads_a_session {
        true => command.arg("session"),
        false => command.process_group(0),
    };
    command.args(["children=2", "threads=3", "memory=2"]);
    Victim::start_by(command)
}

fn chunked(chunked: bool, capture: ProcsCapture) -> ProcsCapture {
    if chunked { capture.chunked(Chunking::default()) } else { capture }
}

#[track_caller]
fn assert_goes_on(mut revived: Revived, after: &str) {
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("check"), "memory ok 512 pages", "{after}");
    assert_eq!(revived.ask("child 0 tick"), "count 1", "{after}");
    assert_eq!(revived.ask("child 1 tick"), "count 1", "{after}");
}

fn capture() {
    lead_a_group();
    let home = Home::new();
    let begin = Instant::now();
    let mut round: u32 = 0;
    while round < 8 || (round < 64 && begin.elapsed() < ROW) {
        let (session, archive, ends) = (round.is_multiple_of(2), round & 2 == 0, round & 4 == 0);
        let after = format!("in round {round}: session {session}, archive {archive}, ends {ends}");
        let mut victim = victim(session);
        victim.assert_counts_on(0);
        let whole = Whole::of(&victim);
        let capture = chunked(!archive, home.capture([victim.pid()]).leave_running(!ends));
        let captured = under_fire(|| capture.capture(&home.store()));
        if captured.is_err() || !ends {
            whole.assert_runs(&victim, &after);
            victim.assert_counts_on(1);
            assert_eq!(victim.ask("child 1 tick"), "count 1", "{after}");
        }
        captured.or_explain();
        match ends {
            true => victim.reap(&whole.members),
            false => victim.end(),
        }
        round += 1;
    }
    println!("{round} captures");
}

fn restore() {
    lead_a_group();
    let home = Home::new();
    let captured = [(true, false), (true, true), (false, false), (false, true)].map(|(session, chunks)| {
        let mut victim = victim(session);
        victim.assert_counts_on(0);
        let members = victim.members();
        let capture = chunked(chunks, home.capture([victim.pid()]).leave_running(false));
        let digest: Digest256 = capture.capture(&home.store()).or_explain();
        victim.reap(&members);
        (digest, members)
    });
    let begin = Instant::now();
    let mut round = 0;
    while round < 4 || (round < 40 && begin.elapsed() < ROW) {
        let (digest, members) = &captured[round % 4];
        let after = format!("in round {round}");
        let revived = under_fire(|| Revived::from(home.restore(), &home.store(), digest));
        assert!(members.iter().all(|pid| lives(*pid)), "{after}");
        assert_goes_on(revived, &after);
        wait_gone(members);
        round += 1;
    }
    println!("{round} restores");
}

/// Leads a session that has this terminal.
fn control(terminal: &File) {
    // `apart` leads no group, so it may lead a session.
    setsid().unwrap();
    let name = ttyname(terminal).unwrap();
    drop(File::options().read(true).write(true).open(name).unwrap());
    assert_eq!(tcgetpgrp(terminal).unwrap(), getpgrp());
}

fn revive_jobs() {
    let (mut keys, terminal) = pty();
    control(&terminal);
    handle_signals();
    let home = Home::new();
    for leads_a_group in [true, false] {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--victim").stderr(terminal.try_clone().unwrap());
        if leads_a_group {
            command.process_group(0);
        }
        let mut root = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let talk = Talk::new(root.stdin.take().unwrap(), root.stdout.take().unwrap());
        let mut victim = Victim::ready(root, talk);
        victim.assert_counts_on(0);
        let images = Images::of(&victim, &home.folder(&format!("images-{leads_a_group}")));
        let options = DumpOptions::default().shell_job(true);
        let criu = criu().deadline(Duration::from_secs(60));
        criu.dump(victim.pid(), &options, images.lend(), &mut NoHooks).or_explain();
        victim.reap(&images.members);

        let options = RestoreOptions::default().shell_job(true);
        let revived = match leads_a_group {
            true => under_fire(|| images.revive_in(&criu, &options, &terminal)),
            false => images.revive_in(&criu, &options, &terminal),
        };
        let mut revived = revived.or_explain();
        let group = if leads_a_group { Pid::from_raw(revived.pid()) } else { getpgrp() };
        assert_eq!(getpgid(Some(Pid::from_raw(revived.pid()))).unwrap(), group);
        assert_eq!(tcgetpgrp(&terminal).unwrap(), group);
        revived.assert_counts_on(1);
        keys.write_all(&[INTERRUPT]).unwrap();
        let status = revived.tree().wait_timeout(PATIENCE).or_explain().expect("the job goes on after ^C");
        assert_eq!(status.signal(), Some(Signal::SIGINT as i32));
        drop(revived);
        wait_gone(&images.members);
        take_the_foreground(&terminal);
    }
}

/// ^C.
const INTERRUPT: u8 = 3;

/// Takes the foreground of the terminal from the background.
fn take_the_foreground(terminal: &File) {
    let stop = SigSet::from(Signal::SIGTTOU);
    stop.thread_block().unwrap(); // the kernel allows it to a process that cannot be stopped by it
    tcsetpgrp(terminal, getpgrp()).unwrap();
    stop.thread_unblock().unwrap();
}

/// criu ends a helper for control groups by SIGTERM, and waits for its end.
fn revive_in_groups() {
    // SAFETY: no handler is installed.
    #[allow(unsafe_code)]
    unsafe { nix::sys::signal::signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
    let home = Home::new();
    for (leader, mode) in [
        ("none", CgroupMode::Full),
        ("none", CgroupMode::Soft),
        ("group", CgroupMode::Soft),
        ("session", CgroupMode::Full),
    ] {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--victim");
        match leader {
            "session" => drop(command.arg("session")),
            "group" => drop(command.process_group(0)),
            _ => {}
        }
        let mut victim = Victim::start_by(command);
        victim.assert_counts_on(0);
        let Some(group) = Group::new(&format!("signals-{leader}-{mode:?}")) else { return victim.end() };
        fs::write(group.0.join("cgroup.procs"), victim.pid().to_string()).unwrap();
        let images = Images::of(&victim, &home.folder(&format!("groups-{leader}-{mode:?}")));
        let shell_job = leader != "session";
        let options = DumpOptions::default().shell_job(shell_job).manage_cgroups_mode(mode);
        let criu = criu().deadline(Duration::from_secs(30));
        criu.dump(victim.pid(), &options, images.lend(), &mut NoHooks).or_explain();
        victim.reap(&images.members);
        let mut revived = images.revive(&criu, &options.shared_with()).or_explain();
        let members = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), revived.pid().to_string(), "{leader}, {mode:?}");
        revived.assert_counts_on(1);
        drop(revived);
        wait_gone(&images.members);
    }
}
