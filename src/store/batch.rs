//! [`BlobBatch`]: many blobs that become durable together.

use super::BlobStore;
use crate::{Digest256, Error, Result, Until};

/// Stores many blobs; see [`BlobStore::batch_until`].
///
/// # Contract
///
/// - When [`commit`](BlobBatch::commit) returns, all blobs of the batch are stored, as durable as
///   the store can make them. Before that they may or may not be visible, and a crash of the
///   machine may lose them.
/// - A batch that is dropped uncommitted may leave some of its blobs, each of them complete.
/// - Blobs that [`put`](BlobBatch::put) found present stay at least until the batch has ended.
/// - Any number of threads may put at any time.
///
/// ```
/// use criu_rpc::{BlobStore, BlobStoreExt, Digest256, MemBlobStore};
///
/// let store = MemBlobStore::new();
/// let batch = store.batch()?;
/// let hello = Digest256::of(b"hello");
/// assert_eq!(batch.put(&[(hello, b"hello"), (Digest256::of(b"world"), b"world")])?, 10);
/// assert_eq!(batch.put(&[(hello, b"hello")])?, 0);
/// batch.commit()?;
/// assert_eq!(store.get(&hello)?, b"hello");
/// # Ok::<(), criu_rpc::Error>(())
/// ```
pub trait BlobBatch: Send + Sync {
    /// Stores those of the blobs that neither the store nor the batch has yet, and returns their
    /// number of bytes.
    ///
    /// The caller computed the digests over exactly those bytes, and is responsible for them.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot.
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64>;

    /// Makes all blobs of the batch durable.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// The default batch of a store: each blob is stored by itself, while `until` allows.
pub(super) struct OneByOne<'a, S: ?Sized> {
    store: &'a S,
    until: Until,
}

impl<'a, S: BlobStore + ?Sized> OneByOne<'a, S> {
    pub(super) fn new(store: &'a S, until: &Until) -> OneByOne<'a, S> {
        OneByOne { store, until: until.clone() }
    }
}

impl<S: BlobStore + ?Sized> BlobBatch for OneByOne<'_, S> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut stored = 0;
        for (digest, bytes) in blobs {
            self.until.check(|| "store the blobs of a batch".to_owned())?;
            if self.store.contains(digest)? {
                continue;
            }
            let told = self.store.put(bytes)?;
            if told != *digest {
                return Err(Error::corrupt(format!("blob {digest}"), format!("it was stored as {told}")));
            }
            stored += bytes.len() as u64;
        }
        Ok(stored)
    }

    fn commit(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
