//! [`Builder`] and [`Frame`]: some hundred kilobytes of blobs, with a header that lists them.

use super::{PackId, bytes_at, codec, number, short};
use crate::{Digest256, Error, Result, digest::Hasher, wiped::Wiped};

/// Collects blobs until there is enough for a frame.
#[derive(Debug)]
pub(crate) struct Builder {
    entries: Vec<u8>,
    count: u16,
    /// Space for the header, so that a frame is written in one piece, and the blobs.
    raw: Wiped,
    /// The compressed form of `raw`.
    packed: Wiped,
    packer: codec::Packer,
}

impl Builder {
    /// Makes an empty frame.
    pub(crate) fn new() -> Builder {
        Builder {
            entries: Vec::new(),
            count: 0,
            raw: Wiped::zeroed(MAX_HEAD),
            packed: Wiped::default(),
            packer: codec::Packer::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the size of its blobs, in bytes.
    fn length(&self) -> usize {
        self.raw.len() - MAX_HEAD
    }

    /// Returns true if a blob of this length fits. An empty frame takes any blob within
    /// [`MAX_BLOB`].
    pub(crate) fn takes(&self, length: usize) -> bool {
        self.is_empty() || (self.length() + length <= TARGET && self.count < MAX_ENTRIES)
    }

    /// Returns true if there is hardly any room left.
    pub(crate) fn is_full(&self) -> bool {
        self.length() + 1024 > TARGET || self.count >= MAX_ENTRIES
    }

    /// Adds a blob that the frame [takes](Builder::takes).
    pub(crate) fn push(&mut self, digest: &Digest256, bytes: &[u8]) {
        self.entry(digest, bytes, 0);
    }

    /// Adds bytes under a name. The bytes with the highest stamp count.
    pub(crate) fn push_named(&mut self, name: &Digest256, stamp: u64, bytes: &[u8]) {
        self.entry(name, bytes, NAMED);
        self.entries.extend_from_slice(&stamp.to_le_bytes());
        self.entries.extend_from_slice(Digest256::of(bytes).as_bytes());
    }

    fn entry(&mut self, digest: &Digest256, bytes: &[u8], kind: u32) {
        assert!(self.takes(bytes.len()) && bytes.len() <= MAX_BLOB, "the frame does not take this blob");
        self.entries.extend_from_slice(digest.as_bytes());
        let length = u32::try_from(bytes.len()).expect("because the longest blob is far below 4 GiB");
        self.entries.extend_from_slice(&(length | kind).to_le_bytes());
        self.raw.extend_from_slice(bytes);
        self.count += 1;
    }

    /// Encodes the frame, compressed where that helps. Its position is still missing.
    pub(crate) fn seal(&mut self) -> Sealed<'_> {
        let length = self.length();
        let packed =
            self.packer.compress(&self.raw[MAX_HEAD..], length - length / 16, MAX_HEAD, &mut self.packed);
        let (all, stored) = match packed {
            Some(packed) => (&mut self.packed, packed),
            None => (&mut self.raw, length),
        };
        let small = |length: usize| u32::try_from(length).expect("because frames are far below 4 GiB");
        let head = FIXED + self.entries.len();
        let bytes = &mut all[MAX_HEAD - head..MAX_HEAD + stored];
        bytes[..8].copy_from_slice(&MAGIC);
        // The pack and the position come between: see `at`.
        bytes[32..34].copy_from_slice(&[if packed.is_some() { ZSTD } else { RAW }, 0]);
        bytes[34..36].copy_from_slice(&self.count.to_le_bytes());
        bytes[36..40].copy_from_slice(&small(length).to_le_bytes());
        bytes[40..44].copy_from_slice(&small(stored).to_le_bytes());
        bytes[44..48].copy_from_slice(&small(head).to_le_bytes());
        bytes[FIXED..head].copy_from_slice(&self.entries);
        Sealed { bytes, head }
    }

    /// Empties the frame, and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.raw.truncate(MAX_HEAD);
        self.count = 0;
    }
}

/// An encoded frame.
#[derive(Debug)]
pub(crate) struct Sealed<'a> {
    bytes: &'a mut [u8],
    head: usize,
}

impl<'a> Sealed<'a> {
    /// Returns the length of the frame, header included.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the length of the header.
    pub(crate) fn head(&self) -> usize {
        self.head
    }

    /// Completes the frame for position `at` of this pack, and returns all its bytes.
    pub(crate) fn at(self, pack: &PackId, at: u64) -> &'a [u8] {
        self.bytes[8..24].copy_from_slice(&pack.0);
        self.bytes[24..32].copy_from_slice(&at.to_le_bytes());
        let check = checksum(&self.bytes[..self.head]);
        self.bytes[48..FIXED].copy_from_slice(&check);
        self.bytes
    }
}

/// A decompressor of frames, and memory for its results.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    raw: Wiped,
    unpacker: codec::Unpacker,
}

impl Scratch {
    /// Wipes the contents, and keeps the memory.
    pub(crate) fn wipe(&mut self) {
        self.raw.fill(0);
        self.unpacker = codec::Unpacker::default();
    }
}

/// The contents of a frame's header.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The id of its pack.
    pub(crate) pack: PackId,
    /// Its position in the pack.
    pub(crate) at: u64,
    /// The length of its header.
    pub(crate) head: usize,
    /// The number of bytes after the header.
    pub(crate) stored: usize,
    /// The number of those bytes once decompressed.
    pub(crate) raw: usize,
    /// Its entries, one after the other.
    pub(crate) entries: Vec<Entry>,
    compressed: bool,
}

/// A blob in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its digest, or its name.
    pub(crate) digest: Digest256,
    /// A blob or a named entry.
    pub(crate) kind: Kind,
    /// Its position in the raw bytes.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) length: usize,
}

/// The name by which an entry is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By its digest.
    Blob,
    /// By a name. The highest stamp is the newest.
    Named {
        /// Grows with every time that the name is given bytes.
        stamp: u64,
        /// Grows each time that bytes are stored under the name.
        digest: Digest256,
    },
}

impl Entry {
    /// Returns the range of its bytes in the raw bytes.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.length
    }

    /// Returns its bytes in the raw bytes, unverified; `None` if the raw bytes end before.
    pub(crate) fn among<'a>(&self, raw: &'a [u8]) -> Option<&'a [u8]> {
        raw.get(self.range())
    }

    pub(crate) fn is_named(&self) -> bool {
        matches!(self.kind, Kind::Named { .. })
    }

    /// Returns the digest that its bytes must have.
    pub(crate) fn content(&self) -> &Digest256 {
        match &self.kind {
            Kind::Blob => &self.digest,
            Kind::Named { digest, .. } => digest,
        }
    }
}

impl Frame {
    /// Returns the length of the header, if a header can start here. It needs [`FIXED`] bytes.
    pub(super) fn head_of(start: &[u8]) -> Option<usize> {
        let head = (start.len() >= FIXED && start[..8] == MAGIC).then(|| number(start, 44) as usize)?;
        (FIXED..=MAX_HEAD).contains(&head).then_some(head)
    }

    /// Parses a header at the start of these bytes. `None` if there is no intact header.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Frame> {
        let header = bytes.get(..Frame::head_of(bytes)?)?;
        if header[48..FIXED] != checksum(header) || header[33] != 0 {
            return None;
        }
        let count = usize::from(u16::from_le_bytes(bytes_at(header, 34)));
        let (raw, stored) = (number(header, 36) as usize, number(header, 40) as usize);
        let compressed = match header[32] {
            RAW if raw == stored => false,
            ZSTD if stored < raw => true,
            _ => return None,
        };
        let entries = entries(&header[FIXED..], count)?;
        if entries.last().map_or(0, |last| last.range().end) != raw || raw > MAX_BLOB.max(TARGET) {
            return None;
        }
        Some(Frame {
            pack: PackId(bytes_at(header, 8)),
            at: u64::from_le_bytes(bytes_at(header, 24)),
            head: header.len(),
            stored,
            raw,
            entries,
            compressed,
        })
    }

    /// Returns the position of the next frame.
    pub(crate) fn end(&self) -> u64 {
        self.at + (self.head + self.stored) as u64
    }

    /// Returns the position of an entry's bytes in the pack; `None` if the frame is compressed.
    pub(crate) fn place(&self, entry: &Entry) -> Option<u64> {
        (!self.compressed).then(|| self.at + (self.head + entry.start) as u64)
    }

    /// Returns the end of the bytes that this entry needs: of the whole frame if it is compressed.
    pub(crate) fn end_of(&self, entry: &Entry) -> u64 {
        self.place(entry).map_or(self.end(), |place| place + entry.length as u64)
    }

    /// Returns the index of an entry; the index `hint` is tried first.
    pub(crate) fn find(&self, digest: &Digest256, named: bool, hint: usize) -> Option<usize> {
        let is = |entry: &Entry| entry.digest == *digest && entry.is_named() == named;
        // A name may be there twice: the last one is the newest.
        if !named && self.entries.get(hint).is_some_and(is) {
            return Some(hint);
        }
        self.entries.iter().rposition(is)
    }

    /// Returns the raw bytes of the entries from the `stored` bytes. They are not verified yet.
    ///
    /// A truncated frame returns the rest of its bytes, unless it is compressed.
    pub(crate) fn open<'a>(&self, stored: &'a [u8], scratch: &'a mut Scratch) -> Result<&'a [u8]> {
        if !self.compressed {
            return Ok(&stored[..stored.len().min(self.raw)]);
        }
        scratch.unpacker.decompress(stored, self.raw, &mut scratch.raw).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::Unsupported => Error::store("read a compressed frame of a pack", error),
                _ => Error::corrupt(
                    format!("the frame at {} of pack {:?}", self.at, self.pack),
                    error.to_string(),
                ),
            }
        })?;
        Ok(&scratch.raw)
    }

    /// Returns the verified bytes of an entry.
    pub(crate) fn verified<'a>(&self, entry: &Entry, raw: &'a [u8]) -> Result<&'a [u8]> {
        let what = || format!("{} in the frame at {} of pack {:?}", entry.digest, self.at, self.pack);
        let bytes = entry.among(raw).ok_or_else(|| {
            Error::corrupt(what(), format!("the pack ends within its {} bytes", entry.length))
        })?;
        crate::store::verify(entry.content(), bytes, what)?;
        Ok(bytes)
    }
}

fn entries(mut rest: &[u8], count: usize) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity(count.min(usize::from(MAX_ENTRIES)));
    let mut start = 0;
    for _ in 0..count {
        let fixed = rest.get(..ENTRY)?;
        let length = number(fixed, 32);
        let (named, length) = (length & NAMED != 0, (length & !NAMED) as usize);
        let digest = Digest256::from_bytes(bytes_at(fixed, 0));
        rest = &rest[ENTRY..];
        let kind = if named {
            let more = rest.get(..40)?;
            rest = &rest[40..];
            let digest = Digest256::from_bytes(bytes_at(more, 8));
            Kind::Named { stamp: u64::from_le_bytes(bytes_at(more, 0)), digest }
        } else {
            Kind::Blob
        };
        entries.push(Entry { digest, kind, start, length });
        start = start.checked_add(length)?;
    }
    rest.is_empty().then_some(entries)
}

/// Computes the checksum over the whole header, with zeros in its own place.
fn checksum(header: &[u8]) -> [u8; 16] {
    let mut hasher = Hasher::new();
    hasher.update(&header[..48]);
    hasher.update(&[0; 16]);
    hasher.update(&header[FIXED..]);
    short(&hasher.finish())
}

/// A frame with this many raw bytes takes no further blob.
///
/// It is large enough for a small share of headers and good compression, and small enough to be
/// read for one blob.
pub(crate) const TARGET: usize = 256 * 1024;

/// The longest blob that a frame holds; such a blob is alone in its frame.
pub(crate) const MAX_BLOB: usize = 16 * 1024 * 1024;

/// The maximum number of entries in a frame.
const MAX_ENTRIES: u16 = 1024;

/// The maximum length of a header.
pub(super) const MAX_HEAD: usize = FIXED + MAX_ENTRIES as usize * (ENTRY + 40);

/// The length of a header without its entries.
pub(super) const FIXED: usize = 64;

/// The length of an entry without the fields of named entries.
const ENTRY: usize = 36;

/// The bit in an entry's length that marks a named entry.
const NAMED: u32 = 1 << 31;

/// The first bytes of every frame.
pub(super) const MAGIC: [u8; 8] = *b"\x89CRF\r\n\x1a\n";

const RAW: u8 = 0;
const ZSTD: u8 = 1;
