//! Kills a whole tree, or a session.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
};

use crate::{
    Error, Pid, ProcessProblem, Result, preflight,
    procfs::{self, Stat},
    sys::{self, Adoption},
};

/// Kills a process and all its descendants with SIGKILL, and waits until they have ended. Succeeds
/// if the process has ended already.
///
/// Call this before an earlier capture of the tree is revived. [`std::process::Child::kill`] ends
/// only one process, and its children keep pids that the revived tree needs.
///
/// The parent of the root must reap it, for instance by [`Child::wait`](std::process::Child::wait).
/// If the root descends from this process, the call reaps all processes below it, so all pids are
/// free once the root is reaped. For that, this process is a subreaper until the call returns, and
/// reaps other orphans as well. Init reaps the descendants of other roots, which can take a while.
/// It also does so while this program restores another tree.
///
/// The tree is stopped first, from the top down, so that no process escapes by forking. Processes
/// that left the tree before (their parent ended, and init adopted them) are not killed;
/// [`kill_session`] kills them.
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
/// [`Error::Io`] if a signal may not be sent, or the tree has not ended ten seconds later.
/// [`Error::Process`] for an invalid pid, and for this process and its ancestors.
pub fn kill_tree(pid: impl Into<Pid>) -> Result<()> {
    let pid = pid.into();
    preflight::check_number(pid)?;
    // Pid 1 is an ancestor of all processes, even if `/proc` does not show their lineage.
    if pid.as_raw() == 1 || procfs::lineage(Pid::own().as_raw()).contains(&pid.as_raw()) {
        return Err(Error::Process { pid, problem: ProcessProblem::Ourselves });
    }
    match sys::pidfd_open(pid.as_raw()) {
        Ok(root) => kill(vec![Member { pid: pid.as_raw(), pidfd: Some(root) }], |_| Vec::new()),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        Err(error) => Err(Error::io(format!("open process {pid}"))(error)),
    }
}

/// Kills all processes of a session with their descendants, as [`kill_tree`] kills a tree. A
/// session without processes is fine.
///
/// The id of a session is the pid of its first leader. A session connects processes that are no
/// longer in one tree: `(server &)` in a shell leaves the shell's tree as soon as its parent ends,
/// and stays in the shell's session. While it lives, the session's id is taken, and a capture of
/// the shell cannot be revived.
///
/// ```no_run
/// # let mut shell = std::process::Command::new("setsid").arg("my-shell").spawn()?;
/// criu_rpc::kill_session(shell.id())?;
/// shell.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// As [`kill_tree`]. [`Error::Process`] for the session of this process or of an ancestor.
pub fn kill_session(session: impl Into<Pid>) -> Result<()> {
    let session = session.into();
    preflight::check_number(session)?;
    let is_in = |pid: i32| procfs::belongs_to(pid)[0] == Some(session.as_raw());
    if session.as_raw() == 1 || procfs::lineage(Pid::own().as_raw()).into_iter().any(is_in) {
        return Err(Error::Process { pid: session, problem: ProcessProblem::Ourselves });
    }
    kill(Vec::new(), |known| {
        let members = procfs::processes().filter(|pid| !known.contains(pid) && is_in(*pid));
        // Another process can have taken a pid since it was read. If it is in the session, it is to
        // be killed, too.
        members.filter_map(|pid| Member::open(pid, || is_in(pid))).collect()
    })
}

/// Kills the tree of a root for which there is a pidfd.
pub(super) fn kill_from(pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let pidfd = pidfd.try_clone_to_owned().map_err(Error::io(format!("kill process {pid}")))?;
    kill(vec![Member { pid, pidfd: Some(pidfd) }], |_| Vec::new())
}

/// The time limit for killed processes to end, each.
const PATIENCE: Duration = Duration::from_secs(10);

struct Member {
    pid: i32,
    /// `None` if the program has too many open files. The pid is safe to use then: its stopped
    /// parent cannot reap it.
    pidfd: Option<OwnedFd>,
}

/// Kills these processes and all their descendants. `others` gets the known pids and finds further
/// processes, until there are no more. Errors do not stop the killing; the first one is returned.
fn kill(roots: Vec<Member>, others: impl Fn(&HashSet<i32>) -> Vec<Member>) -> Result<()> {
    let mut known: HashSet<i32> = roots.iter().map(|root| root.pid).collect();
    let mut members = roots;
    let mut result = Ok(());
    let mut next = 0;
    loop {
        while let Some(member) = members.get(next) {
            result = result.and(member.signal(Signal::SIGSTOP, "stop"));
            let is_child = |pid| Stat::of(pid).is_ok_and(|stat| stat.parent == member.pid);
            let children = procfs::children(member.pid).into_iter().filter(|pid| !known.contains(pid));
            // Another process can have taken the pid since it was read. A child of the member is
            // still meant.
            let found: Vec<_> = children.filter_map(|pid| Member::open(pid, || is_child(pid))).collect();
            known.extend(found.iter().map(|member| member.pid));
            members.extend(found);
            next += 1;
        }
        let found = others(&known);
        if found.is_empty() {
            break;
        }
        known.extend(found.iter().map(|member| member.pid));
        members.extend(found);
    }
    let heir = Heir::of(&members);
    for member in members.iter().rev() {
        result = result.and(member.signal(Signal::SIGKILL, "kill"));
    }
    result = members.iter().fold(result, |result, member| result.and(member.wait_for_end()));
    if let Some(heir) = heir {
        heir.reap(&members, &known);
    }
    result
}

/// This process as the subreaper of the processes that it kills.
struct Heir {
    adoption: Adoption,
    /// Its children from before, which the caller reaps.
    children: HashSet<i32>,
    /// The time at which it became a subreaper, in the ticks of [`Stat::start`]. A new child that
    /// is older is an orphan of another tree.
    since: u64,
}

impl Heir {
    /// Becomes the subreaper; `None` if orphans of the tree go to another process, or the kernel
    /// refuses.
    fn of(members: &[Member]) -> Option<Heir> {
        let own = Pid::own().as_raw();
        let mut known = HashSet::new();
        members.iter().find(|member| descends_from(member.pid, own, &mut known))?;
        let (since, children) = (procfs::ticks(), procfs::children(own).into_iter().collect());
        Some(Heir { adoption: Adoption::begin().ok()?, children, since })
    }

    fn reap(self, members: &[Member], known: &HashSet<i32>) {
        let Heir { adoption, children, since } = self;
        for member in members.iter().filter(|member| !children.contains(&member.pid)) {
            member.reap();
        }
        if adoption.is_usual() {
            return; // the program reaps orphans by itself
        }
        drop(adoption);
        let own = Pid::own().as_raw();
        let session = Stat::of(own).map_or(0, |stat| stat.session);
        let is_orphan = |pid: i32| {
            let Ok(stat) = Stat::of(pid) else { return false };
            // A child that this program started is in its session, or leads one.
            let is_ours = stat.start >= since && [session, pid].contains(&stat.session);
            stat.parent == own && !is_ours
        };
        let new =
            procfs::children(own).into_iter().filter(|pid| !children.contains(pid) && !known.contains(pid));
        let orphans = new.filter_map(|pid| Member::open(pid, || is_orphan(pid)));
        orphans.filter_map(|orphan| orphan.pidfd).for_each(sys::reap_later);
    }
}

/// Returns true if the process has this ancestor. Processes in `known` were checked before, and are
/// skipped.
fn descends_from(pid: i32, ancestor: i32, known: &mut HashSet<i32>) -> bool {
    let mut next = pid;
    while next > 0 && known.insert(next) {
        if next == ancestor {
            return true;
        }
        next = Stat::of(next).map_or(0, |stat| stat.parent);
    }
    false
}

impl Member {
    /// Opens the process and then checks that it is still the intended one.
    fn open(pid: i32, is_it: impl FnOnce() -> bool) -> Option<Member> {
        let pidfd = match sys::pidfd_open(pid) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return None,
            pidfd => pidfd.ok(),
        };
        is_it().then_some(Member { pid, pidfd })
    }

    /// Reaps the process, if it has ended and is our child.
    fn reap(&self) {
        let _ = match &self.pidfd {
            Some(pidfd) => sys::reap(pidfd.as_fd()).map(drop),
            None => waitpid(nix::unistd::Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG))
                .map(drop)
                .map_err(io::Error::from),
        }; // fails if another process reaps it
    }

    /// Sends a signal; a process that has ended needs no signal.
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
                let lives = || Stat::of(self.pid).is_ok_and(|stat| !stat.is_zombie());
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn orphans_of_another_tree_are_reaped_when_they_end() {
        // Both lines start a process: at once, and after the adoption. The second process is in
        // another session.
        let script = "sleep 1 >/dev/null & echo $!; read line; sleep 1 >/dev/null & echo $!; read line";
        let session = format!("setsid sh -c '{script}'; :");
        let mut shells = [script, &session].map(|script| {
            let shell =
                Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut shell = shell.unwrap();
            let lines = BufReader::new(shell.stdout.take().unwrap());
            (shell, lines)
        });
        let hear = |lines: &mut BufReader<std::process::ChildStdout>| -> i32 {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            line.trim().parse().unwrap()
        };
        let mut orphans: Vec<_> = shells.iter_mut().map(|(_, lines)| hear(lines)).collect();
        thread::sleep(Duration::from_millis(50)); // some ticks of the clock

        let member = Member::open(i32::try_from(shells[0].0.id()).unwrap(), || true).unwrap();
        let heir = Heir::of(&[member]).unwrap();
        let (in_session, lines) = &mut shells[1];
        writeln!(in_session.stdin.as_ref().unwrap()).unwrap();
        orphans.push(hear(lines));
        // A child of our own, not an orphan.
        let mut own = Command::new("true").spawn().unwrap();
        for (shell, _) in &mut shells {
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
        for orphan in &orphans {
            assert_eq!(Stat::of(*orphan).unwrap().parent, Pid::own().as_raw());
        }
        heir.reap(&[], &HashSet::new());
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Some(orphan) = orphans.iter().find(|orphan| !procfs::is_free(**orphan)) {
            assert!(Instant::now() < deadline, "{:?}", Stat::of(*orphan));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(own.wait().unwrap().success());

        // Tested here, because it would disturb other tests.
        let bar = sys::NoAdoption::begin();
        assert_eq!(Adoption::begin().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(bar);
        drop(Adoption::begin().unwrap());
    }
}
