//! Selection of the trees that a list of pids means, before anything is frozen.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error, Pid, ProcessProblem, Result, preflight,
    procfs::{Stat, lineage, status_number},
};

/// The roots of the trees that the pids are in, each pid under the highest of its ancestors that is
/// in the list too. In the list's order.
pub(super) fn roots(pids: &[Pid]) -> Result<Vec<Pid>> {
    let named: BTreeSet<i32> = pids.iter().map(|pid| pid.as_raw()).collect();
    let (mut seen, mut roots, mut known) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    let mut tops = Tops { named: &named, known: BTreeMap::new() };
    for pid in pids.iter().filter(|pid| seen.insert(pid.as_raw())) {
        check(*pid)?;
        let root = tops
            .above(pid.as_raw(), |pid| Stat::of(pid).ok().map(|stat| stat.parent))
            .map_or(*pid, Pid::from);
        if known.insert(root.as_raw()) {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The highest named ancestor of each process that was looked at, so that each is looked at once.
struct Tops<'a> {
    named: &'a BTreeSet<i32>,
    known: BTreeMap<i32, Option<i32>>,
}

impl Tops<'_> {
    /// The highest of the process and its ancestors that is named.
    fn above(&mut self, pid: i32, parent: impl Fn(i32) -> Option<i32>) -> Option<i32> {
        let (mut line, mut next) = (Vec::new(), Some(pid).filter(|pid| *pid > 0));
        let mut top = None;
        while let Some(pid) = next {
            if let Some(known) = self.known.get(&pid) {
                top = *known;
                break;
            }
            self.known.insert(pid, None); // a number that comes again ends the line
            line.push(pid);
            next = parent(pid).filter(|parent| *parent > 0);
        }
        for pid in line.into_iter().rev() {
            top = top.or(Some(pid).filter(|pid| self.named.contains(pid)));
            self.known.insert(pid, top);
        }
        top
    }
}

/// The pid is one of a process that can be dumped.
fn check(pid: Pid) -> Result<()> {
    preflight::check_root(pid)?;
    if pid == 1 && Pid::own() != 1 {
        return Err(Error::Process { pid: Pid::from(1), problem: ProcessProblem::Init });
    }
    let ours = nix::unistd::geteuid();
    if !ours.is_root()
        && status_number(pid.as_raw(), "Uid").is_some_and(|uid| i64::from(uid) != i64::from(ours.as_raw()))
    {
        return Err(Error::Process { pid, problem: ProcessProblem::NotOurs });
    }
    Ok(())
}

/// Returns true if this process is a part of the tree.
pub(super) fn contains_self(root: Pid) -> bool {
    lineage(Pid::own().as_raw()).contains(&root.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_named_ancestor_is_found_in_linear_time() {
        const PROCESSES: i32 = 200_000;
        let looks = std::cell::Cell::new(0);
        let parent = |pid| {
            looks.set(looks.get() + 1);
            Some(pid - 1)
        };
        let named: BTreeSet<i32> = (5..=PROCESSES).collect();
        let mut tops = Tops { named: &named, known: BTreeMap::new() };
        assert!((5..=PROCESSES).all(|pid| tops.above(pid, parent) == Some(5)));
        assert_eq!(looks.get(), PROCESSES);
        assert_eq!(tops.above(3, parent), None);
        let named = BTreeSet::from([2]);
        let mut tops = Tops { named: &named, known: BTreeMap::new() };
        assert_eq!(tops.above(3, |pid| Some(pid % 3 + 1)), Some(2)); // a circle has an end
    }
}
