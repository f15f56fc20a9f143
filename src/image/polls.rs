//! System calls that a dump has interrupted: a revived thread makes some of them again.
//!
//! The kernel loses its note of how a `poll` goes on when criu runs code of its own in the thread,
//! so criu lets the call fail with EINTR. Programs such as `tail -f` and `script` take that for an
//! error and end. Repeating the call is exact if it has no time limit. If it has one, the limit
//! starts again.
//!
//! Other calls, such as `epoll_wait`, end with EINTR whenever a thread is interrupted. They are
//! repeated only where that is exact.

use prost::Message;

use super::{Edit, ImageDir};
use crate::{
    Result,
    proto::images::{CoreEntry, SignalQueueEntry, ThreadInfoX86, UserX86RegsEntry, core_entry::March},
};

/// The number of `poll` on x86-64. Other processors have only `ppoll`, which the kernel restarts by
/// itself.
const POLL: u64 = 7;
const WRITE: u64 = 1;
const SENDTO: u64 = 44;
const PPOLL: u64 = 271;
const SEMOP: u64 = 65;
const RT_SIGTIMEDWAIT: u64 = 128;
const FUTEX: u64 = 202;
const IO_GETEVENTS: u64 = 208;
const RESTART_SYSCALL: u64 = 219;
const SEMTIMEDOP: u64 = 220;
const EPOLL_WAIT: u64 = 232;
const EPOLL_PWAIT: u64 = 281;
const EPOLL_PWAIT2: u64 = 441;
/// The length of the instruction that makes a system call, in bytes.
const SYSCALL: u64 = 2;
/// The result of a call that failed with EINTR.
const INTERRUPTED: u64 = -4_i64 as u64;
/// The number of the call in a thread that is not in a call.
const NO_CALL: u64 = u64::MAX;
/// The mode of registers of a program of 32 bits, whose calls have other numbers.
const COMPAT: u32 = 2;

impl ImageDir {
    /// Edits the registers of each thread whose call the dump has interrupted, so that it repeats
    /// the call.
    pub(crate) fn repeat_calls(&self) -> Result<()> {
        for thread in self.repeating_threads()? {
            let edit = |core: &CoreEntry| repeating(core).map_or(Edit::Keep, Edit::Extend);
            self.rewrite::<CoreEntry, CoreEntry>(&core_image(thread), edit, &[])?;
        }
        Ok(())
    }

    /// Edits the registers of each thread that was moved, so that it calls `poll`.
    pub(crate) fn put_back_polls(&self, moved: &[MovedPoll]) -> Result<()> {
        if moved.is_empty() {
            return Ok(());
        }
        for process in self.processes()? {
            let leader: Option<CoreEntry> = self.first(&core_image(process.pid))?;
            let task = leader.and_then(|leader| leader.tc);
            let signals = task.is_some_and(|task| has_signals(task.signals_s.as_ref()));
            for poll in moved.iter().filter(|poll| process.threads.contains(&poll.thread)) {
                let edit = |core: &CoreEntry| poll.put_back(core, signals).map_or(Edit::Keep, Edit::Extend);
                self.rewrite::<CoreEntry, CoreEntry>(&core_image(poll.thread), edit, &[])?;
            }
        }
        Ok(())
    }

    /// Edits the images of threads whose `poll` the kernel had restarted as another call: the call
    /// is `poll` again.
    pub(crate) fn name_restarted_polls(&self, restarted: &[RestartedPoll]) -> Result<()> {
        for poll in restarted {
            let edit = |core: &CoreEntry| poll.named(core).map_or(Edit::Keep, Edit::Extend);
            self.rewrite::<CoreEntry, CoreEntry>(&core_image(poll.thread), edit, &[])?;
        }
        Ok(())
    }

    /// The threads that repeat their call when they are revived, by their numbers in the tree.
    pub(crate) fn repeating_threads(&self) -> Result<Vec<u32>> {
        self.threads_that(|core| repeating(core).is_some())
    }

    /// The threads whose call the dump has ended with EINTR, or after writing a part of the bytes.
    /// By their numbers in the tree.
    pub(crate) fn interrupted_threads(&self) -> Result<Vec<u32>> {
        self.threads_that(|core| ended_early(core).is_some() || wrote_a_part(core))
    }

    /// The threads for which `so` is true. Leaves out processes with a pending signal, because
    /// their calls really end with EINTR.
    fn threads_that(&self, so: impl Fn(&CoreEntry) -> bool) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for process in self.processes()? {
            let leader: Option<CoreEntry> = self.first(&core_image(process.pid))?;
            if leader.is_none_or(|leader| leader.tc.is_some_and(|task| has_signals(task.signals_s.as_ref())))
            {
                continue;
            }
            for thread in process.threads {
                let core: Option<CoreEntry> = self.first(&core_image(thread))?;
                if core.is_some_and(|core| so(&core)) {
                    found.push(thread);
                }
            }
        }
        Ok(found)
    }
}

/// A thread that waited in `poll` before the dump, and was moved to `ppoll` for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovedPoll {
    /// Its number in the tree.
    pub(crate) thread: u32,
    /// The registers that it had in `poll`: after the call's instruction, and as that took them.
    pub(crate) ip: u64,
    pub(crate) sp: u64,
    pub(crate) dx: u64,
    pub(crate) r10: u64,
}

impl MovedPoll {
    /// The fields that make a thread call `poll` again, if it was dumped in its `ppoll`; or that
    /// end the call, if there are `signals` for the process or for the thread.
    fn put_back(&self, core: &CoreEntry, signals: bool) -> Option<Vec<u8>> {
        let info = core.thread_info.as_ref().filter(|_| core.mtype == i32::from(March::X8664))?;
        let registers = &info.gpregs;
        // criu has made it call again.
        let ip = registers.ip.checked_add(SYSCALL)?;
        if (registers.ax, ip, registers.sp) != (PPOLL, self.ip, self.sp) {
            return None;
        }
        let own = core.thread_core.as_ref().and_then(|thread| thread.signals_p.as_ref());
        let (ax, ip) = match signals || has_signals(own) {
            true => (INTERRUPTED, self.ip),
            false => (POLL, registers.ip),
        };
        let (dx, r10) = (self.dx, self.r10);
        let gpregs = UserX86RegsEntry { ax, ip, orig_ax: POLL, dx, r10, ..*registers };
        let thread_info = Some(ThreadInfoX86 { gpregs, ..info.clone() });
        Some(CoreEntry { mtype: core.mtype, thread_info, ..CoreEntry::default() }.encode_to_vec())
    }
}

/// A thread in a `poll` that the kernel had interrupted before the dump, and restarted as
/// `restart_syscall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestartedPoll {
    /// Its number in the tree.
    pub(crate) thread: u32,
    /// The arguments of `poll`.
    pub(crate) di: u64,
    pub(crate) si: u64,
    pub(crate) dx: u64,
}

impl RestartedPoll {
    /// The fields with the call's own number, if the thread was dumped in it.
    fn named(&self, core: &CoreEntry) -> Option<Vec<u8>> {
        let info = ended_early(core)?;
        let &UserX86RegsEntry { orig_ax, di, si, dx, .. } = &info.gpregs;
        if (orig_ax, di, si, dx) != (RESTART_SYSCALL, self.di, self.si, self.dx) {
            return None;
        }
        let gpregs = UserX86RegsEntry { orig_ax: POLL, ..info.gpregs };
        let thread_info = Some(ThreadInfoX86 { gpregs, ..info.clone() });
        Some(CoreEntry { mtype: core.mtype, thread_info, ..CoreEntry::default() }.encode_to_vec())
    }
}

fn core_image(thread: u32) -> String {
    format!("core-{thread}.img")
}

fn has_signals(queue: Option<&SignalQueueEntry>) -> bool {
    queue.is_some_and(|queue| !queue.signals.is_empty())
}

/// The changed fields of a thread that is to repeat its call; `None` for other threads.
fn repeating(core: &CoreEntry) -> Option<Vec<u8>> {
    let info = ended_early(core)?;
    let registers = &info.gpregs;
    let ip = registers.ip.checked_sub(SYSCALL).filter(|_| is_repeated(registers))?;
    let gpregs = UserX86RegsEntry { ax: registers.orig_ax, ip, ..*registers };
    let thread_info = Some(ThreadInfoX86 { gpregs, ..info.clone() });
    Some(CoreEntry { mtype: core.mtype, thread_info, ..CoreEntry::default() }.encode_to_vec())
}

/// Returns the thread's state if its call ended with EINTR, but not because of a signal.
fn ended_early(core: &CoreEntry) -> Option<&ThreadInfoX86> {
    let info = core.thread_info.as_ref().filter(|_| core.mtype == i32::from(March::X8664))?;
    let registers = &info.gpregs;
    let signals = core.thread_core.as_ref().is_some_and(|thread| has_signals(thread.signals_p.as_ref()));
    let in_call = registers.orig_ax != NO_CALL && registers.mode != Some(COMPAT);
    (in_call && registers.ax == INTERRUPTED && !signals).then_some(info)
}

/// Returns true if a `write` or `sendto` of the thread waited for room, and ended after a part of
/// the bytes, as after SIGSTOP and SIGCONT.
fn wrote_a_part(core: &CoreEntry) -> bool {
    let Some(info) = core.thread_info.as_ref().filter(|_| core.mtype == i32::from(March::X8664)) else {
        return false;
    };
    let &UserX86RegsEntry { orig_ax, ax, dx, mode, .. } = &info.gpregs;
    matches!(orig_ax, WRITE | SENDTO) && mode != Some(COMPAT) && (1..dx).contains(&ax)
}

/// Returns true for `poll`, and for calls without a limit or with an absolute one. For other
/// limits, programs compute the remaining time themselves after EINTR.
fn is_repeated(registers: &UserX86RegsEntry) -> bool {
    let &UserX86RegsEntry { si, dx, r10, r8, .. } = registers;
    match registers.orig_ax {
        POLL | SEMOP => true,
        EPOLL_WAIT | EPOLL_PWAIT => r10 & (1 << 31) != 0, // a negative int
        EPOLL_PWAIT2 | SEMTIMEDOP => r10 == 0,
        RT_SIGTIMEDWAIT => dx == 0,
        IO_GETEVENTS => r8 == 0,
        FUTEX => si & FUTEX_COMMAND == FUTEX_WAIT_BITSET,
        _ => false,
    }
}

/// The operation of `futex` that waits until an absolute time.
const FUTEX_WAIT_BITSET: u64 = 9;
/// The mask of the operation, without the flags for the clock and for a futex of one process.
const FUTEX_COMMAND: u64 = 0x7f;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::images::ThreadCoreEntry;

    fn interrupted() -> CoreEntry {
        let gpregs = UserX86RegsEntry {
            orig_ax: POLL,
            ax: INTERRUPTED,
            ip: 1002,
            di: 5,
            dx: 7,
            ..UserX86RegsEntry::default()
        };
        let thread_info = Some(ThreadInfoX86 { clear_tid_addr: 3, gpregs, fpregs: b"fpu".to_vec() });
        CoreEntry { mtype: March::X8664.into(), thread_info, ..CoreEntry::default() }
    }

    fn with(change: impl Fn(&mut UserX86RegsEntry)) -> CoreEntry {
        let mut core = interrupted();
        change(&mut core.thread_info.as_mut().unwrap().gpregs);
        core
    }

    #[test]
    fn a_poll_that_was_interrupted_is_made_again() {
        let core = interrupted();
        let edited = [core.encode_to_vec(), repeating(&core).unwrap()].concat();
        let edited = CoreEntry::decode(edited.as_slice()).unwrap();
        assert_eq!(edited, with(|registers| (registers.ax, registers.ip) = (POLL, 1000)));
        assert_eq!(repeating(&edited), None, "once");
    }

    #[test]
    fn calls_without_a_limit_or_with_an_absolute_one_are_made_again() {
        let call = |number, si, dx, r10, r8| {
            with(|registers| {
                (registers.orig_ax, registers.si, registers.dx) = (number, si, dx);
                (registers.r10, registers.r8) = (r10, r8);
            })
        };
        let none = u64::from(u32::MAX);
        for repeated in [
            call(EPOLL_WAIT, 1, 1, none, 1),
            call(EPOLL_PWAIT, 1, 1, none, 1),
            call(EPOLL_PWAIT2, 1, 1, 0, 1),
            call(SEMOP, 1, 1, 1, 1),
            call(SEMTIMEDOP, 1, 1, 0, 1),
            call(RT_SIGTIMEDWAIT, 1, 0, 1, 1),
            call(IO_GETEVENTS, 1, 1, 1, 0),
            call(FUTEX, 9, 1, 1, 1),
            call(FUTEX, 0x189, 1, 1, 1),
        ] {
            let edited = [repeated.encode_to_vec(), repeating(&repeated).unwrap()].concat();
            let edited = CoreEntry::decode(edited.as_slice()).unwrap().thread_info.unwrap().gpregs;
            let number = repeated.thread_info.unwrap().gpregs.orig_ax;
            assert_eq!((edited.ax, edited.ip), (number, 1000));
        }
        for ended in [
            call(EPOLL_WAIT, 0, 0, 1000, 0),
            call(EPOLL_PWAIT, 0, 0, 1000, 0),
            call(EPOLL_PWAIT2, 0, 0, 1, 0),
            call(SEMTIMEDOP, 0, 0, 1, 0),
            call(RT_SIGTIMEDWAIT, 0, 1, 0, 0),
            call(IO_GETEVENTS, 0, 0, 0, 1),
            call(FUTEX, 0x80, 0, 1, 0),
            call(35, 0, 0, 0, 0), // nanosleep
            call(45, 0, 0, 0, 0), // recvfrom
            call(0, 0, 0, 0, 0),  // read
        ] {
            assert_eq!(repeating(&ended), None, "{ended:?}");
            assert!(ended_early(&ended).is_some());
        }
    }

    #[test]
    fn a_poll_that_was_moved_is_put_back() {
        let poll = MovedPoll { thread: 1, ip: 1002, sp: 3, dx: u32::MAX.into(), r10: 9 };
        let core = with(|registers| {
            (registers.ax, registers.orig_ax, registers.ip, registers.sp) = (PPOLL, PPOLL, 1000, 3);
            (registers.dx, registers.r10) = (0, 0);
        });
        let edited = [core.encode_to_vec(), poll.put_back(&core, false).unwrap()].concat();
        let edited = CoreEntry::decode(edited.as_slice()).unwrap();
        let wanted = with(|registers| {
            (registers.ax, registers.orig_ax, registers.ip, registers.sp) = (POLL, POLL, 1000, 3);
            (registers.dx, registers.r10) = (u32::MAX.into(), 9);
        });
        assert_eq!(edited, wanted);
        assert_eq!(poll.put_back(&edited, false), None);
        let interrupted = [core.encode_to_vec(), poll.put_back(&core, true).unwrap()].concat();
        let interrupted = CoreEntry::decode(interrupted.as_slice()).unwrap().thread_info.unwrap().gpregs;
        assert_eq!((interrupted.ax, interrupted.ip, interrupted.r10), (INTERRUPTED, 1002, 9));
        for other in [MovedPoll { ip: 1004, ..poll }, MovedPoll { sp: 4, ..poll }] {
            assert_eq!(other.put_back(&core, false), None);
        }
    }

    #[test]
    fn a_poll_that_the_kernel_restarted_gets_its_own_number() {
        let poll = RestartedPoll { thread: 1, di: 5, si: 0, dx: 7 };
        let core = with(|registers| registers.orig_ax = RESTART_SYSCALL);
        let edited = [core.encode_to_vec(), poll.named(&core).unwrap()].concat();
        assert_eq!(CoreEntry::decode(edited.as_slice()).unwrap(), interrupted());
        assert_eq!(RestartedPoll { di: 6, ..poll }.named(&core), None);
        assert_eq!(poll.named(&interrupted()), None);
    }

    #[test]
    fn other_threads_are_left_as_they_are() {
        for other in [
            with(|registers| registers.orig_ax = u64::MAX),
            with(|registers| registers.orig_ax = 35),
            with(|registers| registers.ax = 1),
            with(|registers| registers.mode = Some(COMPAT)),
            with(|registers| registers.ip = 1),
            CoreEntry { mtype: March::Aarch64.into(), ..interrupted() },
            CoreEntry { thread_info: None, ..interrupted() },
            CoreEntry {
                thread_core: Some(ThreadCoreEntry {
                    signals_p: Some(SignalQueueEntry { signals: vec![b"siginfo".to_vec()] }),
                    ..ThreadCoreEntry::default()
                }),
                ..interrupted()
            },
        ] {
            assert_eq!(repeating(&other), None, "{other:?}");
        }
    }
}
