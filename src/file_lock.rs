//! [`FileLock`]: advisory file locks between processes.
//!
//! A lock belongs to an open file and ends with it, so a process that died leaves none behind.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use crate::{Error, Result, Until, private_files};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct FileLock(#[allow(dead_code, reason = "the lock ends with the file")] File);

impl FileLock {
    /// Takes a shared lock, and waits for an exclusive one. `doing` is the purpose of the lock, as
    /// a verb phrase.
    pub(crate) fn shared(path: &Path, until: &Until, doing: impl Fn() -> String) -> Result<FileLock> {
        lock(path, until, doing, File::try_lock_shared, File::lock_shared)
    }

    /// Takes an exclusive lock, and waits for all others.
    pub(crate) fn exclusive(path: &Path, until: &Until, doing: impl Fn() -> String) -> Result<FileLock> {
        lock(path, until, doing, File::try_lock, File::lock)
    }

    /// Takes an exclusive lock; gives up after `patience`.
    pub(crate) fn exclusive_within(
        path: &Path,
        patience: Duration,
        until: &Until,
        doing: impl Fn() -> String,
    ) -> Result<Option<FileLock>> {
        let file = open(path).map_err(Error::io(doing()))?;
        let short = Until::within(patience);
        until
            .wait_for(
                || waiting(path, &file, &doing),
                || match file.try_lock() {
                    Ok(()) => Ok(Some(true)),
                    Err(TryLockError::WouldBlock) => Ok(short.check(String::new).is_err().then_some(false)),
                    Err(TryLockError::Error(error)) => Err(Error::io(doing())(error)),
                },
            )
            .map(|locked| locked.then_some(FileLock(file)))
    }
}

fn lock(
    path: &Path,
    until: &Until,
    doing: impl Fn() -> String,
    attempt: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    block: impl Fn(&File) -> io::Result<()>,
) -> Result<FileLock> {
    let file = open(path).map_err(Error::io(doing()))?;
    let locked = until.wait_for(
        || waiting(path, &file, &doing),
        || match attempt(&file) {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) if until.is_bounded() => Ok(None),
            Err(TryLockError::WouldBlock) => loop {
                match block(&file) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    locked => return locked.map(Some).map_err(Error::io(doing())),
                }
            },
            Err(TryLockError::Error(error)) => Err(Error::io(doing())(error)),
        },
    );
    locked.map(|()| FileLock(file))
}

/// Returns the error text: the work that waits, and the processes that hold the lock.
fn waiting(path: &Path, file: &File, doing: impl Fn() -> String) -> String {
    let holders = holders(file);
    let by = if holders.is_empty() { "another process".to_owned() } else { holders.join(" and ") };
    format!("{}, because {by} has locked {}", doing(), path.display())
}

/// Returns the processes that have locked the file, as far as the kernel shows them.
fn holders(file: &File) -> Vec<String> {
    let Some([major, minor, inode]) = private_files::identity(file) else { return Vec::new() };
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holders = locks.lines().filter_map(|line| holder(line, &file));
    holders
        .map(|pid| match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("process {pid} ({})", name.trim_end().escape_debug()),
            Err(_) => format!("process {pid}"),
        })
        .collect()
}

/// Parses a line of `/proc/locks`: the process, if it has locked this file.
fn holder(line: &str, file: &str) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    // A waiting process has an arrow here. A process outside of our pid namespace is 0 or -1.
    let [kind, _, _, pid, locked] = std::array::from_fn(|_| words.next().unwrap_or_default());
    (kind == "FLOCK" && locked == file).then_some(pid)?.parse().ok().filter(|pid| *pid > 0)
}

fn open(path: &Path) -> io::Result<File> {
    loop {
        match private_files::create_file(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => return created,
        }
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_in_the_kernels_list() {
        let file = "fe:01:4711";
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 1234 fe:01:4711 0 EOF", file), Some(1234));
        for other in [
            "1: -> FLOCK  ADVISORY  WRITE 1234 fe:01:4711 0 EOF",
            "1: POSIX  ADVISORY  WRITE 1234 fe:01:4711 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 1234 fe:01:47 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 0 fe:01:4711 0 EOF",
            "1: OFDLCK ADVISORY  READ -1 fe:01:4711 0 EOF",
            "1:",
            "",
        ] {
            assert_eq!(holder(other, file), None, "{other}");
        }
    }
}
