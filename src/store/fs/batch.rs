//! [`FsBatch`]: many blobs on their way into a pack.
//!
//! Each putting thread fills a frame of its own. The catalog notes the batch's blobs under a pack
//! that stays hidden until the commit.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    FsBlobStore, LOOSE,
    catalog::State,
    disk::{DiskFile, Temporary},
    loose::FsWriter,
    near::Near,
};
use crate::{
    Digest256, Error, Result, Until,
    file_lock::FileLock,
    lock::Mutex,
    store::{
        BlobBatch,
        name::Name,
        pack::{self, Builder, MAX_BLOB, PackId},
    },
};

/// A pack that is being written.
pub(super) struct FsBatch<'a> {
    store: &'a FsBlobStore,
    id: PackId,
    /// Its number in the catalog.
    pack: u32,
    file: OnceLock<PackFile>,
    making: Mutex<()>,
    /// The position of the next frame.
    end: AtomicU64,
    /// Frames that no thread is filling at the moment.
    idle: Mutex<Vec<Filling>>,
    /// One for each thread that put before, free for the next call.
    near: Mutex<Vec<Near>>,
    /// The blobs of frames that are not written yet.
    unwritten: Mutex<HashMap<u32, Contents>>,
    /// Blobs too long for a frame.
    long: Mutex<Vec<(Name, FsWriter<'a>)>>,
    /// Shards of blobs found present, synced at commit: their names must be durable too.
    shards: Mutex<BTreeSet<PathBuf>>,
    /// Set when a put failed half-way, so the batch lacks a blob that it claimed to have.
    failed: AtomicBool,
    published: bool,
    /// The number of blobs that are in the pack.
    blobs: AtomicU64,
    /// Keeps the files of the index open.
    _index: Vec<Arc<File>>,
    /// Excludes condemning while it is held. Declared last, so that it is dropped last.
    _lock: FileLock,
}

type Contents = Arc<Mutex<Vec<Name>>>;

struct PackFile {
    // Before `temporary`, so that the file is closed before it is removed.
    file: DiskFile,
    temporary: Temporary,
}

/// A frame that is being filled.
struct Filling {
    number: u32,
    builder: Builder,
    contents: Contents,
}

impl<'a> FsBatch<'a> {
    pub(super) fn new(store: &'a FsBlobStore, until: &Until) -> Result<FsBatch<'a>> {
        let doing = || format!("begin a batch in {}", store.root.display());
        let lock = FileLock::shared(&store.lock_file(), until, doing)?;
        // From here on the lock keeps other processes from condemning blobs.
        store.load_all()?;
        store.load_marks()?;
        let id = PackId::new();
        let pack = store.catalog.add(id);
        let index = store.catalog.index.hold();
        Ok(FsBatch {
            store,
            id,
            pack,
            file: OnceLock::new(),
            making: Mutex::default(),
            end: AtomicU64::new(pack::HEADER as u64),
            idle: Mutex::default(),
            near: Mutex::default(),
            unwritten: Mutex::default(),
            long: Mutex::default(),
            shards: Mutex::default(),
            failed: AtomicBool::new(false),
            published: false,
            blobs: AtomicU64::new(0),
            _index: index,
            _lock: lock,
        })
    }

    fn put_all(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut stored = 0;
        let mut frame = self.idle.lock().pop();
        let mut near = self.near.lock().pop().unwrap_or_default();
        for (digest, bytes) in blobs {
            let name = &self.store.codec.name(digest)?;
            if bytes.len() > MAX_BLOB {
                stored += self.put_long(name, bytes)?;
                continue;
            }
            let filling = self.with_room(&mut frame, bytes.len())?;
            if !self.claim(name, filling, &mut near) {
                continue;
            }
            filling.builder.push(name, bytes);
            stored += bytes.len() as u64;
            if filling.builder.is_full() {
                self.write(filling)?;
            }
        }
        self.idle.lock().extend(frame);
        self.near.lock().push(near);
        Ok(stored)
    }

    /// Returns a frame with room for a blob of this length.
    fn with_room<'f>(&self, frame: &'f mut Option<Filling>, length: usize) -> Result<&'f mut Filling> {
        let filling = frame.get_or_insert_with(|| self.start());
        if !filling.builder.takes(length) {
            self.write(filling)?;
        }
        Ok(filling)
    }

    fn start(&self) -> Filling {
        let (number, contents) = self.add_frame();
        Filling { number, builder: Builder::new(&self.store.codec), contents }
    }

    fn add_frame(&self) -> (u32, Contents) {
        let (number, contents) = (self.store.catalog.add_frame(self.pack), Contents::default());
        self.unwritten.lock().insert(number, contents.clone());
        (number, contents)
    }

    /// Claims the blob for this frame; returns false if it is stored already.
    fn claim(&self, name: &Name, filling: &Filling, near: &mut Near) -> bool {
        // A blob that cannot be read counts as missing.
        if self.store.catalog.is_indexed(name, near).unwrap_or(false) {
            return false;
        }
        let mut checked = BTreeSet::new();
        loop {
            let claimed = || filling.contents.lock().push(*name);
            let others = self.store.catalog.table.claim(name, &checked, filling.number, claimed);
            if others.is_empty() {
                self.blobs.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            for number in others {
                if self.has(number, name) {
                    return false;
                }
                checked.insert(number);
            }
        }
    }

    /// Returns true if this frame has the blob and will keep it. An unreadable blob counts as
    /// missing.
    fn has(&self, number: u32, name: &Name) -> bool {
        let catalog = &self.store.catalog;
        if number == LOOSE {
            let there = self.store.is_loose(name).unwrap_or(false);
            if there {
                self.shards.lock().insert(self.store.blobs.place(name).0);
            }
            return there;
        }
        match catalog.frame(number) {
            Some((place, State::Open)) if place.pack == self.id => {
                if let Some(contents) = self.unwritten.lock().get(&number).cloned() {
                    return contents.lock().contains(name);
                }
                let header = catalog.header(number).ok().flatten();
                header.is_some_and(|frame| frame.find(name, 0).is_some())
            }
            Some((_, State::Live)) => {
                let hit = catalog.hit(number, name).ok().flatten();
                hit.is_some_and(|hit| !hit.condemned)
            }
            _ => false,
        }
    }

    /// Writes a frame, and starts the next one in its place.
    fn write(&self, filling: &mut Filling) -> Result<()> {
        let sealed = filling.builder.seal();
        let (head, length) = (sealed.head(), sealed.length());
        let at = self.end.fetch_add(length as u64, Ordering::Relaxed);
        let frame = sealed.at(&self.id, at)?;
        let writing = || format!("write a pack in {}", self.store.tmp.display());
        let written = self.file().and_then(|pack| pack.file.write_at(frame, at));
        written.map_err(Error::io(writing()))?;
        let small = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        self.store.catalog.place_at(filling.number, at, small(head), small(length - head));
        self.unwritten.lock().remove(&filling.number);
        filling.builder.clear();
        (filling.number, filling.contents) = self.add_frame();
        Ok(())
    }

    /// Returns the file, which is created with the first frame.
    fn file(&self) -> io::Result<&PackFile> {
        let _making = self.making.lock();
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let (temporary, file) = self.store.disk.temporary(&self.store.tmp)?;
        file.write_at(&pack::header(&self.id), 0)?;
        self.store.catalog.write_to(self.pack, temporary.path());
        Ok(self.file.get_or_init(|| PackFile { file, temporary }))
    }

    /// Writes a blob that is too long for a frame to a file of its own.
    fn put_long(&self, name: &Name, bytes: &[u8]) -> Result<u64> {
        let mut long = self.long.lock();
        if self.has(LOOSE, name) || long.iter().any(|(there, _)| there == name) {
            return Ok(0);
        }
        let mut writer = self.store.start_loose()?;
        let writing = || format!("write a blob in {}", self.store.tmp.display());
        io::Write::write_all(&mut writer, bytes).map_err(Error::io(writing()))?;
        long.push((*name, writer));
        Ok(bytes.len() as u64)
    }

    /// Marks the batch as failed on an error: it may lack blobs that it claimed to have.
    fn poison_on_error<T>(&self, put: impl FnOnce() -> Result<T>) -> Result<T> {
        let unfinished = Unfinished(&self.failed);
        let result = put()?;
        std::mem::forget(unfinished);
        Ok(result)
    }

    fn finish(&mut self) -> Result<()> {
        let doing = || format!("store a pack in {}", self.store.catalog.folder().display());
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::store(
                "commit the batch",
                "something that was put into it could not be stored",
            ));
        }
        let mut idle = std::mem::take(&mut *self.idle.lock());
        for frame in idle.iter_mut().filter(|frame| !frame.builder.is_empty()) {
            self.write(frame)?;
        }
        // Each of them has begun a frame that will not be written.
        self.store.catalog.drop_frames(idle.iter().map(|frame| frame.number));
        for (name, writer) in std::mem::take(&mut *self.long.lock()) {
            writer.commit_as(&name)?;
        }
        for shard in std::mem::take(&mut *self.shards.lock()) {
            self.store.blobs.sync(&shard).map_err(Error::io(doing()))?;
        }
        let place = self.store.catalog.files.fresh(&self.id);
        if let Some(PackFile { file, temporary }) = self.file.take() {
            file.sync().and_then(|()| temporary.rename(file, &place)).map_err(Error::io(doing()))?;
            self.published = true;
            self.store.catalog.publish(self.pack);
        }
        // Sync even without a pack: other processes may not have synced the packs with the blobs
        // that were found present.
        self.store.disk.sync_folder(self.store.catalog.folder()).map_err(Error::io(doing()))?;
        self.store.tend(self.blobs.load(Ordering::Relaxed));
        Ok(())
    }
}

impl BlobBatch for FsBatch<'_> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        self.poison_on_error(|| self.put_all(blobs))
    }

    fn commit(mut self: Box<Self>) -> Result<()> {
        self.finish()
    }
}

impl Drop for FsBatch<'_> {
    fn drop(&mut self) {
        if !self.published {
            self.store.catalog.forget(&[self.id]);
        }
    }
}

/// Marks the batch as failed when it is dropped, also on panic.
struct Unfinished<'a>(&'a AtomicBool);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
