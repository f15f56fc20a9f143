//! Packs: files of many small blobs, in frames of some hundred kilobytes with a header each.
//!
//! This module does not know where the bytes are kept. [`Builder`] fills and encodes a frame,
//! [`Frame`] is its parsed header, [`scan`] finds all frames of a pack. `docs/formats.md` has the
//! format byte by byte.

mod frame;
mod glimpse;
mod run;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    fmt, process,
    time::{SystemTime, UNIX_EPOCH},
};

pub(crate) use self::{
    frame::{Builder, Copied, Entry, Frame, MAX_BLOB, Scratch},
    glimpse::glimpse,
    run::run_of,
    scan::{Found, scan},
};
use crate::{Digest256, digest::Hasher, unique};

/// The id of a pack: sixteen unique bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackId([u8; 16]);

impl PackId {
    /// Makes a new id. A process that was restored twice exists twice, with equal pids, counts and
    /// random numbers, but at different times.
    pub(crate) fn new() -> PackId {
        let (random, count) = unique::number();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        let mut hasher = Hasher::new();
        hasher.update(&now.to_le_bytes());
        hasher.update(&count.to_le_bytes());
        hasher.update(&process::id().to_le_bytes());
        hasher.update(&random.to_le_bytes());
        let mut id = short(&hasher.finish());
        // The time comes first, so that newer packs have later names.
        id[..6].copy_from_slice(&millis(SystemTime::now()));
        PackId(id)
    }

    /// Returns the first characters of the names of packs that were made at this time.
    #[cfg(feature = "object-store")]
    pub(crate) fn beginning(time: SystemTime) -> String {
        millis(time).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> PackId {
        PackId(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the 32 hexadecimal digits, as a name of a file or an object.
    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Parses an id from its digits.
    pub(crate) fn parse(hex: &str) -> Option<PackId> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != 32 || !hex.bytes().all(digit) {
            return None;
        }
        u128::from_str_radix(hex, 16).ok().map(|number| PackId(number.to_be_bytes()))
    }
}

fn millis(time: SystemTime) -> [u8; 6] {
    let millis = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let bytes: [u8; 16] = millis.to_be_bytes();
    bytes_at(&bytes, 10)
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// Makes the first bytes of a pack. Frames follow without gaps.
pub(crate) fn header(id: &PackId) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(&id.0);
    let check = short(&Digest256::of(&header[..32]));
    header[32..].copy_from_slice(&check);
    header
}

/// Parses the first bytes of a pack.
fn parse_header(header: &[u8; HEADER]) -> Header {
    if header[..8] != MAGIC || header[32..] != short(&Digest256::of(&header[..32])) {
        return Header::Damaged;
    }
    match number(header, 8) {
        VERSION => Header::Pack(PackId(bytes_at(header, 16))),
        version => Header::Version(version),
    }
}

enum Header {
    Pack(PackId),
    Version(u32),
    Damaged,
}

/// Returns the checksum of headers: the first half of a digest.
fn short(digest: &Digest256) -> [u8; 16] {
    bytes_at(digest.as_bytes(), 0)
}

/// Returns `N` bytes at a position that must exist.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

/// No text begins like this, and programs that convert line ends damage it visibly.
const MAGIC: [u8; 8] = *b"\x89CRP\r\n\x1a\n";
const VERSION: u32 = 1;

/// The length of a pack's header.
pub(crate) const HEADER: usize = 48;
