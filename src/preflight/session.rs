//! Finds processes outside the tree in its sessions and process groups: they keep the tree's pids
//! in use.

use std::collections::HashSet;

use super::{Obstacle, Place, Severity, View};
use crate::{
    Pid,
    procfs::{Stat, belongs_to, processes},
};

pub(super) fn look(view: &mut View<'_>) {
    if !view.root().spaces.share(view.own_spaces(), "pid") {
        return; // a restore makes a new pid namespace, with all pids free
    }
    let mut told = HashSet::new();
    for pid in processes() {
        if view.has(pid) {
            continue;
        }
        let held = belongs_to(pid).into_iter().flatten();
        let Some(leader) = held.into_iter().find(|number| view.has(*number)) else { continue };
        // One process is enough for each session or group. A zombie is about to be reaped.
        if !told.contains(&leader) && Stat::of(pid).is_ok_and(|stat| !stat.is_zombie()) {
            told.insert(leader);
            view.found(leader, Place::Process, Obstacle::Shared { by: Pid::from(pid) }, Severity::Risk);
        }
    }
}
