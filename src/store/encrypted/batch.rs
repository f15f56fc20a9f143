//! A batch of an encrypted store, on top of a batch of the inner store.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    EncryptedBlobStore,
    kind::Kind,
    parts::{PART, Sealer},
    record::seal,
};
use crate::{BlobStore, Digest256, Error, Result, Until, store::BlobBatch};

pub(super) struct EncryptedBatch<'a, S> {
    store: &'a EncryptedBlobStore<S>,
    inner: Box<dyn BlobBatch + 'a>,
    /// The blobs that this batch took in or found in the store.
    known: Mutex<HashSet<Digest256>>,
    /// Headers of blobs of many parts. They are stored when the parts are.
    headers: Mutex<Vec<(Digest256, Vec<u8>)>>,
    /// Set when a blob in `known` could not be stored: others may have relied on it.
    failed: AtomicBool,
}

impl<'a, S: BlobStore> EncryptedBatch<'a, S> {
    pub(super) fn new(store: &'a EncryptedBlobStore<S>, until: &Until) -> Result<EncryptedBatch<'a, S>> {
        Ok(EncryptedBatch {
            store,
            inner: store.inner.batch_until(until)?,
            known: Mutex::default(),
            headers: Mutex::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// Stores the blob if it is new, and returns the number of its bytes, or 0.
    fn take(&self, digest: &Digest256, bytes: &[u8], record: &mut Vec<u8>) -> Result<u64> {
        let store = self.store;
        let kind = if bytes.len() > PART { Kind::Header } else { Kind::Blob };
        let name = store.keys.name(kind, digest);
        if store.inner.contains_named(&name)? {
            return Ok(0);
        }
        if kind == Kind::Header {
            let header = store.seal_parts(&*self.inner, digest, bytes)?;
            self.headers.lock().unwrap_or_else(PoisonError::into_inner).push(header);
        } else {
            seal(&store.keys, kind, &name, bytes, store.padding.of(bytes.len()), record)?;
            self.inner.put_named(&name, record)?;
        }
        Ok(bytes.len() as u64)
    }
}

impl<S: BlobStore> BlobBatch for EncryptedBatch<'_, S> {
    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<u64> {
        let mut record = Vec::new();
        let mut stored = 0;
        for (digest, bytes) in blobs {
            if !self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest) {
                continue;
            }
            let taken = self.take(digest, bytes, &mut record);
            stored += taken.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        }
        Ok(stored)
    }

    fn put_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        let (name, record) = self.store.sealed(Kind::Named, name, bytes)?;
        self.inner.put_named(&name, &record)
    }

    fn commit(self: Box<Self>) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::store("commit a batch", "an earlier put into it failed"));
        }
        let headers = self.headers.into_inner().unwrap_or_else(PoisonError::into_inner);
        if headers.is_empty() {
            return self.inner.commit();
        }
        // A batch may show its records in any order. No header must be seen before its parts.
        self.inner.commit()?;
        let batch = self.store.inner.batch_until(&Until::forever())?;
        for (name, header) in headers {
            batch.put_named(&name, &header)?;
        }
        batch.commit()
    }
}

impl<S: BlobStore> EncryptedBlobStore<S> {
    /// Puts the parts of a blob into a batch, and returns the header, which must be stored after
    /// them.
    pub(super) fn seal_parts(
        &self,
        batch: &dyn BlobBatch,
        digest: &Digest256,
        bytes: &[u8],
    ) -> Result<(Digest256, Vec<u8>)> {
        let mut sealer = Sealer::new()?;
        let mut parts = bytes.chunks(PART).peekable();
        while let Some(part) = parts.next() {
            let kind = if parts.peek().is_some() { Kind::Part } else { Kind::LastPart };
            sealer.part(self, batch, kind, part)?;
        }
        sealer.header(self, digest)
    }
}
