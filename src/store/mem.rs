//! [`MemBlobStore`]: blobs in memory.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io::{self, Cursor, Read, Write},
    sync::{Arc, RwLockReadGuard, RwLockWriteGuard},
};

use super::{BlobBatch, BlobStore, BlobWriter};
use crate::{Digest256, Error, Result, Until, lock::RwLock};

/// A store in memory, for tests and for captures that need not outlive the program.
///
/// Blobs of a batch are visible at once, one by one.
///
/// ```
/// use criu_rpc::{BlobStore, MemBlobStore};
///
/// let store = MemBlobStore::new();
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// assert_eq!(store.len(), 1);
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct MemBlobStore {
    blobs: Shelf,
}

impl MemBlobStore {
    /// Makes an empty store.
    pub fn new() -> MemBlobStore {
        MemBlobStore::default()
    }

    /// Returns the number of blobs.
    pub fn len(&self) -> usize {
        self.blobs.read().len()
    }

    /// Returns true if the store has no blob.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes a blob. Returns true if the store had it.
    pub fn remove(&self, digest: &Digest256) -> bool {
        self.blobs.write().remove(digest).is_some()
    }

    /// Removes all blobs but these, at once. No capture into the store may be in progress:
    /// [`FsBlobStore`](crate::FsBlobStore) protects its blobs, this store does not.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, MemBlobStore, stored::reachable};
    ///
    /// let store = MemBlobStore::new();
    /// # let capture = store.put(br#"{"kind":"procs.unsupported.v1","unsupported_on":"macos","note":"n"}"#)?;
    /// store.put(b"not part of the capture")?;
    /// store.retain(&reachable(&store, &[capture])?);
    /// assert_eq!(store.len(), 1);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn retain(&self, keep: &HashSet<Digest256>) {
        self.blobs.write().retain(|digest, _| keep.contains(digest));
    }
}

impl BlobStore for MemBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        self.blobs.insert(digest, bytes.to_vec());
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let bytes = self.blobs.find(digest)?.0.to_vec();
        verify(digest, &bytes)?;
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        Ok(self.blobs.read().contains_key(digest))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(MemWriter { store: self, bytes: Vec::new() }))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Cursor::new(self.blobs.find(digest)?)))
    }

    fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        let blobs = self.blobs.read();
        Ok(digests.iter().filter(|digest| !blobs.contains_key(digest)).copied().collect())
    }

    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        let blob = self.blobs.find(digest)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(blob.0.len());
        let rest = &blob.0[start..];
        Ok(rest[..length.min(rest.len())].to_vec())
    }

    fn get_many(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (place, digest) in digests.iter().enumerate() {
            let blob = self.blobs.find(digest)?;
            verify(digest, &blob.0)?;
            each(place, &blob.0)?;
        }
        Ok(())
    }

    fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
        until.check(|| "begin a batch".to_owned())?;
        Ok(Box::new(MemBatch(self)))
    }
}

fn verify(digest: &Digest256, bytes: &[u8]) -> Result<()> {
    super::verify(digest, bytes, || format!("blob {digest} in memory"))
}

/// Blobs by digest.
#[derive(Debug, Default)]
struct Shelf(RwLock<HashMap<Digest256, Blob>>);

impl Shelf {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Digest256, Blob>> {
        self.0.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Digest256, Blob>> {
        self.0.write()
    }

    fn insert(&self, digest: Digest256, bytes: Vec<u8>) {
        let replaced = self.write().insert(digest, Blob(Arc::new(bytes)));
        drop(replaced); // the lock is free by now
    }

    fn find(&self, digest: &Digest256) -> Result<Blob> {
        self.read().get(digest).cloned().ok_or(Error::Missing { digest: *digest })
    }
}

/// The bytes of a blob, shared with its readers.
#[derive(Clone)]
struct Blob(Arc<Vec<u8>>);

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Moves the written bytes into the store; the default writer would copy them.
struct MemWriter<'a> {
    store: &'a MemBlobStore,
    bytes: Vec<u8>,
}

impl BlobWriter for MemWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        self.store.blobs.insert(*digest, self.bytes);
        Ok(())
    }
}

impl Write for MemWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A batch that trusts the given digests, and copies outside the lock.
struct MemBatch<'a>(&'a MemBlobStore);

impl BlobBatch for MemBatch<'_> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut new = blobs.to_vec();
        {
            let there = self.0.blobs.read();
            new.retain(|(digest, _)| !there.contains_key(digest));
        }
        let new: Vec<_> =
            new.into_iter().map(|(digest, bytes)| (digest, Blob(Arc::new(bytes.to_vec())))).collect();
        let mut stored = 0;
        let mut there = self.0.blobs.write();
        for (digest, blob) in new {
            // Another thread may have been faster, or the same blob may come twice.
            if let Entry::Vacant(place) = there.entry(digest) {
                stored += blob.0.len() as u64;
                place.insert(blob);
            }
        }
        Ok(stored)
    }

    fn commit(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
