//! [`Inside`]: the namespaces of a copy that runs, as its owner sees them.

use std::{
    collections::BTreeSet,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use super::namespaces::Spaces;
use crate::{
    procfs::{Stat, Status, tree},
    sys,
};

/// The namespaces of a copy, for a criu that is to work on a tree in them.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The copy's init.
    pub(crate) init: OwnedFd,
    init_pid: i32,
    /// The number of the tree's root in the pid namespace.
    pub(crate) root: i32,
    pub(super) spaces: Spaces,
}

impl Inside {
    /// Finds the namespaces of a process; `None` if the process is in no copy, or if this program
    /// is in the same one.
    pub(crate) fn of(pid: i32) -> Option<Inside> {
        let (own, its) = (Spaces::own(), Spaces::of(pid));
        if own.share(&its, "pid") || !own.share(&its, "user") {
            return None;
        }
        let mut first = pid;
        loop {
            let parent = Stat::of(first).ok()?.parent;
            if parent <= 0 || !Spaces::of(parent).share(&its, "pid") {
                break;
            }
            first = parent;
        }
        let init = sys::pidfd_open(first).ok()?;
        let program = fs::read_link(format!("/proc/{first}/exe")).ok()?;
        let is_init = program.to_str()? == sys::Init::EXECUTABLE && number(first)? == 1;
        let inside = Inside { init, init_pid: first, root: number(pid)?, spaces: Spaces::of(first) };
        // The pid may have become that of another process before the pidfd was opened.
        let is_there = Spaces::of(pid) == its && inside.spaces.inode("pid") == its.inode("pid");
        // A container may have a program of that name. Its root folder is another one.
        (is_init && first != pid && is_there && inside.has(Path::new("/"))).then_some(inside)
    }

    /// Returns true if this path means the same file in the copy as it does here.
    pub(crate) fn has(&self, path: &Path) -> bool {
        let there = Path::new("/proc").join(self.init_pid.to_string()).join("root");
        let there = there.join(path.strip_prefix("/").unwrap_or(path));
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        identity(path).is_some_and(|here| identity(&there) == Some(here))
    }

    /// Returns the mounts that criu will see, as a file in `/proc`.
    pub(super) fn mounts(&self) -> String {
        format!("/proc/{}/mountinfo", self.init_pid)
    }

    /// Returns the process that has this number in the pid namespace.
    pub(super) fn process(&self, inside: i32) -> Option<i32> {
        tree(self.init_pid).into_iter().find(|pid| number(*pid) == Some(inside))
    }
}

/// Returns the numbers of all threads of a process in its own pid namespace.
pub(super) fn threads(pid: i32) -> BTreeSet<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| Status::read(task.path().join("status")).map(|status| status.inner_pid)).collect()
}

/// Returns the number of a process in its own pid namespace.
fn number(pid: i32) -> Option<i32> {
    Status::read(format!("/proc/{pid}/status")).map(|status| status.inner_pid)
}
