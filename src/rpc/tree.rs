//! [`Tree`]: a process tree that criu revived, and its owner.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::signal::Signal};

use crate::{
    Error, Pid, Result,
    procfs::children,
    sys::{self, Child},
};

/// A process tree that was revived.
///
/// Dropping it leaves the tree running; its end leaves no zombie behind.
pub struct Tree {
    root: Child,
    status: Option<ExitStatus>,
}

impl Tree {
    /// Takes ownership of the process `pid`, which exists, or is a zombie of ours.
    pub(super) fn own(pid: i32) -> Result<Tree> {
        let pidfd = sys::pidfd_open(pid).map_err(Error::io(format!("open the revived process {pid}")))?;
        Ok(Tree { root: Child::new(pid, pidfd), status: None })
    }

    /// The root process.
    pub fn pid(&self) -> Pid {
        Pid::from(self.root.pid())
    }

    /// A pidfd of the root process: readable once that has ended, and never somebody else's.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.root.pidfd()
    }

    /// Waits until the root process ends, and gives its exit status.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with `ECHILD` once the root has ended if its status went elsewhere: it is not our child
    /// (for [`Criu::restore`](super::Criu::restore) without
    /// [`rst_sibling`](crate::RestoreOptions::rst_sibling)), or this program reaps all children, or ignores
    /// SIGCHLD.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_timeout(Duration::from_secs(3600))? {
                return Ok(status);
            }
        }
    }

    /// Waits for the root process as [`wait`](Tree::wait) does, but no longer than `timeout`; `None` if it
    /// still runs then. With a timeout of zero it only looks.
    ///
    /// # Errors
    ///
    /// As [`wait`](Tree::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        let doing = || format!("wait for process {}", self.root.pid());
        let deadline = Instant::now().checked_add(timeout);
        match self.root.wait(deadline).map_err(Error::io(doing()))? {
            None => Ok(None),
            Some(Some(status)) => {
                self.status = Some(status);
                Ok(self.status)
            }
            Some(None) => Err(Error::Io { doing: doing(), source: Errno::ECHILD.into() }),
        }
    }

    /// Kills the root process and all its descendants, with SIGKILL. A tree that has ended already is fine.
    ///
    /// Its descendants are stopped first, from the top down, so that none can escape by forking. Processes that
    /// left the tree (their parent ended, and init inherited them) are not reached.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a signal may not be sent.
    pub fn kill(&self) -> Result<()> {
        let mut members = vec![Member { pid: self.root.pid(), pidfd: None }];
        let mut next = 0;
        while next < members.len() {
            let member = &members[next];
            let stopped = match &member.pidfd {
                None => signal(self.root.pidfd(), Signal::SIGSTOP),
                Some(pidfd) => signal(pidfd.as_fd(), Signal::SIGSTOP),
            };
            stopped.map_err(Error::io(format!("stop process {}", member.pid)))?;
            let known: Vec<_> = members.iter().map(|member| member.pid).collect();
            members.extend(
                children(members[next].pid)
                    .into_iter()
                    .filter(|pid| !known.contains(pid))
                    .filter_map(|pid| {
                        let pidfd = sys::pidfd_open(pid).ok()?;
                        // The number can be somebody else's since it was read; a child of ours would still be one.
                        children(members[next].pid)
                            .contains(&pid)
                            .then_some(Member { pid, pidfd: Some(pidfd) })
                    })
                    .collect::<Vec<_>>(),
            );
            next += 1;
        }
        for member in members.iter().rev() {
            let pidfd = member.pidfd.as_ref().map_or(self.root.pidfd(), AsFd::as_fd);
            signal(pidfd, Signal::SIGKILL).map_err(Error::io(format!("kill process {}", member.pid)))?;
        }
        Ok(())
    }
}

struct Member {
    pid: i32,
    /// `None` for the root, whose pidfd the tree has.
    pidfd: Option<std::os::fd::OwnedFd>,
}

/// Sends a signal; a process that has ended needs none.
fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match sys::pidfd_signal(pidfd, signal) {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        result => result,
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("pid", &self.pid()).field("status", &self.status).finish()
    }
}
