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

/// Encrypts the blobs of another store, because memory of processes holds secrets.
///
/// The store beneath must keep names ([`BlobStore::put_named`]); nothing else of it is used. Bytes
/// are encrypted and authenticated with AES-256-GCM-SIV, under names that only the key can derive
/// from digests.
///
/// # What it protects
///
/// A party with the store beneath but without the [`Key`] cannot read blobs, nor find out whether a
/// known blob is stored. It can damage and delete, but not forge: a record that was changed, moved
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
/// A writer has at most two parts of 1 MiB in memory, and a reader one;
/// [`read_range`](BlobStore::read_range) reads only the parts that it needs. A dropped writer
/// leaves unused parts in the store beneath, and a large blob that is put again leaves its older
/// parts. A collection that keeps the [`names_of`](EncryptedBlobStore::names_of) the needed blobs
/// removes them.
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
    /// What a length is rounded up to.
    fn of(self, length: usize) -> usize {
        match self {
            Padding::None => length,
            Padding::Padme => padme(length),
        }
    }
}

/// Keeps as many leading bits of a length as it takes to write down how many bits it has; the
/// others become zero.
fn padme(length: usize) -> usize {
    let Some(bits) = length.checked_ilog2().filter(|bits| *bits > 0) else { return length };
    let loose = bits - (bits.ilog2() + 1).min(bits);
    let mask = (1 << loose) - 1;
    length.checked_add(mask).map_or(length, |length| length & !mask)
}

impl<S: BlobStore> EncryptedBlobStore<S> {
    /// Opens the store that was encrypted with this key, or makes a fresh store one.
    ///
    /// A fresh store gets a key record. Any number of processes may do so at the same time: with
    /// one key they write the same, and with two, each goes on to find its own. A damaged key
    /// record is written anew where another tells that the key is right.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`] if the store was encrypted with another key, [`Error::Corrupt`] if its
    /// key record is damaged so that this cannot be told, [`Error::Store`] if it keeps no names.
    pub fn open(inner: S, key: Key) -> Result<EncryptedBlobStore<S>> {
        let store = EncryptedBlobStore { inner, keys: Keys::new(&key), padding: Padding::None };
        // A record that everybody finds tells others that their key is wrong. But who comes second
        // may replace it. So a second one is kept where nobody looks who has another key.
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

    /// Hides lengths too, of what is stored from now on.
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

    /// The store beneath.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What the store beneath has of these blobs, by name, and the key records: what a collection
    /// there must keep.
    ///
    /// A digest that is not stored may have a name here; that does no harm. Bytes under names of
    /// the caller's are not among them; see [`name_of_named`](EncryptedBlobStore::name_of_named).
    /// What is being written has no digest yet: nobody must be writing while names that are not
    /// told here are removed. So a collection beneath goes by these names, never by digests:
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
    /// What the store beneath says, and [`Error::Corrupt`] if it cannot be told which parts a blob
    /// has.
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

    /// What the store beneath calls the bytes that are here under this name.
    pub fn name_of_named(&self, name: &Digest256) -> Digest256 {
        self.keys.name(Kind::Named, name)
    }

    /// Whether there is a key record, and it is of this key.
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

    /// What is in the record of this name, if there is one.
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

    /// What the store beneath is to keep, and under which name.
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
    /// Keeps these captures, named by their manifests, and gets rid of all else in the folder, as
    /// [`FsBlobStore::gc`] does. What other keys have stored there, and what was stored without
    /// one, goes too.
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

    /// Collects as [`gc`](EncryptedBlobStore::gc) does, but gives up as [`FsBlobStore::gc_until`].
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::gc_until`].
    pub fn gc_until(&self, live: &[Digest256], grace: Duration, until: &Until) -> Result<Gc> {
        self.inner.retain_until(&self.names_needed(live, until)?, grace, until)
    }

    /// Keeps these captures, and removes all else in the folder before it returns, as
    /// [`FsBlobStore::purge`] does, with the same promise: no captures are made meanwhile, neither
    /// with this key nor with others.
    ///
    /// # Errors
    ///
    /// As [`FsBlobStore::purge`].
    pub fn purge(&self, live: &[Digest256]) -> Result<Gc> {
        self.purge_until(live, &Until::forever())
    }

    /// Removes as [`purge`](EncryptedBlobStore::purge) does, but gives up as
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

/// What the store beneath has of a blob.
enum Found {
    /// All its bytes. They are of one record, but nobody has looked at their digest.
    Whole(Vec<u8>),
    /// A header.
    Parts(Parts),
}

/// What is put again is encrypted again, so that it repairs what was damaged. A batch leaves what
/// is there.
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

    /// Several threads fetch, decrypt and verify.
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
                            return; // nobody wants more
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

/// Beyond this, threads wait for the store beneath.
const MOST_THREADS: usize = 8;
/// Fewer blobs than this are fetched sooner than a thread is started.
const WORTH_A_THREAD: usize = 8;
