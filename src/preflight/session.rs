//! Processes outside the tree that hold numbers of it: they are in its sessions and process groups.

use std::collections::HashSet;

use super::{Obstacle, Place, Severity, View};
use crate::{
    Pid,
    procfs::{Stat, belongs_to, processes},
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
        let held = belongs_to(pid).into_iter().flatten();
        let Some(leader) = held.into_iter().find(|number| view.has(*number)) else { continue };
        // One process is told of each session or group, and the others are not looked at. A zombie
        // is about to be reaped.
        if !told.contains(&leader) && Stat::of(pid).is_ok_and(|stat| !stat.is_zombie()) {
            told.insert(leader);
            view.found(leader, Place::Process, Obstacle::Shared { by: Pid::from(pid) }, Severity::Risk);
        }
    }
}
