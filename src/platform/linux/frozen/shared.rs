//! Files that a tree shares with processes outside: the open file itself with its position, or a
//! deleted file.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{Frozen, OpenFile, open_files};
use crate::{
    Pid, Warning,
    procfs::{Stat, access_mode, open_flags, tree},
    sys::{self, Known},
};

/// Finds files that the tree shares with this process, another tree of the capture, or the parent
/// of its root, one warning for each file. A restore opens files anew, so each side has its own
/// position, and makes deleted files anew.
pub(super) fn look(tree: &Frozen, roots: &[Pid]) -> Vec<Warning> {
    let files = tree.files.iter().filter_map(|file| Some((file, Regular::of(file)?)));
    let files: Vec<_> = files.collect();
    if files.is_empty() {
        return Vec::new();
    }
    let wanted: HashSet<Inode> = files.iter().map(|(_, regular)| regular.inode).collect();
    let mut outside = HashMap::<Inode, Vec<OpenFile>>::new();
    for file in processes_outside(tree, roots).into_iter().flat_map(open_files) {
        let inode = Regular::of(&file).map(|regular| regular.inode);
        if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
            outside.entry(inode).or_default().push(file);
        }
    }
    let (mut warnings, mut told) = (Vec::new(), HashSet::new());
    for (file, Regular { inode, deleted }) in files {
        if told.contains(&inode) {
            continue;
        }
        let is_shared = |other: &&OpenFile| match deleted {
            true => file.can_write() || other.can_write(),
            false => file.is_shared_with(other),
        };
        if !deleted && !file.writes_at_its_position() {
            continue;
        }
        if let Some(other) = outside.get(&inode).into_iter().flatten().find(is_shared) {
            told.insert(inode);
            let (pid, path, with) = (Pid::from(file.pid), file.name(deleted), Pid::from(other.pid));
            warnings.push(Warning::FileShared { pid, path, with, deleted });
        }
    }
    warnings
}

/// This process, those of the other trees, and the parent of the root, unless they are in the tree.
fn processes_outside(of: &Frozen, roots: &[Pid]) -> Vec<i32> {
    let root = of.pids.first().copied();
    let others = roots.iter().map(|root| root.as_raw()).filter(|other| Some(*other) != root);
    let parent = root.and_then(|root| Some(Stat::of(root).ok()?.parent));
    let processes = [Pid::own().as_raw()].into_iter().chain(others.flat_map(tree)).chain(parent);
    let mut known: HashSet<i32> = of.pids.iter().copied().collect();
    processes.filter(|process| known.insert(*process)).collect()
}

/// The device and the number of a file.
type Inode = (u64, u64);

/// A regular file that is open.
struct Regular {
    inode: Inode,
    /// True if the file has no name any more.
    deleted: bool,
}

impl Regular {
    fn of(file: &OpenFile) -> Option<Regular> {
        let known = file.target.is_absolute().then(|| Known::of(file.path()).ok())?;
        let known = known.filter(Known::is_file)?;
        Some(Regular { inode: (known.dev(), known.ino()), deleted: known.links() == 0 })
    }
}

impl OpenFile {
    fn can_write(&self) -> bool {
        access_mode(self.pid, self.fd).is_some_and(|mode| mode != libc::O_RDONLY)
    }

    /// Returns true if it is open for writing, and not for appending.
    fn writes_at_its_position(&self) -> bool {
        let appends = |flags: i32| flags & libc::O_APPEND != 0;
        self.can_write() && !open_flags(self.pid, self.fd).is_none_or(appends)
    }

    fn is_shared_with(&self, other: &OpenFile) -> bool {
        sys::is_same_file((self.pid, self.fd), (other.pid, other.fd)).unwrap_or(false)
    }

    /// The path of the file, without the kernel's mark of a deleted one.
    fn name(&self, deleted: bool) -> PathBuf {
        let name = self.target.as_os_str().as_bytes();
        let name = if deleted { name.strip_suffix(b" (deleted)").unwrap_or(name) } else { name };
        OsString::from_vec(name.to_vec()).into()
    }
}
