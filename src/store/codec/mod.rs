//! [`Codec`]: the encoding of blobs in a store, and their names.
//!
//! Start here. `options` makes a codec when a store is opened, and checks the key `record` of the
//! store. `keys` has the cryptography, `zstd` the compression, each with a twin for builds without
//! it. `parts` encodes single files and objects; `pack` encodes the frames of packs.

#[cfg_attr(feature = "encryption", path = "keys.rs")]
#[cfg_attr(not(feature = "encryption"), path = "no_keys.rs")]
mod keys;
mod options;
#[cfg(feature = "encryption")]
mod padding;
mod parts;
mod record;
#[cfg_attr(feature = "compression", path = "zstd.rs")]
#[cfg_attr(not(feature = "compression"), path = "no_zstd.rs")]
mod zstd;

use std::{
    io::{self, Read},
    sync::Arc,
};

#[cfg(feature = "encryption")]
pub use self::keys::{Key, Padding};
pub use self::options::StoreOptions;
use self::parts::{Blob, has_checksum, hash};
pub(in crate::store) use self::{
    keys::{AROUND, Keys},
    options::Records,
    parts::{Encoder, hash_all},
    zstd::{Packer, Unpacker},
};
use super::{name::Name, read_at::ReadAt};
use crate::{Digest256, Error, Result};

/// The encoding of the blobs of a store.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    /// Compress the frames that are written.
    compress: bool,
    seal: Seal,
}

/// The encryption of a store.
#[derive(Debug, Clone)]
enum Seal {
    Plain,
    Keyed(Arc<Keys>),
    /// The store is encrypted, and the key is unknown.
    Locked,
}

impl Codec {
    pub(in crate::store) fn compresses(&self) -> bool {
        self.compress
    }

    pub(in crate::store) fn is_plain(&self) -> bool {
        matches!(self.seal, Seal::Plain)
    }

    /// Returns true if the key of the store is unknown.
    pub(in crate::store) fn is_locked(&self) -> bool {
        matches!(self.seal, Seal::Locked)
    }

    /// Returns the keys of an encrypted store.
    pub(in crate::store) fn keys(&self) -> Option<&Arc<Keys>> {
        match &self.seal {
            Seal::Keyed(keys) => Some(keys),
            Seal::Plain | Seal::Locked => None,
        }
    }

    /// Returns the folder of blobs that are files or objects by themselves.
    pub(in crate::store) fn folder(&self) -> &'static str {
        if self.is_plain() { PLAIN } else { KEYED }
    }

    /// Returns the name under which the store keeps this blob.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the key of the store is unknown.
    pub(in crate::store) fn name(&self, digest: &Digest256) -> Result<Name> {
        match &self.seal {
            Seal::Plain => Ok(Name::plain(*digest)),
            Seal::Keyed(keys) => Ok(Name::from_bytes(keys.name(digest))),
            Seal::Locked => Err(locked("find a blob")),
        }
    }

    /// Returns the names of these blobs.
    pub(in crate::store) fn names<C: FromIterator<Name>>(
        &self,
        digests: impl IntoIterator<Item = impl std::borrow::Borrow<Digest256>>,
    ) -> Result<C> {
        digests.into_iter().map(|digest| self.name(digest.borrow())).collect()
    }

    /// Compares the name of a blob with that of the bytes found.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if they differ.
    pub(in crate::store) fn verify(
        &self,
        name: &Name,
        bytes: &[u8],
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let digest = Digest256::of(bytes);
        match self.name(&digest)? == *name {
            true => Ok(()),
            false => {
                Err(Error::corrupt(what(), format!("its {} bytes have the digest {digest}", bytes.len())))
            }
        }
    }

    /// Begins to encode a single file or object.
    pub(in crate::store) fn encoder(&self) -> Result<Encoder> {
        match &self.seal {
            Seal::Plain => Ok(Encoder::Plain),
            Seal::Keyed(keys) => Encoder::sealed(keys),
            Seal::Locked => Err(locked("store a blob")),
        }
    }

    /// Returns the length of the object of a blob.
    #[cfg(feature = "object-store")]
    pub(in crate::store) fn encoded_length(&self, length: u64) -> u64 {
        self.keys().map_or(length, |keys| parts::encoded_length(keys, length))
    }

    /// Opens the file or object of a blob for reads of some of its parts.
    pub(in crate::store) fn open<S: ReadAt>(
        &self,
        name: &Name,
        source: S,
        what: impl FnOnce() -> String,
    ) -> io::Result<Single<S>> {
        match &self.seal {
            Seal::Plain => Ok(Single::Plain(source)),
            Seal::Keyed(keys) => Blob::open(keys, name, source, what()).map(Single::Sealed),
            Seal::Locked => Err(io::Error::other(locked("read a blob"))),
        }
    }

    /// Returns true if a file or object is undamaged, as far as that shows without a key.
    pub(in crate::store) fn is_whole(&self, name: &Name, source: &(impl ReadAt + Sync)) -> io::Result<bool> {
        let whole = |digest: Digest256| self.name(&digest).is_ok_and(|found| found == *name);
        match &self.seal {
            Seal::Plain => Ok(whole(hash(source, u64::MAX)?.finish())),
            Seal::Locked => has_checksum(name, source),
            Seal::Keyed(_) if !has_checksum(name, source)? => Ok(false),
            Seal::Keyed(_) => {
                let opened = self.open(name, source, String::new);
                let read = opened.and_then(|single| hash_all(single.reader(Sequential { source, at: 0 })));
                match read {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
                    read => Ok(whole(read?)),
                }
            }
        }
    }
}

/// A blob that is a file or object by itself.
pub(in crate::store) enum Single<S> {
    Plain(S),
    Sealed(Blob<S>),
}

impl<S: ReadAt> Single<S> {
    /// Reads a part of the blob, unverified: fewer bytes at its end.
    pub(in crate::store) fn range(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Single::Plain(source) => {
                // Systems refuse to read past the largest possible file.
                let size = source.length()?;
                let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut bytes = vec![0; length.min(left)];
                let read = source.read_full(&mut bytes, offset.min(size))?;
                bytes.truncate(read);
                Ok(bytes)
            }
            Single::Sealed(blob) => blob.range(offset, length),
        }
    }

    /// Reads the blob from start to end, unverified. `encoded` gives the bytes of the file or
    /// object.
    pub(in crate::store) fn reader<'a, R: Read + Send + 'a>(self, encoded: R) -> Box<dyn Read + Send + 'a>
    where
        S: Send + 'a,
    {
        match self {
            Single::Plain(_) => Box::new(encoded),
            Single::Sealed(blob) => Box::new(blob.reader(encoded)),
        }
    }
}

/// Reads a source from start to end.
struct Sequential<'a, S> {
    source: &'a S,
    at: u64,
}

impl<S: ReadAt> Read for Sequential<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The error of a call that needs the key of the store.
pub(in crate::store) fn locked(doing: &str) -> Error {
    Error::store(doing, "the store is encrypted, and was opened without its key")
}

/// Returns the error that a codec put into another, or describes what failed.
pub(in crate::store) fn or_io(doing: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> Error {
    |error| error.downcast().unwrap_or_else(Error::io(doing()))
}

/// The folders of single blobs, in plain and in encrypted stores.
pub(in crate::store) const PLAIN: &str = "blobs/sha256";
pub(in crate::store) const KEYED: &str = "blobs/keyed";
