//! Starts criu: fast however large the caller is, with the files that it needs and no others.
//!
//! `fork` copies the page tables of the caller, which for many gigabytes takes longer than a dump.
//! `posix_spawn` does not, but it cannot close unknown descriptors, ignore SIGXFSZ in the child, or
//! detach it. So this is a `clone` with `CLONE_VM | CLONE_VFORK`, as in `posix_spawn` itself. The
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

/// The parameters of a new process.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// The program, as a path.
    pub(crate) program: CString,
    /// The file to execute, if it is not that of the path.
    pub(crate) executable: Option<BorrowedFd<'a>>,
    /// The namespaces to start it in, as flags of `clone`: new ones.
    pub(crate) namespaces: libc::c_int,
    /// A process whose namespaces it starts in, if they are not the caller's: a pidfd.
    pub(crate) inside: Option<BorrowedFd<'a>>,
    /// Its arguments; the first one is its own name.
    pub(crate) arguments: Vec<CString>,
    /// Its complete environment.
    pub(crate) environment: Vec<CString>,
    /// Its open files: the first becomes descriptor 0, the next 1, and so on. No others are
    /// inherited.
    pub(crate) files: Vec<BorrowedFd<'a>>,
    pub(crate) place: Place,
    /// Signals that the program must ignore, beside those that the caller ignores.
    pub(crate) ignores: &'static [libc::c_int],
    /// True to start it from a thread that lasts as long as the program.
    pub(crate) lasting: bool,
}

/// The session and process group of the new process, which decide the signals that it gets from
/// terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The caller's session and group.
    OurGroup,
    /// The caller's session, and a group of its own.
    OwnGroup,
    /// A session of its own, without a controlling terminal.
    OwnSession,
    /// A session of its own, as a child of init, or of the nearest subreaper.
    Detached,
}

/// Signals from a terminal, or from the kernel because of a terminal.
pub(crate) const OF_A_TERMINAL: &[libc::c_int] =
    &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// The same, and the signal that asks a program to end.
pub(crate) const TO_END_PROGRAMS: &[libc::c_int] =
    &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Starts a program. Returns `None` if it is detached: then it is not our child.
///
/// The program ignores SIGXFSZ, the signals in `ignores`, and those that the caller ignores. All
/// other signals have their default action. So has SIGCHLD always, and SIGTERM unless it is in
/// `ignores`. No signal is blocked.
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
    if parts.inside.is_some() {
        return start_inside(plan);
    }
    let (pid, pidfd) = plan.start(execute, libc::CLONE_PIDFD | parts.namespaces)?;
    let pidfd = pidfd.expect("because CLONE_PIDFD asked for it");
    let child = Child::new(pid, pidfd);
    plan.outcome().inspect_err(|_| drop(child.wait(None)))?;
    Ok(child)
}

/// Starts it from a process that has entered the namespaces. It is our child, not that process's.
fn start_inside(mut plan: Plan<'_>) -> io::Result<Child> {
    let (pid, _) = plan.start(enter, 0)?;
    reap(pid);
    let started = plan.started();
    if let Err(error) = plan.outcome() {
        started.into_iter().for_each(reap);
        return Err(error);
    }
    let pid = started.ok_or_else(|| io::Error::other("a process that entered namespaces started nothing"))?;
    match super::pidfd_open(pid) {
        Ok(pidfd) => Ok(Child::new(pid, move_above_stdio(pidfd))),
        Err(error) => {
            // SAFETY: takes numbers. The process is our child, and was not reaped.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap(pid);
            Err(error)
        }
    }
}

fn reap(pid: libc::pid_t) {
    let pid = Pid::from_raw(pid);
    while matches!(waitpid(pid, Some(WaitPidFlag::__WALL)), Err(nix::errno::Errno::EINTR)) {}
}

fn start_detached(parts: &Parts) -> io::Result<()> {
    let mut plan = Plan::new(parts);
    // A subreaper would adopt criu, and criu refuses to dump its own ancestors.
    without_adoption(|| {
        let (pid, _) = plan.start(detach, 0)?;
        reap(pid);
        plan.outcome()
    })?
}

/// The program to start, with its own copies of the files.
struct Parts {
    program: CString,
    executable: Option<OwnedFd>,
    namespaces: libc::c_int,
    inside: Option<OwnedFd>,
    /// The numbers of `sources`, in order.
    kept: Vec<RawFd>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// Copies of the files, at numbers above all target numbers.
    sources: Vec<OwnedFd>,
    place: Place,
    ignores: &'static [libc::c_int],
}

impl Parts {
    fn new(spawn: Spawn<'_>) -> io::Result<Parts> {
        let above = RawFd::try_from(spawn.files.len()).map_err(io::Error::other)?;
        let sources =
            spawn.files.iter().map(|file| duplicate(*file, above)).collect::<io::Result<Vec<_>>>()?;
        let mut kept: Vec<_> = sources.iter().map(AsRawFd::as_raw_fd).collect();
        kept.sort_unstable();
        let [executable, inside] =
            [spawn.executable, spawn.inside].map(|file| file.map(|file| duplicate(file, above)).transpose());
        let (executable, inside) = (executable?, inside?);
        let Spawn { program, arguments, environment, place, ignores, namespaces, .. } = spawn;
        Ok(Parts {
            program,
            executable,
            namespaces,
            inside,
            kept,
            arguments,
            environment,
            sources,
            place,
            ignores,
        })
    }
}

/// All data for the child, prepared because it may not allocate between `clone` and `execve`.
struct Plan<'a> {
    parts: &'a Parts,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    stack: Vec<u128>,
    inner_stack: Vec<u128>,
    /// The error of the child's `execve`, which the child writes into our memory; 0 for success.
    errno: libc::c_int,
    /// The process that [`enter`] started; 0 if none.
    started: libc::pid_t,
}

/// 64 KiB, in units of 16 bytes, the alignment of a stack.
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
            started: 0,
        }
    }

    /// Runs `child` in a process of its own on our memory, and sleeps until it executes or exits.
    fn start(
        &mut self,
        child: extern "C" fn(*mut libc::c_void) -> libc::c_int,
        flags: libc::c_int,
    ) -> io::Result<(libc::pid_t, Option<OwnedFd>)> {
        // The program's signal handlers must not run in the child, with the parent's thread-local
        // state.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        let top = self.stack.as_mut_ptr_range().end;
        let mut pidfd: libc::c_int = -1;
        let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let plan: *mut libc::c_void = ptr::from_mut(self).cast();
        // SAFETY: the stack is ours, large enough, and outlives the child's use of it, because
        // CLONE_VFORK stops this thread until then. So does `plan`. `child` makes only
        // async-signal-safe calls.
        let pid = unsafe { libc::clone(child, top.cast(), flags, plan, &raw mut pidfd) };
        let failed = io::Error::last_os_error();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        if pid < 0 {
            return Err(failed);
        }
        // SAFETY: the kernel wrote a new descriptor for us; otherwise the number is still -1.
        let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
        Ok((pid, pidfd.map(move_above_stdio)))
    }

    /// Returns the result of the child's `execve`.
    fn outcome(&self) -> io::Result<()> {
        // SAFETY: the reference is valid; the read is volatile because another process wrote the
        // value.
        match unsafe { ptr::read_volatile(&raw const self.errno) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Plan<'_> {
    /// Returns the process that [`enter`] started.
    fn started(&self) -> Option<libc::pid_t> {
        // SAFETY: as in `outcome`.
        Some(unsafe { ptr::read_volatile(&raw const self.started) }).filter(|pid| *pid > 0)
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Moves the pidfd above the standard streams. In a program that closed those, it would receive the
/// program's output.
fn move_above_stdio(pidfd: OwnedFd) -> OwnedFd {
    match pidfd.as_raw_fd() {
        0..=2 => duplicate(pidfd.as_fd(), 3).unwrap_or(pidfd), // a low number beats no pidfd
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
    // SAFETY: takes no arguments, touches no memory of ours.
    unsafe { libc::setsid() };
    // SAFETY: `start` passes a valid `Plan`, and its thread sleeps while we use it.
    let inner = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let top = inner.inner_stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as in `start`: our own stack, only async-signal-safe calls, and a plan that outlives
    // the child.
    if unsafe { libc::clone(execute, top.cast(), flags, plan) } < 0 {
        inner.errno = errno();
    }
    0
}

/// Enters the namespaces, starts the child in them as a sibling of this process, and exits.
extern "C" fn enter(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes a valid `Plan`, and its thread sleeps while we use it.
    let inner = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let Some(inside) = &inner.parts.inside else { return 0 };
    // SAFETY: takes numbers, and acts on this process alone, which shares only memory and files.
    if unsafe { libc::setns(inside.as_raw_fd(), OF_A_COPY) } < 0 {
        inner.errno = errno();
        return 0;
    }
    // Processes of the copy that may trace can take the child's descriptors through /proc.
    let mut from = 0;
    for kept in inner.parts.kept.iter().copied().chain([RawFd::MAX]) {
        if kept > from {
            // SAFETY: takes only numbers, and acts on this process's own table.
            unsafe { libc::syscall(libc::SYS_close_range, from, kept - 1, 0) };
        }
        from = kept.saturating_add(1);
    }
    let top = inner.inner_stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as in `start`: our own stack, only async-signal-safe calls, and a plan that outlives
    // the child.
    match unsafe { libc::clone(execute, top.cast(), flags, plan) } {
        pid if pid > 0 => inner.started = pid,
        _ => inner.errno = errno(),
    }
    0
}

/// The namespaces that a copy can have of its own.
const OF_A_COPY: libc::c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Runs in the child: sets up signals and files, and executes the program.
extern "C" fn execute(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` or `detach` passes a valid `Plan`, and its process sleeps while we use it.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    match plan.parts.place {
        // SAFETY: takes numbers, touches no memory of ours. A new process leads no group, so the
        // call cannot fail.
        Place::OwnGroup => drop(unsafe { libc::setpgid(0, 0) }),
        // SAFETY: takes no arguments, touches no memory of ours.
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
    match &plan.parts.executable {
        // SAFETY: the strings are alive, and both arrays end with a null pointer.
        None => drop(unsafe { libc::execve(program.as_ptr(), arguments, environment) }),
        Some(file) => {
            let (file, nowhere) = (file.as_raw_fd(), c"".as_ptr());
            // SAFETY: as above.
            unsafe {
                libc::syscall(libc::SYS_execveat, file, nowhere, arguments, environment, libc::AT_EMPTY_PATH);
            }
        }
    }
    plan.errno = errno();
    127
}

/// Resets signal handlers. Ignored signals stay ignored, except SIGCHLD and SIGTERM, which criu
/// needs: it ends a helper of a restore by SIGTERM, and waits for its end. A write beyond the file
/// size limit must fail instead of killing: that is how a dump is cancelled.
fn reset_signals(ignores: &[libc::c_int]) {
    for signal in 1..=64 {
        // SAFETY: a zeroed sigaction is valid, with the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        if !matches!(signal, libc::SIGCHLD | libc::SIGTERM | libc::SIGXFSZ) {
            // SAFETY: `action` is a valid place for the old action.
            unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
            if action.sa_sigaction == libc::SIG_IGN {
                continue;
            }
        }
        let ignored = signal == libc::SIGXFSZ || ignores.contains(&signal);
        // A blocked signal may be pending since before this process left the caller's group.
        // Ignoring a signal discards it.
        let last = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        for disposition in [libc::SIG_IGN, last] {
            action.sa_sigaction = disposition;
            action.sa_flags = 0;
            // SAFETY: `action` is initialized, and the kernel refuses invalid numbers. Without
            // CLONE_SIGHAND the table is this process's own.
            unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        }
    }
}

fn unblock_signals() {
    // SAFETY: a zeroed set is a valid place for a set.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid for writing.
    unsafe { libc::sigemptyset(&mut none) };
    // SAFETY: `none` is initialized, and the old mask is not requested.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) };
}

/// Puts the files at 0, 1, 2, …, and closes all others at `execve`.
fn place_files(sources: &[OwnedFd]) -> Result<(), libc::c_int> {
    // SAFETY: takes only numbers, and acts on this process's own table.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) } < 0 {
        // SAFETY: takes a number, returns a number.
        let highest = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        for number in 0..RawFd::try_from(highest.clamp(0, 1 << 20)).unwrap_or(1 << 20) {
            // SAFETY: acts on this process's own table; the kernel refuses closed numbers.
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
