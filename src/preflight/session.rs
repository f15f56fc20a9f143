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
    for (leader, by) in holders(&view.pids) {
        view.found(leader, Place::Process, Obstacle::Shared { by: Pid::from(by) }, Severity::Risk);
    }
}

/// Returns the processes that lead a session or a group with a member that is not among these, and
/// that member. A restore cannot take their numbers while it lives.
pub(crate) fn holders(tree: &HashSet<i32>) -> Vec<(i32, i32)> {
    let (mut told, mut holders) = (HashSet::new(), Vec::new());
    for pid in processes().filter(|pid| !tree.contains(pid)) {
        let held = belongs_to(pid).into_iter().flatten();
        let Some(leader) = held.into_iter().find(|number| tree.contains(number)) else { continue };
        // One process is enough for each session or group. A zombie is about to be reaped.
        if !told.contains(&leader) && Stat::of(pid).is_ok_and(|stat| !stat.is_zombie()) {
            told.insert(leader);
            holders.push((leader, pid));
        }
    }
    holders
}
