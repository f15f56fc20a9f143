//! [`FsBlobStore`]: blobs in a folder.
//!
//! ```text
//! <root>/blobs/sha256/2c/2cf24dba…   a blob that was put by itself
//! <root>/blobs/keyed/2c/2cf24dba…    the same in an encrypted store
//! <root>/packs/<id>.pack             the blobs of a new batch
//! <root>/packs/01a2/23f/<id>.pack    the blobs of a batch that is in the index
//! <root>/index/                      see [`index`]
//! <root>/condemned/<name>/           what a collection found no use for: files, and lists of entries of packs
//! <root>/damaged/                    what is damaged and was taken out
//! <root>/tmp/<pid>-<random>          files that are not whole yet
//! <root>/store.key[.copy]            the key record of an encrypted store
//! <root>/lock, <root>/{gc,index}.lock  see [`FileLock`](crate::file_lock::FileLock)
//! <root>/gc.clock, <root>/gc.room    what collections need: see [`clock`] and [`room`]
//! ```
//!
//! A file is written in `tmp`, synced, renamed to its place, and the folder is synced. So a visible
//! name always has all its bytes, also after a crash. [`loose`] are single files, [`batch`] writes
//! packs, [`catalog`] and [`index`] find blobs in them, [`read`] reads from them, [`tend`] keeps
//! their number small. All of them know blobs by their
//! [names](Name); the trait's methods here translate digests to names.

mod batch;
mod catalog;
mod clock;
mod collect;
mod condemned;
mod disk;
mod gc;
mod headers;
mod index;
mod loose;
mod marks;
mod near;
mod packs;
mod place;
mod read;
mod records;
mod rewrite;
mod rewriter;
mod room;
mod table;
mod tend;
#[cfg(test)]
mod tests;
mod usage;
mod verify;

use std::{
    cell::OnceCell,
    fs,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use self::{
    batch::FsBatch,
    catalog::Catalog,
    condemned::Loaded,
    disk::Disk,
    loose::Shards,
    near::Near,
    read::{Buffers, Opened, RECENT, Source},
    records::FsRecords,
    tend::Upkeep,
};
pub use self::{
    gc::{Gc, Tally},
    usage::Usage,
    verify::{Damage, Verified},
};
use super::{
    BlobBatch, BlobStore, BlobWriter,
    codec::{Codec, StoreOptions, or_io},
    name::Name,
};
use crate::{Digest256, Error, Result, Until, lock::Mutex, private_files, wiped::Wiped};

/// A store in a folder, for any number of threads and processes.
///
/// Blobs hold the memory of processes, secrets included. So on Unix the store's folders have mode
/// 0700, and its files 0600. A blob is on the disk when [`put`](BlobStore::put) or
/// [`commit`](BlobWriter::commit) returns. Between calls only writers and batches have files open.
///
/// Blobs that are put by themselves are files. Blobs of a [batch](BlobBatch) go into
/// packs: one file that is synced once, and becomes visible with the commit. [`StoreOptions`] sets
/// compression and encryption.
///
/// Putting a blob by itself repairs it if it is damaged. A batch, and so a chunked capture, assumes
/// that existing blobs are undamaged. [`verify`](FsBlobStore::verify) finds damage. After
/// [`quarantine`](FsBlobStore::quarantine), captures store the damaged blobs again.
///
/// ```
/// use criu_rpc::{BlobStore, FsBlobStore};
///
/// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-{}", std::process::id()));
/// let store = FsBlobStore::open(&folder)?;
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// # std::fs::remove_dir_all(folder).unwrap();
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug)]
pub struct FsBlobStore {
    root: PathBuf,
    tmp: PathBuf,
    disk: Disk,
    codec: Codec,
    blobs: Shards,
    catalog: Catalog,
    /// The loose blobs in the catalog, once a batch needed them.
    loose: Mutex<Option<Loose>>,
    loaded: Mutex<Loaded>,
    buffers: Mutex<Vec<Buffers>>,
    recent: Opened,
    upkeep: Upkeep,
}

impl FsBlobStore {
    /// Opens the store in the folder `root`, with the default [`StoreOptions`]. Creates missing
    /// folders, also `root` itself.
    ///
    /// Temporary files of writers that died are removed once they are a day old. On Unix a lock
    /// shows that a writer lives, whatever the clock says. Elsewhere, or on a file system without
    /// locks, a writer or a batch that pauses for more than a day may fail to commit.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folders cannot be created; [`Error::Store`] if the store is encrypted.
    pub fn open(root: impl AsRef<Path>) -> Result<FsBlobStore> {
        StoreOptions::new().open(root)
    }

    fn open_on(root: &Path, disk: Disk, options: &StoreOptions) -> Result<FsBlobStore> {
        let opening = || format!("open the blob store in {}", root.display());
        let root = &std::path::absolute(root).map_err(Error::io(opening()))?;
        if root.exists() && !root.is_dir() {
            let problem = io::Error::new(io::ErrorKind::NotADirectory, "it is a file, not a folder");
            return Err(Error::io(opening())(problem));
        }
        let (packs, tmp) = (root.join("packs"), root.join("tmp"));
        for folder in [&packs, &tmp] {
            disk.make_folder(folder).map_err(Error::io(opening()))?;
        }
        remove_leftovers(&tmp);
        let records = FsRecords { root, tmp: &tmp, disk: &disk, lock: OnceCell::new() };
        let codec = options.codec(&opening, &records)?;
        drop(records);
        let blobs = root.join(codec.folder());
        disk.make_folder(&blobs).map_err(Error::io(opening()))?;
        let store = FsBlobStore {
            codec,
            blobs: Shards::new(blobs, disk.clone()),
            catalog: Catalog::new(root, &tmp, packs, disk.clone()),
            tmp,
            loose: Mutex::default(),
            loaded: Mutex::default(),
            buffers: Mutex::default(),
            recent: Opened::new(RECENT),
            upkeep: Upkeep::default(),
            disk,
            root: root.clone(),
        };
        // Create the lock files while there is space: a collection on a full disk cannot.
        for lock in [store.lock_file(), store.root.join("gc.lock"), store.catalog.index.lock_file()] {
            let _ = private_files::create_file(&lock);
        }
        if !store.root.join("gc.clock").exists() {
            let _ = store.disk.make_folder(&store.condemned());
            store.store_time();
        }
        store.keep_room();
        Ok(store)
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Reads the lists of packs and loose blobs, for a batch.
    fn load_all(&self) -> Result<()> {
        self.catalog.refresh(|| self.load_marks())?;
        let mut loose = self.loose.lock();
        // The table is never told of removed files, so renew the listing now and then.
        if loose.as_ref().is_some_and(|loose| loose.noted > 2 * loose.listed + MANY_LOOSE) {
            self.catalog.table.retain(|frame| frame != LOOSE);
            *loose = None;
        }
        if loose.is_none() {
            let listing = Error::io(format!("list the blobs in {}", self.blobs.folder().display()));
            let list = self.blobs.list().map_err(listing)?;
            list.iter().for_each(|(name, _)| self.catalog.table.insert(name, LOOSE));
            *loose = Some(Loose { listed: list.len(), noted: 0 });
        }
        Ok(())
    }

    /// Notes a new loose blob, so that later batches find it.
    fn note_loose(&self, name: &Name) {
        if let Some(loose) = &mut *self.loose.lock() {
            self.catalog.table.insert(name, LOOSE);
            loose.noted += 1;
        }
    }

    /// Reads the blob, from the known packs or a file.
    fn find(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        let packed =
            self.catalog.hits(name).and_then(|hits| self.first_good(hits.iter(), Source::CacheOrDisk));
        match packed {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => self.read_loose(name),
            Err(damage) => self.read_loose(name)?.map_or(Err(damage), |bytes| Ok(Some(bytes))),
        }
    }

    /// Returns true if a known pack or a file has it. Condemned entries do not count.
    fn has(&self, name: &Name, near: &mut Near) -> Result<bool> {
        Ok(self.catalog.has(name, near)? || self.is_loose(name)?)
    }

    /// Repeats a search that may fail because of new packs, as long as new ones appear.
    fn retry_after_refresh<T>(&self, attempt: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
        for _ in 0..ATTEMPTS {
            let before = self.catalog.generation();
            let result = attempt();
            if matches!(result, Ok(Some(_))) {
                return result;
            }
            let changed = self.refresh()?;
            if !changed && self.catalog.generation() == before {
                return result;
            }
        }
        attempt()
    }

    /// Lists the folder of new packs again, whatever its time, and reads other changes.
    fn look_again(&self) -> Result<bool> {
        self.catalog.doubt();
        self.refresh()
    }

    /// Reads changes by other processes.
    fn refresh(&self) -> Result<bool> {
        let packs = self.catalog.refresh(|| self.load_marks())?;
        Ok(self.load_marks()? || packs)
    }
}

impl BlobStore for FsBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        let name = self.codec.name(&digest)?;
        self.refresh()?;
        let hits = self.catalog.hits(&name).unwrap_or_default();
        if let Ok(Some(_)) = self.first_good(hits.iter().filter(|hit| !hit.condemned), Source::Disk) {
            // The process that put it may not have synced the folder yet.
            let folder = self.catalog.folder();
            self.disk.sync_folder(folder).map_err(Error::io(format!("sync {}", folder.display())))?;
            return Ok(digest);
        }
        self.put_loose(&name, bytes)?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let name = self.codec.name(digest)?;
        self.retry_after_refresh(|| self.find(&name))?.ok_or(Error::Missing { digest: *digest })
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        let name = self.codec.name(digest)?;
        let found = self.retry_after_refresh(|| Ok(self.has(&name, &mut Near::default())?.then_some(())))?;
        Ok(found.is_some())
    }

    fn is_marked(&self, digest: &Digest256) -> Result<bool> {
        Ok(!self.contains(digest)? && self.find(&self.codec.name(digest)?)?.is_some())
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(self.start_loose()?))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        let name = self.codec.name(digest)?;
        match self.open_loose(&name)? {
            Some((path, file)) => {
                let what = || format!("blob {}", path.display());
                let opened = file.try_clone().and_then(|source| self.codec.open(&name, source, what));
                Ok(opened.map_err(or_io(|| format!("read {}", what())))?.reader(file))
            }
            None => Ok(Box::new(Cursor::new(Wiped::from(self.get(digest)?)))),
        }
    }

    fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        self.refresh()?;
        let _open = self.catalog.index.hold();
        let (mut missing, mut near) = (Vec::new(), Near::default());
        for digest in digests {
            if !self.has(&self.codec.name(digest)?, &mut near)? {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }

    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        let reading = || format!("read a part of the blob {digest}");
        let name = self.codec.name(digest)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(hit) = self.catalog.hits(&name)?.first() {
            if let Some(part) = self.read_part(hit, start, length).map_err(Error::io(reading()))? {
                return Ok(part);
            }
        } else if let Some((path, file)) = self.open_loose(&name)? {
            let blob = self.codec.open(&name, file, || format!("blob {}", path.display()));
            return blob.and_then(|blob| blob.range(offset, length)).map_err(or_io(reading));
        }
        let whole = Wiped::from(self.get(digest)?);
        let start = start.min(whole.len());
        Ok(whole[start..whole.len().min(start.saturating_add(length))].to_vec())
    }

    fn get_many(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.refresh()?;
        let _open = self.catalog.index.hold();
        for index in self.get_from_packs(&self.codec.names::<Vec<_>>(digests)?, each)? {
            each(index, &Wiped::from(self.get(&digests[index])?))?;
        }
        Ok(())
    }

    fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
        Ok(Box::new(FsBatch::new(self, until)?))
    }
}

impl StoreOptions {
    /// Opens the store in the folder `root`. Creates missing folders, also `root` itself.
    ///
    /// # Errors
    ///
    /// - [`Error::Io`] if the folders cannot be created
    /// - [`Error::WrongKey`] if the store was encrypted with another key
    /// - [`Error::Corrupt`] if the key cannot be checked, because the key record is damaged
    /// - [`Error::Store`] if the store is encrypted and the options have no key, or if the store
    ///   has blobs that are not encrypted and the options have a key
    pub fn open(&self, root: impl AsRef<Path>) -> Result<FsBlobStore> {
        FsBlobStore::open_on(root.as_ref(), Disk::default(), self)
    }
}

/// Removes temporary files without a writer.
///
/// It checks locks and age, not pids: several pid namespaces or machines may share the folder.
/// Files that cannot be removed belong to another user, or are gone already. Folders are left to
/// the next collection.
fn remove_leftovers(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let age = written.ok().and_then(|written| written.elapsed().ok());
        if age.is_some_and(|age| age > LEFTOVER) {
            let _ = private_files::remove_unless_held(&entry.path(), true);
        }
    }
}

/// The number of attempts to find a blob while packs come and go.
const ATTEMPTS: usize = 8;

/// The number of loose blobs in the catalog: from a listing, and added since.
#[derive(Debug)]
struct Loose {
    listed: usize,
    noted: usize,
}

/// The most noted blobs before the listing is renewed.
const MANY_LOOSE: usize = 10_000;

/// Stands for a frame's number in the table: the blob is a file of its own.
const LOOSE: u32 = u32::MAX - 1;

/// A temporary file that was not written to for this long has no writer.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);
