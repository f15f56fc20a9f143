//! Settings of threads and processes that criu does not carry along, and that can be read and set
//! from outside.

use std::fs;

use super::Frozen;
use crate::{
    Error, Result,
    procfs::{Stat, Status, is_in_our_pid_namespace, read_start},
    proto::images::{SessionNotes, ThreadNotes},
    sys,
};

/// Reads the settings of every thread. What cannot be read is not noted.
pub(super) fn look(tree: &Frozen) -> Vec<ThreadNotes> {
    let Some(root) = tree.pids.first() else { return Vec::new() };
    let same_numbers = is_in_our_pid_namespace(*root) != Some(false);
    let online = sys::online_processors();
    let usual = sys::scheduling(0).map(|own| own.runtime).ok();
    let mut notes = Vec::new();
    for process in &tree.pids {
        for thread in threads(*process) {
            let inner = if same_numbers { Some(thread) } else { inner_number(thread) };
            let Some(tid) = inner.and_then(|tid| u32::try_from(tid).ok()) else { continue };
            notes.push(ThreadNotes {
                tid,
                affinity: sys::affinity(thread)
                    .ok()
                    .filter(|mask| !covers(mask, &online))
                    .unwrap_or_default(),
                io_priority: sys::io_priority(thread).ok(),
                timer_slack: timer_slack(thread),
                slice: slice(thread).filter(|slice| Some(*slice) != usual),
                coredump_filter: (thread == *process).then(|| coredump_filter(thread)).flatten(),
            });
        }
    }
    notes
}

/// The length of a thread's turns, if its policy has some.
pub(in crate::platform) fn slice(thread: i32) -> Option<u64> {
    let is_fair = |policy: u32| matches!(i32::try_from(policy), Ok(libc::SCHED_OTHER | libc::SCHED_BATCH));
    let scheduling = sys::scheduling(thread).ok().filter(|told| is_fair(told.policy))?;
    Some(scheduling.runtime).filter(|slice| *slice > 0)
}

/// Refuses threads that criu dumps and could not restore.
pub(super) fn check_policies(tree: &Frozen) -> Result<()> {
    let threads = tree.pids.iter().flat_map(|process| threads(*process));
    let problems = threads.filter_map(|thread| {
        let policy = sys::scheduling(thread).ok()?.policy;
        let name = match policy {
            6 => "SCHED_DEADLINE",
            7 => "SCHED_EXT",
            _ => return None,
        };
        Some(format!("thread {thread} has the scheduling policy {name}, which criu cannot restore"))
    });
    let problems: Vec<_> = problems.collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::Unrevivable { problems }) }
}

/// Reads the nice values of the sessions that processes of the tree lead.
pub(super) fn sessions(tree: &Frozen) -> Vec<SessionNotes> {
    let leads = |pid: &i32| Stat::of(*pid).is_ok_and(|stat| stat.session == *pid);
    let note = |pid: i32| {
        let sid = u32::try_from(inner_number(pid)?).ok()?;
        Some(SessionNotes { sid, nice: group_nice(pid).filter(|nice| *nice != 0)? })
    };
    tree.pids.iter().copied().filter(leads).filter_map(note).collect()
}

/// The nice value of the group that the scheduler made for a process's session.
pub(in crate::platform) fn group_nice(process: i32) -> Option<i32> {
    read_start(format!("/proc/{process}/autogroup"))?.rsplit(' ').next()?.trim().parse().ok()
}

/// The threads of a process, by this process's numbers.
pub(in crate::platform) fn threads(process: i32) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The number of a thread in its own pid namespace.
pub(in crate::platform) fn inner_number(thread: i32) -> Option<i32> {
    Status::read(format!("/proc/{thread}/status")).map(|status| status.inner_pid)
}

pub(in crate::platform) fn timer_slack(thread: i32) -> Option<u64> {
    read_start(format!("/proc/{thread}/timerslack_ns"))?.trim().parse().ok()
}

pub(in crate::platform) fn coredump_filter(process: i32) -> Option<u32> {
    u32::from_str_radix(read_start(format!("/proc/{process}/coredump_filter"))?.trim(), 16).ok()
}

/// Returns true if a mask of processors has all of these.
pub(in crate::platform) fn covers(mask: &[u64], processors: &[u64]) -> bool {
    processors.iter().enumerate().all(|(index, word)| mask.get(index).copied().unwrap_or(0) & word == *word)
}
