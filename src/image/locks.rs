//! Locks that criu takes and loses: those of a process on a file that is mapped. When the process closes the descriptor that a
//! file was mapped from, all its locks on that file end.

use std::collections::{HashMap, HashSet};

use super::{ImageDir, paths::OpenedAs};
use crate::{
    Result,
    proto::images::{CoreEntry, FileEntry, FileLockEntry},
};

/// A lock of a process on a range of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostLock {
    /// In the pid namespace of the tree.
    pub(crate) pid: u32,
    /// The descriptor that it was taken by.
    pub(crate) descriptor: u32,
    /// From the root of the mount namespace.
    pub(crate) path: Vec<u8>,
    /// Shared or exclusive, as `fcntl` numbers them.
    pub(crate) kind: u32,
    pub(crate) start: i64,
    /// 0 is to the end of the file.
    pub(crate) length: i64,
}

impl ImageDir {
    /// The locks that criu loses. `same` tells whether two paths lead to one file.
    pub(crate) fn lost_locks(&self, same: impl Fn(&[u8], &[u8]) -> bool) -> Result<Vec<LostLock>> {
        const POSIX: u32 = 1;
        let mut locks: Vec<FileLockEntry> = self.all("filelocks.img")?;
        locks.retain(|lock| lock.flag & POSIX != 0);
        if locks.is_empty() {
            return Ok(Vec::new());
        }
        let (mut descriptors, mut mapped) = (HashMap::new(), HashSet::new());
        for opened in self.opened()? {
            match opened.as_what {
                OpenedAs::Descriptor(number) => {
                    descriptors.insert((i64::from(opened.pid), i64::from(number)), opened.file);
                }
                OpenedAs::Mapped(..) | OpenedAs::Program => {
                    mapped.insert(opened.file);
                }
                _ => {}
            }
        }
        let mut names = HashMap::new();
        self.each("files.img", |file: FileEntry| names.extend(file.reg.map(|reg| (file.id, reg.name))))?;
        let mapped: HashSet<&Vec<u8>> = mapped.iter().filter_map(|file| names.get(file)).collect();
        let lost = |lock: FileLockEntry| {
            let path = names.get(descriptors.get(&(lock.pid.into(), lock.fd.into()))?)?;
            let is_mapped = mapped.contains(path) || mapped.iter().any(|other| same(other, path));
            is_mapped.then_some(())?;
            Some(LostLock {
                pid: lock.pid.try_into().ok()?,
                descriptor: lock.fd.try_into().ok()?,
                path: path.clone(),
                kind: lock.r#type,
                start: lock.start,
                length: lock.len,
            })
        };
        Ok(locks.into_iter().filter_map(lost).collect())
    }

    /// The processes that were stopped, by SIGSTOP for instance.
    pub(crate) fn stopped(&self) -> Result<HashSet<u32>> {
        const STOPPED: u32 = 3;
        let mut stopped = HashSet::new();
        for process in self.processes()? {
            let core = self.first::<CoreEntry>(&format!("core-{}.img", process.pid))?;
            if core.and_then(|core| core.tc).is_some_and(|task| task.task_state == STOPPED) {
                stopped.insert(process.pid);
            }
        }
        Ok(stopped)
    }
}
