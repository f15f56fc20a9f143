//! [`PageServer`]: a page server of criu's, and its owner.

use std::{
    fmt,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use nix::sys::signal::Signal;

use super::talk::{Ask, Talk};
use crate::{Error, Request, Result, sys};

/// A page server of criu's: it takes in the memory of one dump, writes it into the folder that it was lent, and ends.
///
/// Dropped, it is killed; a dump that it serves fails then, and its tree goes on. One that cannot be seen to descend
/// from its criu is left alone: that of a service in another pid namespace, or of one that made itself a daemon.
pub struct PageServer {
    talk: Option<Talk>,
    pid: i32,
    /// `None` if the number may be that of somebody else.
    pidfd: Option<OwnedFd>,
    port: Option<u16>,
}

impl PageServer {
    pub(super) fn new(talk: Talk, pid: i32, port: Option<u16>) -> PageServer {
        let pidfd = sys::pidfd_open(pid).ok().filter(|_| talk.begot(pid));
        PageServer { talk: Some(talk), pid, pidfd, port }
    }

    /// The port that it listens on; none if it was lent a socket.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Waits until it has ended, and gives its exit status. Whether all memory arrived is what its
    /// [`success`](ExitStatus::success) says, so look at it: a page server that failed is no error here.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if criu, its parent, died; [`Error::TimedOut`] past the deadline, and [`Error::Cancelled`]: it is
    /// killed then.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let mut talk = self.talk.take().expect("because only this takes it");
        let child = u32::try_from(self.pid).ok();
        let answer = talk.ask(Ask { child, ..Ask::new(Request::WaitPid) })?;
        talk.close();
        answer.status.map(ExitStatus::from_raw).ok_or_else(|| Error::Protocol {
            request: Request::WaitPid,
            problem: "an answer without a status".to_owned(),
        })
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = sys::pidfd_signal(pidfd, Signal::SIGKILL); // it has ended already, then
        }
    }
}

impl fmt::Debug for PageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageServer").field("pid", &self.pid).field("port", &self.port).finish()
    }
}
