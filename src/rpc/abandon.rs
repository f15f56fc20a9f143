//! What a restore that failed leaves behind of the tree.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    ask::{Ask, Files},
    failure::{open_in, pid_in_use},
    kill::kill_from,
    transport::Connection,
};
use crate::{
    Error, Request, Result, image, procfs,
    sys::{self, NoAdoption},
};

/// The tree that is to be restored as our child. If the restore fails, its root is our zombie; if
/// it was cut short, the tree may live on, half made: below its root or, where that has ended
/// already, as orphans.
///
/// Numbers alone prove nothing: another restore can have got them meanwhile, or any process. So no
/// two restores of one root run at once; a number must have been free when criu was told to begin,
/// and criu must not complain that the root's is taken; and what is killed must be unlike an
/// ordinary process, and be where criu's would be.
pub(super) struct Offspring {
    /// The root's number, claimed by us.
    root: Option<i32>,
    /// The numbers of the others; once criu was told to begin, those that were free then.
    others: Vec<i32>,
    /// What criu is called, and so its forked tasks at first; `None` if it is not our child.
    name: Option<String>,
    /// Whether criu was told to begin, while the root's number was free.
    begun: bool,
    /// The descendants of a root that has ended are init's, and not ours.
    _init_is_heir: Option<NoAdoption>,
}

/// The roots that are being restored.
static CLAIMED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn claimed() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long what is left may take to be found and to end.
const PATIENCE: Duration = Duration::from_secs(1);

impl Offspring {
    /// What the images say.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] if another restore of the same root is going on in this program.
    pub(super) fn expected(ask: &Ask<'_>, connection: &Connection) -> Result<Offspring> {
        let nobody =
            Ok(Offspring { root: None, others: Vec::new(), name: None, begun: false, _init_is_heir: None });
        let (Request::Restore, Files::Lent(lend)) = (ask.request, &ask.files) else { return nobody };
        if ask.opts.as_ref().and_then(|opts| opts.rst_sibling) != Some(true) {
            return nobody;
        }
        let pids = open_in(lend.images, "pstree.img").ok().and_then(|file| image::tree_pids(file).ok());
        // A root with the number 1 is that of a pid namespace: none of these numbers is one of ours
        // then.
        let Some((&root, others)) =
            pids.as_deref().and_then(<[i32]>::split_first).filter(|(root, _)| **root > 1)
        else {
            return nobody;
        };
        if !claimed().insert(root) {
            return Err(Error::Criu(Box::new(pid_in_use(root))));
        }
        // From here on the claim is given back by drop.
        let others = others.iter().copied().filter(|pid| *pid > 1).collect();
        let name = connection.pid().and_then(name_of);
        let _init_is_heir = Some(NoAdoption::begin());
        Ok(Offspring { root: Some(root), others, name, begun: false, _init_is_heir })
    }

    /// Takes note that criu is about to be told to go on from this event.
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

    /// Reaps the root; kills what is left of the tree before, if criu left it to itself by not
    /// answering. `told` is the root that criu told of, if it came that far.
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

    /// Kills those whose parent in the tree has ended: they have been inherited, by us or by one
    /// above us.
    fn kill_orphans(&self) {
        let above = procfs::lineage(own());
        let is_orphan = |pid: i32, stat: &procfs::Stat| {
            // criu itself is called so, too, and is nobody's orphan.
            let by_name = [1, own()].contains(&stat.parent) && self.is_criu_s(pid);
            let is_made = by_name || has_clocks_of_its_own(pid);
            !stat.is_zombie() && above.contains(&stat.parent) && is_made && !sys::is_known_child(pid)
        };
        let deadline = Instant::now() + PATIENCE;
        // One that is killed may have been about to make the next.
        while self.others.iter().filter(|pid| self.kill_if(**pid, |stat| is_orphan(**pid, stat))).count() > 0
        {
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Kills a process with all its descendants, if it is what it should be; whether it was.
    fn kill_if(&self, pid: i32, is_it: impl FnOnce(&procfs::Stat) -> bool) -> bool {
        // What is seen from here on is of this process: once it has ended and was reaped, no signal
        // reaches another.
        let Ok(pidfd) = sys::pidfd_open(pid) else { return false };
        let is_it = procfs::Stat::of(pid).is_ok_and(|stat| is_it(&stat));
        if is_it {
            let _ = kill_from(pid, pidfd.as_fd()); // it has ended already, then
        }
        is_it
    }

    fn is_criu_s(&self, pid: i32) -> bool {
        self.name.is_some() && name_of(pid) == self.name
    }
}

/// Reaps our child; if it lives on although criu says that it failed, some time later: whatever it
/// is, it leaves no zombie.
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

/// Whether criu found the number taken: then whoever has it is none of criu's.
fn is_taken(pid: i32, error: &Error) -> bool {
    let line = format!("Can't fork for {pid}: File exists");
    let failure = error.failure();
    let mut lines = failure.into_iter().flat_map(|failure| failure.log.iter().chain(&failure.message));
    lines.any(|told| told.contains(&line))
}

/// Whether the process is in another time namespace than we are, as what criu restores is, so that
/// its clocks go on.
fn has_clocks_of_its_own(pid: i32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
    namespace(&pid.to_string()).is_some_and(|its| namespace("self").is_some_and(|ours| its != ours))
}

impl Drop for Offspring {
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
