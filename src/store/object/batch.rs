//! [`ObjectBatch`]: writes many small blobs into packs.

use std::{
    collections::HashSet,
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::{
    ObjectBlobStore,
    catalog::{self, Catalog},
    find::path,
    remote::Remote,
    turn::Turn,
    upload::Upload,
};
use crate::{
    Digest256, Error, Result,
    lock::{Mutex, RwLock},
    store::{
        BlobBatch,
        name::Name,
        pack::{self, Builder, MAX_BLOB, PackId},
    },
};

/// A batch of blobs. Each calling thread fills a frame; one thread at a time adds frames to a pack.
pub(super) struct ObjectBatch<'a> {
    store: &'a ObjectBlobStore,
    /// The last collection when the batch began; `None` if the batch is part of one.
    turn: Option<Turn>,
    /// The blobs that were single objects when the batch began.
    singles: HashSet<Name>,
    /// The blobs that the batch has taken in.
    seen: Mutex<HashSet<Name>>,
    /// Frames that are not full.
    builders: Mutex<Vec<Builder>>,
    packs: Mutex<Packs>,
}

#[derive(Default)]
struct Packs {
    open: Option<Pack>,
    /// The previous pack, whose last parts and index are being sent.
    finishing: Option<JoinHandle<Result<()>>>,
    /// True if the batch cannot be committed, because some of its blobs are lost.
    failed: bool,
}

/// A pack that is uploaded while it grows.
struct Pack {
    id: PackId,
    upload: Upload,
    heads: Vec<u8>,
}

impl<'a> ObjectBatch<'a> {
    pub(super) fn begin(store: &'a ObjectBlobStore) -> Result<ObjectBatch<'a>> {
        // Before looking at anything that a collection may remove.
        let turn = store.ended_turn()?;
        store.refresh()?;
        let mut singles = store.singles()?;
        singles.retain(|name| !store.is_damaged(name));
        Ok(ObjectBatch { turn: Some(turn), singles, ..ObjectBatch::rewriting(store) })
    }

    /// Starts a batch for a collection, which rewrites existing blobs.
    pub(super) fn rewriting(store: &'a ObjectBlobStore) -> ObjectBatch<'a> {
        ObjectBatch {
            store,
            turn: None,
            singles: HashSet::new(),
            seen: Mutex::default(),
            builders: Mutex::default(),
            packs: Mutex::default(),
        }
    }

    /// Takes in a blob that is in a pack, even if it is stored elsewhere.
    pub(super) fn take(&self, name: &Name, bytes: &[u8]) -> Result<()> {
        let mut builder = self.builder();
        if !builder.takes(bytes.len()) {
            self.place(&mut builder)?;
        }
        builder.push(name, bytes);
        self.keep(builder)
    }

    /// Returns the blobs that are not stored yet, each once, and marks them as seen.
    fn unseen<'b>(&self, blobs: &[(Name, &'b [u8])]) -> Vec<(Name, &'b [u8])> {
        let catalog = self.store.catalog.read();
        let mut seen = self.seen.lock();
        let new = |(name, _): &&(Name, &[u8])| {
            !self.singles.contains(name) && !catalog.has(name) && seen.insert(*name)
        };
        blobs.iter().filter(new).copied().collect()
    }

    fn add(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut stored = 0;
        let mut builder = self.builder();
        let named = |(digest, bytes): &(Digest256, _)| Ok((self.store.codec.name(digest)?, *bytes));
        let named = blobs.iter().map(named).collect::<Result<Vec<_>>>()?;
        for (name, bytes) in self.unseen(&named) {
            if bytes.len() > MAX_BLOB {
                self.store.put_single(&name, bytes)?;
            } else {
                if !builder.takes(bytes.len()) {
                    self.place(&mut builder)?;
                }
                builder.push(&name, bytes);
            }
            stored += bytes.len() as u64;
        }
        self.keep(builder)?;
        Ok(stored)
    }

    fn builder(&self) -> Builder {
        let builder = self.builders.lock().pop();
        builder.unwrap_or_else(|| Builder::new(&self.store.codec))
    }

    fn keep(&self, mut builder: Builder) -> Result<()> {
        if builder.is_full() {
            self.place(&mut builder)?;
        }
        self.builders.lock().push(builder);
        Ok(())
    }

    /// Moves a frame into the pack.
    fn place(&self, builder: &mut Builder) -> Result<()> {
        if builder.is_empty() {
            return Ok(());
        }
        // Compression takes most of the time, so it runs outside the lock.
        let sealed = builder.seal();
        let mut packs = self.packs.lock();
        let mut pack = match packs.open.take() {
            Some(pack) => pack,
            None => Pack::begin(self.store)?,
        };
        let head = sealed.head();
        let frame = sealed.at(&pack.id, pack.upload.length())?;
        pack.add(frame, head)?;
        if pack.upload.length() < PACK {
            packs.open = Some(pack);
        } else {
            packs.finish(pack, self.store)?;
        }
        builder.clear();
        Ok(())
    }

    /// Marks the batch as failed on an error, because its blobs are lost.
    fn poison_on_error<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.packs.lock().failed = true;
        }
        result
    }
}

impl BlobBatch for ObjectBatch<'_> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        self.poison_on_error(self.add(blobs))
    }

    fn commit(self: Box<Self>) -> Result<()> {
        let builders = std::mem::take(&mut *self.builders.lock());
        for mut builder in builders {
            self.place(&mut builder)?;
        }
        let mut packs = self.packs.lock();
        if packs.failed {
            let doing = format!("commit a batch in {}", self.store.remote.name);
            return Err(Error::store(doing, "some of its blobs could not be stored"));
        }
        if let Some(pack) = packs.open.take() {
            packs.finish(pack, self.store)?;
        }
        packs.wait()?;
        drop(packs);
        // Blobs that this batch found present may be gone: then the caller must not believe that
        // they are stored.
        self.turn.map_or(Ok(()), |turn| self.store.check_turn(turn))
    }
}

impl Packs {
    /// Finishes a pack while the next one begins. A second one waits, to limit memory.
    fn finish(&mut self, pack: Pack, store: &ObjectBlobStore) -> Result<()> {
        self.wait()?;
        let (remote, catalog) = (Arc::clone(&store.remote), Arc::clone(&store.catalog));
        self.finishing = Some(thread::spawn(move || pack.finish(&remote, &catalog)));
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let panicked = |_| Err(Error::store("finish a pack", "its thread panicked"));
        self.finishing.take().map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        // A dropped batch must not leave a running upload.
        let _ = self.wait();
    }
}

impl Pack {
    fn begin(store: &ObjectBlobStore) -> Result<Pack> {
        let id = PackId::new();
        let mut upload = Upload::new(&store.remote, path(&store.remote, id, "pack"));
        upload.write(&pack::header(&id))?;
        Ok(Pack { id, upload, heads: Vec::new() })
    }

    /// Adds a frame; `head` is the length of its header.
    fn add(&mut self, frame: &[u8], head: usize) -> Result<()> {
        self.upload.write(frame)?;
        self.heads.extend_from_slice(&frame[..head]);
        Ok(())
    }

    /// Completes the pack, and then publishes it by its index.
    fn finish(self, remote: &Arc<Remote>, catalog: &RwLock<Catalog>) -> Result<()> {
        let length = self.upload.length();
        self.upload.finish()?;
        let index = catalog::index(&self.id, &self.heads);
        let mut upload = Upload::new(remote, path(remote, self.id, "index"));
        upload.write(&index)?;
        upload.finish()?;
        let frames = catalog::parse_index(&self.id, &index, length).unwrap_or_default();
        catalog.write().add(self.id, &frames);
        Ok(())
    }
}

/// A pack of this size is finished.
const PACK: u64 = 64 * 1024 * 1024;
