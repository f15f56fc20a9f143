//! [`Polls`]: keeps calls of `poll` from ending with EINTR in a tree that goes on.
//!
//! criu runs code of its own in each thread. The kernel then loses its note of how an interrupted
//! `poll` goes on, and the call fails. `ppoll` needs no such note. So a thread that waits in `poll`
//! without a time limit waits in `ppoll` while criu works, and in `poll` again afterwards.
//!
//! No process is stopped by a signal for this: its parent would be told, and `script`, for one,
//! stops itself when its child is stopped. If this program is killed meanwhile, the threads wait in
//! `ppoll`, which returns what `poll` does.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use super::{
    frozen::settings::{inner_number, threads},
    still::wait_for_stop,
};
use crate::{
    Pid, Result,
    image::{ImageDir, MovedPoll},
    procfs::{Status, tree},
    sys::{self, PollRegisters, Registers, Stop, Traced},
};

/// Threads that wait in `ppoll` instead of `poll`, until this is dropped.
pub(super) struct Polls(Vec<Waiting>);

struct Waiting {
    thread: i32,
    /// Its number in its own pid namespace.
    number: Option<u32>,
    /// The registers that it had, if it was moved.
    was: Option<PollRegisters>,
    /// True if a signal came while it was frozen. criu has the kernel make the call again after the
    /// handler, but the call is to end by it.
    interrupted: bool,
    memory: Option<File>,
    /// The frames of signals that were below its stack before.
    frames: usize,
}

/// The longest that all threads together may take to stand still. They wait, so each takes a
/// moment.
const PATIENCE: Duration = Duration::from_millis(500);

impl Polls {
    /// Moves the threads of a tree. Those that cannot be moved stay where they are.
    pub(super) fn of(root: Pid) -> Polls {
        let all = tree(root.as_raw()).into_iter().flat_map(threads);
        let polling = all.filter(|thread| waits_in_poll(*thread) && !is_filtered(*thread));
        let waiting = |thread| {
            let number = inner_number(thread).and_then(|number| number.try_into().ok());
            let memory = File::open(format!("/proc/{thread}/mem")).ok();
            Waiting { thread, number, was: None, interrupted: false, memory, frames: 0 }
        };
        let mut polls = Polls(polling.map(waiting).collect());
        let mut room = vec![0; BELOW];
        for_each(&mut polls.0, |registers, waiting| {
            let (was, changed) = registers.as_ppoll()?;
            waiting.was = Some(was);
            waiting.frames = waiting.frames(&mut room);
            Some(changed)
        });
        polls.0.retain(|waiting| waiting.was.is_some());
        polls
    }

    /// Notes which threads get a signal once criu lets them go. Called as late as possible before
    /// that.
    pub(super) fn look(&mut self) {
        for waiting in &mut self.0 {
            let status = Status::read(format!("/proc/{}/status", waiting.thread));
            waiting.interrupted |= status.is_some_and(|status| status.takes_a_signal());
        }
    }

    /// Edits the images of the tree so that its revived threads wait in `poll`, too.
    pub(super) fn mend(&self, images: &ImageDir) -> Result<()> {
        let moved = self.0.iter().filter_map(|waiting| {
            let (thread, PollRegisters { ip, sp, dx, r10, .. }) = (waiting.number?, waiting.was?);
            Some(MovedPoll { thread, ip, sp, dx, r10 })
        });
        images.put_back_polls(&moved.collect::<Vec<_>>())
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        let mut room = vec![0; BELOW];
        for_each(&mut self.0, |registers, waiting| {
            // With one from another time, there is no telling: to end the call is right in either
            // case.
            let interrupted = waiting.interrupted || waiting.frames.max(waiting.frames(&mut room)) > 0;
            registers.as_poll(waiting.was.as_ref()?, interrupted)
        });
    }
}

impl Waiting {
    /// The frames of signals that interrupted it as it was about to call `ppoll`. The kernel puts
    /// them below the stack, and nothing overwrites them while the thread waits.
    fn frames(&self, room: &mut [u8]) -> usize {
        let (Some(was), Some(memory)) = (&self.was, &self.memory) else { return 0 };
        // The lower part may be no memory.
        (0..room.len())
            .step_by(STEP)
            .find_map(|skipped| {
                let part = &mut room[skipped..];
                let start = was.sp.checked_sub(part.len() as u64)?;
                memory.read_exact_at(part, start).ok().map(|()| was.interrupting_frames(part))
            })
            .unwrap_or(0)
    }
}

/// Memory below the stack that is looked at: more than a frame takes with all registers of any
/// processor.
const BELOW: usize = 4 * STEP;
/// The smallest size of a page: memory begins at a multiple of it.
const STEP: usize = 4096;

/// Interrupts each thread, and gives it the registers that `change` says.
fn for_each(all: &mut [Waiting], mut change: impl FnMut(&Registers, &mut Waiting) -> Option<Registers>) {
    if all.is_empty() {
        return;
    }
    let until = Instant::now() + PATIENCE;
    // If there can be no such process, the threads are where they were.
    let _ = sys::in_another_process(|| {
        for waiting in &mut *all {
            // It may have ended, or be traced by another process.
            let Ok(thread) = Traced::seize_gently(waiting.thread) else { continue };
            if thread.interrupt().is_err() {
                continue;
            }
            match wait_for_stop(&thread, until) {
                Some(Stop::Interrupted) => {
                    let before = waiting.was;
                    let changed = thread.registers().ok().and_then(|registers| change(&registers, waiting));
                    if changed.is_some_and(|changed| thread.set_registers(&changed).is_err()) {
                        waiting.was = before;
                    }
                    let _ = thread.detach(); // it was killed, then
                }
                Some(Stop::Signal(signal)) => drop(thread.detach_with(signal)),
                Some(Stop::Stopped(_)) => drop(thread.detach()),
                // The kernel lets it go at the end of this process.
                None => {}
            }
        }
    });
}

/// Returns true if the thread sleeps in `poll` without a time limit, as far as the kernel tells.
fn waits_in_poll(thread: i32) -> bool {
    const POLL: &str = "7";
    let Ok(call) = fs::read_to_string(format!("/proc/{thread}/syscall")) else { return false };
    let mut words = call.split_ascii_whitespace();
    let limit = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    cfg!(target_arch = "x86_64")
        && words.next() == Some(POLL)
        && words.nth(2).and_then(limit).is_some_and(|limit| limit & (1 << 31) != 0)
}

/// Returns true if a filter of the thread may end it for a call that it does not expect.
fn is_filtered(thread: i32) -> bool {
    Status::read(format!("/proc/{thread}/status")).is_none_or(|status| status.seccomp != 0)
}
