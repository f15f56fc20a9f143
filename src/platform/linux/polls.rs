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
    image::{ImageDir, MovedPoll, RestartedPoll},
    procfs::{Status, tree},
    sys::{self, PollRegisters, Registers, Stop, Traced},
};

/// Threads that wait in `ppoll` instead of `poll`, until this is dropped.
pub(super) struct Polls {
    moved: Vec<Waiting>,
    /// Threads whose `poll` the kernel has restarted as another call.
    restarted: Vec<RestartedPoll>,
}

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
}

/// The longest that all threads together may take to stand still. They wait, so each takes a
/// moment.
const PATIENCE: Duration = Duration::from_millis(500);

impl Polls {
    /// Notes the threads of a tree, and moves them if it goes on. Those that cannot be moved stay
    /// where they are.
    pub(super) fn of(root: Pid, goes_on: bool) -> Polls {
        let all = tree(root.as_raw()).into_iter().flat_map(threads);
        let polling: Vec<_> = all.filter_map(|thread| Some((thread, Poll::of(thread)?))).collect();
        let number = |thread| inner_number(thread).and_then(|number| number.try_into().ok());
        let restarted = polling.iter().filter(|(_, poll)| poll.is_restarted).filter_map(|(thread, poll)| {
            let [di, si, dx] = poll.arguments;
            Some(RestartedPoll { thread: number(*thread)?, di, si, dx })
        });
        let waiting = |(thread, _): &(i32, Poll)| {
            let memory = File::options().read(true).write(true).open(format!("/proc/{thread}/mem")).ok();
            Waiting { thread: *thread, number: number(*thread), was: None, interrupted: false, memory }
        };
        let restarted = restarted.collect();
        let movable =
            polling.iter().filter(|(thread, poll)| goes_on && poll.has_no_limit() && !is_filtered(*thread));
        let mut polls = Polls { moved: movable.map(waiting).collect(), restarted };
        let mut room = vec![0; BELOW];
        for_each(&mut polls.moved, |registers, waiting, stop| {
            if matches!(stop, Stop::Signal(_)) {
                return None; // it may end the call
            }
            let (was, changed) = registers.as_ppoll()?;
            waiting.was = Some(was);
            // Frames from another time would look like new ones later.
            waiting.end_frames(&mut room, 0);
            Some(changed)
        });
        polls.moved.retain(|waiting| waiting.was.is_some());
        polls
    }

    /// Notes which threads get a signal once criu lets them go. Called as late as possible before
    /// that.
    pub(super) fn look(&mut self) {
        for waiting in &mut self.moved {
            let status = Status::read(format!("/proc/{}/status", waiting.thread));
            waiting.interrupted |= status.is_some_and(|status| status.takes_a_signal());
        }
    }

    /// Edits the images of the tree so that its revived threads wait in `poll`, too.
    pub(super) fn mend(&self, images: &ImageDir) -> Result<()> {
        let moved = self.moved.iter().filter_map(|waiting| {
            let (thread, PollRegisters { ip, sp, dx, r10, .. }) = (waiting.number?, waiting.was?);
            Some(MovedPoll { thread, ip, sp, dx, r10 })
        });
        images.put_back_polls(&moved.collect::<Vec<_>>())
    }

    /// Edits the images so that a restarted `poll` is a `poll` again, not `restart_syscall`.
    pub(super) fn name_restarted(&self, images: &ImageDir) -> Result<()> {
        images.name_restarted_polls(&self.restarted)
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        let mut room = vec![0; BELOW];
        for_each(&mut self.moved, |registers, waiting, _| {
            let interrupted = waiting.interrupted || waiting.frames(&mut room) > 0;
            let changed = registers.as_poll(waiting.was.as_ref()?, interrupted);
            if changed.is_none() {
                // It may be in the handler, and would make the call after that.
                waiting.end_frames(&mut room, registers.sp());
            }
            changed
        });
    }
}

impl Waiting {
    /// Counts the frames of signals that interrupted the thread right before it called `ppoll`. The
    /// kernel puts them below the stack, and nothing overwrites them while the thread waits.
    fn frames(&self, room: &mut [u8]) -> usize {
        let Some(was) = &self.was else { return 0 };
        self.below(room).map_or(0, |(_, below)| was.interrupting_frames(below).count())
    }

    /// Changes the frames from this address on, so that the call ends when their handlers return.
    fn end_frames(&self, room: &mut [u8], from: u64) {
        let (Some(was), Some(memory)) = (&self.was, &self.memory) else { return };
        let Some((start, below)) = self.below(room) else { return };
        let next = |below: &[u8]| was.interrupting_frames(below).find(|at| start + *at as u64 >= from);
        while let Some(at) = next(below) {
            let frame = &mut below[at..at + PollRegisters::FRAME];
            was.end_call(frame);
            let _ = memory.write_all_at(frame, start + at as u64); // it was killed, then
        }
    }

    /// Reads the memory below the stack of the thread, and returns its address and its bytes.
    fn below<'a>(&self, room: &'a mut [u8]) -> Option<(u64, &'a mut [u8])> {
        let (was, memory) = (self.was.as_ref()?, self.memory.as_ref()?);
        // The lower part may not be mapped.
        let read = |room: &mut [u8], skipped: usize| {
            let part = &mut room[skipped..];
            let start = was.sp.checked_sub(part.len() as u64)?;
            memory.read_exact_at(part, start).ok().map(|()| (start, skipped))
        };
        let (start, skipped) = (0..room.len()).step_by(STEP).find_map(|skipped| read(room, skipped))?;
        Some((start, &mut room[skipped..]))
    }
}

/// Memory below the stack that is looked at: more than a frame takes with all registers of any
/// processor.
const BELOW: usize = 4 * STEP;
/// The smallest size of a page: memory begins at a multiple of it.
const STEP: usize = 4096;

/// Interrupts each thread, and gives it the registers that `change` returns. `change` also gets the
/// reason for the stop.
fn for_each(
    all: &mut [Waiting],
    mut change: impl FnMut(&Registers, &mut Waiting, Stop) -> Option<Registers>,
) {
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
            // If `None`, the kernel lets it go at the end of this process.
            let Some(stop) = wait_for_stop(&thread, until) else { continue };
            if matches!(stop, Stop::Interrupted | Stop::Signal(_)) {
                let before = waiting.was;
                let registers = thread.registers().ok();
                let changed = registers.and_then(|registers| change(&registers, waiting, stop));
                if changed.is_some_and(|changed| thread.set_registers(&changed).is_err()) {
                    waiting.was = before;
                }
            }
            let _ = match stop {
                Stop::Signal(signal) => thread.detach_with(signal),
                Stop::Interrupted | Stop::Stopped(_) => thread.detach(),
            };
        }
    });
}

/// A `poll` in which a thread sleeps, as far as the kernel tells.
struct Poll {
    arguments: [u64; 3],
    /// True if it was interrupted, such as by SIGSTOP and SIGCONT. The kernel has then replaced the
    /// call by `restart_syscall`.
    is_restarted: bool,
}

impl Poll {
    fn of(thread: i32) -> Option<Poll> {
        const POLL: &str = "7";
        const RESTART_SYSCALL: &str = "219";
        let call = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
        let mut words = call.split_ascii_whitespace();
        let is_restarted = match words.next()? {
            POLL => false,
            // Other calls that are restarted so sleep in other functions.
            RESTART_SYSCALL if sleeps_in(thread, "poll_schedule_timeout") => true,
            _ => return None,
        };
        let mut argument =
            || words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
        let arguments = [argument()?, argument()?, argument()?];
        cfg!(target_arch = "x86_64").then_some(Poll { arguments, is_restarted })
    }

    fn has_no_limit(&self) -> bool {
        self.arguments[2] & (1 << 31) != 0
    }
}

fn sleeps_in(thread: i32, function: &str) -> bool {
    fs::read_to_string(format!("/proc/{thread}/wchan")).is_ok_and(|found| found.starts_with(function))
}

/// Returns true if a filter of the thread may end it for a call that it does not expect.
fn is_filtered(thread: i32) -> bool {
    Status::read(format!("/proc/{thread}/status")).is_none_or(|status| status.seccomp != 0)
}
