//! [`Traced`]: a stopped thread that this thread traces.

use std::{io, marker::PhantomData};

/// A thread that the calling thread traces. It must not be sent to another: the kernel knows the tracer as a thread.
///
/// If the tracer ends, the kernel kills the process.
pub(crate) struct Traced {
    tid: i32,
    _not_send: PhantomData<*const ()>,
}

/// The position of a traced thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It runs, or is about to stop.
    Running,
    /// Before a system call.
    Entry,
    /// After a system call, with what that came to.
    Exit(i64),
    /// Elsewhere.
    Other,
}

/// The registers of a thread, in the kernel's order.
#[derive(Clone, Copy)]
pub(crate) struct Registers([u64; COUNT]);

impl Traced {
    /// Begins to trace a thread, which goes on as it was: one that is stopped can soon be worked with. `past_seccomp` lets
    /// its system calls pass whatever filters it has.
    pub(crate) fn seize(tid: i32, past_seccomp: bool) -> io::Result<Traced> {
        let mut options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        if past_seccomp {
            options |= O_SUSPEND_SECCOMP;
        }
        let thread = Traced { tid, _not_send: PhantomData };
        thread.simply(SEIZE, options.into())?;
        Ok(thread)
    }

    /// The position of the thread. While it runs, all other requests fail.
    pub(crate) fn stand(&self) -> io::Result<Stand> {
        const ENTRY: u8 = 1;
        const EXIT: u8 = 2;
        let mut info = [0_u64; 16];
        let (size, start) = (size_of_val(&info), info.as_mut_ptr());
        // SAFETY: the kernel fills in no more than `info`, whose size it is told.
        let told = unsafe { libc::syscall(libc::SYS_ptrace, GET_SYSCALL_INFO, self.tid, size, start) };
        if told < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(Stand::Running) } else { Err(error) };
        }
        // The first byte is where it stands; the fourth word is what a system call came to.
        Ok(match info[0].to_ne_bytes()[0] {
            ENTRY => Stand::Entry,
            EXIT => Stand::Exit(i64::from_ne_bytes(info[3].to_ne_bytes())),
            _ => Stand::Other,
        })
    }

    /// Lets it go on to where its next system call begins or ends.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.simply(SYSCALL, 0)
    }

    /// Lets it go. It is as it was before it was traced: stopped, if its process is.
    pub(crate) fn detach(&self) -> io::Result<()> {
        self.simply(DETACH, 0)
    }

    /// A request with a number.
    fn simply(&self, request: libc::c_uint, number: libc::c_long) -> io::Result<()> {
        // SAFETY: the callers' requests take numbers alone.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, request, self.tid, 0_usize, number) })
    }

    /// The signals that it blocks.
    pub(crate) fn blocked(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        let size = size_of_val(&mask);
        // SAFETY: the kernel fills in no more than `mask`, whose size it is told.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, GETSIGMASK, self.tid, size, &raw mut mask) })?;
        Ok(mask)
    }

    /// Has it block these signals.
    pub(crate) fn block(&self, mask: u64) -> io::Result<()> {
        let size = size_of_val(&mask);
        // SAFETY: the kernel reads as many bytes as `mask` has.
        succeeded(unsafe { libc::syscall(libc::SYS_ptrace, SETSIGMASK, self.tid, size, &raw const mask) })
    }

    /// Its registers; an error of the kind `Unsupported` for a program of 32 bits, and on other processors.
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

    /// Gets or sets registers; gives how many bytes.
    fn exchange(&self, request: libc::c_uint, registers: &mut Registers) -> io::Result<usize> {
        const NT_PRSTATUS: libc::c_long = 1;
        let size = size_of_val(registers);
        let mut part = libc::iovec { iov_base: registers.0.as_mut_ptr().cast(), iov_len: size };
        // SAFETY: the kernel reads or writes no more than `registers`, whose size it is told.
        let done = unsafe { libc::syscall(libc::SYS_ptrace, request, self.tid, NT_PRSTATUS, &raw mut part) };
        succeeded(done).map(|()| part.iov_len)
    }
}

// Not every C library has all of these.
const SYSCALL: libc::c_uint = 24;
const DETACH: libc::c_uint = 17;
const GETREGSET: libc::c_uint = 0x4204;
const SETREGSET: libc::c_uint = 0x4205;
const SEIZE: libc::c_uint = 0x4206;
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
    /// The system call instruction.
    pub(crate) const INSTRUCTION: &'static [u8] = &[0x0f, 0x05];

    fn are_known(&self) -> bool {
        const USER_CS: u64 = 0x33;
        let cs = self.0[17];
        cs == USER_CS
    }

    /// The same, about to make a system call by the instruction at this address.
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
}

#[cfg(target_arch = "aarch64")]
const COUNT: usize = 34;

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// The system call instruction.
    pub(crate) const INSTRUCTION: &'static [u8] = &[0x01, 0x00, 0x00, 0xd4];

    fn are_known(&self) -> bool {
        const OF_32_BITS: u64 = 0x10;
        let pstate = self.0[33];
        pstate & OF_32_BITS == 0
    }

    /// The same, about to make a system call by the instruction at this address.
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
