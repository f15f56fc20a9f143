//! [`PackFolder`]: the files of packs.
//!
//! A new pack is in the folder itself, where each listing finds it. When the
//! [index](super::index) has it, it moves to a folder of its time. So a listing costs what is new,
//! and no folder has very many files.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use super::loose::entries;
use crate::{private_files, store::pack::PackId};

/// The folder of all packs.
#[derive(Debug, Clone)]
pub(super) struct PackFolder {
    path: PathBuf,
}

impl PackFolder {
    pub(super) fn new(path: PathBuf) -> PackFolder {
        PackFolder { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a new pack.
    pub(super) fn fresh(&self, id: &PackId) -> PathBuf {
        self.path.join(file_name(id))
    }

    /// Returns the path of a pack that the index has.
    pub(super) fn settled(&self, id: &PackId) -> PathBuf {
        // The id begins with the time in milliseconds: the first folder has the packs of 50 days,
        // the second those of 17 minutes.
        let hex = id.hex();
        self.path.join(&hex[..FIRST]).join(&hex[FIRST..FIRST + SECOND]).join(file_name(id))
    }

    /// Calls `work` with the path of a pack, which may move meanwhile; `NotFound` if it is gone.
    pub(super) fn at<T>(&self, id: &PackId, mut work: impl FnMut(&Path) -> io::Result<T>) -> io::Result<T> {
        let settled = self.settled(id);
        let mut done = work(&settled);
        // It only ever moves from the first to the second of these.
        for path in [self.fresh(id), settled] {
            match done {
                Err(error) if error.kind() == ErrorKind::NotFound => done = work(&path),
                done => return done,
            }
        }
        done
    }

    pub(super) fn open(&self, id: &PackId) -> io::Result<File> {
        self.at(id, private_files::open_file)
    }

    /// Returns true if the pack exists.
    pub(super) fn has(&self, id: &PackId) -> io::Result<bool> {
        match self.at(id, |path| fs::symlink_metadata(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Returns all packs.
    pub(super) fn list(&self) -> io::Result<BTreeSet<PackId>> {
        // New packs first: a pack that moves meanwhile is found at its second place.
        let mut packs: BTreeSet<_> = entries(&self.path)?.iter().filter_map(|path| id_of(path)).collect();
        self.each_settled(|id| packs.insert(id))?;
        Ok(packs)
    }

    /// Returns the packs that the index should have.
    pub(super) fn list_settled(&self) -> io::Result<Vec<PackId>> {
        let mut packs = Vec::new();
        self.each_settled(|id| packs.push(id))?;
        Ok(packs)
    }

    fn each_settled<T>(&self, mut each: impl FnMut(PackId) -> T) -> io::Result<()> {
        for first in entries(&self.path)?.iter().filter(|path| is_folder(path)) {
            for second in entries(first)? {
                for id in entries(&second)?.iter().filter_map(|path| id_of(path)) {
                    each(id);
                }
            }
        }
        Ok(())
    }
}

/// Parses the id in the name of a pack's file.
pub(super) fn id_of(path: &Path) -> Option<PackId> {
    PackId::parse(path.file_name()?.to_str()?.strip_suffix(".pack")?)
}

/// Returns true if this is a folder of packs that the index has.
pub(super) fn is_folder(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == FIRST && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn file_name(id: &PackId) -> String {
    format!("{}.pack", id.hex())
}

/// The number of digits in the names of the outer and the inner folders.
const FIRST: usize = 4;
const SECOND: usize = 3;

/// The coarsest resolution of file times, two seconds on FAT, and a margin.
pub(super) const TICK: Duration = Duration::from_secs(3);
