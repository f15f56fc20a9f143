//! [`PageServer`]: owns a page server of criu's.

use std::{
    fmt,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
};

use nix::sys::signal::Signal;

use super::{
    Lend,
    call::{Call, Files},
    condition::Tree,
    failure::FailureContext,
    talk::Conversation,
    transport::CriuExit,
};
use crate::{
    Error, Failure, Pid, Request, Result, Version,
    proto::rpc::{CriuOpts, CriuResp},
    sys,
};

/// A page server of criu's: it receives the memory of one dump, writes it into the lent folder, and
/// ends.
///
/// When this is dropped, the server is killed; a dump that it serves fails, and its tree goes on. A
/// server that is not visibly a descendant of its criu is left alone: that of a service in another
/// pid namespace, or of a service that became a daemon.
pub struct PageServer {
    conversation: Option<Conversation>,
    pid: i32,
    /// `None` if the pid may mean another process here.
    pidfd: Option<OwnedFd>,
    port: Option<u16>,
    kept: KeptForReport,
}

/// The options and folders of a page server. Its log may be in one of the folders.
pub(super) struct KeptForReport {
    opts: Option<CriuOpts>,
    images: OwnedFd,
    work: Option<OwnedFd>,
}

impl KeptForReport {
    pub(super) fn keep(opts: Option<&CriuOpts>, lend: &Lend<'_>) -> Result<KeptForReport> {
        let keep = || {
            let work = lend.work.map(|folder| folder.try_clone_to_owned()).transpose()?;
            Ok(KeptForReport { opts: opts.cloned(), images: lend.images.try_clone_to_owned()?, work })
        };
        keep().map_err(Error::io("keep the folders of a page server"))
    }
}

impl PageServer {
    pub(super) fn new(
        conversation: Conversation,
        pid: i32,
        port: Option<u16>,
        kept: KeptForReport,
    ) -> PageServer {
        let pidfd = sys::pidfd_open(pid).ok().filter(|_| conversation.is_ancestor_of(pid));
        PageServer { conversation: Some(conversation), pid, pidfd, port, kept }
    }

    /// Returns the pid that criu reported. If a service is in another pid namespace, the pid is
    /// valid there: here it may be that of another process.
    pub fn pid(&self) -> Pid {
        Pid::from(self.pid)
    }

    /// Returns the port on which it listens; `None` if it was lent a socket.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Waits until the server has ended with success, so all memory arrived. Returns its exit
    /// status.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] if it failed or was killed, with its messages and its own
    /// [`exit`](crate::Failure::exit): the images in its folder are incomplete. [`Error::Gone`] if
    /// criu, its parent, died; [`Error::TimedOut`] past the deadline, and [`Error::Cancelled`]: the
    /// page server is killed then.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let end = self.reap()?;
        match end.status.success() {
            true => Ok(end.status),
            false => Err(Error::Criu(Box::new(self.failure(end)))),
        }
    }

    /// Kills the server, waits until it has ended, and returns its exit status, which is success if
    /// all memory had arrived before.
    ///
    /// A dump that it still serves fails, and its tree goes on unharmed. The images of that dump
    /// are incomplete. Never stop one with
    /// [`lazy_pages`](crate::options::PageServerOptions::lazy_pages) while a restored tree lacks
    /// memory: only this server has it. To end one that another thread waits for, cancel the
    /// [token](super::Criu::cancelled_by) of its criu.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if it is not visibly a descendant of its criu, such as that of a service
    /// in another pid namespace. It goes on then. [`Error::Gone`], [`Error::TimedOut`] and
    /// [`Error::Cancelled`] as [`wait`](PageServer::wait).
    pub fn stop(mut self) -> Result<ExitStatus> {
        let Some(pidfd) = &self.pidfd else {
            let problem = format!("process {} is not seen to descend from its criu", self.pid);
            return Err(Error::Options { option: "PageServer::stop", problem });
        };
        let _ = sys::pidfd_signal(pidfd, Signal::SIGKILL); // fails if it has ended already
        self.reap().map(|end| end.status)
    }

    /// Asks criu, the server's parent, for its exit status.
    fn reap(&mut self) -> Result<End> {
        let mut conversation = self.conversation.take().expect("because only this takes it, once");
        let child = u32::try_from(self.pid).ok();
        let answer = conversation.call(Call { child, ..Call::new(Request::WaitPid) })?;
        let status = answer.status.map(ExitStatus::from_raw).ok_or_else(|| Error::Protocol {
            request: Request::WaitPid,
            problem: "an answer without a status".to_owned(),
        })?;
        Ok(End { status, version: conversation.version.clone(), answer, criu_exit: conversation.finish() })
    }

    /// Collects the facts about a failed page server.
    fn failure(&self, end: End) -> Failure {
        let End { status, version, answer, criu_exit } = end;
        let mut lend = Lend::images(&self.kept.images);
        lend.work = self.kept.work.as_ref().map(AsFd::as_fd);
        let opts = self.kept.opts.clone();
        let call = Call { opts, files: Files::Lent(lend), ..Call::new(Request::WaitPid) };
        // A page server that a signal killed counts as a criu that did not answer.
        let answer = Some(&answer).filter(|_| status.signal().is_none());
        let criu_exit = CriuExit { status: Some(status), ..criu_exit };
        let tree = Tree::default();
        FailureContext { call: &call, last_event: None, version, answer, criu_exit: &criu_exit, tree: &tree }
            .failure()
    }
}

/// The end of a page server, and criu's messages until then.
struct End {
    status: ExitStatus,
    version: Option<Version>,
    answer: CriuResp,
    criu_exit: CriuExit,
}

impl Drop for PageServer {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = sys::pidfd_signal(pidfd, Signal::SIGKILL); // fails if it has ended already
        }
    }
}

impl fmt::Debug for PageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageServer").field("pid", &self.pid).field("port", &self.port).finish()
    }
}
