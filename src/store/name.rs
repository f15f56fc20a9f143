//! [`Name`]: the name under which a store keeps a blob.

use std::fmt;

use crate::Digest256;

/// The name of a blob in files, packs and lists: its digest, or in an encrypted store a keyed hash
/// of the digest. See [`Codec::name`](super::codec::Codec::name).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name([u8; 32]);

impl Name {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Name {
        Name(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        self.digest().hex()
    }

    /// Parses the name of a file or an object.
    pub(crate) fn parse(hex: &str) -> Option<Name> {
        format!("sha256:{hex}").parse().ok().map(Name::plain)
    }

    /// Returns the name of a blob that is not encrypted.
    pub(crate) fn plain(digest: Digest256) -> Name {
        Name(*digest.as_bytes())
    }

    /// Returns the same bytes in the form of a digest.
    pub(crate) fn digest(&self) -> Digest256 {
        Digest256::from_bytes(self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}
