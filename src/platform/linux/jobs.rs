//! Stopped jobs: criu takes those that SIGSTOP or SIGTSTP stopped, and refuses a job that used its
//! terminal in the background, which SIGTTIN or SIGTTOU stopped.
//!
//! The kernel remembers for each thread which signal stopped it. A stopped thread that is stopped
//! again remembers the later one, its parent is told of nothing, and no code of the program runs.
//! So these jobs are stopped again, by SIGSTOP. A shell continues either in the same way.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{frozen::settings::threads, still::wait_for_stop};
use crate::{
    Pid,
    procfs::{Stat, tree},
    sys::{self, Stop, Traced},
};

/// The longest that all threads together may take to be ready. A thread that is stopped is at once.
const PATIENCE: Duration = Duration::from_millis(500);
/// The longest that a thread may take to stop again. It runs nothing but the kernel's code.
const TO_STOP: Duration = Duration::from_secs(10);

/// Makes the stopped processes of a tree such as criu knows them. If that is not possible, criu
/// tells.
pub(super) fn stop_as_criu_knows(root: Pid) {
    let is_stopped = |pid: &i32| Stat::of(*pid).is_ok_and(|stat| stat.state == 'T');
    let stopped = tree(root.as_raw()).into_iter().filter(is_stopped);
    let threads: Vec<_> =
        stopped.flat_map(|process| threads(process).map(move |thread| (process, thread))).collect();
    if threads.is_empty() {
        return;
    }
    let until = Instant::now() + PATIENCE;
    // If there can be no such process, criu finds the threads as they are.
    let _ = sys::in_another_process(|| {
        for (process, thread) in &threads {
            // It may have ended, or be traced by another process.
            let Ok(thread) = Traced::seize_gently(*thread) else { continue };
            let stopped = thread.interrupt().ok().and_then(|()| wait_for_stop(&thread, until));
            if let Some(Stop::Stopped(libc::SIGTTIN | libc::SIGTTOU)) = stopped {
                let _ = stop_again(*process, &thread); // it was killed, then
            }
            let _ = thread.detach();
        }
    });
}

/// Has SIGSTOP stop a thread that another signal has stopped. No other signal reaches it meanwhile.
fn stop_again(process: i32, thread: &Traced) -> io::Result<()> {
    let blocked = thread.blocked()?;
    thread.block(u64::MAX)?;
    if thread.send_stop(process).is_ok() {
        let until = Instant::now() + TO_STOP;
        let mut next = 0;
        loop {
            thread.go_on_with(next)?;
            next = match wait_for_stop(thread, until) {
                Some(Stop::Signal(libc::SIGSTOP)) => libc::SIGSTOP,
                // The kernel tells once more of the first stop.
                Some(Stop::Stopped(libc::SIGTTIN | libc::SIGTTOU)) => 0,
                // It is stopped by SIGSTOP, or it was continued.
                _ => break,
            };
        }
    }
    thread.block(blocked)
}
