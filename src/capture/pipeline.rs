//! [`Hashing`]: bytes to a store, and through SHA-256 at the same time.

use std::{
    io::{self, Write},
    thread,
};

use crate::{BlobWriter, Digest256, Hasher, Result};

/// Writes to a store, and hashes in a thread beside it. Nothing is copied for that: a write returns when both have
/// taken the bytes.
pub(super) struct Hashing<'a> {
    store: Box<dyn BlobWriter + 'a>,
    hasher: Hasher,
}

/// Below this many bytes, a thread costs more than it saves.
const WORTH_A_THREAD: usize = 128 << 10;

impl<'a> Hashing<'a> {
    pub(super) fn new(store: Box<dyn BlobWriter + 'a>) -> Hashing<'a> {
        Hashing { store, hasher: Hasher::new() }
    }

    /// Makes the blob visible under the digest that was computed.
    pub(super) fn commit(self) -> Result<Digest256> {
        let digest = self.hasher.finish();
        self.store.commit(&digest)?;
        Ok(digest)
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Hashing { store, hasher } = self;
        if bytes.len() < WORTH_A_THREAD {
            store.write_all(bytes)?;
            hasher.update(bytes);
        } else {
            let hashed = thread::scope(|scope| {
                let hashing = thread::Builder::new().spawn_scoped(scope, || hasher.update(bytes));
                store.write_all(bytes).map(|()| hashing.is_ok())
            })?;
            if !hashed {
                hasher.update(bytes); // there are too many threads already
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.store.flush()
    }
}
