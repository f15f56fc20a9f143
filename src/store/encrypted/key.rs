//! [`Key`], the keys that are made of it, and the record that tells whether a store was encrypted with it.

use std::fmt;

use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::kind::{Kind, random};
use crate::{Digest256, Error, Result};

/// The secret that a store is encrypted with: 32 bytes, each as likely as any other.
///
/// It does not print itself, and its memory is overwritten when it is dropped. A passphrase is no key: make one of it
/// first, with a function that exists for it, such as Argon2.
///
/// ```
/// use criu_rpc::store::Key;
///
/// let key = Key::random()?;
/// let kept = *key.as_bytes(); // where nobody else can read it
/// let same = Key::from_bytes(kept);
/// assert_eq!(format!("{same:?}"), "Key(..)");
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// A key from the operating system's randomness.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has none to give.
    pub fn random() -> Result<Key> {
        Ok(Key(Zeroizing::new(random()?)))
    }

    /// The key with these bytes. The caller's own copy of them stays as it is.
    pub fn from_bytes(bytes: [u8; 32]) -> Key {
        Key(Zeroizing::new(bytes))
    }

    /// The 32 bytes, to keep them somewhere safe.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose. Each tells nothing of the others, nor of this one.
    fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut mac = keyed(&self.0);
        mac.update(b"criu-rpc encrypted store v1: ");
        mac.update(purpose.as_bytes());
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What a store works with: a key for names and one for records.
pub(super) struct Keys {
    names: Hmac<Sha256>,
    pub(super) cipher: Aes256GcmSiv,
    /// The record that a store encrypted with this key has.
    pub(super) record: Vec<u8>,
}

impl Keys {
    pub(super) fn new(key: &Key) -> Keys {
        let mark = key.derive("key record");
        Keys {
            names: keyed(&key.derive("names")),
            cipher: Aes256GcmSiv::new((&*key.derive("records")).into()),
            record: key_record(&mark),
        }
    }

    /// What the store beneath calls the record of this kind about this digest, or name.
    pub(super) fn name(&self, kind: Kind, about: &Digest256) -> Digest256 {
        self.mac(&[&[kind.code()], about.as_bytes()])
    }

    /// What the store beneath calls the part of this place, of a blob that was given this `id`.
    pub(super) fn part(&self, id: &[u8; 32], place: u64) -> Digest256 {
        self.mac(&[&[Kind::Part.code()], id, &place.to_le_bytes()])
    }

    /// Where a store has the key record that only holders of this key find.
    pub(super) fn own_record(&self) -> Digest256 {
        self.mac(&[b"key record"])
    }

    fn mac(&self, pieces: &[&[u8]]) -> Digest256 {
        let mut mac = self.names.clone();
        for piece in pieces {
            mac.update(piece);
        }
        Digest256::from_bytes(mac.finalize().into_bytes().into())
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("because HMAC takes keys of any length")
}

/// Where a store has the key record that everybody finds.
pub(super) fn common_record() -> Digest256 {
    Digest256::of(b"criu-rpc encrypted store v1: key record")
}

/// The name of the format, a mark that only this key makes, and a checksum: a record that is damaged is told from one of
/// another key.
fn key_record(mark: &[u8; 32]) -> Vec<u8> {
    let mut record = [RECORD.as_slice(), mark].concat();
    let checksum = Digest256::of(&record);
    record.extend_from_slice(checksum.as_bytes());
    record
}

/// Holds a key record that a store has against the one that it should have.
///
/// # Errors
///
/// [`Error::WrongKey`] if it is whole, but of another key; [`Error::Corrupt`] if it is not whole.
pub(super) fn check_record(found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let damaged = |problem: &str| Err(Error::corrupt("the key record of the encrypted store", problem));
    let Some((content, checksum)) = found.split_last_chunk::<32>() else {
        return damaged("it is too short");
    };
    if Digest256::of(content).as_bytes() != checksum {
        return damaged("its checksum is wrong");
    }
    if found.len() != expected.len() || !content.starts_with(RECORD) {
        return damaged("it is not of a version that is known");
    }
    Err(Error::WrongKey)
}

const RECORD: &[u8; 8] = b"crKEYv1\n";
