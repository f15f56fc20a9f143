//! The key record of an encrypted store. It reveals a wrong key before any blob is read.

use super::keys::Keys;
use crate::{Digest256, Error, Result};

/// The state of a copy of the key record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    Damaged,
    OfThisKey,
    OfAnotherKey,
}

/// Makes a key record: the name of the format, a mark that only this key makes, and a checksum. The
/// checksum distinguishes a damaged record from one of another key.
pub(super) fn make(keys: &Keys) -> Vec<u8> {
    let mut record = [MAGIC.as_slice(), keys.mark()].concat();
    let checksum = Digest256::of(&record);
    record.extend_from_slice(checksum.as_bytes());
    record
}

/// Compares a copy of the key record with these keys.
///
/// # Errors
///
/// [`Error::Store`] if a later version wrote it.
pub(super) fn check(found: Option<&[u8]>, keys: &Keys, doing: &dyn Fn() -> String) -> Result<Found> {
    let Some(found) = found else { return Ok(Found::Missing) };
    let expected = make(keys);
    if *found == *expected {
        return Ok(Found::OfThisKey);
    }
    let Some((content, checksum)) = found.split_last_chunk::<32>() else { return Ok(Found::Damaged) };
    if Digest256::of(content).as_bytes() != checksum {
        return Ok(Found::Damaged);
    }
    match found.len() == expected.len() && content.starts_with(MAGIC) {
        true => Ok(Found::OfAnotherKey),
        false => Err(Error::store(doing(), "it is encrypted in a format that this version does not know")),
    }
}

const MAGIC: &[u8; 8] = b"crKEYv1\n";

/// The names of the two copies, so that a damaged one can be restored.
pub(super) const COPIES: [&str; 2] = ["store.key", "store.key.copy"];
