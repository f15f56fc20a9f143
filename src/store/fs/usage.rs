//! [`FsBlobStore::usage`]: counts the contents and the size of the store.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::Serialize;

use super::{
    ATTEMPTS, FsBlobStore,
    gc::{Tally, each_frame},
    loose::entries,
};
use crate::{Error, Result};

/// The contents of a store; see [`FsBlobStore::usage`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Blobs that are not marked for deletion. Each copy counts.
    pub blobs: Tally,
    /// Blobs that wait to be removed by [`FsBlobStore::retain`].
    pub marked: Tally,
    /// The number of packs.
    pub packs: u64,
    /// The number of blobs that are single files.
    pub loose: u64,
    /// The lengths of all files, unfinished ones included.
    pub disk: u64,
}

impl FsBlobStore {
    /// Counts the contents of the store, by names and headers, without reading blobs.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, FsBlobStore};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-usage-{}", std::process::id()));
    /// let store = FsBlobStore::open(&folder)?;
    /// store.put(b"hello")?;
    /// let usage = store.usage()?;
    /// assert_eq!((usage.blobs.blobs, usage.blobs.bytes), (1, 5));
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let reading = || Error::io(format!("count the blobs in {}", self.root.display()));
        let mut usage = Usage::default();
        for _ in 0..ATTEMPTS {
            self.refresh()?;
            let mut gone = false;
            usage = self.count(&mut gone).map_err(reading())?;
            if !gone {
                break;
            }
        }
        Ok(usage)
    }

    /// Counts; sets `gone` if a pack was removed meanwhile.
    fn count(&self, gone: &mut bool) -> io::Result<Usage> {
        let mut usage = Usage { disk: length_below(&self.root)?, ..Usage::default() };
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        for (_, path) in self.blobs.list()? {
            usage.blobs.add(length(&path));
            usage.loose += 1;
        }
        for round in entries(&self.condemned())? {
            for path in entries(&round.join("blobs"))? {
                usage.marked.add(length(&path));
            }
        }
        for id in self.catalog.files.list()? {
            let count = |file: File| {
                each_frame(&file, |frame| {
                    for (index, entry) in frame.entries.iter().enumerate() {
                        let into = match self.catalog.marked(frame, index) {
                            (_, true) => continue,
                            (true, false) => &mut usage.marked,
                            (false, false) => &mut usage.blobs,
                        };
                        into.add(entry.length as u64);
                    }
                    Ok(())
                })
            };
            match self.catalog.open(&id).and_then(count) {
                // A collection has deleted it, maybe after its needed blobs were moved to another
                // pack.
                Err(error) if error.kind() == io::ErrorKind::NotFound => *gone = true,
                counted => {
                    counted?;
                    usage.packs += 1;
                }
            }
        }
        Ok(usage)
    }
}

/// Returns the total length of all files below a folder.
fn length_below(folder: &Path) -> io::Result<u64> {
    let mut length = 0;
    for path in entries(folder)? {
        length += match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => length_below(&path)?,
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    Ok(length)
}
