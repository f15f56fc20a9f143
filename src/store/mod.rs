//! Stores of blobs by digest, and the work on them.
//!
//! | For | see |
//! |---|---|
//! | using a store | [`BlobStore`], [`BlobStoreExt`] |
//! | a folder, memory | [`FsBlobStore`], [`MemBlobStore`] |
//! | S3, Google Cloud Storage, Azure, HTTP | `ObjectBlobStore`, with the feature `object-store` |
//! | compression, encryption (features of the same names) | [`StoreOptions`], `Key`, `Padding` |
//! | a store of your own | [`BlobStore`], [`BlobWriter`], [`BlobBatch`] |
//! | testing your own store (feature `conformance`) | `conformance` |
//! | removing captures | [`FsBlobStore::gc`]; [`Gc`] with its [`Tally`]; [`Usage`] |
//! | finding damage | [`FsBlobStore::verify`], [`Verified`] with its [`Damage`] |
//! | moving captures, and the blobs that they need | [`stored`](crate::stored) |

// Start with the trait. `batch` stores many blobs at once, `mem`, `fs` and `object` are stores,
// `pack` and `codec` are the form in which the last two keep blobs.

mod batch;
mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
mod ext;
mod fetch;
mod fs;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod mem;
mod name;
#[cfg(feature = "object-store")]
mod object;
mod pack;
mod read_at;

use std::{
    fmt,
    io::{self, Cursor, Read, Write},
    sync::Arc,
};

#[cfg(feature = "encryption")]
pub use self::codec::{Key, Padding};
pub(crate) use self::{
    ext::read_manifest,
    fetch::{fetch, fetch_into},
};
/// The crate behind [`ObjectBlobStore`], which takes its stores and options. A new major release of
/// it is one of this crate, too.
#[cfg(feature = "object-store")]
#[doc(no_inline)]
pub use object_store;

#[cfg(feature = "object-store")]
pub use self::object::{NobodyWrites, ObjectBlobStore};
pub use self::{
    batch::BlobBatch,
    codec::StoreOptions,
    ext::BlobStoreExt,
    fs::{Damage, FsBlobStore, Gc, Tally, Usage, Verified},
    mem::MemBlobStore,
};
use self::{batch::OneByOne, fetch::verify};
use crate::{
    Digest256, Error, Result, Until,
    wiped::{Wiped, wipe_stack},
};

/// A store of blobs: bytes of any length, named by their digest.
///
/// A store needs three methods. The others have defaults that hold a whole blob in memory; a store
/// that can stream should override them.
///
/// Callers have [`BlobStoreExt`] as well. A wrapper around another store must forward every method:
/// a default would not use the inner store's own implementation.
///
/// # Contract
///
/// - A blob is visible whole or not at all. A writer dropped uncommitted leaves nothing.
/// - Storing an existing blob succeeds and changes nothing.
/// - When [`put`](BlobStore::put) or [`commit`](BlobWriter::commit) returns, the blob is as durable
///   as the store can make it.
/// - Any number of threads may call any method at any time.
/// - [`get`](BlobStore::get) returns the bytes of that digest or an error, never other bytes.
///   [`reader`](BlobStore::reader) returns unverified bytes.
/// - The caller that commits a [`BlobWriter`] is responsible for the digest. A store need not hash
///   again; `get` detects a wrong digest.
/// - A method may fail, or panic. Then a capture fails with that error or panic, and its trees run
///   on; a restore leaves nothing behind. Other threads may still call the store meanwhile.
///
/// The feature `conformance` has tests for this contract: `criu_rpc::store::conformance::check`.
///
/// # Examples
///
/// Implementing and using a store:
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
///         self.0.lock().unwrap().get(digest).cloned().ok_or_else(|| Error::missing(digest))
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
    /// Stores these bytes and returns their digest.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot; nothing is stored then.
    fn put(&self, bytes: &[u8]) -> Result<Digest256>;

    /// Returns the bytes of this digest, verified.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the store has no such blob, [`Error::Corrupt`] if its bytes have
    /// another digest.
    fn get(&self, digest: &Digest256) -> Result<Vec<u8>>;

    /// Returns true if the store has a blob of this digest. It need not read the bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot tell.
    fn contains(&self, digest: &Digest256) -> Result<bool>;

    /// Returns true if a blob is marked for deletion and still readable:
    /// [`contains`](BlobStore::contains) counts it as missing.
    ///
    /// The default is false. A store that deletes in two steps should override it: a restore gives
    /// a warning.
    ///
    /// # Errors
    ///
    /// As [`contains`](BlobStore::contains).
    fn is_marked(&self, digest: &Digest256) -> Result<bool> {
        let _ = digest;
        Ok(false)
    }

    /// Stores a blob piece by piece.
    ///
    /// The default collects the pieces in memory and calls [`put`](BlobStore::put) at the end.
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// use criu_rpc::{BlobStore, Digest256, MemBlobStore, store::BlobWriter};
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

    /// Returns a reader of a blob, **unverified**: the caller must hash the bytes, and use none of
    /// them before the digest is right.
    ///
    /// The default is a cursor over the result of [`get`](BlobStore::get).
    ///
    /// ```
    /// use std::io;
    ///
    /// use criu_rpc::{BlobStore, MemBlobStore, digest::Hasher};
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
        Ok(Box::new(Cursor::new(Wiped::from(self.get(digest)?))))
    }

    /// Returns those of the blobs that the store lacks, in the order of `digests`. Duplicates stay
    /// duplicates.
    ///
    /// The default calls [`contains`](BlobStore::contains) for each; a store across a network
    /// should override it.
    ///
    /// # Errors
    ///
    /// As [`contains`](BlobStore::contains).
    fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        let mut missing = Vec::new();
        for digest in digests {
            if !self.contains(digest)? {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }

    /// Reads a part of a blob, **unverified**: `length` bytes from `offset` on, fewer at the end of
    /// the blob, none past it.
    ///
    /// The default is a [`reader`](BlobStore::reader) that skips the bytes before.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, MemBlobStore};
    ///
    /// let store = MemBlobStore::new();
    /// let digest = store.put(b"hello")?;
    /// assert_eq!(store.read_range(&digest, 1, 3)?, b"ell");
    /// assert_eq!(store.read_range(&digest, 4, 100)?, b"o");
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the store has no such blob.
    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        let reading = || Error::io(format!("read a part of the blob {digest}"));
        let mut reader = self.reader(digest)?;
        let passed = io::copy(&mut reader.by_ref().take(offset), &mut io::sink());
        wipe_stack(); // the copy had its buffer there
        passed.map_err(reading())?;
        let mut part = Vec::new();
        reader.take(length as u64).read_to_end(&mut part).map_err(reading())?;
        Ok(part)
    }

    /// Reads many blobs, **unverified**: `each` gets the place of a digest in `digests`, and its
    /// bytes. Every place comes once, in any order, before this returns.
    ///
    /// The default calls [`get`](BlobStore::get) for each.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, MemBlobStore};
    ///
    /// let store = MemBlobStore::new();
    /// let digests = [store.put(b"hello")?, store.put(b"world")?];
    /// let mut words = vec![Vec::new(); 2];
    /// store.get_many(&digests, &mut |place, bytes| {
    ///     words[place] = bytes.to_vec();
    ///     Ok(())
    /// })?;
    /// assert_eq!(words, [b"hello", b"world"]);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the store lacks one of them, and errors of `each`. The other blobs are
    /// skipped then.
    fn get_many(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        digests
            .iter()
            .enumerate()
            .try_for_each(|(place, digest)| each(place, &Wiped::from(self.get(digest)?)))
    }

    /// Begins a batch of many blobs that become durable together; see [`BlobBatch`]. It waits for
    /// a lock or a server no longer than `until` allows. Captures call this with their deadline and
    /// token.
    ///
    /// The default calls [`put`](BlobStore::put) for each blob, at once, and checks `until` before
    /// each. A store for which that is costly should override it: a chunked capture is one batch of
    /// many small blobs.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot take anything in; [`Error::Overdue`]
    /// and [`Error::Stopped`] as [`Until::check`] says.
    fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
        until.check(|| "begin a batch".to_owned())?;
        Ok(Box::new(OneByOne::new(self, until)))
    }
}

/// Stores one blob, piece by piece; see [`BlobStore::writer`].
///
/// Nothing is visible before [`commit`](BlobWriter::commit). A writer that is dropped without it
/// leaves nothing.
pub trait BlobWriter: Write + Send {
    /// Stores the written bytes under `digest`, which the caller computed over exactly those bytes.
    ///
    /// The caller is responsible for the digest: a store need not check it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Io`] if the store cannot, [`Error::Corrupt`] if it found that
    /// the bytes have another digest. Nothing is stored then under `digest`.
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()>;
}

/// The default writer of a store.
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

/// Implements the trait for a pointer to a store. It forwards every method, so overrides of
/// defaults stay in effect.
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

            fn is_marked(&self, digest: &Digest256) -> Result<bool> {
                (**self).is_marked(digest)
            }

            fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
                (**self).writer()
            }

            fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
                (**self).reader(digest)
            }

            fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
                (**self).missing(digests)
            }

            fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
                (**self).read_range(digest, offset, length)
            }

            fn get_many(
                &self,
                digests: &[Digest256],
                each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
            ) -> Result<()> {
                (**self).get_many(digests, each)
            }

            fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
                (**self).batch_until(until)
            }
        }
    )*};
}

pointers!(&S, Box<S>, Arc<S>);
