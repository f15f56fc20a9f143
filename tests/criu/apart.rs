//! Tests in a process of their own, whose children are all theirs; and what is to be whole after a
//! request, and what is not to be left of it.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    process::{Command, Stdio, exit},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Cancel, Criu, Result};
use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};

use crate::{
    harness::Test,
    places::{PATIENCE, children, family, state, wait_until},
    tree::{Victim, explain},
};

/// The processes: what each is called, and what it does.
const BODIES: [&[Test]; 6] = [
    crate::copies::APART,
    crate::faults::APART,
    crate::many::APART,
    crate::signals::APART,
    crate::soak::APART,
    crate::stress::APART,
];

/// Runs the body of this name in a process of its own.
#[track_caller]
pub(crate) fn apart(name: &str) {
    apart_by(Command::new("timeout"), name);
}

/// The same, by a command that executes what follows.
#[track_caller]
pub(crate) fn apart_by(mut command: Command, name: &str) {
    // The limit is for a request that hangs: everything else has a deadline of its own.
    command.args(["--foreground", "--signal=KILL", "170"]);
    command.arg(std::env::current_exe().unwrap()).args(["--apart", name]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("passed\n"), "{}\n{said}{complaints}", output.status);
}

pub(crate) fn main(words: &[String]) {
    let Some((_, body)) = BODIES.concat().into_iter().find(|(name, _)| *name == words[0]) else { exit(2) };
    body();
    println!("passed");
}

/// A number below this one.
pub(crate) fn random(below: u64) -> u64 {
    RandomState::new().hash_one(()) % below
}

/// The state that a request must leave as it was.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) members: Vec<i32>,
    tasks: BTreeMap<i32, String>,
    code: Vec<String>,
}

impl Whole {
    /// As it is before anything is asked: a thread that is only starting has all signals blocked.
    #[track_caller]
    pub(crate) fn of(victim: &Victim) -> Whole {
        wait_until("all threads have started", || {
            tasks(&victim.members()).all(|(_, status)| field(&status, "SigBlk") == "0000000000000000")
        });
        Whole::now(victim)
    }

    #[track_caller]
    fn now(victim: &Victim) -> Whole {
        let members = victim.members();
        wait_until("no task of the tree is stopped", || {
            tasks(&members).all(|(_, status)| !field(&status, "State").starts_with(['T', 't']))
        });
        let fields = ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "TracerPid", "Seccomp"];
        let task = |(tid, status): (i32, String)| {
            let values: Vec<_> =
                fields.iter().map(|name| format!("{name} {}", field(&status, name))).collect();
            (tid, values.join(", "))
        };
        let code = members.iter().flat_map(|pid| executable(*pid)).collect();
        Whole { tasks: tasks(&members).map(task).collect(), members, code }
    }

    /// Nothing was left in the tree, and nothing taken from it.
    #[track_caller]
    pub(crate) fn assert_kept(&self, victim: &Victim, after: &str) {
        self.assert_runs(victim, after);
        assert_eq!(Whole::now(victim).code, self.code, "{after}");
    }

    /// All tasks run, with their signals as they were.
    #[track_caller]
    pub(crate) fn assert_runs(&self, victim: &Victim, after: &str) {
        let now = Whole::now(victim);
        assert_eq!(now.members, self.members, "{after}");
        assert_eq!(now.tasks, self.tasks, "{after}");
    }
}

/// The tasks of these processes, and what `/proc` calls their status.
fn tasks(pids: &[i32]) -> impl Iterator<Item = (i32, String)> + use<> {
    let pids = pids.to_vec();
    let folders =
        pids.into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    folders.flatten().filter_map(|task| {
        let tid = task.file_name().to_str()?.parse().ok()?;
        Some((tid, fs::read_to_string(task.path().join("status")).ok()?))
    })
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

/// The mappings that can be executed, among which criu's would be.
fn executable(pid: i32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let code = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.contains('x')));
    code.map(|line| format!("{pid} {line}")).collect()
}

/// Makes this process the heir of orphans, or not: those that criu would leave are seen, or are
/// init's to reap.
pub(crate) fn inherit_orphans(on: bool) {
    nix::sys::prctl::set_child_subreaper(on).unwrap();
}

/// This process has these children, and soon no others. Orphans that have ended are reaped, if
/// those are ours to reap.
#[track_caller]
pub(crate) fn assert_alone_with(expected: &[i32], after: &str) {
    let own = crate::requests::own();
    let heir = nix::sys::prctl::get_child_subreaper().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let others: Vec<_> = children(own).into_iter().filter(|pid| !expected.contains(pid)).collect();
        for pid in others.iter().filter(|pid| heir && state(**pid) == Some('Z')) {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)); // the reaper's, then
        }
        if others.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            let told: Vec<_> = others.iter().flat_map(|pid| family(*pid)).map(describe).collect();
            panic!("these are left {after}:\n{}", told.concat());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Describes a process that should not exist, by `/proc`.
fn describe(pid: i32) -> String {
    let told = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = told("status");
    let states: Vec<_> = tasks(&[pid]).map(|(_, status)| field(&status, "State").to_owned()).collect();
    let states = states.join("; ");
    let (parent, tracer) = (field(&status, "PPid"), field(&status, "TracerPid"));
    let words = told("cmdline").replace('\0', " ");
    format!("{pid}: {states}; parent {parent}, tracer {tracer}, {words:?}, in {}", told("wchan"))
}

/// Asks with a criu that is given up after this time: by a deadline or by another thread. `None` if
/// it was.
#[track_caller]
pub(crate) fn given_up<T>(
    criu: Criu,
    after: Duration,
    by_thread: bool,
    ask: impl FnOnce(Criu) -> Result<T>,
) -> Option<Result<T>> {
    let result = if by_thread {
        let cancel = Cancel::new().unwrap();
        let criu = criu.cancelled_by(&cancel);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(after);
                cancel.cancel();
            });
            ask(criu)
        })
    } else {
        ask(criu.deadline(after))
    };
    match result {
        Err(error) if by_thread && error.is_cancelled() => None,
        Err(error) if !by_thread && error.is_timeout() => None,
        Err(error) if error.is_cancelled() || error.is_timeout() => {
            panic!("{}", explain(&error))
        }
        result => Some(result),
    }
}
