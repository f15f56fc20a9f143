//! [`Tree`]: the processes of a tree to dump, and their state afterwards.

use std::{
    collections::{BTreeMap, HashSet},
    fs, thread,
    time::Duration,
};

use crate::{
    Pid, Target,
    procfs::{self, Stat},
};

/// The processes of a tree before the request, and the state of each. Empty if the request has no
/// tree.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<i32, char>);

/// The state of a tree after a failed request.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) target: Target,
    /// Findings about single processes, in words.
    pub(super) findings: Vec<String>,
}

impl Tree {
    pub(super) fn of(root: i32) -> Tree {
        let processes = procfs::tree(root).into_iter();
        Tree(processes.filter_map(|pid| Some((pid, Stat::of(pid).ok()?.state))).collect())
    }

    /// Looks at every process and thread of the tree. After a criu that died (`criu_lost`),
    /// processes that ended meanwhile count as damage: SIGTRAP kills threads that criu controlled.
    pub(super) fn condition(&self, root: i32, tracer: Option<Pid>, criu_lost: bool) -> Condition {
        if criu_lost {
            thread::sleep(SETTLING);
        }
        let mut findings = Vec::new();
        let (mut damaged, mut traced, mut stopped) = (false, tracer.is_some(), false);
        let now = procfs::tree(root);
        let known: HashSet<i32> = now.iter().copied().collect();
        let members = now.iter().chain(self.0.keys().filter(|pid| !known.contains(pid)));
        for pid in members.copied() {
            let before = self.0.get(&pid).copied();
            match look(pid) {
                Seen::Gone | Seen::Dead(0) if criu_lost && before.is_some_and(|state| state != 'Z') => {
                    damaged = true;
                    findings.push(format!("process {pid} has ended since criu was asked"));
                }
                Seen::Dead(signal) if signal != 0 && before.is_some_and(|state| state != 'Z') => {
                    damaged = true;
                    findings.push(format!("process {pid} died of signal {signal}"));
                }
                Seen::Traced => traced = true,
                Seen::Stopped if pid == root => stopped = true,
                Seen::Stopped if before.is_some_and(|state| state != 'T') => {
                    stopped = true;
                    findings.push(format!("process {pid} is stopped"));
                }
                Seen::Gone | Seen::Dead(_) | Seen::Stopped | Seen::Alive => {}
            }
        }
        let target = match look(root) {
            _ if tracer.is_some() => Target::Traced,
            Seen::Gone | Seen::Dead(_) => Target::Gone,
            _ if damaged => Target::Damaged,
            _ if traced => Target::Traced,
            _ if stopped => Target::Stopped,
            _ => Target::Running,
        };
        Condition { target, findings }
    }
}

/// The time until a thread dies of code that a killed criu has left in it.
const SETTLING: Duration = Duration::from_millis(50);

/// A process, by its threads.
enum Seen {
    Gone,
    /// A zombie, with the signal that ended it; 0 if it exited.
    Dead(i32),
    /// At least one of its threads is traced.
    Traced,
    Stopped,
    Alive,
}

fn look(pid: i32) -> Seen {
    let Ok(stat) = Stat::of(pid) else { return Seen::Gone };
    if stat.is_zombie() && !ended_first_thread_alone(pid) {
        return Seen::Dead(stat.exit_code & 0x7f);
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    let states: Vec<_> = states.filter_map(|thread| Some(Stat::of_thread(pid, thread).ok()?.state)).collect();
    if states.contains(&'t') {
        Seen::Traced
    } else if states.contains(&'T') {
        Seen::Stopped
    } else {
        Seen::Alive
    }
}

/// Returns true if the process looks like a zombie, but other threads of it live on.
pub(super) fn ended_first_thread_alone(pid: i32) -> bool {
    Stat::of(pid).is_ok_and(|stat| stat.is_zombie())
        && procfs::status_number(pid, "Threads").is_some_and(|count| count > 1)
}
