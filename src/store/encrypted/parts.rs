//! Blobs of many parts: a record for each part, and a header, written last, that lists them.
//!
//! The parts are bound as in the STREAM construction: to the blob by a random id of each writer, to
//! their position by their name, and to being last by their kind. STREAM keeps position and end in
//! the nonce. Here the nonce is random, so a part can be read without the parts before it.

use std::io::{self, Read, Write};

use super::{
    EncryptedBlobStore, Padding,
    kind::{Kind, random},
    record::seal,
};
use crate::{
    BlobStore, Digest256, Error, Result, Until,
    store::{BlobBatch, BlobWriter},
    wiped::Wiped,
};

/// The size of each part but the last, in bytes. A blob of at most this size is one record.
pub(super) const PART: usize = 1 << 20;

/// The contents of a blob's header.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    id: [u8; 32],
    /// The length of the blob.
    length: u64,
    /// The length of all parts but the last.
    part: u64,
}

impl Parts {
    pub(super) fn decode(bytes: &[u8], what: impl Fn() -> String) -> Result<Parts> {
        let whole = || {
            let (id, rest) = bytes.split_first_chunk::<32>()?;
            let (length, rest) = rest.split_first_chunk::<8>()?;
            let part = u64::from_le_bytes(rest.try_into().ok()?);
            let length = u64::from_le_bytes(*length);
            (length > 0 && 0 < part && part <= LARGEST_PART).then_some(Parts { id: *id, length, part })
        };
        whole().ok_or_else(|| Error::corrupt(what(), "its header is invalid"))
    }

    fn encode(&self) -> Vec<u8> {
        [self.id.as_slice(), &self.length.to_le_bytes(), &self.part.to_le_bytes()].concat()
    }

    fn count(&self) -> u64 {
        self.length.div_ceil(self.part)
    }

    /// Returns the inner store's names for the parts.
    pub(super) fn names<'a, S: BlobStore>(
        &'a self,
        store: &'a EncryptedBlobStore<S>,
    ) -> impl Iterator<Item = Digest256> + 'a {
        (0..self.count()).map(|place| store.keys.part(&self.id, place))
    }

    /// Reads the part at this position.
    fn read<S: BlobStore>(
        &self,
        store: &EncryptedBlobStore<S>,
        digest: &Digest256,
        place: u64,
    ) -> Result<Wiped> {
        let last = place + 1 == self.count();
        let kind = if last { Kind::LastPart } else { Kind::Part };
        let expected = if last { self.length - place * self.part } else { self.part };
        let what = || format!("part {place} of blob {digest}");
        let found = store.open_record(kind, &store.keys.part(&self.id, place), what)?;
        let bytes = Wiped::from(found.ok_or_else(|| Error::corrupt(what(), "it is missing"))?);
        if bytes.len() as u64 != expected {
            return Err(Error::corrupt(what(), format!("it has {} bytes, not {expected}", bytes.len())));
        }
        Ok(bytes)
    }

    /// Reads `length` bytes from `offset` on, or fewer, and only the parts that have them.
    pub(super) fn read_range<S: BlobStore>(
        &self,
        store: &EncryptedBlobStore<S>,
        digest: &Digest256,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let end = offset.saturating_add(length as u64).min(self.length);
        let mut range = Wiped::default();
        let mut at = offset;
        while at < end {
            let place = at / self.part;
            let start = place * self.part;
            let bytes = self.read(store, digest, place)?;
            // Both ends lie within one part in memory, so no conversion truncates.
            let within =
                |position: u64| usize::try_from(position - start).unwrap_or(usize::MAX).min(bytes.len());
            range.extend_from_slice(&bytes[within(at)..within(end)]);
            at = start + bytes.len() as u64;
        }
        Ok(std::mem::take(range.vec()))
    }

    pub(super) fn reader<'a, S: BlobStore>(
        self,
        store: &'a EncryptedBlobStore<S>,
        digest: &Digest256,
    ) -> PartsReader<'a, S> {
        PartsReader { store, digest: *digest, parts: self, next: 0, current: Wiped::default(), used: 0 }
    }
}

/// Reads a blob part by part.
pub(super) struct PartsReader<'a, S> {
    store: &'a EncryptedBlobStore<S>,
    digest: Digest256,
    parts: Parts,
    next: u64,
    current: Wiped,
    used: usize,
}

impl<S: BlobStore> Read for PartsReader<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.current.len() && self.next < self.parts.count() && !into.is_empty() {
            let part = self.parts.read(self.store, &self.digest, self.next);
            self.current = part.map_err(as_io)?;
            self.used = 0;
            self.next += 1;
        }
        let count = (&self.current[self.used..]).read(into)?;
        self.used += count;
        Ok(count)
    }
}

/// Encrypts the parts of a blob into `batch`.
pub(super) struct Sealer {
    parts: Parts,
    record: Vec<u8>,
}

impl Sealer {
    pub(super) fn new() -> Result<Sealer> {
        let parts = Parts { id: random()?, length: 0, part: PART as u64 };
        Ok(Sealer { parts, record: Vec::new() })
    }

    /// Stores the next part. All but the last have [`PART`] bytes.
    pub(super) fn part<S: BlobStore>(
        &mut self,
        store: &EncryptedBlobStore<S>,
        batch: &dyn BlobBatch,
        kind: Kind,
        bytes: &[u8],
    ) -> Result<()> {
        let name = store.keys.part(&self.parts.id, self.parts.count());
        let padded = match store.padding {
            Padding::None => bytes.len(),
            Padding::Padme => PART,
        };
        seal(&store.keys, kind, &name, bytes, padded, &mut self.record)?;
        batch.put_named(&name, &self.record)?;
        self.parts.length += bytes.len() as u64;
        Ok(())
    }

    /// Returns the record of the header, to be stored after all parts.
    pub(super) fn header<S: BlobStore>(
        mut self,
        store: &EncryptedBlobStore<S>,
        digest: &Digest256,
    ) -> Result<(Digest256, Vec<u8>)> {
        let name = store.keys.name(Kind::Header, digest);
        let header = self.parts.encode();
        seal(&store.keys, Kind::Header, &name, &header, header.len(), &mut self.record)?;
        Ok((name, self.record))
    }
}

/// Writes a blob with at most two parts of it in memory.
pub(super) struct EncryptedWriter<'a, S> {
    store: &'a EncryptedBlobStore<S>,
    /// The current part. A full part waits for more bytes: it may be the last.
    bytes: Wiped,
    /// Set once the blob is longer than a part.
    sealing: Option<(Sealer, Box<dyn BlobBatch + 'a>)>,
}

impl<'a, S: BlobStore> EncryptedWriter<'a, S> {
    pub(super) fn new(store: &'a EncryptedBlobStore<S>) -> EncryptedWriter<'a, S> {
        EncryptedWriter { store, bytes: Wiped::default(), sealing: None }
    }

    fn seal_part(&mut self) -> Result<()> {
        let (sealer, batch) = match &mut self.sealing {
            Some(sealing) => sealing,
            none => none.insert((Sealer::new()?, self.store.inner.batch_until(&Until::forever())?)),
        };
        sealer.part(self.store, &**batch, Kind::Part, &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

impl<S: BlobStore> BlobWriter for EncryptedWriter<'_, S> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let EncryptedWriter { store, bytes, sealing } = *self;
        let Some((mut sealer, batch)) = sealing else {
            return store.put_record(Kind::Blob, digest, &bytes);
        };
        sealer.part(store, &*batch, Kind::LastPart, &bytes)?;
        // A batch may show its records in any order. The header must not be seen before the parts.
        batch.commit()?;
        let (name, header) = sealer.header(store, digest)?;
        store.inner.put_named(&name, &header)
    }
}

impl<S: BlobStore> Write for EncryptedWriter<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() == PART && !bytes.is_empty() {
            self.seal_part().map_err(as_io)?;
        }
        let taken = bytes.len().min(PART - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// The largest part size that a header may state: a reader keeps one part in memory.
const LARGEST_PART: u64 = 64 << 20;
