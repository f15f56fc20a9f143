//! Blobs that are files or objects by themselves: as they are, or encrypted in parts.
//!
//! ```text
//! magic 8 | version 4 | zeros 4 | id 16
//! each part: ciphertext, up to 1 MiB | tag 16 | nonce 12
//! ciphertext of the blob's length 8 | tag 16 | nonce 12
//! SHA-256 of all bytes above and the name 32
//! ```
//!
//! The parts are bound as in the STREAM construction: to the blob by a random id of each writer, to
//! their position, and to being last or not. STREAM keeps position and end in the nonce. Here the
//! nonce is random, and the associated data has them, so a part can be read by itself. The name is
//! known only after the last byte. So the length comes last, and binds the id to the name.

use std::{
    io::{self, Read},
    sync::Arc,
};

use super::keys::{AROUND, Keys, random};
use crate::{
    Digest256, Error, Result,
    digest::Hasher,
    store::{name::Name, read_at::ReadAt},
    wiped::Wiped,
};

/// Takes encoded bytes.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Encodes a blob piece by piece.
pub(in crate::store) enum Encoder {
    /// Passes all bytes on.
    Plain,
    Sealed(Box<Sealer>),
}

impl Encoder {
    pub(in crate::store) fn sealed(keys: &Arc<Keys>) -> Result<Encoder> {
        Ok(Encoder::Sealed(Box::new(Sealer {
            keys: Arc::clone(keys),
            id: random()?,
            place: 0,
            length: 0,
            part: Wiped::default(),
            hasher: None,
        })))
    }

    /// Takes bytes, and passes encoded bytes on.
    pub(in crate::store) fn write(&mut self, bytes: &[u8], sink: Sink<'_>) -> io::Result<()> {
        match self {
            Encoder::Plain => sink(bytes),
            Encoder::Sealed(sealer) => sealer.write(bytes, sink),
        }
    }

    /// Passes the last bytes on. The blob has this name.
    pub(in crate::store) fn finish(self, name: &Name, sink: Sink<'_>) -> io::Result<()> {
        match self {
            Encoder::Plain => Ok(()),
            Encoder::Sealed(sealer) => sealer.finish(name, sink),
        }
    }
}

/// Encrypts a blob, with at most one part of it in memory.
pub(in crate::store) struct Sealer {
    keys: Arc<Keys>,
    id: Id,
    place: u64,
    length: u64,
    /// The current part. A full part waits for more bytes: it may be the last.
    part: Wiped,
    /// The hash of the encoded bytes; `None` before the first of them.
    hasher: Option<Hasher>,
}

impl Sealer {
    fn write(&mut self, mut bytes: &[u8], sink: Sink<'_>) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.part.len() == PART {
                self.seal_part(false, sink)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn seal_part(&mut self, last: bool, sink: Sink<'_>) -> io::Result<()> {
        self.length += self.part.len() as u64;
        self.part.resize(self.keys.padded_part(self.place, self.part.len(), PART));
        let associated = part_of(&self.id, self.place, last);
        let around = self.keys.seal(&associated, &mut self.part).map_err(as_io)?;
        self.place += 1;
        let part = std::mem::take(&mut self.part);
        self.emit(&part, sink)?;
        self.emit(&around, sink)?;
        self.part = part;
        self.part.clear();
        Ok(())
    }

    fn finish(mut self, name: &Name, sink: Sink<'_>) -> io::Result<()> {
        self.seal_part(true, sink)?;
        let mut length = self.length.to_le_bytes();
        let around = self.keys.seal(&end_of(&self.id, name), &mut length).map_err(as_io)?;
        self.emit(&length, sink)?;
        self.emit(&around, sink)?;
        let mut hasher = self.hasher.take().unwrap_or_default();
        hasher.update(name.as_bytes());
        sink(hasher.finish().as_bytes())
    }

    /// Passes encoded bytes on, after the head.
    fn emit(&mut self, bytes: &[u8], sink: Sink<'_>) -> io::Result<()> {
        if self.hasher.is_none() {
            let mut head = [0; HEAD];
            head[..8].copy_from_slice(&MAGIC);
            head[8..12].copy_from_slice(&VERSION.to_le_bytes());
            head[16..].copy_from_slice(&self.id);
            let mut hasher = Hasher::new();
            hasher.update(&head);
            sink(&head)?;
            self.hasher = Some(hasher);
        }
        self.hasher.as_mut().expect("because it was made just now").update(bytes);
        sink(bytes)
    }
}

/// Returns the encoded length of a blob.
#[cfg(feature = "object-store")]
pub(in crate::store) fn encoded_length(keys: &Keys, length: u64) -> u64 {
    let count = count_of(length);
    let last = usize::try_from(length - (count - 1) * PART as u64).unwrap_or(PART);
    let last = keys.padded_part(count - 1, last, PART);
    (HEAD + TAIL + AROUND + last) as u64 + (count - 1) * (PART + AROUND) as u64
}

/// An encrypted blob whose end was opened.
pub(in crate::store) struct Blob<S> {
    keys: Arc<Keys>,
    source: S,
    what: String,
    id: Id,
    /// The length of the blob.
    length: u64,
    /// The encoded length of the last part.
    last: usize,
}

impl<S: ReadAt> Blob<S> {
    /// Opens the blob of this name. `what` names it in errors.
    ///
    /// # Errors
    ///
    /// Errors of the source; [`Error::Corrupt`] within [`io::Error`] if it is damaged, or another
    /// blob.
    pub(in crate::store) fn open(
        keys: &Arc<Keys>,
        name: &Name,
        source: S,
        what: String,
    ) -> io::Result<Blob<S>> {
        let damaged = |problem: &str| Err(corrupt(&what, problem));
        let size = source.length()?;
        let Some(body) = size.checked_sub((HEAD + TAIL) as u64) else { return damaged("it is too short") };
        let (mut head, mut end) = ([0; HEAD], [0; TAIL]);
        let read = source.read_full(&mut head, 0)? + source.read_full(&mut end, HEAD as u64 + body)?;
        if read < HEAD + TAIL {
            return damaged("it became shorter");
        }
        if head[..8] != MAGIC || head[8..16] != *[VERSION.to_le_bytes(), [0; 4]].concat() {
            return damaged("it is not an encrypted blob of a known version");
        }
        let mut id = [0; 16];
        id.copy_from_slice(&head[16..]);
        let mut around = [0; AROUND];
        around.copy_from_slice(&end[8..8 + AROUND]);
        let mut length = [0; 8];
        if !keys.open(&end_of(&id, name), &end[..8], &around, &mut length) {
            return damaged("its end fails authentication");
        }
        let length = u64::from_le_bytes(length);
        let before = (count_of(length) - 1).checked_mul((PART + AROUND) as u64);
        let last = before.and_then(|before| body.checked_sub(before));
        let last = last.and_then(|last| usize::try_from(last).ok());
        let least = length - (count_of(length) - 1) * PART as u64;
        match last.filter(|last| (AROUND as u64 + least..=(AROUND + PART) as u64).contains(&(*last as u64))) {
            Some(last) => Ok(Blob { keys: Arc::clone(keys), source, what, id, length, last }),
            None => damaged("its length does not fit the parts"),
        }
    }

    /// Reads a part of the blob, fewer bytes at its end.
    pub(in crate::store) fn range(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let start = offset.min(self.length);
        let end = start.saturating_add(length as u64).min(self.length);
        // A growing vector would leave copies behind.
        let mut range = Wiped::with_capacity(usize::try_from(end - start).unwrap_or(usize::MAX));
        let mut at = start;
        while at < end {
            let (place, skip) = (at / PART as u64, usize::try_from(at % PART as u64).unwrap_or(PART));
            let mut sealed = vec![0; self.encoded(place)];
            let read = self.source.read_full(&mut sealed, HEAD as u64 + place * (PART + AROUND) as u64)?;
            sealed.truncate(read);
            let part = self.open_part(place, &sealed)?;
            let take = part.len().min(skip + usize::try_from(end - at).unwrap_or(PART));
            range.extend_from_slice(&part[skip..take]);
            at += (take - skip) as u64;
        }
        Ok(std::mem::take(range.vec()))
    }

    /// Reads the blob from start to end. `encoded` gives its encoded bytes.
    pub(in crate::store) fn reader<R: Read>(self, encoded: R) -> Reader<S, R> {
        Reader { blob: self, encoded, skip: HEAD, next: 0, part: Wiped::default(), used: 0 }
    }

    /// Returns the encoded length of a part.
    fn encoded(&self, place: u64) -> usize {
        if place + 1 == count_of(self.length) { self.last } else { PART + AROUND }
    }

    fn open_part(&self, place: u64, sealed: &[u8]) -> io::Result<Wiped> {
        let last = place + 1 == count_of(self.length);
        let damaged = || corrupt(&self.what, &format!("its part {place} fails authentication"));
        let (bytes, around) = sealed.split_last_chunk::<AROUND>().ok_or_else(damaged)?;
        let mut part = Wiped::zeroed(bytes.len());
        if !self.keys.open(&part_of(&self.id, place, last), bytes, around, &mut part) {
            return Err(damaged());
        }
        let length = self.length - place * PART as u64;
        part.truncate(usize::try_from(length).unwrap_or(PART).min(PART));
        Ok(part)
    }
}

/// Reads an encrypted blob, with one part of it in memory.
pub(in crate::store) struct Reader<S, R> {
    blob: Blob<S>,
    encoded: R,
    /// The bytes of the head that were not passed yet.
    skip: usize,
    next: u64,
    part: Wiped,
    used: usize,
}

impl<S: ReadAt, R: Read> Read for Reader<S, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.part.len() && self.next < count_of(self.blob.length) {
            let mut sealed = vec![0; self.skip + self.blob.encoded(self.next)];
            self.encoded.read_exact(&mut sealed).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => corrupt(&self.blob.what, "it became shorter"),
                _ => error,
            })?;
            self.part = self.blob.open_part(self.next, &sealed[std::mem::take(&mut self.skip)..])?;
            self.used = 0;
            self.next += 1;
        }
        let count = (&self.part[self.used..]).read(buffer)?;
        self.used += count;
        Ok(count)
    }
}

/// Returns true if the checksum of an encrypted blob is right, which needs no key.
pub(in crate::store) fn has_checksum(name: &Name, source: &impl ReadAt) -> io::Result<bool> {
    let Some(length) = source.length()?.checked_sub(32) else { return Ok(false) };
    let mut hasher = hash(source, length)?;
    hasher.update(name.as_bytes());
    let mut checksum = [0; 32];
    let read = source.read_full(&mut checksum, length)?;
    Ok(read == checksum.len() && hasher.finish().as_bytes() == &checksum)
}

/// Hashes the first bytes of a source, fewer if it ends before.
pub(in crate::store) fn hash(source: &impl ReadAt, length: u64) -> io::Result<Hasher> {
    let (mut hasher, mut piece, mut at) = (Hasher::new(), Wiped::zeroed(BUFFER), 0);
    while at < length {
        let wanted = usize::try_from(length - at).unwrap_or(BUFFER).min(BUFFER);
        match source.read_full(&mut piece[..wanted], at)? {
            0 => break,
            read => {
                hasher.update(&piece[..read]);
                at += read as u64;
            }
        }
    }
    Ok(hasher)
}

/// Hashes everything that a reader gives.
pub(in crate::store) fn hash_all(mut reader: impl Read) -> io::Result<Digest256> {
    let (mut hasher, mut piece) = (Hasher::new(), Wiped::zeroed(BUFFER));
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn count_of(length: u64) -> u64 {
    length.div_ceil(PART as u64).max(1)
}

/// The associated data of a part.
fn part_of(id: &Id, place: u64, last: bool) -> Vec<u8> {
    [b"criu-rpc blob v1: part".as_slice(), id, &place.to_le_bytes(), &[u8::from(last)]].concat()
}

/// The associated data of the length.
fn end_of(id: &Id, name: &Name) -> Vec<u8> {
    [b"criu-rpc blob v1: end".as_slice(), id, name.as_bytes()].concat()
}

fn corrupt(what: &str, problem: &str) -> io::Error {
    as_io(Error::corrupt(what, problem))
}

/// Wraps the error; callers get it back by [`io::Error::downcast`].
fn as_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Corrupt { .. } => io::ErrorKind::InvalidData,
        Error::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// A random number of the writer of a blob.
type Id = [u8; 16];

/// The size of each part but the last, in bytes.
const PART: usize = 1 << 20;

/// The size of the head, and of everything behind the parts.
const HEAD: usize = 32;
const TAIL: usize = 8 + AROUND + 32;

const MAGIC: [u8; 8] = *b"\x89CRB\r\n\x1a\n";
const VERSION: u32 = 1;

/// The number of bytes hashed at once.
const BUFFER: usize = 128 * 1024;
