//! The key records of an encrypted store in a folder.

use std::{
    cell::OnceCell,
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use super::{disk::Disk, loose::entries, packs};
use crate::{
    Error, Result, Until,
    file_lock::FileLock,
    private_files,
    store::codec::{self, Records},
};

/// The key records in a folder.
pub(super) struct FsRecords<'a> {
    pub(super) root: &'a Path,
    pub(super) tmp: &'a Path,
    pub(super) disk: &'a Disk,
    /// Held from the first write on, so that two programs do not set up one store.
    pub(super) lock: OnceCell<FileLock>,
}

impl FsRecords<'_> {
    fn doing(&self) -> String {
        format!("write the key record of the blob store in {}", self.root.display())
    }

    fn read_one(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(name);
        match private_files::patiently(|| fs::read(&path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read the key record {}", path.display()))(error)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (temporary, file) = self.disk.temporary(self.tmp)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        temporary.rename(file, &self.root.join(name))?;
        self.disk.sync_folder(self.root)
    }
}

impl Records for FsRecords<'_> {
    fn read(&self, [one, other]: [&str; 2]) -> Result<[Option<Vec<u8>>; 2]> {
        Ok([self.read_one(one)?, self.read_one(other)?])
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.lock.get().is_none() {
            let lock = FileLock::exclusive(&self.root.join("gc.lock"), &Until::forever(), || self.doing())?;
            let _ = self.lock.set(lock);
        }
        match self.read_one(name)? {
            Some(_) => Ok(()),
            None => self.write(name, bytes).map_err(Error::io(self.doing())),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(name, bytes).map_err(Error::io(self.doing()))
    }

    fn sync(&self) -> Result<()> {
        self.disk.sync_folder(self.root).map_err(Error::io(self.doing()))
    }

    fn has_blobs(&self) -> Result<bool> {
        let listing = || Error::io(format!("list the blobs in {}", self.root.display()));
        for folder in [codec::PLAIN, codec::KEYED] {
            for shard in entries(&self.root.join(folder)).map_err(listing())? {
                if !entries(&shard).map_err(listing())?.is_empty() {
                    return Ok(true);
                }
            }
        }
        for path in entries(&self.root.join("packs")).map_err(listing())? {
            let is_used = || entries(&path).map(|packs| !packs.is_empty());
            if packs::id_of(&path).is_some() || packs::is_folder(&path) && is_used().map_err(listing())? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
