//! [`StoreOptions`]: compression and encryption of a store, chosen when it is opened.

use super::{
    Codec, Seal,
    keys::{Key, Keys, Padding},
    record::{self, COPIES, Found},
};
use crate::{Error, Result};

/// Options for opening an [`FsBlobStore`](crate::FsBlobStore) or an `ObjectBlobStore`.
///
/// Encryption is a property of a store: it is chosen when the store is new, and each later opening
/// needs the same key. Compression is a choice of each writer: readers accept both kinds of packs.
///
/// ```
/// use criu_rpc::{BlobStore, store::StoreOptions};
///
/// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-options-{}", std::process::id()));
/// let options = StoreOptions::new();
/// # #[cfg(feature = "compression")]
/// let options = options.compression(true);
/// let store = options.open(&folder)?;
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// # std::fs::remove_dir_all(folder).unwrap();
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct StoreOptions {
    compression: bool,
    key: Option<Key>,
    padding: Padding,
    without_key: bool,
}

impl StoreOptions {
    /// Makes the default options: neither compression nor encryption.
    pub fn new() -> StoreOptions {
        StoreOptions::default()
    }

    /// Compresses the packs that this program writes, where that makes them smaller. With
    /// encryption, the lengths of packs then depend on their contents, too.
    #[cfg(feature = "compression")]
    pub fn compression(mut self, compression: bool) -> StoreOptions {
        self.compression = compression;
        self
    }

    /// Encrypts the store with this key, because the memory of processes holds secrets.
    ///
    /// A new store gets a key record. Any number of programs may open it at the same time. If two
    /// have different keys, one of them fails.
    ///
    /// # What it protects
    ///
    /// A party with the files but without the [`Key`] cannot read blobs, nor find out whether a
    /// known blob is stored. It can damage and delete blobs, but cannot forge them. Bytes that were
    /// changed, moved to another place, or combined from others cause [`Error::Corrupt`], and none
    /// of them is returned. A blob cannot be rolled back, because it is checked against its digest.
    ///
    /// # What it does not hide
    ///
    /// - The number of blobs, the times of their writing, which were written together, and which
    ///   are read.
    /// - The length of a frame of some hundred kilobytes in a pack, and of a blob that is a file by
    ///   itself. [`padding`](StoreOptions::padding) makes both less exact.
    /// - Equal blobs in two stores with one key: a name depends only on key and digest. Stores with
    ///   different keys reveal nothing about each other.
    ///
    /// `docs/encryption.md` has more. The digests in the results of
    /// [`verify`](crate::FsBlobStore::verify) are keyed names, from which no digest can be derived.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, Error, store::{Key, StoreOptions}};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-key-{}", std::process::id()));
    /// let key = Key::random()?;
    /// let store = StoreOptions::new().encryption(key.clone()).open(&folder)?;
    /// let digest = store.put(b"a secret")?;
    ///
    /// let again = StoreOptions::new().encryption(key).open(&folder)?;
    /// assert_eq!(again.get(&digest)?, b"a secret");
    /// let stranger = StoreOptions::new().encryption(Key::random()?).open(&folder);
    /// assert!(matches!(stranger, Err(Error::WrongKey)));
    /// assert!(StoreOptions::new().open(&folder).is_err());
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), Error>(())
    /// ```
    #[cfg(feature = "encryption")]
    pub fn encryption(mut self, key: Key) -> StoreOptions {
        self.key = Some(key);
        self
    }

    /// Pads what this program encrypts, to hide lengths.
    #[cfg(feature = "encryption")]
    pub fn padding(mut self, padding: Padding) -> StoreOptions {
        self.padding = padding;
        self
    }

    /// Opens an encrypted store without its key, to [verify](crate::FsBlobStore::verify) checksums,
    /// [set damage aside](crate::FsBlobStore::quarantine) and [count](crate::FsBlobStore::usage).
    /// Every call that needs names or contents of blobs fails.
    pub fn without_key(mut self) -> StoreOptions {
        self.without_key = true;
        self
    }

    /// Compares the options with the store, and sets up a new store.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`], [`Error::Corrupt`] if the key cannot be checked, [`Error::Store`] for
    /// other wrong options.
    pub(in crate::store) fn codec(
        &self,
        opening: &dyn Fn() -> String,
        records: &dyn Records,
    ) -> Result<Codec> {
        let found = records.read(COPIES)?;
        let Some(key) = &self.key else {
            let encrypted = found.iter().any(Option::is_some);
            return match (encrypted, self.without_key) {
                (false, _) => Ok(Codec { compress: self.compression, seal: Seal::Plain }),
                (true, true) => Ok(Codec { compress: false, seal: Seal::Locked }),
                (true, false) => Err(Error::store(opening(), NEEDS_KEY)),
            };
        };
        let keys = Keys::new(key, self.padding);
        let check = |[one, other]: &[Option<Vec<u8>>; 2]| {
            let check = |found: &Option<Vec<u8>>| record::check(found.as_deref(), &keys, opening);
            Ok([check(one)?, check(other)?])
        };
        let mut states = check(&found)?;
        if states == [Found::Missing; 2] {
            // Another program that has just set the store up wrote its record before any blob.
            let blobs = records.has_blobs()?;
            if blobs && records.read(COPIES)? == [None, None] {
                return Err(Error::store(opening(), "it has blobs already, and it is not encrypted"));
            }
            // The copy comes second, so that another key cannot get between.
            records.create(COPIES[0], &record::make(&keys))?;
            states = check(&records.read(COPIES)?)?;
        }
        if states.contains(&Found::OfAnotherKey) {
            return Err(Error::WrongKey);
        }
        if !states.contains(&Found::OfThisKey) {
            return Err(Error::corrupt(
                format!("the key record {}", COPIES[0]),
                "neither it nor its copy can confirm the key",
            ));
        }
        for (name, state) in COPIES.into_iter().zip(states) {
            if state != Found::OfThisKey {
                records.replace(name, &record::make(&keys))?;
            }
        }
        records.sync()?;
        Ok(Codec { compress: self.compression, seal: Seal::Keyed(keys) })
    }

    /// Makes a codec without a store.
    #[cfg(any(test, fuzzing))]
    pub(in crate::store) fn alone(&self) -> Codec {
        let seal = match (&self.key, self.without_key) {
            (Some(key), _) => Seal::Keyed(Keys::new(key, self.padding)),
            (None, true) => Seal::Locked,
            (None, false) => Seal::Plain,
        };
        Codec { compress: self.compression, seal }
    }
}

/// The place where a store keeps its key records.
pub(in crate::store) trait Records {
    fn read(&self, names: [&str; 2]) -> Result<[Option<Vec<u8>>; 2]>;
    /// Writes a record, unless there is one.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<()>;
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Makes records durable that another program may have written.
    fn sync(&self) -> Result<()>;
    /// Returns true if the store has blobs.
    fn has_blobs(&self) -> Result<bool>;
}

const NEEDS_KEY: &str = if cfg!(feature = "encryption") {
    "it is encrypted: give its key to `StoreOptions::encryption`"
} else {
    "it is encrypted, and this program was built without the feature `encryption` of criu-rpc"
};
