//! Cleans up after a failed restore.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    call::{Call, Files},
    failure::{open_in, pid_in_use},
    kill::kill_from,
    transport::Connection,
};
use crate::{
    Error, Request, Result, image,
    lock::Mutex,
    procfs,
    sys::{self, NoAdoption},
};

/// The tree of a restore as our child. If the restore fails, its root is our zombie. If the restore
/// was cut short, parts of the tree may live on: below the root, or as orphans once the root has
/// ended.
///
/// Pids alone prove nothing: another restore or any process may have got them meanwhile. So
/// restores of one root never run at the same time. A pid must have been free when criu was told to
/// begin, and criu must not report that the root's pid is taken. A process is killed only if it
/// differs from ordinary processes and its parent is the one that criu's process would have.
pub(super) struct UnfinishedRestore {
    /// The pid of the root, claimed by us.
    root: Option<i32>,
    /// The other pids of the tree; after criu was told to begin, only those that were free then.
    others: Vec<i32>,
    /// criu's process name, which its forks have at first; `None` if criu is not our child.
    name: Option<String>,
    /// True if criu was told to begin while the pid of the root was free.
    begun: bool,
    /// Leaves the descendants of an ended root to init.
    _init_is_heir: Option<NoAdoption>,
}

/// The roots that are being restored.
static CLAIMED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn claimed() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    CLAIMED.lock()
}

/// The time limit for finding and ending the remains of a restore.
const PATIENCE: Duration = Duration::from_secs(1);

impl UnfinishedRestore {
    /// Reads the pids of the tree from the images.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] if another restore of the same root is going on in this program.
    pub(super) fn expected(call: &Call<'_>, connection: &Connection) -> Result<UnfinishedRestore> {
        let nobody = Ok(UnfinishedRestore {
            root: None,
            others: Vec::new(),
            name: None,
            begun: false,
            _init_is_heir: None,
        });
        let (Request::Restore, Files::Lent(lend)) = (call.request, &call.files) else { return nobody };
        // The end of an init is the end of all in its namespace.
        if connection.init().is_some() || call.opts.as_ref().and_then(|opts| opts.rst_sibling) != Some(true) {
            return nobody;
        }
        let pids = open_in(lend.images, "pstree.img").ok().and_then(|file| image::tree_pids(file).ok());
        // A root with pid 1 is in a pid namespace of its own, so its pids mean nothing here.
        let Some((&root, others)) =
            pids.as_deref().and_then(<[i32]>::split_first).filter(|(root, _)| **root > 1)
        else {
            return nobody;
        };
        if !claimed().insert(root) {
            return Err(Error::Criu(Box::new(pid_in_use(root))));
        }
        // From here on, drop releases the claim.
        let others = others.iter().copied().filter(|pid| *pid > 1).collect();
        let name = connection.pid().and_then(name_of);
        let _init_is_heir = Some(NoAdoption::begin());
        Ok(UnfinishedRestore { root: Some(root), others, name, begun: false, _init_is_heir })
    }

    /// Notes that criu is about to be told to continue after this event.
    pub(super) fn go_on(&mut self, event: &str) {
        if event == "pre-restore" {
            self.begun = self.root.is_some_and(procfs::is_free);
            self.others.retain(|pid| procfs::is_free(*pid));
            self.root
                .iter()
                .filter(|_| self.begun)
                .chain(&self.others)
                .for_each(|pid| sys::forget_children(*pid));
        }
    }

    /// Reaps the root. If criu ended without an answer, kills the remains of the tree first. `told`
    /// is the root that criu reported, if any.
    pub(super) fn clear(self, unanswered: bool, told: Option<i32>, error: &Error) {
        let (Some(root), true) = (self.root, self.begun && self.name.is_some()) else { return };
        if is_our_child(root) && !sys::is_known_child(root) && !is_taken(root, error) {
            if unanswered {
                self.kill_if(root, |_| {
                    told == Some(root) || self.is_criu_s(root) || has_clocks_of_its_own(root)
                });
            }
            reap(root);
        }
        if unanswered {
            self.kill_orphans();
        }
    }

    /// Kills orphans of the tree: this process or one of its ancestors has adopted them.
    fn kill_orphans(&self) {
        let above = procfs::lineage(own());
        let is_orphan = |pid: i32, stat: &procfs::Stat| {
            // criu itself has this name too, but it is not an orphan.
            let by_name = [1, own()].contains(&stat.parent) && self.is_criu_s(pid);
            let is_made = by_name || has_clocks_of_its_own(pid);
            !stat.is_zombie() && above.contains(&stat.parent) && is_made && !sys::is_known_child(pid)
        };
        let deadline = Instant::now() + PATIENCE;
        // A killed process may have been forking, so look again until there are no more.
        while self.others.iter().filter(|pid| self.kill_if(**pid, |stat| is_orphan(**pid, stat))).count() > 0
        {
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Kills a process with all its descendants if `is_it` accepts it; returns whether it did.
    fn kill_if(&self, pid: i32, is_it: impl FnOnce(&procfs::Stat) -> bool) -> bool {
        // The pidfd is opened before the check, so the signal cannot reach another process with the
        // same pid.
        let Ok(pidfd) = sys::pidfd_open(pid) else { return false };
        let is_it = procfs::Stat::of(pid).is_ok_and(|stat| is_it(&stat));
        if is_it {
            let _ = kill_from(pid, pidfd.as_fd()); // fails if it has ended already
        }
        is_it
    }

    fn is_criu_s(&self, pid: i32) -> bool {
        self.name.is_some() && name_of(pid) == self.name
    }
}

/// Reaps our child. If the child outlives criu's failure, a thread reaps it later, so it never
/// stays a zombie.
fn reap(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    while let Ok(WaitStatus::StillAlive) = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        if Instant::now() >= deadline {
            if let Ok(pidfd) = sys::pidfd_open(pid) {
                sys::reap_later(pidfd);
            }
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns true if criu found the pid taken: its process is not criu's then.
fn is_taken(pid: i32, error: &Error) -> bool {
    let line = format!("Can't fork for {pid}: File exists");
    let failure = error.failure();
    let mut lines = failure.into_iter().flat_map(|failure| failure.log.iter().chain(&failure.message));
    lines.any(|told| told.contains(&line))
}

/// Returns true if the process is in another time namespace than this one. criu restores trees into
/// one, so that their clocks go on.
fn has_clocks_of_its_own(pid: i32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
    namespace(&pid.to_string()).is_some_and(|its| namespace("self").is_some_and(|ours| its != ours))
}

impl Drop for UnfinishedRestore {
    fn drop(&mut self) {
        if let Some(pid) = self.root {
            claimed().remove(&pid);
        }
    }
}

fn name_of(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).into_owned())
}

fn is_our_child(pid: i32) -> bool {
    procfs::Stat::of(pid).is_ok_and(|stat| stat.parent == own())
}

fn own() -> i32 {
    crate::Pid::own().as_raw()
}
