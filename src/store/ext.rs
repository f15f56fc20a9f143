//! [`BlobStoreExt`]: methods of every store.

use super::{BlobBatch, BlobStore};
use crate::{Digest256, Error, ProcsBlob, Result, Until, manifest};

/// Methods of every [`BlobStore`], for its callers. A store implements [`BlobStore`] and has these.
///
/// ```
/// use criu_rpc::{BlobStore, BlobStoreExt, Digest256, MemBlobStore, ProcsBlob};
///
/// let store = MemBlobStore::new();
/// let placeholder = ProcsBlob::Unsupported { unsupported_on: "macos".into(), note: "".into() };
/// let capture = store.put(&placeholder.to_json())?;
/// assert_eq!(store.manifest(&capture)?, placeholder);
/// # Ok::<(), criu_rpc::Error>(())
/// ```
pub trait BlobStoreExt: BlobStore {
    /// Begins a batch of many blobs that become durable together, as
    /// [`batch_until`](BlobStore::batch_until) does, without a limit.
    ///
    /// # Errors
    ///
    /// As [`batch_until`](BlobStore::batch_until).
    fn batch(&self) -> Result<Box<dyn BlobBatch + '_>> {
        self.batch_until(&Until::forever())
    }

    /// Reads the manifest of a capture, verified. It says how the processes were captured, when,
    /// and on what machine; it has no memory of theirs.
    ///
    /// # Errors
    ///
    /// - [`Error::Missing`] if the store has no such blob
    /// - [`Error::Corrupt`] for a blob that is damaged, or not a manifest
    /// - [`Error::UnknownKind`] for a capture by a later version
    /// - errors of the store
    fn manifest(&self, capture: &Digest256) -> Result<ProcsBlob> {
        manifest::parse(capture, &read_manifest(self, capture)?)
    }
}

impl<S: BlobStore + ?Sized> BlobStoreExt for S {}

/// Reads and verifies a manifest. Reading stops at a blob that is too long for a manifest.
pub(crate) fn read_manifest(store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Vec<u8>> {
    let json = store.read_range(digest, 0, ProcsBlob::CEILING + 1)?;
    if json.len() > ProcsBlob::CEILING {
        let problem = format!("it has more than {} bytes", ProcsBlob::CEILING);
        return Err(Error::corrupt(format!("the manifest {digest}"), problem));
    }
    // If these bytes are damaged, the store may have another copy.
    if Digest256::of(&json) == *digest { Ok(json) } else { store.get(digest) }
}
