//! Room that is kept for collections: on a full disk, one must note what is to go before anything can go.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use super::FsBlobStore;
use crate::{Digest256, private};

impl FsBlobStore {
    fn room(&self) -> PathBuf {
        self.root.join("gc.room")
    }

    /// Sets room aside, if there is enough and none is yet. What takes no room on the disk, as zeros on some, would be of no use.
    pub(super) fn keep_room(&self) {
        let path = self.room();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == ROOM as u64) {
            return;
        }
        let mut bytes = Vec::with_capacity(ROOM);
        while bytes.len() < ROOM {
            bytes.extend_from_slice(Digest256::of(&bytes.len().to_le_bytes()).as_bytes());
        }
        // In its place at once: all who do so write the same, and what a process that dies leaves is completed by the next.
        let file = match private::create_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                File::options().write(true).open(&path)
            }
            created => created,
        };
        if file.and_then(|file| private::write_at(&file, &bytes, 0)).is_err() {
            // Without it a collection does what it can.
            let _ = fs::remove_file(path);
        }
    }

    /// Does this, and if the disk is full, once more with the room that was kept.
    pub(super) fn with_room<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) && self.disk.remove(&self.room()).is_ok() => {
                // Some file systems free what was removed only when they are asked to be done.
                let _ = self.disk.sync_folder(&self.root);
                work()
            }
            result => result,
        }
    }
}

/// Returns true if the disk, or what this user may have of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Enough to note that some thousands of packs are to go.
const ROOM: usize = 256 * 1024;
