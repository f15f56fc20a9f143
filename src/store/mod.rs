//! [`BlobStore`]: where blobs are kept, by their digest.
//!
//! Start with the trait; [`mem`] and [`fs`] are stores, `conformance` is what every store must pass.

#[cfg(feature = "conformance")]
pub mod conformance;
mod fs;
mod mem;

use std::{
    fmt,
    io::{self, Cursor, Read, Write},
    sync::Arc,
};

pub use self::{fs::FsBlobStore, mem::MemBlobStore};
use crate::{Digest256, Error, Result};

/// A place that keeps blobs: bytes of any length, called by their digest.
///
/// Three methods make a store. The others have defaults that hold a whole blob in memory; a store that can
/// stream should better them.
///
/// # Contract
///
/// - A blob is visible whole or not at all. A writer dropped uncommitted leaves nothing.
/// - Storing what is there already succeeds and changes nothing.
/// - When [`put`](BlobStore::put) or [`commit`](BlobWriter::commit) returns, the blob is as durable as the
///   store ever makes it.
/// - Any number of threads may call any method at any time.
/// - [`get`](BlobStore::get) gives the bytes of that digest or an error, never other bytes.
///   [`reader`](BlobStore::reader) gives bytes that nobody has verified.
/// - Whoever commits a [`BlobWriter`] vouches for the digest. A store need not hash a second time, and one
///   that was lied to finds out in `get`.
///
/// The feature `conformance` has a suite that holds a store to this: `criu_rpc::conformance::check`.
///
/// # Examples
///
/// A store of one's own, and its use:
///
/// ```
/// use std::{collections::BTreeMap, sync::Mutex};
///
/// use criu_rpc::{BlobStore, Digest256, Error, Result};
///
/// #[derive(Debug, Default)]
/// struct Shelf(Mutex<BTreeMap<Digest256, Vec<u8>>>);
///
/// impl BlobStore for Shelf {
///     fn put(&self, bytes: &[u8]) -> Result<Digest256> {
///         let digest = Digest256::of(bytes);
///         self.0.lock().unwrap().insert(digest, bytes.to_vec());
///         Ok(digest)
///     }
///
///     fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
///         let missing = || Error::Missing { digest: *digest };
///         self.0.lock().unwrap().get(digest).cloned().ok_or_else(missing)
///     }
///
///     fn contains(&self, digest: &Digest256) -> Result<bool> {
///         Ok(self.0.lock().unwrap().contains_key(digest))
///     }
/// }
///
/// let store = Shelf::default();
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// # Ok::<(), Error>(())
/// ```
pub trait BlobStore: fmt::Debug + Send + Sync {
    /// Stores these bytes and tells their digest.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot; nothing is stored then.
    fn put(&self, bytes: &[u8]) -> Result<Digest256>;

    /// The bytes of this digest, verified.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the store has no such blob, [`Error::Corrupt`] if what it has is not that blob.
    fn get(&self, digest: &Digest256) -> Result<Vec<u8>>;

    /// Whether the store has a blob of this digest. Its bytes need not be looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot tell.
    fn contains(&self, digest: &Digest256) -> Result<bool>;

    /// Takes a blob in piece by piece.
    ///
    /// By default the pieces are collected in memory and [`put`](BlobStore::put) at the end.
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// use criu_rpc::{BlobStore, BlobWriter, Digest256, MemBlobStore};
    ///
    /// let store = MemBlobStore::new();
    /// let mut writer = store.writer()?;
    /// writer.write_all(b"hel")?;
    /// writer.write_all(b"lo")?;
    /// writer.commit(&Digest256::of(b"hello"))?;
    /// assert_eq!(store.get(&Digest256::of(b"hello"))?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot take anything in.
    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(Collected { store: self, bytes: Vec::new() }))
    }

    /// Gives a blob out piece by piece, **unverified**: whoever reads it hashes what comes, and uses none of it
    /// before the digest is right.
    ///
    /// By default a cursor over what [`get`](BlobStore::get) gives.
    ///
    /// ```
    /// use std::io;
    ///
    /// use criu_rpc::{BlobStore, Hasher, MemBlobStore};
    ///
    /// let store = MemBlobStore::new();
    /// let digest = store.put(b"hello")?;
    /// let mut hasher = Hasher::new();
    /// io::copy(&mut store.reader(&digest)?, &mut hasher)?;
    /// assert_eq!(hasher.finish(), digest);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the store has no such blob.
    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Cursor::new(self.get(digest)?)))
    }
}

/// Takes in one blob, piece by piece; see [`BlobStore::writer`].
///
/// Nothing is visible before [`commit`](BlobWriter::commit), and nothing is left of a writer that is dropped
/// without it.
pub trait BlobWriter: Write + Send {
    /// Stores what was written under `digest`, which the caller computed over exactly those bytes.
    ///
    /// The caller vouches for the digest: a store may check it and may not.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot, [`Error::Corrupt`] if it found that the bytes
    /// have another digest. Nothing is stored then under `digest`.
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()>;
}

/// The writer of a store that has none of its own.
struct Collected<'a, S: ?Sized> {
    store: &'a S,
    bytes: Vec<u8>,
}

impl<S: BlobStore + ?Sized> BlobWriter for Collected<'_, S> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let stored = self.store.put(&self.bytes)?;
        if stored != *digest {
            return Err(Error::corrupt(format!("blob {digest}"), format!("it was stored as {stored}")));
        }
        Ok(())
    }
}

impl<S: ?Sized> Write for Collected<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Holds what a store has against the digest it has it under.
fn verify(digest: &Digest256, bytes: &[u8], what: impl FnOnce() -> String) -> Result<()> {
    let found = Digest256::of(bytes);
    if found != *digest {
        return Err(Error::corrupt(what(), format!("its {} bytes have the digest {found}", bytes.len())));
    }
    Ok(())
}

/// A pointer to a store is a store. Every method is passed on, so that what the store betters stays better.
macro_rules! pointers {
    ($($pointer:ty),*) => {$(
        impl<S: BlobStore + ?Sized> BlobStore for $pointer {
            fn put(&self, bytes: &[u8]) -> Result<Digest256> {
                (**self).put(bytes)
            }

            fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
                (**self).get(digest)
            }

            fn contains(&self, digest: &Digest256) -> Result<bool> {
                (**self).contains(digest)
            }

            fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
                (**self).writer()
            }

            fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
                (**self).reader(digest)
            }
        }
    )*};
}

pointers!(&S, Box<S>, Arc<S>);
