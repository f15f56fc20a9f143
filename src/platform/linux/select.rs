//! Which trees a list of pids means, found out before anything is frozen.

use std::collections::BTreeSet;

use crate::{
    Error, Pid, ProcessProblem, Result, preflight,
    procfs::{lineage, status_number},
};

/// The roots of the trees that the pids are in, each pid under the highest of its ancestors that is in the list too.
/// In the list's order.
pub(super) fn roots(pids: &[Pid]) -> Result<Vec<Pid>> {
    let mut roots = Vec::new();
    let named: BTreeSet<i32> = pids.iter().map(|pid| pid.as_raw()).collect();
    let mut seen = BTreeSet::new();
    for pid in pids.iter().filter(|pid| seen.insert(pid.as_raw())) {
        check(*pid)?;
        let root = lineage(pid.as_raw()).into_iter().rev().find(|ancestor| named.contains(ancestor));
        let root = root.map_or(*pid, Pid::from);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The pid is one of a process that can be dumped.
fn check(pid: Pid) -> Result<()> {
    preflight::check_root(pid)?;
    let ours = nix::unistd::geteuid();
    if !ours.is_root()
        && status_number(pid.as_raw(), "Uid").is_some_and(|uid| i64::from(uid) != i64::from(ours.as_raw()))
    {
        return Err(Error::Process { pid: pid.as_raw(), problem: ProcessProblem::NotOurs });
    }
    Ok(())
}

/// Whether this process is a part of the tree.
pub(super) fn contains_self(root: Pid) -> bool {
    lineage(Pid::own().as_raw()).contains(&root.as_raw())
}
