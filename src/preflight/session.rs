//! Processes outside the tree that hold numbers of it: they are in its sessions and process groups.

use std::collections::HashSet;

use nix::unistd::{self, getpgid, getsid};

use super::{Obstacle, Place, Severity, View};
use crate::{
    Pid,
    procfs::{Stat, processes},
};

pub(super) fn look(view: &mut View<'_>) {
    if !view.root().spaces.share(view.own_spaces(), "pid") {
        return; // a restore makes the pid namespace anew, with all its numbers free
    }
    let mut told = HashSet::new();
    for pid in processes() {
        if view.has(pid) {
            continue;
        }
        // Two calls are quicker than a file, and there may be many processes.
        let process = unistd::Pid::from_raw(pid);
        let numbers = [getsid(Some(process)), getpgid(Some(process))];
        let held = numbers.into_iter().flatten().map(unistd::Pid::as_raw);
        let Some(leader) = held.into_iter().find(|number| view.has(*number)) else { continue };
        // A zombie is about to be reaped. One process is told of each session or group.
        if Stat::of(pid).is_ok_and(|stat| !stat.is_zombie()) && told.insert(leader) {
            view.found(leader, Place::Process, Obstacle::Shared { by: Pid::from(pid) }, Severity::Risk);
        }
    }
}
