//! Starting criu: quickly however large the caller is, with the files it needs and no others.
//!
//! `fork` copies the page tables of the caller, which for an agent of many gigabytes takes longer than a
//! dump. `posix_spawn` does not, but can neither close what others left open, nor ignore SIGXFSZ in the
//! child, nor detach it. So this is a `clone` with `CLONE_VM | CLONE_VFORK`, as in `posix_spawn` itself: the
//! child borrows our memory, and our thread sleeps until the child executes or gives up.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::{
        signal::{SigSet, SigmaskHow, pthread_sigmask},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use super::{Child, adopt::without_adoption, lasting::on_lasting_thread};

/// What to start, and how.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// The program, as a path.
    pub(crate) program: CString,
    /// Its arguments, the first being its own name.
    pub(crate) arguments: Vec<CString>,
    /// Its whole environment.
    pub(crate) environment: Vec<CString>,
    /// Its open files: the first becomes descriptor 0, the next 1, and so on. Nothing else is inherited.
    pub(crate) files: Vec<BorrowedFd<'a>>,
    pub(crate) place: Place,
    /// Signals that the program is to ignore, beside those that the caller ignores.
    pub(crate) ignores: &'static [libc::c_int],
    /// Start it from a thread that lasts as long as the program.
    pub(crate) lasting: bool,
}

/// The session and process group of what is started, which decide whose signals it gets: those of a terminal go to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Our session and our group.
    OurGroup,
    /// Our session, and a group of its own.
    OwnGroup,
    /// A session of its own, and so no controlling terminal.
    OwnSession,
    /// A session of its own, as a child of init, or of the nearest subreaper.
    Detached,
}

/// The signals that a terminal sends, or the kernel because of one.
pub(crate) const OF_A_TERMINAL: &[libc::c_int] =
    &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// The same, and the signal that asks a program to end.
pub(crate) const TO_END_PROGRAMS: &[libc::c_int] =
    &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Starts a program. `None` if it is detached: then it is not ours to wait for.
///
/// The program ignores SIGXFSZ, what it is told to ignore, and what the caller ignores. All other signals are at their
/// default, as is SIGCHLD always, and SIGTERM unless the program is told to ignore it. No signal is blocked.
pub(crate) fn spawn(spawn: Spawn<'_>) -> io::Result<Option<Child>> {
    let lasting = spawn.lasting;
    let parts = Parts::new(spawn)?;
    match (parts.place, lasting) {
        (Place::Detached, _) => start_detached(&parts).map(|()| None),
        (_, true) => on_lasting_thread(move || start_child(&parts)).map(Some),
        (_, false) => start_child(&parts).map(Some),
    }
}

fn start_child(parts: &Parts) -> io::Result<Child> {
    let mut plan = Plan::new(parts);
    let (pid, pidfd) = plan.start(execute, libc::CLONE_PIDFD)?;
    let pidfd = pidfd.expect("because CLONE_PIDFD asked for it");
    let child = Child::new(pid, pidfd);
    plan.outcome().inspect_err(|_| drop(child.wait(None)))?;
    Ok(child)
}

fn start_detached(parts: &Parts) -> io::Result<()> {
    let mut plan = Plan::new(parts);
    // A subreaper would become the parent itself, and criu refuses to dump its own ancestors.
    without_adoption(|| {
        let (pid, _) = plan.start(detach, 0)?;
        let pid = Pid::from_raw(pid);
        while matches!(waitpid(pid, Some(WaitPidFlag::__WALL)), Err(nix::errno::Errno::EINTR)) {}
        plan.outcome()
    })?
}

/// The program to start, with files of its own.
struct Parts {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Copies of the files, at numbers above all that they are to get in the child.
    sources: Vec<OwnedFd>,
    place: Place,
    ignores: &'static [libc::c_int],
}

impl Parts {
    fn new(spawn: Spawn<'_>) -> io::Result<Parts> {
        let above = RawFd::try_from(spawn.files.len()).map_err(io::Error::other)?;
        let sources = spawn.files.iter().map(|file| duplicate(*file, above)).collect::<io::Result<_>>()?;
        let Spawn { program, arguments, environment, place, ignores, .. } = spawn;
        Ok(Parts { program, arguments, environment, sources, place, ignores })
    }
}

/// All that the child needs, made beforehand: between `clone` and `execve` it may not allocate.
struct Plan<'a> {
    parts: &'a Parts,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    stack: Vec<u128>,
    inner_stack: Vec<u128>,
    /// Written by the child, whose memory is ours: why it could not execute; 0 if it could.
    errno: libc::c_int,
}

/// 64 KiB, in units of 16 bytes, which is the alignment that the processors want of a stack.
const STACK: usize = 64 * 1024 / 16;

impl<'a> Plan<'a> {
    fn new(parts: &'a Parts) -> Plan<'a> {
        Plan {
            parts,
            arguments: pointers(&parts.arguments),
            environment: pointers(&parts.environment),
            stack: vec![0; STACK],
            inner_stack: vec![0; STACK],
            errno: 0,
        }
    }

    /// Runs `child` in a process of its own, on our memory, and sleeps until it executes or exits.
    fn start(
        &mut self,
        child: extern "C" fn(*mut libc::c_void) -> libc::c_int,
        flags: libc::c_int,
    ) -> io::Result<(libc::pid_t, Option<OwnedFd>)> {
        // A handler of ours must not run in the child, where it would find the parent's thread-local state.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        let top = self.stack.as_mut_ptr_range().end;
        let mut pidfd: libc::c_int = -1;
        let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let plan: *mut libc::c_void = ptr::from_mut(self).cast();
        // SAFETY: the stack is ours, large enough, and outlives the child's use of it because CLONE_VFORK
        // stops this thread until then; `child` makes async-signal-safe calls only; `plan` outlives it too.
        let pid = unsafe { libc::clone(child, top.cast(), flags, plan, &raw mut pidfd) };
        let failed = io::Error::last_os_error();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        if pid < 0 {
            return Err(failed);
        }
        // SAFETY: the kernel wrote a descriptor that it made for us; otherwise the number is still -1.
        let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
        Ok((pid, pidfd.map(off_the_streams)))
    }

    /// What became of the child's `execve`.
    fn outcome(&self) -> io::Result<()> {
        // SAFETY: the reference the pointer is made of is valid; the read is volatile because the writer was
        // another process.
        match unsafe { ptr::read_volatile(&raw const self.errno) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// In a program that closed its standard streams the kernel puts a pidfd in their place, where the program prints to.
fn off_the_streams(pidfd: OwnedFd) -> OwnedFd {
    match pidfd.as_raw_fd() {
        0..=2 => duplicate(pidfd.as_fd(), 3).unwrap_or(pidfd), // there it does less harm than none
        _ => pidfd,
    }
}

pub(super) fn duplicate(file: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(above))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The detached child's parent: starts the child, and exits so that init inherits it.
extern "C" fn detach(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: takes nothing, touches nothing of ours.
    unsafe { libc::setsid() };
    // SAFETY: `start` passes a valid `Plan`, and its thread sleeps while we use it.
    let inner = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let top = inner.inner_stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as in `start`: our own stack, a child that makes async-signal-safe calls only, and a plan that
    // outlives it.
    if unsafe { libc::clone(execute, top.cast(), flags, plan) } < 0 {
        inner.errno = errno();
    }
    0
}

/// The child: puts signals and files as the program is to find them, and becomes the program.
extern "C" fn execute(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` or `detach` passes a valid `Plan`, and its process sleeps while we use it.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    match plan.parts.place {
        // SAFETY: takes numbers, touches nothing of ours. A new process leads no group, so it is not refused.
        Place::OwnGroup => drop(unsafe { libc::setpgid(0, 0) }),
        // SAFETY: takes nothing, touches nothing of ours.
        Place::OwnSession => drop(unsafe { libc::setsid() }),
        Place::OurGroup | Place::Detached => {}
    }
    reset_signals(plan.parts.ignores);
    if let Err(errno) = place_files(&plan.parts.sources) {
        plan.errno = errno;
        return 127;
    }
    unblock_signals();
    let (program, arguments, environment): (&CStr, _, _) =
        (&plan.parts.program, plan.arguments.as_ptr(), plan.environment.as_ptr());
    // SAFETY: the strings are alive, and both arrays end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), arguments, environment) };
    plan.errno = errno();
    127
}

/// No handler may run here; what is ignored stays so, save for SIGCHLD and SIGTERM, without which criu cannot work: it
/// ends a helper of a restore by SIGTERM, and waits for its end. A write beyond the file size limit is to fail, not to
/// kill: that is how a dump is cancelled.
fn reset_signals(ignores: &[libc::c_int]) {
    for signal in 1..=64 {
        // SAFETY: a zeroed sigaction is a valid one, with the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        if !matches!(signal, libc::SIGCHLD | libc::SIGTERM | libc::SIGXFSZ) {
            // SAFETY: `action` is a valid place for the old action.
            unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
            if action.sa_sigaction == libc::SIG_IGN {
                continue;
            }
        }
        let ignored = signal == libc::SIGXFSZ || ignores.contains(&signal);
        // One that waits because it is blocked was sent to the caller's group before this process left that. To ignore it
        // discards it.
        let last = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        for disposition in [libc::SIG_IGN, last] {
            action.sa_sigaction = disposition;
            action.sa_flags = 0;
            // SAFETY: `action` is initialized; numbers that name no signal are refused by the kernel. Without
            // CLONE_SIGHAND the table is this process's own.
            unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        }
    }
}

fn unblock_signals() {
    // SAFETY: a zeroed set is a valid place to write one to.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid for writing.
    unsafe { libc::sigemptyset(&mut none) };
    // SAFETY: `none` is initialized, and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) };
}

/// Puts the files at 0, 1, 2, … and lets nothing else through.
fn place_files(sources: &[OwnedFd]) -> Result<(), libc::c_int> {
    // SAFETY: takes numbers only, and acts on this process's own table, which no other process shares.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) } < 0 {
        // SAFETY: takes a number, gives a number.
        let highest = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        for number in 0..RawFd::try_from(highest.clamp(0, 1 << 20)).unwrap_or(1 << 20) {
            // SAFETY: acts on this process's own table; numbers that are not open are refused.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    for (target, source) in (0..).zip(sources) {
        // SAFETY: acts on this process's own table; every source has a number above every target.
        if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
            return Err(errno());
        }
    }
    Ok(())
}

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;

fn errno() -> libc::c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
