//! [`ObjectBatch`]: many small blobs on their way into packs.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock},
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
    store::{
        BlobBatch,
        pack::{self, Builder, MAX_BLOB, PackId},
    },
};

/// Blobs are filled into frames by whoever puts them, frames into one pack by one at a time.
pub(super) struct ObjectBatch<'a> {
    store: &'a ObjectBlobStore,
    /// The last collection when the batch began; none if the batch is a part of one.
    turn: Option<Turn>,
    /// What was an object by itself when the batch began.
    singles: HashSet<Digest256>,
    single_names: HashSet<Digest256>,
    /// What the batch has taken in.
    seen: Mutex<HashSet<Digest256>>,
    /// Frames that are not full.
    builders: Mutex<Vec<Builder>>,
    packs: Mutex<Packs>,
}

#[derive(Default)]
struct Packs {
    open: Option<Pack>,
    /// The one before, whose last parts and index are on their way.
    finishing: Option<JoinHandle<Result<()>>>,
    /// The batch cannot be committed any more: some of its blobs are lost.
    failed: bool,
}

/// A pack that goes on growing while its first parts are on their way.
struct Pack {
    id: PackId,
    upload: Upload,
    heads: Vec<u8>,
}

impl<'a> ObjectBatch<'a> {
    pub(super) fn begin(store: &'a ObjectBlobStore) -> Result<ObjectBatch<'a>> {
        // Before anything is looked at that a collection may remove.
        let turn = store.ended_turn()?;
        store.refresh()?;
        let mut singles = store.singles("blobs/sha256")?;
        singles.retain(|digest| !store.is_damaged(digest));
        Ok(ObjectBatch {
            turn: Some(turn),
            singles,
            single_names: store.singles("names")?,
            ..ObjectBatch::rewriting(store)
        })
    }

    /// For a collection, which writes anew what is there already.
    pub(super) fn rewriting(store: &'a ObjectBlobStore) -> ObjectBatch<'a> {
        ObjectBatch {
            store,
            turn: None,
            singles: HashSet::new(),
            single_names: HashSet::new(),
            seen: Mutex::default(),
            builders: Mutex::default(),
            packs: Mutex::default(),
        }
    }

    /// Takes in a blob that is in a pack, wherever else it is.
    pub(super) fn take(&self, digest: &Digest256, bytes: &[u8]) -> Result<()> {
        let mut builder = self.builder();
        if !builder.takes(bytes.len()) {
            self.place(&mut builder)?;
        }
        builder.push(digest, bytes);
        self.keep(builder)
    }

    /// Takes in a name that is in a pack.
    pub(super) fn take_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        self.add_named(name, bytes)
    }

    /// Those that nobody has yet, each once; they count as seen from now on.
    fn unseen<'b>(&self, blobs: &[(Digest256, &'b [u8])]) -> Vec<(Digest256, &'b [u8])> {
        let catalog = self.store.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let new = |(digest, _): &&(Digest256, &[u8])| {
            !self.singles.contains(digest) && !catalog.has(digest) && seen.insert(*digest)
        };
        blobs.iter().filter(new).copied().collect()
    }

    fn add(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut stored = 0;
        let mut builder = self.builder();
        for (digest, bytes) in self.unseen(blobs) {
            if bytes.len() > MAX_BLOB {
                self.store.put_single(&digest, bytes)?;
            } else {
                if !builder.takes(bytes.len()) {
                    self.place(&mut builder)?;
                }
                builder.push(&digest, bytes);
            }
            stored += bytes.len() as u64;
        }
        self.keep(builder)?;
        Ok(stored)
    }

    fn add_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        let stamp = self.next_stamp(name);
        // A name that is an object counts more than one in a pack.
        if self.single_names.contains(name) || bytes.len() > MAX_BLOB || stamp == pack::LAST_STAMP {
            let path = self.store.path_of_name(name);
            return self.store.write(path, bytes); // the commit looks for collections
        }
        let mut builder = self.builder();
        if !builder.takes(bytes.len()) {
            self.place(&mut builder)?;
        }
        builder.push_named(name, stamp, bytes);
        self.keep(builder)
    }

    /// Above all that the name is known to have.
    fn next_stamp(&self, name: &Digest256) -> u64 {
        let catalog = self.store.catalog.read().unwrap_or_else(PoisonError::into_inner);
        pack::next_stamp(catalog.stamp(name))
    }

    fn builder(&self) -> Builder {
        self.builders.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(Builder::new)
    }

    fn keep(&self, mut builder: Builder) -> Result<()> {
        if builder.is_full() {
            self.place(&mut builder)?;
        }
        self.builders.lock().unwrap_or_else(PoisonError::into_inner).push(builder);
        Ok(())
    }

    /// Moves a frame into the pack.
    fn place(&self, builder: &mut Builder) -> Result<()> {
        if builder.is_empty() {
            return Ok(());
        }
        // Compression is what takes time, and others may go on meanwhile.
        let sealed = builder.seal();
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pack = match packs.open.take() {
            Some(pack) => pack,
            None => Pack::begin(self.store)?,
        };
        let head = sealed.head();
        let frame = sealed.at(&pack.id, pack.upload.length());
        pack.add(frame, head)?;
        if pack.upload.length() < PACK {
            packs.open = Some(pack);
        } else {
            packs.finish(pack, self.store)?;
        }
        builder.clear();
        Ok(())
    }

    /// Remembers that something went wrong: what was taken in is lost with it.
    fn or_fail<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.packs.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        }
        result
    }
}

impl BlobBatch for ObjectBatch<'_> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        self.or_fail(self.add(blobs))
    }

    fn put_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        self.or_fail(self.add_named(name, bytes))
    }

    fn commit(self: Box<Self>) -> Result<()> {
        let builders = std::mem::take(&mut *self.builders.lock().unwrap_or_else(PoisonError::into_inner));
        for mut builder in builders {
            self.place(&mut builder)?;
        }
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if packs.failed {
            let doing = format!("commit a batch in {}", self.store.remote.name);
            return Err(Error::store(doing, "some of its blobs could not be stored"));
        }
        if let Some(pack) = packs.open.take() {
            packs.finish(pack, self.store)?;
        }
        packs.wait()?;
        drop(packs);
        // What this batch found there may be gone: then the caller must not believe that it is stored.
        self.turn.map_or(Ok(()), |turn| self.store.check_turn(turn))
    }
}

impl Packs {
    /// Finishes a pack while the next one begins. Of two, the second waits: they are memory.
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
        // A batch that is dropped leaves nothing that still goes on.
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

    /// Adds a frame, of which so much is the header.
    fn add(&mut self, frame: &[u8], head: usize) -> Result<()> {
        self.upload.write(frame)?;
        self.heads.extend_from_slice(&frame[..head]);
        Ok(())
    }

    /// Completes the pack, and then makes it visible by its index.
    fn finish(self, remote: &Arc<Remote>, catalog: &RwLock<Catalog>) -> Result<()> {
        let length = self.upload.length();
        self.upload.finish()?;
        let index = catalog::index(&self.id, &self.heads);
        let mut upload = Upload::new(remote, path(remote, self.id, "index"));
        upload.write(&index)?;
        upload.finish()?;
        let frames = catalog::parse_index(&self.id, &index, length).unwrap_or_default();
        catalog.write().unwrap_or_else(PoisonError::into_inner).add(self.id, &frames);
        Ok(())
    }
}

/// A pack is finished when it has so many bytes.
const PACK: u64 = 64 * 1024 * 1024;
