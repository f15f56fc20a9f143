//! Space reserved for collections: on a full disk, one must write its notes before it can delete.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use super::FsBlobStore;
use crate::{Digest256, private_files};

impl FsBlobStore {
    fn room(&self) -> PathBuf {
        self.root.join("gc.room")
    }

    /// Reserves space, if the disk has enough and none is reserved yet. The bytes must occupy
    /// space: some file systems do not store zeros.
    pub(super) fn keep_room(&self) {
        let path = self.room();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == ROOM as u64) {
            return;
        }
        let mut bytes = Vec::with_capacity(ROOM);
        while bytes.len() < ROOM {
            bytes.extend_from_slice(Digest256::of(&bytes.len().to_le_bytes()).as_bytes());
        }
        // Written in place: all processes write the same bytes, and the next one completes a
        // partial file.
        let file = match private_files::create_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                File::options().write(true).open(&path)
            }
            created => created,
        };
        if file.and_then(|file| private_files::write_at(&file, &bytes, 0)).is_err() {
            // Without reserved space a collection does what it can.
            let _ = fs::remove_file(path);
        }
    }

    /// Runs `work`; if the disk is full, runs it again with the reserved space.
    pub(super) fn with_room<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) && self.disk.remove(&self.room()).is_ok() => {
                // Some file systems free removed files only after a sync.
                let _ = self.disk.sync_folder(&self.root);
                work()
            }
            result => result,
        }
    }
}

/// Returns true if the disk is full, or this user's quota is.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Enough for the notes of some thousands of packs.
const ROOM: usize = 256 * 1024;
