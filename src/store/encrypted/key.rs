//! [`Key`], the keys derived from it, and the record that shows whether a store uses this key.

use std::fmt;

use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::kind::{Kind, random};
use crate::{Digest256, Error, Result};

/// The secret key of a store: 32 random bytes.
///
/// It is not printed by `Debug`, and its memory is overwritten on drop. Do not use a passphrase as
/// a key: derive a key from it with a function such as Argon2.
///
/// ```
/// use criu_rpc::store::Key;
///
/// let key = Key::random()?;
/// let kept = *key.as_bytes(); // where no other user can read it
/// let same = Key::from_bytes(kept);
/// assert_eq!(format!("{same:?}"), "Key(..)");
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// Makes a key from the operating system's randomness.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has no randomness.
    pub fn random() -> Result<Key> {
        Ok(Key(Zeroizing::new(random()?)))
    }

    /// Makes a key of these bytes. The caller's copy of them is not overwritten.
    pub fn from_bytes(bytes: [u8; 32]) -> Key {
        Key(Zeroizing::new(bytes))
    }

    /// Returns the 32 bytes, to be kept somewhere safe.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives a key for one purpose. A derived key reveals nothing about this key or the others.
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

/// The keys of a store: one for names and one for records.
pub(super) struct Keys {
    names: Hmac<Sha256>,
    pub(super) cipher: Aes256GcmSiv,
    /// The key record of a store with this key.
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

    /// Returns the inner store's name for the record of this kind about this digest or name.
    pub(super) fn name(&self, kind: Kind, about: &Digest256) -> Digest256 {
        self.mac(&[&[kind.code()], about.as_bytes()])
    }

    /// Returns the inner store's name for a part of the blob with this `id`.
    pub(super) fn part(&self, id: &[u8; 32], place: u64) -> Digest256 {
        self.mac(&[&[Kind::Part.code()], id, &place.to_le_bytes()])
    }

    /// Returns the name of the key record that only holders of this key can find.
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

/// Returns the name of the key record that every user finds.
pub(super) fn common_record() -> Digest256 {
    Digest256::of(b"criu-rpc encrypted store v1: key record")
}

/// Makes a key record: the name of the format, a mark that only this key makes, and a checksum. The
/// checksum distinguishes a damaged record from one of another key.
fn key_record(mark: &[u8; 32]) -> Vec<u8> {
    let mut record = [RECORD.as_slice(), mark].concat();
    let checksum = Digest256::of(&record);
    record.extend_from_slice(checksum.as_bytes());
    record
}

/// Compares the key record of a store with the expected one.
///
/// # Errors
///
/// [`Error::WrongKey`] if it is intact, but of another key; [`Error::Corrupt`] if it is damaged.
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
