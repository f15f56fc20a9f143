//! [`Traced`]: a stopped thread that this thread traces.

use std::{io, marker::PhantomData};

/// A thread that the calling thread traces. It must not be sent to another thread: the kernel's
/// tracer is a thread.
pub(crate) struct Traced {
    tid: i32,
    _not_send: PhantomData<*const ()>,
}

/// The position of a traced thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// The thread runs, or is about to stop.
    Running,
    /// The thread is before a system call.
    Entry,
    /// The thread is after a system call with this result.
    Exit(i64),
    /// The thread is elsewhere.
    Other,
}

/// The reason why a traced thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The thread was [interrupted](Traced::interrupt).
    Interrupted,
    /// The process is stopped, by this signal.
    Stopped(i32),
    /// A signal arrived, which the thread gets if it is [passed on](Traced::detach_with).
    Signal(i32),
}

/// The registers of a thread in `poll` that a dump must not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PollRegisters {
    pub(crate) ip: u64,
    pub(crate) sp: u64,
    pub(crate) di: u64,
    pub(crate) si: u64,
    pub(crate) dx: u64,
    pub(crate) r10: u64,
}

impl PollRegisters {
    /// Finds the signal frames in the memory below the stack whose signals interrupted the thread
    /// right before a call of `ppoll`. Gives their places.
    pub(crate) fn interrupting_frames(&self, memory: &[u8]) -> impl Iterator<Item = usize> {
        const PPOLL: u64 = 271;
        let saved = [
            (Self::DI, self.di),
            (Self::SI, self.si),
            (Self::DX, 0),
            (Self::AX, PPOLL),
            (Self::SP, self.sp),
            (Self::IP, self.ip.wrapping_sub(2)),
        ];
        let is_frame = move |frame: &[u8]| {
            saved.iter().all(|(at, value)| frame[at * 8..].first_chunk() == Some(&value.to_ne_bytes()))
        };
        let frames = memory.windows(Self::FRAME).enumerate().step_by(8);
        frames.filter(move |(_, frame)| is_frame(frame)).map(|(at, _)| at)
    }

    /// Changes such a frame, so that the call has ended with EINTR when the handler returns.
    pub(crate) fn end_call(&self, frame: &mut [u8]) {
        for (at, value) in
            [(Self::R10, self.r10), (Self::DX, self.dx), (Self::AX, INTERRUPTED), (Self::IP, self.ip)]
        {
            frame[at * 8..][..8].copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// The size of the saved registers in a frame, from r10 on.
    pub(crate) const FRAME: usize = (Self::IP + 1) * 8;
    const R10: usize = 0;
    const DI: usize = 6;
    const SI: usize = 7;
    const DX: usize = 10;
    const AX: usize = 11;
    const SP: usize = 13;
    const IP: usize = 14;
}

/// The registers of a thread, in the kernel's order.
#[derive(Clone, Copy)]
pub(crate) struct Registers([u64; COUNT]);

impl Traced {
    /// Starts to trace a thread, which continues; a stopped thread is soon ready for requests.
    /// `past_seccomp` lets its system calls pass all filters.
    ///
    /// If the tracer ends, the kernel kills the process.
    pub(crate) fn seize(tid: i32, past_seccomp: bool) -> io::Result<Traced> {
        let mut options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        if past_seccomp {
            options |= O_SUSPEND_SECCOMP;
        }
        let thread = Traced { tid, _not_send: PhantomData };
        thread.simply(SEIZE, options.into())?;
        Ok(thread)
    }

    /// Does the same as [`seize`](Traced::seize), but if the tracer ends, the thread continues.
    pub(crate) fn seize_gently(tid: i32) -> io::Result<Traced> {
        let thread = Traced { tid, _not_send: PhantomData };
        thread.simply(SEIZE, 0)?;
        Ok(thread)
    }

    /// Asks the thread to stop soon.
    pub(crate) fn interrupt(&self) -> io::Result<()> {
        self.simply(INTERRUPT, 0)
    }

    /// Returns the reason why it has stopped; `None` if it has not stopped since the last call.
    pub(crate) fn stop(&self) -> io::Result<Option<Stop>> {
        const EVENT_STOP: i32 = 128;
        let tid = libc::id_t::try_from(self.tid).map_err(io::Error::other)?;
        // Without WEXITED: the parent waits for the thread's end.
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        // SAFETY: a zeroed structure is valid, and means that there was no event.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes no more than `info`.
        succeeded(unsafe { libc::waitid(libc::P_PID, tid, &raw mut info, options) }.into())?;
        // SAFETY: the kernel sets this field for `waitid`; otherwise it is zero.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        Ok(match (pid, status >> 8, status & 0xff) {
            (0, ..) => None,
            (_, EVENT_STOP, libc::SIGTRAP) => Some(Stop::Interrupted),
            (_, EVENT_STOP, signal) => Some(Stop::Stopped(signal)),
            (_, _, signal) => Some(Stop::Signal(signal)),
        })
    }

    /// Detaches from a thread that a signal stopped, and delivers this signal.
    pub(crate) fn detach_with(&self, signal: i32) -> io::Result<()> {
        self.simply(DETACH, signal.into())
    }

    /// Returns the position of the thread. While it runs, all other requests fail.
    pub(crate) fn stand(&self) -> io::Result<Stand> {
        const ENTRY: u8 = 1;
        const EXIT: u8 = 2;
        let mut info = [0_u64; 16];
        let (size, start) = (size_of_val(&info), info.as_mut_ptr());
        // SAFETY: the kernel writes no more than `info`, whose size it gets.
        let told = unsafe { libc::syscall(libc::SYS_ptrace, GET_SYSCALL_INFO, self.tid, size, start) };
        if told < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(Stand::Running) } else { Err(error) };
        }
        // The first byte is the position; the fourth word is the result of a system call.
        Ok(match info[0].to_ne_bytes()[0] {
            ENTRY => Stand::Entry,
            EXIT => Stand::Exit(i64::from_ne_bytes(info[3].to_ne_bytes())),
            _ => Stand::Other,
        })
    }

    /// Continues the thread until its next system call begins or ends.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.simply(SYSCALL, 0)
    }

    /// Sends the thread the signal that no thread can block or handle, and that stops its process.
    pub(crate) fn send_stop(&self, process: i32) -> io::Result<()> {
        // SAFETY: the call takes only numbers.
        succeeded(unsafe { libc::syscall(libc::SYS_tgkill, process, self.tid, libc::SIGSTOP) })
    }

    /// Continues the thread until its next stop, and delivers this signal, unless it is 0.
    pub(crate) fn go_on_with(&self, signal: i32) -> io::Result<()> {
        self.simply(CONT, signal.into())
    }

    /// Detaches from the thread. It is as it was before: stopped, if its process is.
    pub(crate) fn detach(&self) -> io::Result<()> {
        self.simply(DETACH, 0)
    }

    /// Makes a request with a number.
    fn simply(&self, request: libc::c_uint, number: libc::c_long) -> io::Result<()> {
        // SAFETY: the callers' requests take only numbers.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, request, self.tid, 0_usize, number) })
    }

    /// Returns the signals that it blocks.
    pub(crate) fn blocked(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        let size = size_of_val(&mask);
        // SAFETY: the kernel writes no more than `mask`, whose size it gets.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, GETSIGMASK, self.tid, size, &raw mut mask) })?;
        Ok(mask)
    }

    /// Sets the signals that it blocks.
    pub(crate) fn block(&self, mask: u64) -> io::Result<()> {
        let size = size_of_val(&mask);
        // SAFETY: the kernel reads as many bytes as `mask` has.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, SETSIGMASK, self.tid, size, &raw const mask) })
    }

    /// Returns its registers; an error of the kind `Unsupported` for a 32-bit program, and on other
    /// processors.
    pub(crate) fn registers(&self) -> io::Result<Registers> {
        let mut registers = Registers([0; COUNT]);
        let size = size_of_val(&registers);
        match self.exchange(GETREGSET, &mut registers)? == size && registers.are_known() {
            true => Ok(registers),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        let mut registers = *registers;
        self.exchange(SETREGSET, &mut registers).map(drop)
    }

    /// Reads or writes registers; returns the number of bytes.
    fn exchange(&self, request: libc::c_uint, registers: &mut Registers) -> io::Result<usize> {
        const NT_PRSTATUS: libc::c_long = 1;
        let size = size_of_val(registers);
        let mut part = libc::iovec { iov_base: registers.0.as_mut_ptr().cast(), iov_len: size };
        // SAFETY: the kernel reads or writes no more than `registers`, whose size it gets.
        let done = unsafe { libc::syscall(libc::SYS_ptrace, request, self.tid, NT_PRSTATUS, &raw mut part) };
        succeeded(done).map(|()| part.iov_len)
    }
}

// Some C libraries lack some of these.
const CONT: libc::c_uint = 7;
const SYSCALL: libc::c_uint = 24;
const DETACH: libc::c_uint = 17;
const GETREGSET: libc::c_uint = 0x4204;
const SETREGSET: libc::c_uint = 0x4205;
const SEIZE: libc::c_uint = 0x4206;
const INTERRUPT: libc::c_uint = 0x4207;
const GETSIGMASK: libc::c_uint = 0x420a;
const SETSIGMASK: libc::c_uint = 0x420b;
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;

fn succeeded(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_arch = "x86_64")]
const COUNT: usize = 27;

#[cfg(target_arch = "x86_64")]
impl Registers {
    /// The instruction for system calls.
    pub(crate) const INSTRUCTION: &'static [u8] = &[0x0f, 0x05];

    fn are_known(&self) -> bool {
        const USER_CS: u64 = 0x33;
        let cs = self.0[17];
        cs == USER_CS
    }

    /// Returns the registers for a system call by the instruction at this address.
    pub(crate) fn before_call(mut self, at: u64, number: u64, arguments: [u64; 3]) -> Registers {
        let [rdi, rsi, rdx] = arguments;
        let (orig_rax, in_no_call) = (15, u64::MAX);
        for (register, value) in
            [(10, number), (12, rdx), (13, rsi), (14, rdi), (orig_rax, in_no_call), (16, at)]
        {
            self.0[register] = value;
        }
        self
    }

    /// Returns the registers for `ppoll` instead of an interrupted `poll` without a time limit.
    ///
    /// The kernel restarts either call by itself, or ends it with EINTR if a signal handler is to
    /// run. A `poll` that was interrupted before is a `restart_syscall`, as other calls are.
    pub(crate) fn as_ppoll(&self) -> Option<(PollRegisters, Registers)> {
        const RESTART_BY_NOTE: i64 = -516;
        let [r10, ax, dx, si, di, orig_ax, ip, sp] = [7, 10, 12, 13, 14, 15, 16, 19].map(|at| self.0[at]);
        // The kernel uses 32 bits of the limit.
        let forever = dx & (1 << 31) != 0;
        if !matches!(orig_ax, POLL | RESTART_SYSCALL) || ax.cast_signed() != RESTART_BY_NOTE || !forever {
            return None;
        }
        let mut changed = *self;
        for (register, value) in [(7, 0), (10, RESTART), (12, 0), (15, PPOLL)] {
            changed.0[register] = value;
        }
        Some((PollRegisters { ip, sp, di, si, dx, r10 }, changed))
    }

    /// Returns the registers for `poll` again, if the thread still waits in the `ppoll` of
    /// [`as_ppoll`](Registers::as_ppoll), or after a `poll` that a signal interrupted.
    pub(crate) fn as_poll(&self, was: &PollRegisters, interrupted: bool) -> Option<Registers> {
        let [ax, si, di, orig_ax, ip, sp] = [10, 13, 14, 15, 16, 19].map(|at| self.0[at]);
        if (sp, di, si) != (was.sp, was.di, was.si) {
            return None;
        }
        let mut changed = *self;
        (changed.0[7], changed.0[12]) = (was.r10, was.dx);
        let waits = (ip, ax, orig_ax) == (was.ip, RESTART, PPOLL);
        let is_about_to_call = (ip.checked_add(2), ax) == (Some(was.ip), PPOLL);
        if !waits && !is_about_to_call {
            return None;
        }
        // The kernel makes the call again, or ends it if a signal handler is to run first. At the
        // instruction of the call, it would make the call after the handler.
        let (ax, orig_ax) = if interrupted { (INTERRUPTED, u64::MAX) } else { (RESTART, POLL) };
        for (register, value) in [(10, ax), (15, orig_ax), (16, was.ip)] {
            changed.0[register] = value;
        }
        Some(changed)
    }

    /// The address of the stack.
    pub(crate) fn sp(&self) -> u64 {
        self.0[19]
    }
}

#[cfg(target_arch = "x86_64")]
const POLL: u64 = 7;
#[cfg(target_arch = "x86_64")]
const RESTART_SYSCALL: u64 = 219;
#[cfg(target_arch = "x86_64")]
const PPOLL: u64 = 271;
/// The result of a call that the kernel restarts, unless a signal handler is to run.
#[cfg(target_arch = "x86_64")]
const RESTART: u64 = -514_i64 as u64;
const INTERRUPTED: u64 = -4_i64 as u64;

/// Other processors have only `ppoll`.
#[cfg(not(target_arch = "x86_64"))]
impl Registers {
    pub(crate) fn as_ppoll(&self) -> Option<(PollRegisters, Registers)> {
        None
    }

    pub(crate) fn as_poll(&self, _was: &PollRegisters, _interrupted: bool) -> Option<Registers> {
        None
    }

    pub(crate) fn sp(&self) -> u64 {
        0
    }
}

#[cfg(target_arch = "aarch64")]
const COUNT: usize = 34;

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// The instruction for system calls.
    pub(crate) const INSTRUCTION: &'static [u8] = &[0x01, 0x00, 0x00, 0xd4];

    fn are_known(&self) -> bool {
        const OF_32_BITS: u64 = 0x10;
        let pstate = self.0[33];
        pstate & OF_32_BITS == 0
    }

    /// Returns the registers for a system call by the instruction at this address.
    pub(crate) fn before_call(mut self, at: u64, number: u64, arguments: [u64; 3]) -> Registers {
        self.0[..3].copy_from_slice(&arguments);
        self.0[8] = number;
        self.0[32] = at;
        self
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const COUNT: usize = 64;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Registers {
    pub(crate) const INSTRUCTION: &'static [u8] = &[];

    fn are_known(&self) -> bool {
        false
    }

    pub(crate) fn before_call(self, _at: u64, _number: u64, _arguments: [u64; 3]) -> Registers {
        self
    }
}
