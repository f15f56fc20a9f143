//! Runs work in another process, for system calls that would disturb the calling program.

use std::{io, ptr};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, pthread_sigmask},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Runs `work` in a process of its own that shares our memory, and waits for its end.
///
/// A process that traces a child of its caller hides the child's end from the caller's `wait`, and
/// makes `wait` return when the child stops. A tracer in another process does neither.
///
/// The work borrows the state of this thread. It may make system calls, but neither allocate nor
/// panic.
pub(crate) fn in_another_process(mut work: impl FnMut()) -> io::Result<()> {
    let mut work: &mut dyn FnMut() = &mut work;
    let mut stack = vec![0_u128; STACK];
    let mut mask = SigSet::empty();
    // The program's signal handlers must not run there.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let top = stack.as_mut_ptr_range().end;
    // Without an exit signal, the program's handlers and its calls of `wait` do not notice the
    // process.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    let argument: *mut libc::c_void = ptr::from_mut(&mut work).cast();
    // SAFETY: the stack is ours, large enough, and outlives the child's use of it, because
    // CLONE_VFORK stops this thread until the child ends. So does `work`, which makes only system
    // calls.
    let pid = unsafe { libc::clone(run, top.cast(), flags, argument) };
    let failed = io::Error::last_os_error();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    if pid < 0 {
        return Err(failed);
    }
    let pid = Pid::from_raw(pid);
    while matches!(waitpid(pid, Some(WaitPidFlag::__WALL)), Err(nix::errno::Errno::EINTR)) {}
    Ok(())
}

extern "C" fn run(work: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the caller passes a valid reference, and its thread sleeps while we use it.
    let work = unsafe { &mut *work.cast::<&mut dyn FnMut()>() };
    work();
    0
}

/// 64 KiB, in units of 16 bytes, the alignment of a stack.
const STACK: usize = 64 * 1024 / 16;
