//! Locks that the tree had, and that another process has now. criu would wait for them, for ever.

use std::{
    collections::HashMap,
    fs::{self, File},
};

use nix::{
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    sys::stat::{FileStat, fstat, major, minor},
};

use super::{path, refuse, shown, walk::Root};
use crate::{
    Cause, Error, Result,
    image::{ImageDir, LockEntry, NamedFile},
};

/// Refuses to begin while another process has a lock that the tree is to get back. Nothing stays
/// locked by this.
pub(super) fn check(images: &ImageDir, files: &[super::File]) -> Result<()> {
    let locks = images.locks()?;
    if locks.is_empty() {
        return Ok(());
    }
    let root = Root::open().map_err(Error::io("open the root folder"))?;
    let by_id: HashMap<_, _> = files.iter().map(|file| (file.named.id, &file.named)).collect();
    let taken = locks.iter().filter_map(|lock| taken(&root, by_id.get(&lock.file)?, lock));
    refuse(Cause::LockTaken, taken)
}

/// The way in which a lock is taken.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A whole file, by `flock`.
    Whole,
    /// A range, for a process or an open file.
    Range,
}

/// The holder of a lock that stands in the way of this one, for people. What cannot be asked is
/// left to criu.
fn taken(root: &Root, named: &NamedFile, lock: &LockEntry) -> Option<String> {
    const POSIX: u32 = 1;
    const FLOCK: u32 = 2;
    const OFD: u32 = 4;
    let kind = match lock.flag {
        flag if flag & FLOCK != 0 => Kind::Whole,
        flag if flag & (POSIX | OFD) != 0 => Kind::Range,
        _ => return None,
    };
    let exclusive = match i32::try_from(lock.kind) {
        Ok(libc::F_RDLCK) => false,
        Ok(libc::F_WRLCK) => true,
        _ => return None,
    };
    let file = root.open_to_read(path(&named.path)).ok()?;
    let by = match kind {
        Kind::Whole => whole_taken(&file, exclusive),
        Kind::Range => range_taken(&file, exclusive, lock),
    }?;
    let pid = by.pid.or_else(|| holder(kind, &fstat(&file).ok()?));
    let path = shown(&named.path);
    Some(match pid {
        Some(pid) => {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{path}: it is locked by process {pid}, `{}`", shown(name.trim_ascii()))
        }
        None => format!("{path}: it is locked by another process"),
    })
}

/// The holder, if it was told.
struct Holder {
    pid: Option<i32>,
}

/// Tries to lock the whole file, and lets it go at once.
fn whole_taken(file: &File, exclusive: bool) -> Option<Holder> {
    let how = if exclusive { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    match Flock::lock(file.try_clone().ok()?, how) {
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Some(Holder { pid: None }),
        _ => None,
    }
}

/// Asks for a lock that stands in the way.
fn range_taken(file: &File, exclusive: bool, lock: &LockEntry) -> Option<Holder> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut asked = libc::flock {
        l_type: kind.try_into().ok()?,
        l_whence: libc::SEEK_SET.try_into().ok()?,
        l_start: lock.start,
        l_len: lock.length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked)).ok()?;
    let free = i32::from(asked.l_type) == libc::F_UNLCK;
    (!free).then_some(Holder { pid: Some(asked.l_pid).filter(|pid| *pid > 0) })
}

/// The process that the kernel lists with a lock of this kind on the file.
fn holder(kind: Kind, file: &FileStat) -> Option<i32> {
    let id = format!("{:02x}:{:02x}:{}", major(file.st_dev), minor(file.st_dev), file.st_ino);
    let kinds: &[&str] = if kind == Kind::Whole { &["FLOCK"] } else { &["POSIX", "OFDLCK"] };
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let listed = words.next().is_some_and(|word| kinds.contains(&word));
        let mut words = words.skip(2);
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        (listed && words.next() == Some(id.as_str())).then_some(pid)
    })
}
