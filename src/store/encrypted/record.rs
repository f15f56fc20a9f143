//! Encrypts and decrypts single records.
//!
//! ```text
//! ciphertext of (the bytes, zeros as padding, the length of the bytes: u64) | tag 16 | nonce 12 | kind 1 | "cre1"
//! ```
//!
//! Everything but the ciphertext is at the end, so a record is decrypted in place and truncated.

use aes_gcm_siv::{AeadInOut, Nonce, Tag};

use super::{
    key::Keys,
    kind::{Kind, random},
};
use crate::{Digest256, Error, Result, wiped::wipe_stack};

/// Encrypts these bytes into `record`, which is emptied first, with padding up to `padded` bytes.
/// The record can be opened under this name only.
pub(super) fn seal(
    keys: &Keys,
    kind: Kind,
    name: &Digest256,
    bytes: &[u8],
    padded: usize,
    record: &mut Vec<u8>,
) -> Result<()> {
    let padded = padded.max(bytes.len());
    record.clear();
    record.reserve(padded + AROUND);
    record.extend_from_slice(bytes);
    record.resize(padded, 0);
    record.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    // The nonce comes from the system each time: a process restored twice would repeat a
    // generator's state.
    let nonce: [u8; NONCE] = random()?;
    let tag = keys
        .cipher
        .encrypt_inout_detached(&Nonce::from(nonce), &associated(kind, name), record.as_mut_slice().into())
        .map_err(|_| Error::store("encrypt a record", "it has more than 64 GiB"))?;
    wipe_stack();
    record.extend_from_slice(&tag);
    record.extend_from_slice(&nonce);
    record.push(kind.code());
    record.extend_from_slice(VERSION);
    Ok(())
}

/// Decrypts a record that was found under this name.
///
/// # Errors
///
/// [`Error::Corrupt`] if it was made for another name, kind or keys, or is damaged.
pub(super) fn unseal(
    keys: &Keys,
    kind: Kind,
    name: &Digest256,
    mut record: Vec<u8>,
    what: impl Fn() -> String,
) -> Result<Vec<u8>> {
    let damaged = |problem: &str| Error::corrupt(what(), problem);
    let Some(end) = record.len().checked_sub(AROUND - LENGTH) else {
        return Err(damaged("its record is too short"));
    };
    let (ciphertext, trailer) = record.split_at_mut(end);
    if !trailer.ends_with(VERSION) {
        return Err(damaged("its record is not of a version that is known"));
    }
    if trailer[TAG + NONCE] != kind.code() {
        return Err(damaged("its record is of another kind"));
    }
    let tag: [u8; TAG] = trailer[..TAG].try_into().expect("because the slice is as long as the array");
    let nonce: [u8; NONCE] =
        trailer[TAG..TAG + NONCE].try_into().expect("because the slice is as long as the array");
    let decrypted = keys.cipher.decrypt_inout_detached(
        &Nonce::from(nonce),
        &associated(kind, name),
        ciphertext.into(),
        &Tag::from(tag),
    );
    wipe_stack();
    decrypted.map_err(|_| damaged("its record is not what was encrypted"))?;
    let Some((padded, length)) = ciphertext.split_last_chunk::<LENGTH>() else {
        return Err(damaged("its record has no length"));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > padded.len() {
        return Err(damaged("its record is shorter than its length"));
    }
    record.truncate(length);
    Ok(record)
}

/// Data that is authenticated but not encrypted; it must be the same when the record is opened.
fn associated(kind: Kind, name: &Digest256) -> [u8; 37] {
    let mut associated = [0; 37];
    associated[..4].copy_from_slice(VERSION);
    associated[4] = kind.code();
    associated[5..].copy_from_slice(name.as_bytes());
    associated
}

const VERSION: &[u8; 4] = b"cre1";
const TAG: usize = 16;
const NONCE: usize = 12;
const LENGTH: usize = 8;
/// The size of a record beyond its bytes and their padding.
const AROUND: usize = LENGTH + TAG + NONCE + 1 + VERSION.len();
