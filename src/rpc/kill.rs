//! Ending a whole tree.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, sys::signal::Signal};

use crate::{Error, Pid, Result, preflight, procfs, sys};

/// Kills a process and all its descendants with SIGKILL, and waits until they have ended. A process that has ended
/// already is fine.
///
/// This is what a tree needs before an earlier capture of it can be revived: [`std::process::Child::kill`] ends one
/// process, and its children live on with the pids that the revived ones are to get. Reaping the root is still up to its
/// parent; its descendants are reaped by theirs, or by init.
///
/// The tree is stopped first, from the top down, so that none can escape by forking. Processes that left the tree before
/// (their parent ended, and init inherited them) are not reached.
///
/// ```no_run
/// let mut child = std::process::Command::new("my-tool").spawn()?;
/// // …
/// criu_rpc::kill_tree(child.id())?;
/// child.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Io`] if a signal may not be sent, or the tree has not ended ten seconds later. [`Error::Process`] for a number
/// that is none of a process, and for this process and its ancestors.
pub fn kill_tree(pid: impl Into<Pid>) -> Result<()> {
    let pid = pid.into();
    let refused = |problem| Err(Error::Process { pid: pid.as_raw(), problem });
    preflight::check_number(pid)?;
    // The first process is above all others, even where its number is not seen in their lineage.
    if pid.as_raw() == 1 || procfs::lineage(Pid::own().as_raw()).contains(&pid.as_raw()) {
        return refused(crate::ProcessProblem::Ourselves);
    }
    match sys::pidfd_open(pid.as_raw()) {
        Ok(root) => kill(Member { pid: pid.as_raw(), pidfd: Some(root) }),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        Err(error) => Err(Error::io(format!("open process {pid}"))(error)),
    }
}

/// Kills the tree of a root whose pidfd we have.
pub(super) fn kill_from(pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let pidfd = pidfd.try_clone_to_owned().map_err(Error::io(format!("kill process {pid}")))?;
    kill(Member { pid, pidfd: Some(pidfd) })
}

/// How long killed processes may take to end, each.
const PATIENCE: Duration = Duration::from_secs(10);

struct Member {
    pid: i32,
    /// `None` if the program has no descriptor left for it: then the number has to do. Its parent is stopped, and cannot
    /// reap it, so the number stays its own.
    pidfd: Option<OwnedFd>,
}

/// Kills all, whatever fails on the way; the first failure is told.
fn kill(root: Member) -> Result<()> {
    let mut known = HashSet::from([root.pid]);
    let mut members = vec![root];
    let mut result = Ok(());
    let mut next = 0;
    while let Some(member) = members.get(next) {
        result = result.and(member.signal(Signal::SIGSTOP, "stop"));
        let mut found: Vec<Member> = Vec::new();
        for pid in procfs::children(member.pid) {
            if known.contains(&pid) {
                continue;
            }
            let pidfd = match sys::pidfd_open(pid) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => continue,
                pidfd => pidfd.ok(),
            };
            // Another process can have taken the number since it was read. A child of the member still is one.
            if procfs::Stat::of(pid).is_ok_and(|stat| stat.parent == member.pid) {
                known.insert(pid);
                found.push(Member { pid, pidfd });
            }
        }
        members.extend(found);
        next += 1;
    }
    for member in members.iter().rev() {
        result = result.and(member.signal(Signal::SIGKILL, "kill"));
    }
    members.iter().fold(result, |result, member| result.and(member.wait_for_end()))
}

impl Member {
    /// Sends a signal; a process that has ended needs none.
    fn signal(&self, signal: Signal, verb: &str) -> Result<()> {
        let sent = match &self.pidfd {
            Some(pidfd) => sys::pidfd_signal(pidfd, signal),
            None => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal).map_err(io::Error::from)
            }
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            result => result.map_err(Error::io(format!("{verb} process {}", self.pid))),
        }
    }

    fn wait_for_end(&self) -> Result<()> {
        let deadline = Instant::now().checked_add(PATIENCE);
        let ended = match &self.pidfd {
            Some(pidfd) => sys::wait_readable(pidfd.as_fd(), deadline)
                .map_err(Error::io(format!("wait for the end of process {}", self.pid)))?,
            None => {
                let lives = || procfs::Stat::of(self.pid).is_ok_and(|stat| !stat.is_zombie());
                while lives() && deadline.is_some_and(|deadline| Instant::now() < deadline) {
                    thread::sleep(Duration::from_millis(1));
                }
                !lives()
            }
        };
        match ended {
            true => Ok(()),
            false => {
                let doing = format!("see the end of process {}", self.pid);
                Err(Error::Io { doing, source: io::ErrorKind::TimedOut.into() })
            }
        }
    }
}
