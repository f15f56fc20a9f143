//! What a restore that failed leaves behind as our child.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    failure::open_in,
    talk::{Ask, Files},
    tree::Tree,
};
use crate::{Error, Request, image, procfs, sys};

/// The root of a tree that is to be restored as our child. If the restore fails, it is our zombie; if it was cut short,
/// it may live on, half made.
pub(super) struct SiblingRoot(Option<i32>);

impl SiblingRoot {
    /// What the images say, unless a process has that pid already: that one is not ours to touch.
    pub(super) fn expected(ask: &Ask<'_>) -> SiblingRoot {
        let (Request::Restore, Files::Lent(lend)) = (ask.request, &ask.files) else {
            return SiblingRoot(None);
        };
        if ask.opts.as_ref().and_then(|opts| opts.rst_sibling) != Some(true) {
            return SiblingRoot(None);
        }
        let root = open_in(lend.images, "pstree.img").ok().and_then(|file| image::root_pid(file).ok());
        SiblingRoot(root.filter(|pid| *pid > 1 && procfs::Stat::of(*pid).is_err()))
    }

    /// Reaps the root; kills what is left of the tree before, if criu left it to itself by not answering.
    pub(super) fn clear(self, unanswered: bool, error: &Error) {
        let Some(pid) = self.0.filter(|pid| is_our_child(*pid)) else { return };
        if is_taken(pid, error) {
            return;
        }
        if unanswered {
            if let Ok(tree) = Tree::own(pid) {
                let _ = tree.kill(); // it has ended already, then
            }
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

/// Whether somebody else got the number meanwhile, such as another restore of the same images: not ours to touch.
fn is_taken(pid: i32, error: &Error) -> bool {
    let line = format!("Can't fork for {pid}: File exists");
    let failure = error.failure();
    let mut lines = failure.into_iter().flat_map(|failure| failure.log.iter().chain(&failure.message));
    lines.any(|told| told.contains(&line))
}

fn is_our_child(pid: i32) -> bool {
    procfs::Stat::of(pid).is_ok_and(|stat| u32::try_from(stat.parent) == Ok(std::process::id()))
}
