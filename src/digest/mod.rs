//! [`Digest256`]: the name of a blob. All hashing happens here.
//!
//! [`Hasher`] takes one stream piece by piece; `of_each` takes many blobs at once.

#[cfg(feature = "multi-buffer")]
mod multi_buffer;
mod one_by_one;

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "multi-buffer")]
use self::multi_buffer::of_each;
#[cfg(not(feature = "multi-buffer"))]
use self::one_by_one::of_each;

const PREFIX: &str = "sha256:";

/// The SHA-256 of a blob's bytes, which is its name in a [`BlobStore`](crate::BlobStore).
///
/// Its text and its JSON are `sha256:` and 64 lower-case hexadecimal digits.
///
/// ```
/// use criu_rpc::Digest256;
///
/// let digest = Digest256::of(b"hello");
/// assert_eq!(digest.to_string().parse(), Ok(digest));
/// assert!(digest.to_string().starts_with("sha256:2cf24dba"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest256([u8; 32]);

impl Digest256 {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest256 {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Computes the digest of each piece. Some processors hash several pieces at once in less time.
    pub(crate) fn of_each(pieces: &[&[u8]]) -> Vec<Digest256> {
        of_each(pieces)
    }

    /// Makes the digest from 32 bytes that were computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest256 {
        Digest256(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hexadecimal digits, without `sha256:`.
    pub fn hex(&self) -> String {
        self.to_string().split_off(PREFIX.len())
    }
}

impl fmt::Display for Digest256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; PREFIX.len() + 64];
        text[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
        for (byte, hex) in self.0.iter().zip(text[PREFIX.len()..].chunks_exact_mut(2)) {
            hex[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            hex[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).expect("because hexadecimal digits are ASCII"))
    }
}

impl fmt::LowerHex for Digest256 {
    /// Writes the 64 hexadecimal digits, without `sha256:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.hex())
    }
}

impl AsRef<[u8]> for Digest256 {
    /// Returns the 32 bytes.
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Digest256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest256 {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest256, ParseDigestError> {
        let hex = text.strip_prefix(PREFIX).ok_or(ParseDigestError)?.as_bytes();
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return Err(ParseDigestError);
        }
        for (byte, hex) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(hex[0])? << 4 | nibble(hex[1])?;
        }
        Ok(Digest256(bytes))
    }
}

fn nibble(digit: u8) -> Result<u8, ParseDigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseDigestError),
    }
}

impl TryFrom<String> for Digest256 {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Digest256, ParseDigestError> {
        text.parse()
    }
}

impl From<Digest256> for String {
    fn from(digest: Digest256) -> String {
        digest.to_string()
    }
}

/// The error for a text that is not `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
pub struct ParseDigestError;

/// Computes a [`Digest256`] piece by piece.
///
/// Bytes can be copied into it, because it is an [`io::Write`].
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Makes a hasher without any bytes.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes.
    pub fn finish(self) -> Digest256 {
        Digest256(self.0.finalize().into())
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(Digest256::of(b"").to_string(), EMPTY);
        assert_eq!(Digest256::of(b"").hex(), EMPTY["sha256:".len()..]);
        assert_eq!(format!("sha256:{:x}", Digest256::of(b"")), EMPTY);
        assert_eq!(Digest256::of(b"").as_ref()[..2], [0xe3, 0xb0]);
    }

    #[test]
    fn text_and_json_come_back_as_the_same_digest() {
        let digest = Digest256::of(b"some bytes");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Digest256>(&json).unwrap(), digest);
    }

    #[test]
    fn anything_else_is_refused() {
        let upper = EMPTY.to_uppercase();
        let long = format!("{EMPTY}0");
        let wide = EMPTY.replace("e3", "é");
        for text in ["", "sha256:", "md5:00", &EMPTY[..70], &EMPTY[7..], &upper, &long, &wide] {
            assert_eq!(text.parse::<Digest256>(), Err(ParseDigestError), "{text}");
        }
    }

    #[test]
    fn many_get_the_digests_that_each_has() {
        let bytes = vec![7; 9000];
        let pieces: Vec<&[u8]> = (0..90).map(|n| &bytes[..n * 100]).collect();
        let each: Vec<_> = pieces.iter().map(|piece| Digest256::of(piece)).collect();
        assert_eq!(Digest256::of_each(&pieces), each);
        assert_eq!(Digest256::of_each(&[]), []);
    }

    #[test]
    fn pieces_hash_as_the_whole() {
        let mut hasher = Hasher::new();
        hasher.update(b"he");
        hasher.update(b"llo");
        assert_eq!(hasher.finish(), Digest256::of(b"hello"));
    }
}
