//! [`Child`]: a child process that is always reaped. A thread reaps abandoned children.

use std::{
    collections::BTreeSet,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    sync::{
        Arc, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::lock::Mutex;

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};

/// A child process. If it is dropped before its end, a thread reaps the child later.
#[derive(Debug)]
pub(crate) struct Child {
    pid: i32,
    /// Distinguishes children that had the same pid.
    serial: u64,
    pidfd: Option<OwnedFd>,
}

impl Child {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Child {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        known().insert((pid, serial));
        Child { pid, serial, pidfd: Some(pidfd) }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_ref().expect("because only drop takes it").as_fd()
    }

    /// Waits for the end, up to `deadline`; `None` if the child is still running then. The inner
    /// value is `None` if the status is lost: another handler reaped the child, or SIGCHLD is
    /// ignored.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Option<ExitStatus>>> {
        if !wait_readable(self.pidfd(), deadline)? {
            return Ok(None);
        }
        reap(self.pidfd()).map(Some)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            reap_later(pidfd);
        }
        known().remove(&(self.pid, self.serial));
    }
}

/// The pids of children that this program owns, with the serial numbers of their [`Child`]s.
static KNOWN: Mutex<BTreeSet<(i32, u64)>> = Mutex::new(BTreeSet::new());

fn known() -> MutexGuard<'static, BTreeSet<(i32, u64)>> {
    KNOWN.lock()
}

/// Returns true if the pid is that of a child with an owner in this program.
pub(crate) fn is_known_child(pid: i32) -> bool {
    known().range((pid, 0)..=(pid, u64::MAX)).next().is_some()
}

/// Forgets the children with this pid: it was reaped and is free, though a [`Child`] may still
/// exist.
pub(crate) fn forget_children(pid: i32) {
    known().retain(|(known, _)| *known != pid);
}

/// Waits until `descriptor` is readable, up to `deadline`.
pub(crate) fn wait_readable(descriptor: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN)];
        match poll(&mut polled, timeout(deadline)) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// Reaps a process that has ended. Returns `None` if it runs, is not our child, or was reaped
/// already.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(ExitStatus::from_raw((code & 0xff) << 8))),
            Ok(WaitStatus::Signaled(_, signal, dumped)) => {
                let core = if dumped { 0x80 } else { 0 };
                return Ok(Some(ExitStatus::from_raw(signal as i32 | core)));
            }
            Ok(_) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reaps the process at its end, on a thread that all such processes share.
///
/// Nothing is reaped if that thread cannot be started, and there is no caller to return an error
/// to.
pub(crate) fn reap_later(pidfd: OwnedFd) {
    if !matches!(wait_readable(pidfd.as_fd(), Some(Instant::now())), Ok(false)) {
        let _ = reap(pidfd.as_fd());
        return;
    }
    static REAPER: OnceLock<Option<Arc<Reaper>>> = OnceLock::new();
    if let Some(reaper) = REAPER.get_or_init(|| Reaper::start().ok()) {
        reaper.processes.lock().push(pidfd);
        let _ = reaper.wake.write(1);
    }
}

#[derive(Debug)]
struct Reaper {
    processes: Mutex<Vec<OwnedFd>>,
    wake: EventFd,
}

impl Reaper {
    fn start() -> io::Result<Arc<Reaper>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let reaper = Arc::new(Reaper { processes: Mutex::default(), wake });
        let on_thread = Arc::clone(&reaper);
        thread::Builder::new().name("criu-rpc reaper".into()).spawn(move || on_thread.run())?;
        Ok(reaper)
    }

    fn run(&self) {
        let mut waiting: Vec<OwnedFd> = Vec::new();
        loop {
            waiting.append(&mut self.processes.lock());
            let descriptors = [self.wake.as_fd()].into_iter().chain(waiting.iter().map(AsFd::as_fd));
            let mut polled: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            if !matches!(poll(&mut polled, PollTimeout::NONE), Ok(_) | Err(Errno::EINTR)) {
                // There may be more processes than the limit of open files.
                thread::sleep(Duration::from_millis(100));
                polled.clear();
            }
            let ended: Vec<_> = polled.iter().skip(1).map(|fd| fd.any().unwrap_or(false)).collect();
            let _ = self.wake.read();
            let mut ended = ended.into_iter();
            waiting.retain(|process| {
                let over = match ended.next() {
                    Some(over) => over,
                    None => wait_readable(process.as_fd(), Some(Instant::now())).unwrap_or(true),
                };
                if over {
                    let _ = reap(process.as_fd());
                }
                !over
            });
        }
    }
}
