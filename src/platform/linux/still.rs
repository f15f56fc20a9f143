//! [`while_still`]: has the threads of a tree stand still for a moment, without criu.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::frozen::settings::threads;
use crate::{
    Pid,
    procfs::tree,
    sys::{self, Stop, Traced},
};

/// The longest that the threads may take to stand still.
const PATIENCE: Duration = Duration::from_millis(500);

/// Does the work while all threads of a tree stand still that this program may trace. It neither
/// allocates nor panics, because it happens in [another process](sys::in_another_process).
pub(super) fn while_still(root: Pid, mut work: impl FnMut()) {
    let ids: Vec<i32> = tree(root.as_raw()).into_iter().flat_map(threads).collect();
    let mut held = Vec::with_capacity(ids.len());
    let until = Instant::now() + PATIENCE;
    let held_and_done = sys::in_another_process(|| {
        held.extend(ids.iter().filter_map(|id| {
            let thread = Traced::seize_gently(*id).ok()?;
            thread.interrupt().ok()?;
            Some((thread, None))
        }));
        for (thread, stop) in &mut held {
            *stop = wait_for_stop(thread, until);
        }
        work();
        for (thread, stop) in &held {
            // A thread that did not stop goes on at the end of this process.
            let _ = match stop {
                Some(Stop::Signal(signal)) => thread.detach_with(*signal),
                _ => thread.detach(),
            };
        }
    });
    if held_and_done.is_err() {
        work();
    }
}

/// Waits for a thread that was interrupted.
pub(super) fn wait_for_stop(thread: &Traced, until: Instant) -> Option<Stop> {
    loop {
        if let Some(stop) = thread.stop().ok()? {
            return Some(stop);
        }
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(Duration::from_micros(20));
    }
}
