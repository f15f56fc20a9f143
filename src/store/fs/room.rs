//! Room that is kept for collections: on a full disk, one must note what is to go before anything can go.

use std::{io, path::PathBuf};

use super::FsBlobStore;
use crate::Digest256;

impl FsBlobStore {
    fn room(&self) -> PathBuf {
        self.root.join("gc.room")
    }

    /// Sets room aside, if there is enough and none is yet. What takes no room on the disk, as zeros on some, would be of no use.
    pub(super) fn keep_room(&self) {
        if self.room().exists() {
            return;
        }
        let made = self.disk.temporary(&self.tmp).and_then(|(temporary, file)| {
            let mut bytes = Vec::with_capacity(ROOM);
            while bytes.len() < ROOM {
                bytes.extend_from_slice(Digest256::of(&bytes.len().to_le_bytes()).as_bytes());
            }
            file.write_at(&bytes, 0)?;
            file.sync()?;
            temporary.rename(file, &self.room())
        });
        // Without it a collection does what it can.
        drop(made);
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

/// Whether the disk, or what this user may have of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Enough to note that some thousands of packs are to go.
const ROOM: usize = 256 * 1024;
