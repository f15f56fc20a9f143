//! [`Descriptor`]: an open file of a process.

use std::{borrow::Cow, fs, path::PathBuf};

use super::Place;
use crate::procfs::read_start;

/// An open file.
pub(super) struct Descriptor {
    pub(super) pid: i32,
    pub(super) fd: i32,
    pub(super) target: PathBuf,
}

impl Descriptor {
    pub(super) fn all(pid: i32) -> impl Iterator<Item = Descriptor> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            Some(Descriptor { pid, fd, target: fs::read_link(entry.path()).ok()? })
        })
    }

    /// Returns the path of the file itself in `/proc`.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", self.pid, self.fd)
    }

    pub(super) fn info(&self) -> String {
        read_start(format!("/proc/{}/fdinfo/{}", self.pid, self.fd)).unwrap_or_default()
    }

    pub(super) fn name(&self) -> Cow<'_, str> {
        self.target.to_string_lossy()
    }

    /// Returns the inode in a target such as `socket:[4711]`.
    pub(super) fn inode_of(&self, kind: &str) -> Option<u64> {
        self.name().strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    }

    pub(super) fn place(&self) -> Place {
        Place::Descriptor { fd: self.fd, target: self.target.clone() }
    }
}
