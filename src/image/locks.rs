//! Locks that criu takes and loses: those of a process on a file that is mapped. When the process
//! closes the descriptor that a file was mapped from, all its locks on that file end.

use std::{
    collections::{HashMap, HashSet},
    io::Write,
};

use prost::Message;

use super::{Edit, ImageDir, frame, paths::OpenedAs};
use crate::{
    Error, Result, private_files,
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

/// A lock of a process, as criu notes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProcessLock {
    /// In the pid namespace of the tree.
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    pub(crate) kind: u32,
    pub(crate) start: i64,
    /// 0 is to the end of the file.
    pub(crate) length: i64,
}

impl ProcessLock {
    /// Reads a line such as `1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`.
    pub(crate) fn parse(line: &str, pid: i32, fd: i32) -> Option<ProcessLock> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "POSIX", _, kind, _, _, start, end] = words[..] else { return None };
        let start: i64 = start.parse().ok()?;
        let length =
            if end == "EOF" { 0 } else { end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)? };
        Some(ProcessLock { pid, fd, kind: u32::from(kind == "WRITE"), start, length })
    }
}

const LOCKS: &str = "filelocks.img";
/// The kind of that image.
const FILE_LOCKS: u32 = 0x5432_3616;
/// The flag of a lock of a process.
const POSIX: u32 = 1;

impl ImageDir {
    /// Reads the locks of processes.
    pub(crate) fn process_locks(&self) -> Result<HashSet<ProcessLock>> {
        let locks: Vec<FileLockEntry> = self.all(LOCKS)?;
        let of_processes = locks.into_iter().filter(|lock| lock.flag & POSIX != 0);
        Ok(of_processes
            .map(|FileLockEntry { r#type: kind, pid, fd, start, len: length, .. }| ProcessLock {
                pid,
                fd,
                kind,
                start,
                length,
            })
            .collect())
    }

    /// Adds locks of processes.
    pub(crate) fn add_process_locks(&self, locks: &[ProcessLock]) -> Result<()> {
        if locks.is_empty() {
            return Ok(());
        }
        let entries: Vec<_> = locks
            .iter()
            .map(|ProcessLock { pid, fd, kind, start, length }| FileLockEntry {
                flag: POSIX,
                r#type: *kind,
                pid: *pid,
                fd: *fd,
                start: *start,
                len: *length,
            })
            .collect();
        let path = self.path().join(LOCKS);
        if path.exists() {
            return self.rewrite::<FileLockEntry, _>(LOCKS, |_| Edit::Keep, &entries);
        }
        let doing = || Error::io(format!("make the image {LOCKS}"));
        let image = frame::image(FILE_LOCKS, entries.iter().map(Message::encode_to_vec))?;
        private_files::create_file(&path).and_then(|mut file| file.write_all(&image)).map_err(doing())
    }

    /// The locks that criu loses. `same` tells whether two paths lead to one file.
    pub(crate) fn lost_locks(&self, same: impl Fn(&[u8], &[u8]) -> bool) -> Result<Vec<LostLock>> {
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
