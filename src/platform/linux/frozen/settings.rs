//! Settings of threads and processes that criu does not carry along, and that can be read and set from outside.

use std::fs;

use super::Frozen;
use crate::{
    procfs::{Status, is_in_our_pid_namespace, read_start},
    proto::images::ThreadNotes,
    sys,
};

/// Reads the settings of every thread. What cannot be read is not noted.
pub(super) fn look(tree: &Frozen) -> Vec<ThreadNotes> {
    let Some(root) = tree.pids.first() else { return Vec::new() };
    let same_numbers = is_in_our_pid_namespace(*root) != Some(false);
    let online = sys::online_processors();
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
                coredump_filter: (thread == *process).then(|| coredump_filter(thread)).flatten(),
            });
        }
    }
    notes
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

/// Whether a mask of processors has all of these.
pub(in crate::platform) fn covers(mask: &[u64], processors: &[u64]) -> bool {
    processors.iter().enumerate().all(|(index, word)| mask.get(index).copied().unwrap_or(0) & word == *word)
}
