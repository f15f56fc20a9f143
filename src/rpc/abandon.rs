//! What a restore that failed leaves behind as our child.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    failure::{open_in, pid_in_use},
    kill::kill_tree,
    talk::{Ask, Files},
    transport::Connection,
};
use crate::{Error, Request, Result, image, procfs, sys};

/// The root of a tree that is to be restored as our child. If the restore fails, it is our zombie; if it was cut short,
/// it may live on, half made.
///
/// Its number alone proves nothing: another restore can have got it meanwhile, or any child of the program. So no two
/// restores of one number run at once; the number must have been free when criu was told to begin, and criu must not
/// complain that it is taken; and what is killed must be unlike an ordinary child.
pub(super) struct SiblingRoot {
    /// Its number, claimed by us.
    pid: Option<i32>,
    /// What criu is called, and so its forked tasks at first; `None` if it is not our child.
    name: Option<String>,
    /// Whether criu was told to begin, while the number was free.
    begun: bool,
}

/// The roots that are being restored.
static CLAIMED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn claimed() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SiblingRoot {
    /// What the images say, unless a process has that pid already: that one is not ours to touch.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] if another restore of the same root is going on in this program.
    pub(super) fn expected(ask: &Ask<'_>, connection: &Connection) -> Result<SiblingRoot> {
        let nobody = Ok(SiblingRoot { pid: None, name: None, begun: false });
        let (Request::Restore, Files::Lent(lend)) = (ask.request, &ask.files) else { return nobody };
        if ask.opts.as_ref().and_then(|opts| opts.rst_sibling) != Some(true) {
            return nobody;
        }
        let root = open_in(lend.images, "pstree.img").ok().and_then(|file| image::root_pid(file).ok());
        let Some(pid) = root.filter(|pid| *pid > 1) else { return nobody };
        if !claimed().insert(pid) {
            return Err(Error::Criu(Box::new(pid_in_use(pid))));
        }
        // From here on the claim is given back by drop.
        Ok(SiblingRoot { pid: Some(pid), name: connection.pid().and_then(name_of), begun: false })
    }

    /// Takes note that criu is about to be told to go on from this event.
    pub(super) fn go_on(&mut self, event: &str) {
        if event == "pre-restore" {
            self.begun = self.pid.is_some_and(procfs::is_free);
        }
    }

    /// Reaps the root; kills what is left of the tree before, if criu left it to itself by not answering. `told` is the root
    /// that criu told of, if it came that far.
    pub(super) fn clear(self, unanswered: bool, told: Option<i32>, error: &Error) {
        let (Some(pid), Some(name)) = (self.pid, &self.name) else { return };
        if !self.begun || !is_our_child(pid) || sys::is_known_child(pid) || is_taken(pid, error) {
            return;
        }
        let looks_made =
            told == Some(pid) || name_of(pid).as_ref() == Some(name) || has_clocks_of_its_own(pid);
        if unanswered && looks_made {
            let _ = kill_tree(pid); // it has ended already, then
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Ok(WaitStatus::StillAlive) = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            if Instant::now() >= deadline {
                // criu says that it failed, but the task lives on; whatever it is, it leaves no zombie.
                if let Ok(pidfd) = sys::pidfd_open(pid) {
                    sys::reap_later(pidfd);
                }
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether criu found the number taken: then whoever has it is none of criu's.
fn is_taken(pid: i32, error: &Error) -> bool {
    let line = format!("Can't fork for {pid}: File exists");
    let failure = error.failure();
    let mut lines = failure.into_iter().flat_map(|failure| failure.log.iter().chain(&failure.message));
    lines.any(|told| told.contains(&line))
}

/// Whether the process is in another time namespace than we are, as what criu restores is, so that its clocks go on.
fn has_clocks_of_its_own(pid: i32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
    namespace(&pid.to_string()).is_some_and(|its| namespace("self").is_some_and(|ours| its != ours))
}

impl Drop for SiblingRoot {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            claimed().remove(&pid);
        }
    }
}

fn name_of(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).into_owned())
}

fn is_our_child(pid: i32) -> bool {
    procfs::Stat::of(pid).is_ok_and(|stat| u32::try_from(stat.parent) == Ok(std::process::id()))
}
