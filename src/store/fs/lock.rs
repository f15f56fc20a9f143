//! [`Lock`]: who may not do what at the same time, between processes too.
//!
//! Locks are advisory, belong to an open file, and end with it: nobody has to clean up after a process that died.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fs4::{FileExt, TryLockError};

use crate::private;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "the lock ends with the file")] File);

impl Lock {
    /// With others that share it; waits for one that does not.
    pub(super) fn shared(path: &Path) -> io::Result<Lock> {
        let file = open(path)?;
        FileExt::lock_shared(&file)?;
        Ok(Lock(file))
    }

    /// Alone; waits for all others.
    pub(super) fn exclusive(path: &Path) -> io::Result<Lock> {
        let file = open(path)?;
        FileExt::lock(&file)?;
        Ok(Lock(file))
    }

    /// Alone; gives up after a while.
    pub(super) fn exclusive_within(path: &Path, patience: Duration) -> io::Result<Option<Lock>> {
        let file = open(path)?;
        let end = Instant::now() + patience;
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Ok(Some(Lock(file))),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    loop {
        match private::create_file(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => return created,
        }
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

const PAUSE: Duration = Duration::from_millis(2);
