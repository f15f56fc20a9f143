//! Hashes one message after the other.

use super::Digest256;

pub(super) fn of_each(pieces: &[&[u8]]) -> Vec<Digest256> {
    pieces.iter().map(|piece| Digest256::of(piece)).collect()
}
