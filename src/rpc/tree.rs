//! [`Tree`]: owns a process tree that criu revived.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::kill::{kill_from, kill_tree};
use crate::{
    Error, Isolation, Pid, Result,
    sys::{self, Child, Init},
};

/// A process tree that was revived.
///
/// Dropping it leaves the tree running. A thread reaps its root at its end. A
/// [copy](crate::ProcsRestore::isolated) ends with this program, unless it is
/// [detached](Tree::detach).
pub struct Tree {
    root: Child,
    status: Option<ExitStatus>,
    /// The init of its namespaces, if they are its own.
    init: Option<Arc<Init>>,
    isolation: Isolation,
}

impl Tree {
    /// Takes ownership of the process `pid`, which exists, or is a zombie of ours.
    pub(super) fn own(pid: i32) -> Result<Tree> {
        let pidfd = sys::pidfd_open(pid).map_err(|error| {
            let _ = kill_tree(pid); // without a pidfd the tree has no owner
            Error::io(format!("open the revived process {pid}"))(error)
        })?;
        let isolation = Isolation::new();
        Ok(Tree { root: Child::new(pid, pidfd), status: None, init: None, isolation })
    }

    /// Takes ownership of a tree in namespaces of its own.
    pub(super) fn within(init: Arc<Init>, isolation: Isolation) -> Result<Tree> {
        let doing = || "open the root of the copy".to_owned();
        let (pid, pidfd) = init.root().map_err(Error::io(doing()))?;
        init.close_lent();
        init.keep();
        Ok(Tree { root: Child::new(pid, pidfd), status: None, init: Some(init), isolation })
    }

    /// Returns the pid of the root process, in this program's pid namespace.
    pub fn pid(&self) -> Pid {
        Pid::from(self.root.pid())
    }

    /// Returns a pidfd of the root process. It is readable once the process has ended, and never
    /// means another process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.root.pidfd()
    }

    /// Returns true if the root has ended, and its pid may be that of another process.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some() || sys::wait_readable(self.pidfd(), Some(Instant::now())).unwrap_or(true)
    }

    /// Returns the isolation of the copy; for another tree, that of a simple copy.
    pub(crate) fn isolation(&self) -> Isolation {
        self.isolation.clone()
    }

    /// Waits until the root process ends, and returns its exit status.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with `ECHILD` once the root has ended if its status went elsewhere: it is not
    /// our child (for [`Criu::restore`](super::Criu::restore) without
    /// [`rst_sibling`](crate::RestoreOptions::rst_sibling)), or this program reaps all children, or
    /// ignores SIGCHLD.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_timeout(Duration::from_secs(3600))? {
                return Ok(status);
            }
        }
    }

    /// Waits for the root process as [`wait`](Tree::wait) does, but no longer than `timeout`.
    /// Returns `None` if it still runs. A timeout of zero does not wait.
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
            Some(None) => match &self.init {
                Some(init) => {
                    self.status = init.root_status(deadline);
                    Ok(self.status)
                }
                None => Err(Error::Io { doing: doing(), source: Errno::ECHILD.into() }),
            },
        }
    }

    /// Kills all processes of a [copy](crate::ProcsRestore::isolated), or the root process and all
    /// its descendants, as [`kill_tree`](crate::kill_tree) does, and waits until they have ended.
    /// Succeeds if the tree has ended already. [`wait`](Tree::wait) still returns the status.
    ///
    /// # Errors
    ///
    /// As [`kill_tree`](crate::kill_tree). [`Error::Io`] with `TimedOut` if the kernel does not let
    /// a process of a copy end.
    pub fn kill(&self) -> Result<()> {
        if let Some(init) = &self.init {
            let doing = || format!("end the copy with process {}", self.pid());
            let late = || Error::io(doing())(io::ErrorKind::TimedOut.into());
            return if init.end() { Ok(()) } else { Err(late()) };
        }
        kill_from(self.root.pid(), self.root.pidfd())
    }

    /// Gives up the ownership. A [copy](crate::ProcsRestore::isolated) then outlives this program;
    /// any other tree does so anyway. While this program lives, one of its threads reaps the root,
    /// or the copy's init, at its end.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the copy has ended.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// use criu_rpc::{Isolation, ProcsRestore};
    ///
    /// let restored = ProcsRestore::new().isolated(Isolation::new()).restore(&store, &digest)?;
    /// let copy = restored.into_tree().ok_or("nothing was captured")?;
    /// println!("process {} stays", copy.pid());
    /// copy.detach()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn detach(self) -> Result<()> {
        let Some(init) = &self.init else { return Ok(()) };
        init.detach().map_err(Error::io(format!("detach the copy with process {}", self.pid())))
    }

    /// Kills the tree as [`kill`](Tree::kill) does, and reaps the root: all pids of the tree are
    /// free afterwards, and an earlier capture of it can be revived. Returns the exit status of the
    /// root.
    ///
    /// # Errors
    ///
    /// As [`kill`](Tree::kill) and [`wait`](Tree::wait).
    pub fn kill_and_wait(&mut self) -> Result<ExitStatus> {
        self.kill()?;
        self.wait()
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

impl AsRawFd for Tree {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd().as_raw_fd()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("pid", &self.pid()).field("status", &self.status).finish()
    }
}
