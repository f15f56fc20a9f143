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
    Pid, Shared, Warning,
    procfs::{Stat, access_mode, fdinfo_value, open_flags, read_start, tree},
    sys::{self, Statx},
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
    for (file, regular) in files {
        let others = outside.get(&regular.inode).into_iter().flatten();
        let shared = others.filter_map(|other| Some((other.pid, file.shares(&regular, other)?)));
        // If there are several, report the one that loses the most data.
        let Some((with, what)) = shared.min_by_key(|(_, what)| *what as u8) else { continue };
        if told.insert(regular.inode) {
            let path = file.name(regular.deleted);
            warnings.push(Warning::FileShared {
                pid: Pid::from(file.pid),
                path,
                with: Pid::from(with),
                what,
            });
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
    size: u64,
}

impl Regular {
    fn of(file: &OpenFile) -> Option<Regular> {
        let known = file.target.is_absolute().then(|| Statx::of(file.path()).ok())?;
        let known = known.filter(Statx::is_file)?;
        Some(Regular { inode: (known.dev(), known.ino()), deleted: known.links() == 0, size: known.size() })
    }
}

impl OpenFile {
    fn can_write(&self) -> bool {
        access_mode(self.pid, self.fd).is_some_and(|mode| mode != libc::O_RDONLY)
    }

    /// Returns the kind of sharing with another open file of the same inode, if a restore breaks
    /// it.
    fn shares(&self, regular: &Regular, other: &OpenFile) -> Option<Shared> {
        if regular.deleted && (self.can_write() || other.can_write()) {
            return Some(Shared::Deleted);
        }
        let what = match self.can_write() {
            true if self.appends() => return None,
            true => Shared::Written,
            false if self.will_read(regular.size) => Shared::Read,
            false => return None,
        };
        self.is_shared_with(other).then_some(what)
    }

    fn appends(&self) -> bool {
        open_flags(self.pid, self.fd).is_none_or(|flags| flags & libc::O_APPEND != 0)
    }

    /// Returns true if the file seems to be read at its position. A file that was left open by
    /// mistake, or that is read with `pread` or a mapping, has the position 0.
    fn will_read(&self, size: u64) -> bool {
        let info = read_start(format!("/proc/{}/fdinfo/{}", self.pid, self.fd));
        let position = info.and_then(|info| fdinfo_value::<u64>(&info, "pos"));
        position.is_some_and(|position| position < size && (position > 0 || self.fd == 0))
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
