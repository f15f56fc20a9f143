//! [`EncryptedBlobStore`]: encrypted blobs, in any store that keeps names (feature `encryption`).
//!
//! `key` has the caller's key and the derived keys, `record` encrypts one piece of bytes, `parts`
//! cuts large blobs, `batch` stores many blobs at once. `docs/encryption.md` describes the format.

mod batch;
mod key;
mod kind;
mod parts;
mod record;

use std::{
    collections::HashSet,
    fmt,
    io::{Cursor, Read},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

pub use self::key::Key;
use self::{
    batch::EncryptedBatch,
    key::{Keys, check_record, common_record},
    kind::Kind,
    parts::{EncryptedWriter, PART, Parts},
    record::{seal, unseal},
};
use super::{BlobBatch, BlobStore, BlobWriter, FsBlobStore, Gc, reachable_until};
use crate::{Digest256, Error, Result, Until, wiped::Wiped};

/// Encrypts the blobs of another store, because the memory of processes holds secrets.
///
/// The inner store must keep names ([`BlobStore::put_named`]). No other feature of it is used.
/// Bytes are encrypted and authenticated with AES-256-GCM-SIV. Only the key can derive their names
/// from digests.
///
/// # What it protects
///
/// A party with the inner store but without the [`Key`] cannot read blobs, nor find out whether a
/// known blob is stored. It can damage and delete, but not forge. A record that was changed, moved
/// to another name, or combined from others is [`Error::Corrupt`], and none of its bytes is
/// returned. A blob cannot be rolled back, because it is checked against its digest.
///
/// # What it does not hide
///
/// - The number of records, the times of their writing, which were written together, and which are
///   read.
/// - The length of blobs, which [`Padding`] makes vaguer. A large blob is one record for each 1
///   MiB.
/// - Equal blobs in two stores with one key: names follow from key and digest. Stores with
///   different keys reveal nothing about each other.
/// - A rollback of bytes under a name of the caller's ([`put_named`](BlobStore::put_named)): a
///   party that kept older bytes can put them back.
///
/// # Large blobs
///
/// A writer has at most two parts of 1 MiB in memory, and a reader one.
/// [`read_range`](BlobStore::read_range) reads only the parts that it needs. A dropped writer
/// leaves unused parts in the inner store. A large blob that is put again leaves its older parts. A
/// collection that keeps the [`names_of`](EncryptedBlobStore::names_of) the needed blobs removes
/// them.
///
/// # Damage
///
/// [`FsBlobStore::verify`] and [`FsBlobStore::quarantine`] work on records and need no key: call
/// them on [`inner`](EncryptedBlobStore::inner). The digests in their results are names of records,
/// not digests of this store. [`names_of`](EncryptedBlobStore::names_of) returns the names that a
/// capture needs, from its [`reachable`](crate::store::reachable) blobs.
///
/// # Examples
///
/// ```
/// use criu_rpc::{BlobStore, EncryptedBlobStore, Error, MemBlobStore, store::Key};
///
/// let beneath = MemBlobStore::new();
/// let key = Key::random()?;
/// let store = EncryptedBlobStore::open(&beneath, key.clone())?;
/// let digest = store.put(b"a secret")?;
///
/// let again = EncryptedBlobStore::open(&beneath, key)?;
/// assert_eq!(again.get(&digest)?, b"a secret");
/// let stranger = EncryptedBlobStore::open(&beneath, Key::random()?);
/// assert!(matches!(stranger, Err(Error::WrongKey)));
/// # Ok::<(), Error>(())
/// ```
pub struct EncryptedBlobStore<S> {
    inner: S,
    keys: Keys,
    padding: Padding,
}

/// The padding with which [`EncryptedBlobStore`] hides lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Padding {
    /// No padding: a record is 41 bytes longer than its contents.
    #[default]
    None,
    /// Lengths are rounded up so that few remain, by at most 12 %: the scheme
    /// [Padmé](https://doi.org/10.2478/popets-2019-0056). Beyond 1 MiB they are rounded up to whole
    /// MiB.
    Padme,
}

impl Padding {
    /// Returns the length to pad to.
    fn of(self, length: usize) -> usize {
        match self {
            Padding::None => length,
            Padding::Padme => padme(length),
        }
    }
}

/// Rounds down to as many leading bits as it takes to write the number of bits of the length.
fn padme(length: usize) -> usize {
    let Some(bits) = length.checked_ilog2().filter(|bits| *bits > 0) else { return length };
    let loose = bits - (bits.ilog2() + 1).min(bits);
    let mask = (1 << loose) - 1;
    length.checked_add(mask).map_or(length, |length| length & !mask)
}

impl<S: BlobStore> EncryptedBlobStore<S> {
    /// Opens a store that was encrypted with this key, or sets up a fresh one.
    ///
    /// A fresh store gets a key record. Any number of processes may open it at the same time. With
    /// the same key they write the same record; with different keys, each finds its own afterwards.
    /// A damaged key record is rewritten if another record proves that the key is right.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`] if the store was encrypted with another key. [`Error::Corrupt`] if the
    /// key cannot be checked, because the key record is damaged. [`Error::Store`] if the store
    /// keeps no names.
    pub fn open(inner: S, key: Key) -> Result<EncryptedBlobStore<S>> {
        let store = EncryptedBlobStore { inner, keys: Keys::new(&key), padding: Padding::None };
        // The common record tells others that their key is wrong, but a second user may overwrite
        // it. So there is a second record, at a place that only holders of this key look at.
        let (common, own) = (common_record(), store.keys.own_record());
        let check = |name: &Digest256| store.key_record(name);
        match (check(&own), check(&common)) {
            (Ok(true), Ok(true) | Err(Error::WrongKey)) => {}
            (Ok(true), Ok(false) | Err(Error::Corrupt { .. })) => store.put_key_record(&common)?,
            (Ok(false) | Err(Error::Corrupt { .. }), Ok(true)) => store.put_key_record(&own)?,
            (Ok(false), Ok(false)) => {
                store.put_key_record(&own)?;
                store.put_key_record(&common)?;
            }
            (_, Err(error)) | (Err(error), _) => return Err(error),
        }
        Ok(store)
    }

    /// Pads records that are stored from now on, to hide their lengths.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, EncryptedBlobStore, MemBlobStore, store::{Key, Padding}};
    ///
    /// let store = EncryptedBlobStore::open(MemBlobStore::new(), Key::random()?)?.padding(Padding::Padme);
    /// let digest = store.put(&[7; 1001])?;
    /// assert_eq!(store.get(&digest)?, [7; 1001]);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> EncryptedBlobStore<S> {
        self.padding = padding;
        self
    }

    /// Returns the inner store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Returns the names that the inner store has for these blobs, and for the key records. A
    /// collection of the inner store must keep them.
    ///
    /// A digest that is not stored may have a name here; that does no harm. Bytes under names of
    /// the caller's are not among them; see [`name_of_named`](EncryptedBlobStore::name_of_named). A
    /// blob that is still being written has no digest yet. So no process may write while names that
    /// are not listed here are removed. A collection goes by these names, never by digests:
    /// [`gc`](EncryptedBlobStore::gc) does so in a folder.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, EncryptedBlobStore, MemBlobStore, store::Key};
    ///
    /// let store = EncryptedBlobStore::open(MemBlobStore::new(), Key::random()?)?;
    /// let digest = store.put(b"a secret")?;
    /// let names = store.names_of(&[digest])?;
    /// assert!(names.iter().all(|name| store.inner().contains_named(name).unwrap()));
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Errors of the inner store, and [`Error::Corrupt`] if the header of a blob is damaged.
    pub fn names_of(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        let mut names = vec![common_record(), self.keys.own_record()];
        for digest in digests {
            names.push(self.keys.name(Kind::Blob, digest));
            if let Some(parts) = self.parts(digest)? {
                names.push(self.keys.name(Kind::Header, digest));
                names.extend(parts.names(self));
            }
        }
        Ok(names)
    }

    /// Returns the inner store's name for the bytes under this name.
    pub fn name_of_named(&self, name: &Digest256) -> Digest256 {
        self.keys.name(Kind::Named, name)
    }

    /// Returns true if there is a key record and it matches this key.
    fn key_record(&self, name: &Digest256) -> Result<bool> {
        match self.inner.get_named(name) {
            Ok(found) => check_record(&found, &self.keys.record).map(|()| true),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn put_key_record(&self, name: &Digest256) -> Result<()> {
        self.inner.put_named(name, &self.keys.record)
    }

    /// Reads and decrypts the record of this name; `None` if it is missing.
    fn open_record(
        &self,
        kind: Kind,
        name: &Digest256,
        what: impl Fn() -> String,
    ) -> Result<Option<Vec<u8>>> {
        match self.inner.get_named(name) {
            Ok(record) => unseal(&self.keys, kind, name, record, what).map(Some),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Encrypts a record; returns its name and bytes for the inner store.
    fn sealed(&self, kind: Kind, about: &Digest256, bytes: &[u8]) -> Result<(Digest256, Vec<u8>)> {
        let name = self.keys.name(kind, about);
        let mut record = Vec::new();
        seal(&self.keys, kind, &name, bytes, self.padding.of(bytes.len()), &mut record)?;
        Ok((name, record))
    }

    fn put_record(&self, kind: Kind, about: &Digest256, bytes: &[u8]) -> Result<()> {
        let (name, record) = self.sealed(kind, about, bytes)?;
        self.inner.put_named(&name, &record)
    }

    fn find(&self, digest: &Digest256) -> Result<Found> {
        let name = self.keys.name(Kind::Blob, digest);
        if let Some(bytes) = self.open_record(Kind::Blob, &name, || format!("blob {digest}"))? {
            return Ok(Found::Whole(bytes));
        }
        self.parts(digest)?.map(Found::Parts).ok_or(Error::Missing { digest: *digest })
    }

    fn parts(&self, digest: &Digest256) -> Result<Option<Parts>> {
        let what = || format!("the header of blob {digest}");
        let header = self.open_record(Kind::Header, &self.keys.name(Kind::Header, digest), what)?;
        header.map(|header| Parts::decode(&header, what)).transpose()
    }
}

impl EncryptedBlobStore<FsBlobStore> {
    /// Keeps these captures, named by their manifests, and removes all other data in the folder, as
    /// [`FsBlobStore::gc`] does. That includes data stored with other keys or without a key.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use criu_rpc::{Digest256, EncryptedBlobStore, FsBlobStore, store::Key};
    ///
    /// # fn captures() -> Vec<Digest256> { vec![] }
    /// let store = EncryptedBlobStore::open(FsBlobStore::open("captures")?, Key::random()?)?;
    /// let gc = store.gc(&captures(), Duration::from_secs(3600))?;
    /// println!("{} bytes are gone, {} will be", gc.swept.bytes, gc.condemned.bytes);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::gc`].
    pub fn gc(&self, live: &[Digest256], grace: Duration) -> Result<Gc> {
        self.gc_until(live, grace, &Until::forever())
    }

    /// Collects as [`gc`](EncryptedBlobStore::gc) does, within the limit of
    /// [`FsBlobStore::gc_until`].
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::gc_until`].
    pub fn gc_until(&self, live: &[Digest256], grace: Duration, until: &Until) -> Result<Gc> {
        self.inner.retain_until(&self.names_needed(live, until)?, grace, until)
    }

    /// Keeps these captures, and removes all other data in the folder before it returns, as
    /// [`FsBlobStore::purge`] does. The same rule applies: no captures may run meanwhile, with this
    /// key or any other.
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::purge`].
    pub fn purge(&self, live: &[Digest256]) -> Result<Gc> {
        self.purge_until(live, &Until::forever())
    }

    /// Removes as [`purge`](EncryptedBlobStore::purge) does, within the limit of
    /// [`FsBlobStore::purge_until`].
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::purge_until`].
    pub fn purge_until(&self, live: &[Digest256], until: &Until) -> Result<Gc> {
        self.inner.purge_all_but_until(&self.names_needed(live, until)?, until)
    }

    fn names_needed(&self, live: &[Digest256], until: &Until) -> Result<HashSet<Digest256>> {
        let digests: Vec<_> = reachable_until(self, live, until)?.into_iter().collect();
        Ok(self.names_of(&digests)?.into_iter().collect())
    }
}

/// The form in which the inner store has a blob.
enum Found {
    /// All its bytes, from a single record. Their digest is not verified yet.
    Whole(Vec<u8>),
    /// A header.
    Parts(Parts),
}

/// A `put` of a stored blob encrypts it again, which repairs damage. A batch skips stored blobs.
impl<S: BlobStore> BlobStore for EncryptedBlobStore<S> {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        if bytes.len() <= PART {
            self.put_record(Kind::Blob, &digest, bytes)?;
        } else {
            let batch = self.inner.batch_until(&Until::forever())?;
            let (name, header) = self.seal_parts(&*batch, &digest, bytes)?;
            batch.commit()?;
            self.inner.put_named(&name, &header)?;
        }
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let bytes = match self.find(digest)? {
            Found::Whole(bytes) => bytes,
            Found::Parts(parts) => parts.read_range(self, digest, 0, usize::MAX)?,
        };
        super::verify(digest, &bytes, || format!("encrypted blob {digest}"))?;
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        Ok(self.inner.contains_named(&self.keys.name(Kind::Blob, digest))?
            || self.inner.contains_named(&self.keys.name(Kind::Header, digest))?)
    }

    fn is_marked(&self, digest: &Digest256) -> Result<bool> {
        Ok(!self.contains(digest)? && self.find(digest).is_ok())
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(EncryptedWriter::new(self)))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        Ok(match self.find(digest)? {
            Found::Whole(bytes) => Box::new(Cursor::new(Wiped::from(bytes))),
            Found::Parts(parts) => Box::new(parts.reader(self, digest)),
        })
    }

    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        match self.find(digest)? {
            Found::Whole(mut bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                bytes.truncate(start.saturating_add(length));
                bytes.drain(..start);
                Ok(bytes)
            }
            Found::Parts(parts) => parts.read_range(self, digest, offset, length),
        }
    }

    /// Fetches, decrypts and verifies on several threads.
    fn get_many(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(MOST_THREADS).min(digests.len() / WORTH_A_THREAD);
        if threads < 2 {
            return digests
                .iter()
                .enumerate()
                .try_for_each(|(place, digest)| each(place, &Wiped::from(self.get(digest)?)));
        }
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (send, receive) = sync_channel(2 * threads);
            for _ in 0..threads {
                let (next, send) = (&next, send.clone());
                let work = move || {
                    while let Some((place, digest)) = at(digests, next.fetch_add(1, Ordering::Relaxed)) {
                        if send.send((place, self.get(digest))).is_err() {
                            return; // the receiver has failed
                        }
                    }
                };
                thread::Builder::new().spawn_scoped(scope, work).map_err(Error::io("start a thread"))?;
            }
            drop(send);
            receive.into_iter().try_for_each(|(place, bytes)| each(place, &Wiped::from(bytes?)))
        })
    }

    fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
        Ok(Box::new(EncryptedBatch::new(self, until)?))
    }

    fn put_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        self.put_record(Kind::Named, name, bytes)
    }

    fn get_named(&self, name: &Digest256) -> Result<Vec<u8>> {
        let found =
            self.open_record(Kind::Named, &self.name_of_named(name), || format!("what is named {name}"))?;
        found.ok_or(Error::Missing { digest: *name })
    }

    fn contains_named(&self, name: &Digest256) -> Result<bool> {
        self.inner.contains_named(&self.name_of_named(name))
    }
}

fn at(digests: &[Digest256], place: usize) -> Option<(usize, &Digest256)> {
    digests.get(place).map(|digest| (place, digest))
}

impl<S: fmt::Debug> fmt::Debug for EncryptedBlobStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedBlobStore")
            .field("inner", &self.inner)
            .field("padding", &self.padding)
            .finish_non_exhaustive()
    }
}

/// More threads would only wait for the inner store.
const MOST_THREADS: usize = 8;
/// With fewer blobs, starting a thread takes longer than fetching them.
const WORTH_A_THREAD: usize = 8;
