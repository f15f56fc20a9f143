//! [`Kind`]: the kinds of records. [`random`]: randomness for keys and nonces.

use crate::{Error, Result};

/// The kind of a record. A record of one kind is never accepted as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A blob.
    Blob,
    /// The header of a blob of many parts: its id and lengths.
    Header,
    /// A part of a blob, with others behind it.
    Part,
    /// A blob's last part.
    LastPart,
    /// Bytes under a name that the caller chose.
    Named,
}

impl Kind {
    pub(super) fn code(self) -> u8 {
        match self {
            Kind::Blob => 1,
            Kind::Header => 2,
            Kind::Part => 3,
            Kind::LastPart => 4,
            Kind::Named => 5,
        }
    }
}

/// Returns random bytes from the operating system.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = getrandom::fill(&mut bytes).map_err(std::io::Error::from);
    got.map_err(Error::io("get randomness from the system"))?;
    Ok(bytes)
}
