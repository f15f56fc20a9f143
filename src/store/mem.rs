//! [`MemBlobStore`]: blobs in memory.

use std::{
    collections::HashMap,
    io::{self, Cursor, Read, Write},
    sync::{Arc, PoisonError, RwLock},
};

use super::{BlobStore, BlobWriter};
use crate::{Digest256, Error, Result};

/// A store in memory, for tests and for captures that need not outlive the program.
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
    blobs: RwLock<HashMap<Digest256, Blob>>,
}

impl MemBlobStore {
    /// A store with nothing in it.
    pub fn new() -> MemBlobStore {
        MemBlobStore::default()
    }

    /// How many blobs it has.
    pub fn len(&self) -> usize {
        self.blobs.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it has no blob.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn insert(&self, digest: Digest256, bytes: Vec<u8>) {
        let blob = Blob(Arc::new(bytes));
        self.blobs.write().unwrap_or_else(PoisonError::into_inner).insert(digest, blob);
    }

    fn find(&self, digest: &Digest256) -> Result<Blob> {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        blobs.get(digest).cloned().ok_or(Error::Missing { digest: *digest })
    }
}

impl BlobStore for MemBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        self.insert(digest, bytes.to_vec());
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let bytes = self.find(digest)?.0.to_vec();
        super::verify(digest, &bytes, || format!("blob {digest} in memory"))?;
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        Ok(self.blobs.read().unwrap_or_else(PoisonError::into_inner).contains_key(digest))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(MemWriter { store: self, bytes: Vec::new() }))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Cursor::new(self.find(digest)?)))
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

/// Moves what was written into the store, where the default writer would copy it.
struct MemWriter<'a> {
    store: &'a MemBlobStore,
    bytes: Vec<u8>,
}

impl BlobWriter for MemWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        self.store.insert(*digest, self.bytes);
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
