//! [`Builder`] and [`Frame`]: some hundred kilobytes of blobs, with a header that lists them.

use std::ops::Range;

use super::{PackId, bytes_at, number, short};
use crate::{
    Digest256, Error, Result,
    digest::Hasher,
    store::{
        codec::{AROUND, Codec, Keys, Packer, Unpacker, locked},
        name::Name,
    },
    wiped::Wiped,
};

/// Collects blobs until there is enough for a frame.
#[derive(Debug)]
pub(crate) struct Builder {
    codec: Codec,
    entries: Vec<(Name, u32)>,
    /// Space for the header, so that a frame is written in one piece, and the blobs.
    raw: Wiped,
    /// The compressed form of `raw`.
    packed: Wiped,
    packer: Packer,
}

impl Builder {
    /// Makes an empty frame.
    pub(crate) fn new(codec: &Codec) -> Builder {
        Builder {
            codec: codec.clone(),
            entries: Vec::new(),
            raw: Wiped::zeroed(FRONT),
            packed: Wiped::default(),
            packer: Packer::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the size of its blobs, in bytes.
    fn length(&self) -> usize {
        self.raw.len() - FRONT
    }

    /// Returns true if a blob of this length fits. An empty frame takes any blob within
    /// [`MAX_BLOB`].
    pub(crate) fn takes(&self, length: usize) -> bool {
        self.is_empty() || (self.length() + length <= TARGET && self.entries.len() < MAX_ENTRIES)
    }

    /// Returns true if there is hardly any room left.
    pub(crate) fn is_full(&self) -> bool {
        self.length() + 1024 > TARGET || self.entries.len() >= MAX_ENTRIES
    }

    /// Adds a blob that the frame [takes](Builder::takes).
    pub(crate) fn push(&mut self, name: &Name, bytes: &[u8]) {
        assert!(self.takes(bytes.len()) && bytes.len() <= MAX_BLOB, "the frame does not take this blob");
        self.entries.push((*name, small(bytes.len())));
        self.raw.extend_from_slice(bytes);
    }

    /// Encodes the frame, compressed if that was asked for and helps. Its position and its
    /// encryption come later, because the encryption is bound to the position.
    pub(crate) fn seal(&mut self) -> Sealed<'_> {
        let length = self.length();
        let packed = match self.codec.compresses() {
            true => self.packer.compress(&self.raw[FRONT..], length - length / 16, FRONT, &mut self.packed),
            false => None,
        };
        let (all, content) = match packed {
            Some(packed) => (&mut self.packed, packed),
            None => (&mut self.raw, length),
        };
        let keys = self.codec.keys().map(|keys| &**keys);
        let form = match (keys, packed) {
            (None, None) => Form::Plain,
            (None, Some(_)) => Form::Zstd,
            (Some(_), None) => Form::Sealed,
            (Some(_), Some(_)) => Form::SealedZstd,
        };
        let count = self.entries.len();
        let (front, stored) = match keys {
            None => (0, content),
            Some(keys) => {
                let front = 4 + 4 * count;
                (front, keys.padded(front + content) + AROUND + CHECK)
            }
        };
        let head = FIXED + count * form.entry();
        let (start, end) = (FRONT - front - head, FRONT - front + stored);
        if all.len() < end {
            all.resize(end);
        }
        let bytes = &mut all[start..end];
        bytes[head + front + content..].fill(0);
        if keys.is_some() {
            let mut lengths = vec![small(content)];
            lengths.extend(self.entries.iter().map(|(_, length)| *length));
            let places = bytes[head..head + front].as_chunks_mut::<4>().0;
            places.iter_mut().zip(lengths).for_each(|(place, length)| *place = length.to_le_bytes());
        }
        bytes[..8].copy_from_slice(&MAGIC);
        // The pack and the position come between: see `at`.
        bytes[32..34].copy_from_slice(&[form as u8, 0]);
        bytes[34..36].copy_from_slice(&small(count).to_le_bytes()[..2]);
        let raw = if keys.is_some() { 0 } else { small(length) };
        bytes[36..40].copy_from_slice(&raw.to_le_bytes());
        bytes[40..44].copy_from_slice(&small(stored).to_le_bytes());
        bytes[44..48].copy_from_slice(&small(head).to_le_bytes());
        let places = bytes[FIXED..head].chunks_exact_mut(form.entry());
        for (place, (name, length)) in places.zip(&self.entries) {
            place[..NAME].copy_from_slice(name.as_bytes());
            if keys.is_none() {
                place[NAME..].copy_from_slice(&length.to_le_bytes());
            }
        }
        Sealed { bytes, head, keys }
    }

    /// Empties the frame, and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.raw.truncate(FRONT);
    }
}

/// An encoded frame.
#[derive(Debug)]
pub(crate) struct Sealed<'a> {
    bytes: &'a mut [u8],
    head: usize,
    keys: Option<&'a Keys>,
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
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has no randomness for the encryption.
    pub(crate) fn at(self, pack: &PackId, at: u64) -> Result<&'a [u8]> {
        self.bytes[8..24].copy_from_slice(&pack.0);
        self.bytes[24..32].copy_from_slice(&at.to_le_bytes());
        let check = checksum(&self.bytes[..self.head]);
        self.bytes[48..FIXED].copy_from_slice(&check);
        if let Some(keys) = self.keys {
            let (header, stored) = self.bytes.split_at_mut(self.head);
            let (sealed, check) = stored.split_at_mut(stored.len() - CHECK);
            let (content, around) = sealed.split_at_mut(sealed.len() - AROUND);
            around.copy_from_slice(&keys.seal(header, content)?);
            check.copy_from_slice(&short(&Digest256::of(sealed)));
        }
        Ok(self.bytes)
    }
}

/// A decoder of frames, and memory for its results.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    decrypted: Wiped,
    raw: Wiped,
    unpacker: Unpacker,
}

impl Scratch {
    /// Wipes the contents, and keeps the memory.
    pub(crate) fn wipe(&mut self) {
        self.decrypted.fill(0);
        self.raw.fill(0);
        self.unpacker = Unpacker::default();
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
    /// Its entries, one after the other.
    pub(crate) entries: Vec<Entry>,
    /// The number of bytes once decompressed; 0 if they are encrypted.
    raw: usize,
    pub(super) form: Form,
}

/// A blob in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    /// Its length. The header of an encrypted frame has no lengths, so there it is an equal share
    /// of the frame.
    pub(crate) length: usize,
    /// Its position in the raw bytes, unless the frame is encrypted.
    start: usize,
}

/// The codec of a frame, by its number in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain = 0,
    Zstd = 1,
    Sealed = 2,
    SealedZstd = 3,
}

impl Form {
    pub(super) fn of(code: u8) -> Option<Form> {
        [Form::Plain, Form::Zstd, Form::Sealed, Form::SealedZstd].get(usize::from(code)).copied()
    }

    fn is_sealed(self) -> bool {
        matches!(self, Form::Sealed | Form::SealedZstd)
    }

    /// Returns the length of an entry in the header.
    pub(super) fn entry(self) -> usize {
        if self.is_sealed() { NAME } else { ENTRY }
    }
}

/// The raw bytes of a frame. They are not verified yet.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    raw: &'a [u8],
    /// The ranges of the entries.
    ranges: Vec<Range<usize>>,
}

impl<'a> Opened<'a> {
    /// Returns the bytes of an entry, unverified; `None` if the raw bytes end before.
    pub(crate) fn entry(&self, index: usize) -> Option<&'a [u8]> {
        self.raw.get(self.ranges.get(index)?.clone())
    }

    /// Copies the raw bytes.
    #[cfg(feature = "object-store")]
    pub(crate) fn copied(&self) -> Copied {
        let place = 0..self.raw.len();
        Copied { bytes: self.raw.to_vec().into(), place, ranges: self.ranges.clone() }
    }
}

/// The raw bytes of a frame, owned. They are not verified yet.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Has the raw bytes at `place`.
    bytes: Wiped,
    place: Range<usize>,
    /// The ranges of the entries.
    ranges: Vec<Range<usize>>,
}

impl Copied {
    /// Returns the number of bytes in memory.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn opened(&self) -> Opened<'_> {
        Opened { raw: &self.bytes[self.place.clone()], ranges: self.ranges.clone() }
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
        let form = Form::of(header[32])?;
        let count = usize::from(u16::from_le_bytes(bytes_at(header, 34)));
        let (raw, stored) = (number(header, 36) as usize, number(header, 40) as usize);
        let fits = match form {
            Form::Plain => raw == stored,
            Form::Zstd => stored < raw,
            Form::Sealed | Form::SealedZstd => {
                raw == 0 && (4 + 4 * count + AROUND + CHECK..=MAX_STORED).contains(&stored)
            }
        };
        let fits = fits && count <= MAX_ENTRIES && header.len() - FIXED == count * form.entry();
        if !fits || raw > MAX_BLOB.max(TARGET) {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        let mut start = 0_usize;
        for (index, entry) in header[FIXED..].chunks_exact(form.entry()).enumerate() {
            let name = Name::from_bytes(bytes_at(entry, 0));
            let length = match form.is_sealed() {
                true => stored / count + if index == 0 { stored % count } else { 0 },
                false => number(entry, NAME) as usize,
            };
            entries.push(Entry { name, length, start });
            start = start.checked_add(length)?;
        }
        if !form.is_sealed() && start != raw {
            return None;
        }
        Some(Frame {
            pack: PackId(bytes_at(header, 8)),
            at: u64::from_le_bytes(bytes_at(header, 24)),
            head: header.len(),
            stored,
            entries,
            raw,
            form,
        })
    }

    /// Returns the position of the next frame.
    pub(crate) fn end(&self) -> u64 {
        self.at + (self.head + self.stored) as u64
    }

    /// Returns the position of an entry's bytes in the pack; `None` if the frame is compressed or
    /// encrypted.
    pub(crate) fn place(&self, entry: &Entry) -> Option<u64> {
        (self.form == Form::Plain).then(|| self.at + (self.head + entry.start) as u64)
    }

    /// Returns the end of the bytes that this entry needs: of the whole frame if it is compressed
    /// or encrypted.
    pub(crate) fn end_of(&self, entry: &Entry) -> u64 {
        self.place(entry).map_or(self.end(), |place| place + entry.length as u64)
    }

    /// Returns the index of an entry; the index `hint` is tried first.
    pub(crate) fn find(&self, name: &Name, hint: usize) -> Option<usize> {
        let is = |entry: &Entry| entry.name == *name;
        if self.entries.get(hint).is_some_and(is) {
            return Some(hint);
        }
        self.entries.iter().rposition(is)
    }

    /// Returns the raw bytes of the entries from the `stored` bytes. They are not verified yet.
    ///
    /// A truncated frame returns the rest of its bytes, unless it is compressed or encrypted.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if it is damaged, or encrypted in a store that is not, or the reverse.
    /// [`Error::Store`] if this program has no decompressor, or no key.
    pub(crate) fn open<'a>(
        &self,
        codec: &Codec,
        stored: &'a [u8],
        scratch: &'a mut Scratch,
    ) -> Result<Opened<'a>> {
        if self.form.is_sealed() == codec.is_plain() {
            let problem = if codec.is_plain() { "it is encrypted" } else { "it is not encrypted" };
            return Err(self.damaged(problem));
        }
        let Scratch { decrypted, raw, unpacker } = scratch;
        if !self.form.is_sealed() {
            let ranges = self.entries.iter().map(|entry| entry.start..entry.start + entry.length).collect();
            let raw = match self.form {
                Form::Plain => &stored[..stored.len().min(self.raw)],
                _ => self.unpack(unpacker, stored, self.raw, raw)?,
            };
            return Ok(Opened { raw, ranges });
        }
        let keys = codec.keys().ok_or_else(|| locked("read a frame of a pack"))?;
        let (ranges, content) = self.decrypt(keys, stored, decrypted)?;
        let length = ranges.last().map_or(0, |last| last.end);
        let raw = match self.form {
            Form::Sealed if content.len() == length => content,
            Form::Sealed => return Err(self.damaged("its lengths do not add up")),
            _ => self.unpack(unpacker, content, length, raw)?,
        };
        Ok(Opened { raw, ranges })
    }

    /// Returns the raw bytes of the entries as [`open`](Frame::open) does, without a copy of them.
    ///
    /// # Errors
    ///
    /// As [`open`](Frame::open).
    pub(crate) fn open_owned(&self, codec: &Codec, stored: Wiped) -> Result<Copied> {
        let mut scratch = Scratch::default();
        let Opened { raw, ranges } = self.open(codec, &stored, &mut scratch)?;
        let length = raw.len();
        let (bytes, start) = match self.form {
            Form::Plain => (stored, 0),
            Form::Sealed => (scratch.decrypted, self.front()),
            Form::Zstd | Form::SealedZstd => (scratch.raw, 0),
        };
        Ok(Copied { bytes, place: start..start + length, ranges })
    }

    /// Returns the length of the lengths in the encrypted bytes.
    fn front(&self) -> usize {
        4 + 4 * self.entries.len()
    }

    /// Decrypts a frame; returns the ranges of its blobs, and their bytes, maybe compressed.
    fn decrypt<'a>(
        &self,
        keys: &Keys,
        stored: &[u8],
        decrypted: &'a mut Wiped,
    ) -> Result<(Vec<Range<usize>>, &'a [u8])> {
        let sealed = stored.get(..self.stored - CHECK).filter(|_| stored.len() == self.stored);
        let (sealed, around) = sealed
            .and_then(|sealed| sealed.split_last_chunk::<AROUND>())
            .ok_or_else(|| self.damaged("the pack ends within it"))?;
        if decrypted.len() < sealed.len() {
            decrypted.resize(sealed.len());
        }
        let plain = &mut decrypted[..sealed.len()];
        if !keys.open(&self.header(), sealed, around, plain) {
            return Err(self.damaged("it fails authentication"));
        }
        let plain = &*plain;
        let front = self.front();
        let mut lengths = plain[..front].as_chunks::<4>().0.iter().map(|length| u32::from_le_bytes(*length));
        let content = lengths.next().unwrap_or(0) as usize;
        let mut ranges = Vec::with_capacity(self.entries.len());
        let mut start = 0_usize;
        for length in lengths {
            let end = start.saturating_add(length as usize);
            ranges.push(start..end);
            start = end;
        }
        match plain[front..].get(..content).filter(|_| start <= MAX_BLOB.max(TARGET)) {
            Some(content) => Ok((ranges, content)),
            None => Err(self.damaged("its lengths do not add up")),
        }
    }

    fn unpack<'a>(
        &self,
        unpacker: &mut Unpacker,
        packed: &[u8],
        length: usize,
        raw: &'a mut Wiped,
    ) -> Result<&'a [u8]> {
        unpacker.decompress(packed, length, raw).map_err(|error| match error.kind() {
            std::io::ErrorKind::Unsupported => Error::store("read a compressed frame of a pack", error),
            _ => self.damaged(&error.to_string()),
        })?;
        Ok(raw)
    }

    /// Returns true if an encrypted frame has the right checksum, which needs no key.
    pub(crate) fn has_checksum(&self, stored: &[u8]) -> bool {
        let split = stored.split_last_chunk::<CHECK>().filter(|_| stored.len() == self.stored);
        self.form.is_sealed() && split.is_some_and(|(sealed, check)| *check == short(&Digest256::of(sealed)))
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.form.is_sealed()
    }

    /// Returns the header of an encrypted frame, to which its contents are bound.
    fn header(&self) -> Vec<u8> {
        let mut header = vec![0; self.head];
        header[..8].copy_from_slice(&MAGIC);
        header[8..24].copy_from_slice(&self.pack.0);
        header[24..32].copy_from_slice(&self.at.to_le_bytes());
        header[32] = self.form as u8;
        header[34..36].copy_from_slice(&small(self.entries.len()).to_le_bytes()[..2]);
        header[36..40].copy_from_slice(&small(self.raw).to_le_bytes());
        header[40..44].copy_from_slice(&small(self.stored).to_le_bytes());
        header[44..48].copy_from_slice(&small(self.head).to_le_bytes());
        let places = header[FIXED..].chunks_exact_mut(NAME);
        places.zip(&self.entries).for_each(|(place, entry)| place.copy_from_slice(entry.name.as_bytes()));
        let check = checksum(&header);
        header[48..FIXED].copy_from_slice(&check);
        header
    }

    /// Returns the verified bytes of an entry.
    pub(crate) fn verified<'a>(&self, codec: &Codec, index: usize, opened: &Opened<'a>) -> Result<&'a [u8]> {
        let name = &self.entries[index].name;
        let what = || format!("{name} in the frame at {} of pack {:?}", self.at, self.pack);
        let bytes = opened.entry(index).ok_or_else(|| {
            Error::corrupt(what(), format!("the pack ends within its {} bytes", self.entries[index].length))
        })?;
        codec.verify(name, bytes, what)?;
        Ok(bytes)
    }

    fn damaged(&self, problem: &str) -> Error {
        Error::corrupt(format!("the frame at {} of pack {:?}", self.at, self.pack), problem)
    }
}

#[cfg(fuzzing)]
impl Frame {
    /// Makes the header at this position one of this pack and position, with the right checksum;
    /// returns the position of the next.
    pub(crate) fn mend(pack: &mut [u8], id: &PackId, at: usize) -> Option<usize> {
        let bytes = pack.get_mut(at..)?;
        let head = Frame::head_of(bytes)?;
        let header = bytes.get_mut(..head)?;
        header[8..24].copy_from_slice(&id.0);
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        let check = checksum(header);
        header[48..FIXED].copy_from_slice(&check);
        Some(at + head + number(header, 40) as usize)
    }

    /// Encrypts any bytes as the contents of a frame.
    #[cfg(feature = "encryption")]
    pub(crate) fn around(keys: &Keys, id: &PackId, at: u64, names: &[Name], content: &[u8]) -> Vec<u8> {
        let stored = (content.len().max(4 + 4 * names.len())) + AROUND + CHECK;
        let entries: Vec<_> = names.iter().map(|name| Entry { name: *name, length: 0, start: 0 }).collect();
        let form = if content.len() % 2 == 0 { Form::Sealed } else { Form::SealedZstd };
        let head = FIXED + names.len() * NAME;
        let frame = Frame { pack: *id, at, head, stored, entries, raw: 0, form };
        let mut bytes = frame.header();
        let mut sealed = content.to_vec();
        sealed.resize(stored - AROUND - CHECK, 0);
        let around = keys.seal(&bytes, &mut sealed).expect("because the system has randomness");
        sealed.extend_from_slice(&around);
        let check = short(&Digest256::of(&sealed));
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(&check);
        bytes
    }
}

/// Computes the checksum over the whole header, with zeros in its own place.
fn checksum(header: &[u8]) -> [u8; 16] {
    let mut hasher = Hasher::new();
    hasher.update(&header[..48]);
    hasher.update(&[0; 16]);
    hasher.update(&header[FIXED..]);
    short(&hasher.finish())
}

fn small(length: usize) -> u32 {
    u32::try_from(length).expect("because frames are far below 4 GiB")
}

/// A frame with this many raw bytes takes no further blob.
///
/// It is large enough for a small share of headers and good compression, and small enough to be
/// read for one blob.
pub(crate) const TARGET: usize = 256 * 1024;

/// The longest blob that a frame holds; such a blob is alone in its frame.
pub(crate) const MAX_BLOB: usize = 16 * 1024 * 1024;

/// The maximum number of entries in a frame.
const MAX_ENTRIES: usize = 1024;

/// The maximum length of a header.
pub(super) const MAX_HEAD: usize = FIXED + MAX_ENTRIES * ENTRY;

/// The space before the blobs of a frame: for the header, and for the lengths in the encrypted
/// part.
const FRONT: usize = MAX_HEAD + 4 + 4 * MAX_ENTRIES;

/// The maximum length of the encrypted bytes of a frame, with padding.
const MAX_STORED: usize = MAX_BLOB + 2 * 1024 * 1024;

/// The length of a header without its entries.
pub(super) const FIXED: usize = 64;

/// The length of a name, which is an entry of an encrypted frame; and of an entry with a length.
pub(super) const NAME: usize = 32;
const ENTRY: usize = NAME + 4;

/// The length of the checksum behind encrypted bytes.
const CHECK: usize = 16;

/// The first bytes of every frame.
pub(super) const MAGIC: [u8; 8] = *b"\x89CRF\r\n\x1a\n";
