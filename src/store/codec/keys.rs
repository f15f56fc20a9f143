//! [`Key`], and [`Keys`], which are derived from it. All cryptography of the crate is here.

use std::{fmt, sync::Arc};

use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit, Nonce, Tag, aead::inout::InOutBuf};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

pub use super::padding::Padding;
use crate::{Digest256, Error, Result, wiped::wipe_stack};

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

/// The keys of a store: one for names and one for contents.
pub(in crate::store) struct Keys {
    names: Hmac<Sha256>,
    cipher: Aes256GcmSiv,
    /// Shows in the key record that a store has this key.
    mark: [u8; 32],
    padding: Padding,
}

impl Keys {
    pub(in crate::store) fn new(key: &Key, padding: Padding) -> Arc<Keys> {
        Arc::new(Keys {
            names: keyed(&key.derive("names")),
            cipher: Aes256GcmSiv::new((&*key.derive("contents")).into()),
            mark: *key.derive("key record"),
            padding,
        })
    }

    pub(in crate::store) fn mark(&self) -> &[u8; 32] {
        &self.mark
    }

    /// Returns the length to pad to.
    pub(in crate::store) fn padded(&self, length: usize) -> usize {
        self.padding.of(length)
    }

    /// Returns the length to pad a part of a blob to.
    pub(in crate::store) fn padded_part(&self, place: u64, length: usize, part: usize) -> usize {
        self.padding.of_part(place, length, part)
    }

    /// Returns the name of a blob, which only holders of the key can derive.
    pub(in crate::store) fn name(&self, digest: &Digest256) -> [u8; 32] {
        let mut mac = self.names.clone();
        mac.update(digest.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Encrypts in place, and returns the tag and the nonce. The bytes can only be opened with the
    /// same associated data.
    pub(in crate::store) fn seal(&self, associated: &[u8], bytes: &mut [u8]) -> Result<[u8; AROUND]> {
        // The nonce comes from the system each time: a process restored twice would repeat a
        // generator's state.
        let nonce: [u8; NONCE] = random()?;
        let tag = self
            .cipher
            .encrypt_inout_detached(&Nonce::from(nonce), associated, bytes.into())
            .map_err(|_| Error::store("encrypt a blob", "it has more than 64 GiB"))?;
        wipe_stack();
        let mut around = [0; AROUND];
        around[..TAG].copy_from_slice(&tag);
        around[TAG..].copy_from_slice(&nonce);
        Ok(around)
    }

    /// Decrypts into `plain`, which has the length of the ciphertext. Returns false if these bytes
    /// were not made with this key and this associated data.
    pub(in crate::store) fn open(
        &self,
        associated: &[u8],
        ciphertext: &[u8],
        around: &[u8; AROUND],
        plain: &mut [u8],
    ) -> bool {
        let (tag, nonce) = around.split_at(TAG);
        let tag: [u8; TAG] = tag.try_into().expect("because the slice is as long as the array");
        let nonce: [u8; NONCE] = nonce.try_into().expect("because the slice is as long as the array");
        let Ok(both) = InOutBuf::new(ciphertext, plain) else { return false };
        let opened =
            self.cipher.decrypt_inout_detached(&Nonce::from(nonce), associated, both, &Tag::from(tag));
        wipe_stack();
        opened.is_ok()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("padding", &self.padding).finish_non_exhaustive()
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("because HMAC takes keys of any length")
}

/// Returns random bytes from the operating system.
pub(in crate::store) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = getrandom::fill(&mut bytes).map_err(std::io::Error::from);
    got.map_err(Error::io("get randomness from the system"))?;
    Ok(bytes)
}

const TAG: usize = 16;
const NONCE: usize = 12;

/// The length of a tag and a nonce.
pub(in crate::store) const AROUND: usize = TAG + NONCE;
