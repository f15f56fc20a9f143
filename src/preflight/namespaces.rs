//! Namespaces: those that the tree must share, and those that a restore needs.

use std::{fs, os::unix::fs::MetadataExt};

use super::{Obstacle, Place, Process, Severity, View};
use crate::procfs::read_start;

/// The namespaces of a process, by their inodes; an unknown one is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spaces {
    inodes: [u64; KINDS.len()],
}

/// The kernel's names. criu dumps processes that differ in the first ones, but restores them only
/// if the root has a namespace of its own.
const KINDS: [&str; 9] = ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup", "time", "time_for_children"];
const MAY_DIFFER: usize = 2;

impl Spaces {
    pub(super) fn of(pid: i32) -> Spaces {
        Spaces::at(&format!("/proc/{pid}/ns"))
    }

    /// Returns the namespaces of the calling thread.
    pub(super) fn own() -> Spaces {
        Spaces::at("/proc/thread-self/ns")
    }

    fn at(folder: &str) -> Spaces {
        let inode = |kind| fs::metadata(format!("{folder}/{kind}")).map_or(0, |file| file.ino());
        Spaces { inodes: KINDS.map(inode) }
    }

    /// Returns the inode of this kind of namespace.
    pub(super) fn inode(&self, kind: &str) -> u64 {
        KINDS.iter().position(|known| *known == kind).map_or(0, |index| self.inodes[index])
    }

    /// Returns true if both have the same namespace of this kind, or if one of them is unknown.
    pub(super) fn share(&self, other: &Spaces, kind: &str) -> bool {
        let (one, other) = (self.inode(kind), other.inode(kind));
        one == other || one == 0 || other == 0
    }
}

pub(super) fn look(view: &mut View<'_>) {
    look_at_root(view, view.root());
    let (root, own) = (&view.root().spaces, view.own_spaces().clone());
    for process in view.living() {
        let spaces = &process.spaces;
        for (kind, index) in KINDS.into_iter().zip(0..) {
            if index < MAY_DIFFER && !root.share(&own, kind) {
                continue;
            }
            // A process can put its children into another time namespace than its own.
            let own_time = kind == "time_for_children" && spaces.inode(kind) == spaces.inode("time");
            if !spaces.share(root, kind) && !own_time {
                view.found(process.pid, Place::Process, Obstacle::NestedNamespace { kind }, Severity::Blocks);
            }
        }
    }
    if root.inode("time") != root.inode("time_for_children") && root.inode("time_for_children") != 0 {
        let nested = Obstacle::NestedNamespace { kind: "time_for_children" };
        view.found(view.root().pid, Place::Process, nested, Severity::Blocks);
    }
}

fn look_at_root(view: &mut View<'_>, root: &Process) {
    let (spaces, own) = (&root.spaces, view.own_spaces().clone());
    let foreign = |kind| !spaces.share(&own, kind);
    let namespace = spaces.inode("pid");
    if foreign("pid") && root.status.inner_pid != 1 && !view.is_external(&format!("pid[{namespace}]")) {
        view.found(root.pid, Place::Process, Obstacle::NoInit { namespace }, Severity::Blocks);
    }
    if foreign("user") {
        let empty =
            read_start(format!("/proc/{}/uid_map", root.pid)).is_some_and(|map| map.trim().is_empty());
        // criu dumps a user namespace that comes alone.
        if empty || !(foreign("pid") || foreign("mnt")) {
            view.found(root.pid, Place::Process, Obstacle::UserNamespace, Severity::Blocks);
        } else if !foreign("pid") || !foreign("mnt") {
            view.found(root.pid, Place::Process, Obstacle::UserNamespace, Severity::Risk);
        }
    }
    if foreign("mnt") && view.options.root.is_none() {
        view.found(root.pid, Place::Process, Obstacle::MountNamespace, Severity::Risk);
    }
}
