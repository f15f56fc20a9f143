//! Locks of processes on files that they also have mapped, where a restore does not take them
//! again.
//!
//! criu takes such a lock, and later closes the descriptor that it mapped the file from. To close
//! any descriptor of a file ends all locks (of the kind of `fcntl`) that the process has on it.

use std::{collections::HashSet, path::PathBuf};

use super::Frozen;
use super::settings::inner_number;
use crate::{
    DumpOptions, Pid, Result, Warning,
    image::{ImageDir, ProcessLock},
    procfs::{Mapping, each_line, read_start},
};

/// True if a restore takes such locks again: it must know the system call instruction.
const TAKEN_AGAIN: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// The locks that will be lost, one for each process and file.
pub(super) fn look(tree: &Frozen) -> Vec<Warning> {
    if TAKEN_AGAIN { Vec::new() } else { lost(tree) }
}

fn lost(tree: &Frozen) -> Vec<Warning> {
    let mut locks = HashSet::new();
    each_line("/proc/locks", |line| {
        locks.extend(posix_lock(line).filter(|(pid, _)| tree.pids.contains(pid)))
    });
    let processes: HashSet<i32> = locks.iter().map(|(pid, _)| *pid).collect();
    let mut lost = Vec::new();
    for process in tree.pids.iter().copied().filter(|pid| processes.contains(pid)) {
        let mut told = HashSet::new();
        each_line(format!("/proc/{process}/maps"), |line| {
            let Some(file) = mapped_file(line) else { return };
            if locks.contains(&(process, file.to_owned())) && told.insert(file.to_owned()) {
                let name = Mapping::parse(line).map(|mapping| mapping.name).unwrap_or_default();
                lost.push(Warning::LockLost { pid: Pid::from(process), path: PathBuf::from(name) });
            }
        });
    }
    lost
}

/// Adds the locks to the images that processes took by descriptors which they have from others.
/// criu looks at each open file once, in the first process that has it, and sees that process's
/// locks alone.
pub(super) fn complete(tree: &Frozen, images: &ImageDir, options: &DumpOptions) -> Result<()> {
    if !options.carries_file_locks() {
        return Ok(());
    }
    let mut holders = HashSet::new();
    each_line("/proc/locks", |line| {
        holders.extend(posix_lock(line).map(|(pid, _)| pid).filter(|pid| tree.pids.contains(pid)));
    });
    let known = images.process_locks()?;
    let (mut seen, mut missing) = (HashSet::new(), Vec::new());
    for file in tree.files.iter().filter(|file| holders.contains(&file.pid) && file.target.is_absolute()) {
        let Some(number) = inner_number(file.pid) else { continue };
        let info = read_start(format!("/proc/{}/fdinfo/{}", file.pid, file.fd)).unwrap_or_default();
        for line in info.lines().filter_map(|line| line.strip_prefix("lock:")) {
            let Some((_, name)) = posix_lock(line) else { continue };
            let Some(lock) = ProcessLock::parse(line, number, file.fd) else { continue };
            // A process may have the file by several descriptors, and the lock is one.
            let others =
                tree.files.iter().filter(|other| other.pid == file.pid && other.target == file.target);
            let is_known = others.map(|other| other.fd).any(|fd| known.contains(&ProcessLock { fd, ..lock }));
            if !is_known && seen.insert((name, ProcessLock { fd: 0, ..lock })) {
                missing.push(lock);
            }
        }
    }
    images.add_process_locks(&missing)
}

/// The process and the file of a line such as `1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`,
/// where it has the lock.
fn posix_lock(line: &str) -> Option<(i32, String)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    (words.next() == Some("POSIX")).then_some(())?;
    let pid = words.nth(2)?.parse().ok()?;
    Some((pid, words.next()?.to_owned()))
}

/// The file of a line of `/proc/<pid>/maps`, in the form that `/proc/locks` has.
fn mapped_file(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (device, inode) = (words.next()?, words.next()?);
    (inode != "0").then(|| format!("{device}:{inode}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_and_mappings_name_a_file_alike() {
        let lock = posix_lock("1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF");
        assert_eq!(lock, Some((4711, "fe:00:1234".to_owned())));
        assert_eq!(posix_lock("1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF"), None);
        assert_eq!(posix_lock("1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF"), None);
        // It waits.
        assert_eq!(posix_lock("1: -> POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF"), None);
        let mapping = "7f00-7f01 rw-s 00000000 fe:00 1234      /tmp/a b";
        assert_eq!(mapped_file(mapping).as_deref(), Some("fe:00:1234"));
        assert_eq!(mapped_file("7f00-7f01 rw-p 00000000 00:00 0 "), None);
        assert_eq!(posix_lock(""), None);
        assert_eq!(mapped_file(""), None);
    }
}
