//! The mounts of a process, and the files that they cover.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::{Process, View, descriptor::Descriptor, inside::Inside};
use crate::{
    procfs::{Mount, each_line, fdinfo_number, read_start},
    sys::Statx,
};

/// The mounts that a process sees.
pub(super) struct Mounts {
    /// The kinds of file systems, by device number.
    kinds: Vec<((u32, u32), String)>,
    ids: HashSet<i32>,
    /// The mounts' ids and mount points, in the order of mounting.
    points: Vec<(i32, PathBuf)>,
    /// True if the process has a mount namespace of its own. It can have files of other namespaces.
    own_namespace: bool,
}

impl Mounts {
    pub(super) fn of(process: &Process, view: &View<'_>) -> Mounts {
        let own_namespace = !process.spaces.share(view.own_spaces(), "mnt");
        let mut mounts = Mounts { kinds: Vec::new(), ids: HashSet::new(), points: Vec::new(), own_namespace };
        each_line(format!("/proc/{}/mountinfo", process.pid), |line| {
            let Some(mount) = Mount::parse(line) else { return };
            mounts.ids.insert(mount.id);
            mounts.points.push((mount.id, unescaped(mount.point)));
            if !mounts.kinds.iter().any(|(device, _)| *device == mount.device) {
                mounts.kinds.push((mount.device, mount.kind.to_owned()));
            }
        });
        if !own_namespace {
            // A process in another root folder sees fewer mounts than criu does.
            let seen = view.inside.as_ref().map_or("/proc/self/mountinfo".to_owned(), Inside::mounts);
            each_line(seen, |line| {
                mounts.ids.extend(Mount::parse(line).map(|mount| mount.id));
            });
        }
        mounts
    }

    /// Shares the mounts of all namespaces: criu dumps a file of any mount namespace of the tree.
    pub(super) fn join(namespaces: &mut HashMap<u64, Mounts>) {
        let ids: HashSet<i32> = namespaces.values().flat_map(|mounts| &mounts.ids).copied().collect();
        namespaces.values_mut().for_each(|mounts| mounts.ids.clone_from(&ids));
    }

    /// Returns true if a mount covers the path of an open file. File systems are asked only if the
    /// mount table leaves it open.
    pub(super) fn cover(&self, descriptor: &Descriptor, mount: i32, file: &Statx) -> bool {
        if !self.points.iter().any(|(id, _)| *id == mount) {
            return false;
        }
        let above = self.points.iter().filter(|(_, point)| descriptor.target.starts_with(point));
        // The last mount on a folder covers the others.
        let uppermost = above.max_by_key(|(_, point)| point.as_os_str().len());
        if uppermost.is_none_or(|(id, _)| *id == mount) {
            return false;
        }
        let path = descriptor.target.strip_prefix("/").unwrap_or(&descriptor.target);
        let there = Statx::of(Path::new(&format!("/proc/{}/root", descriptor.pid)).join(path));
        there.map_or(true, |there| (there.dev(), there.ino()) != (file.dev(), file.ino()))
    }

    pub(super) fn kind_on(&self, device: (u32, u32)) -> Option<&str> {
        self.kinds.iter().find(|(known, _)| *known == device).map(|(_, kind)| kind.as_str())
    }

    pub(super) fn lacks(&self, mount: i32) -> bool {
        !self.ids.is_empty() && !self.ids.contains(&mount)
    }

    /// Returns the mount of the program itself, if the process does not see it.
    pub(super) fn unseen_program(&self, pid: i32) -> Option<i32> {
        if !self.own_namespace {
            return None;
        }
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let path = format!("/proc/{pid}/exe");
        let program = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).ok()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&program);
        let info = read_start(format!("/proc/self/fdinfo/{number}"))?;
        fdinfo_number(&info, "mnt_id").filter(|mount| self.lacks(*mount))
    }
}

/// Decodes a path of `mountinfo`, in which some bytes are octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let octal = text.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let number = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(number.unwrap_or(*byte));
        at += if number.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_table_is_read_as_it_is() {
        let read = |text| unescaped(text).into_os_string().into_string().unwrap();
        assert_eq!(read("/a\\040b\\134c\\012"), "/a b\\c\n");
        for text in ["", "/", "/a\\", "/a\\0", "/a\\999", "/ä\\é"] {
            assert_eq!(read(text), text);
        }
    }
}
