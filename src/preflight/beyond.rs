//! Finds state that criu dumps and can never restore, as far as it shows before the tree is frozen.
//! The images show more of it after a dump.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    path::PathBuf,
};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};

use super::{
    descriptor::Descriptor,
    inside::{Inside, threads},
    namespaces::Spaces,
};
use crate::procfs::{self, Mapping, Stat};

/// Finds what keeps a capture of this tree from ever being revived. It costs a few microseconds
/// for each open file.
pub(crate) fn beyond_restore(root: i32) -> Vec<String> {
    let tree = procfs::tree(root);
    let mut problems = nested_namespaces(&tree);
    problems.extend(user_namespace(root));
    problems.extend(files_of_threads(&tree));
    problems.extend(files_of_the_dead(&tree));
    for pid in tree {
        problems.extend(memfd_program(pid).map(|_| format!("process {pid} runs from a memfd")));
        problems.extend(sealed_mapping(pid).map(|name| {
            format!("process {pid} has {name} mapped as shared memory, and it is sealed against writes")
        }));
    }
    problems
}

/// Reports a root that has a user namespace of its own, but is in our pid and mount namespaces.
fn user_namespace(root: i32) -> Option<String> {
    let (own, root) = (Spaces::own(), Spaces::of(root));
    let alone = !root.share(&own, "user") && ["pid", "mnt"].iter().all(|kind| root.share(&own, kind));
    alone.then(|| "the tree has a user namespace without a pid and a mount namespace of its own".to_owned())
}

/// Returns the kernel's name of a process's program, if that is a memfd.
pub(super) fn memfd_program(pid: i32) -> Option<PathBuf> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.to_string_lossy();
    (name.starts_with("/memfd:") && name.ends_with(" (deleted)")).then_some(program)
}

/// Returns the kernel's name of a memfd that a restore cannot map again.
fn sealed_mapping(pid: i32) -> Option<String> {
    let mut found = None;
    procfs::each_line(format!("/proc/{pid}/maps"), |line| {
        let mapping = Mapping::parse(line).filter(|mapping| found.is_none() && is_sealed(pid, mapping));
        if let Some(mapping) = mapping {
            found = Some(mapping.name.to_owned());
        }
    });
    found
}

/// Returns true for shared memory of a memfd that is sealed against writes. A restore seals the
/// memfd after it has mapped it, and the kernel refuses.
pub(super) fn is_sealed(pid: i32, mapping: &Mapping<'_>) -> bool {
    let Mapping { start, end, is_shared, name } = mapping;
    if !is_shared || !name.starts_with("/memfd:") {
        return false;
    }
    let Ok(file) = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")) else { return false };
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE)
}

/// Returns processes in other namespaces than their parents. criu restores mount and network
/// namespaces of descendants if the root has its own.
fn nested_namespaces(tree: &[i32]) -> Vec<String> {
    const KINDS: [(&str, &str); 7] = [
        ("pid", "pid"),
        ("net", "network"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("mnt", "mount"),
        ("user", "user"),
        ("time", "time"),
    ];
    let own = Inside::of(tree[0]).map_or_else(Spaces::own, |inside| inside.spaces);
    let root = Spaces::of(tree[0]);
    let mut known = HashMap::from([(tree[0], root.clone())]);
    let mut problems = Vec::new();
    for pid in &tree[1..] {
        let Ok(stat) = Stat::of(*pid) else { continue };
        let spaces = Spaces::of(*pid);
        if let Some(parent) = known.get(&stat.parent).filter(|_| !stat.is_zombie()) {
            for (kind, name) in KINDS {
                let may_differ = matches!(kind, "mnt" | "net") && !root.share(&own, kind);
                if !may_differ && !spaces.share(parent, kind) {
                    problems.push(format!("process {pid} has a {name} namespace of its own"));
                }
            }
        }
        known.insert(*pid, spaces);
    }
    problems
}

/// Returns open files in `/proc` of processes that have ended.
fn files_of_the_dead(tree: &[i32]) -> BTreeSet<String> {
    let files = tree.iter().flat_map(|pid| Descriptor::all(*pid));
    let inside = Inside::of(tree[0]);
    let is_gone = |process: i32| match &inside {
        Some(inside) => inside.process(process).is_none(),
        None => procfs::is_free(process),
    };
    let of_the_dead = |descriptor: &Descriptor| {
        let process = descriptor.target.strip_prefix("/proc").ok()?.iter().next()?.to_str()?;
        let process: i32 = process.trim_end_matches(" (deleted)").parse().ok()?;
        is_gone(process)
            .then(|| format!("{} is open, and process {process} has ended", descriptor.target.display()))
    };
    files.filter_map(|descriptor| of_the_dead(&descriptor)).collect()
}

/// Returns open files in `/proc` of threads other than main threads.
fn files_of_threads(tree: &[i32]) -> BTreeSet<String> {
    let in_proc = |descriptor: &Descriptor| descriptor.target.starts_with("/proc");
    let files = tree.iter().flat_map(|pid| Descriptor::all(*pid)).filter(in_proc);
    let inside = Inside::of(tree[0]);
    let is_thread = |id: i32| match &inside {
        None => !tree.contains(&id) && tree.iter().any(|pid| procfs::has_thread(*pid, id)),
        Some(inside) => inside.process(id).is_none() && tree.iter().any(|pid| threads(*pid).contains(&id)),
    };
    let of_thread = |descriptor: &Descriptor| {
        let words: Vec<_> = descriptor.target.iter().skip(2).map(|word| word.to_string_lossy()).collect();
        let number = |place: usize| words.get(place).and_then(|word| word.parse::<i32>().ok());
        let task = number(2).filter(|_| words.get(1).is_some_and(|word| word == "task"));
        number(0).is_some_and(|process| is_thread(process) || task.is_some_and(is_thread))
    };
    files
        .filter(of_thread)
        .map(|descriptor| format!("{} is open, and is of a thread", descriptor.target.display()))
        .collect()
}
