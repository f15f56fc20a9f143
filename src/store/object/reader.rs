//! [`Ahead`]: reads an object piece by piece, with requests running ahead. [`Object`]: reads it at
//! any offset.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use object_store::path::Path;

use super::remote::{AHEAD, PART, Remote, Task, as_io, ranges};
use crate::{Digest256, Error, Result, store::read_at::ReadAt};

/// Reads an object of known length.
pub(super) struct Ahead {
    remote: Arc<Remote>,
    path: Path,
    rest: Box<dyn Iterator<Item = Range<u64>> + Send>,
    coming: VecDeque<Task<Vec<u8>>>,
    part: Vec<u8>,
    read: usize,
}

impl Ahead {
    pub(super) fn new(remote: &Arc<Remote>, path: Path, length: u64) -> Ahead {
        Ahead {
            remote: Arc::clone(remote),
            path,
            rest: Box::new(ranges(0..length, PART)),
            coming: VecDeque::new(),
            part: Vec::new(),
            read: 0,
        }
    }

    /// Returns the next part; an empty one at the end.
    fn next(&mut self) -> Result<Vec<u8>> {
        while self.coming.len() < AHEAD {
            let Some(range) = self.rest.next() else { break };
            let (remote, path) = (Arc::clone(&self.remote), self.path.clone());
            self.coming.push_back(self.remote.start(async move {
                let part = remote.range(&path, range).await?;
                part.ok_or_else(|| {
                    Error::store(format!("read {path} in {}", remote.name), "the object is gone")
                })
            }));
        }
        self.coming.pop_front().map_or(Ok(Vec::new()), Task::wait)
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.part.len() && !buffer.is_empty() {
            self.part = self.next().map_err(as_io)?;
            self.read = 0;
        }
        let length = buffer.len().min(self.part.len() - self.read);
        buffer[..length].copy_from_slice(&self.part[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}

/// An object that is read at any offset: from memory, or with a request for each read.
pub(super) struct Object {
    remote: Arc<Remote>,
    path: Path,
    length: u64,
    /// The digest of its blob, for errors.
    digest: Digest256,
    bytes: Option<Arc<[u8]>>,
}

impl Object {
    pub(super) fn new(remote: &Arc<Remote>, path: Path, length: u64, digest: &Digest256) -> Object {
        Object { remote: Arc::clone(remote), path, length, digest: *digest, bytes: None }
    }

    /// Reads a small object into memory, with one request. Another program may replace an encrypted
    /// object by another encryption of the same blob, and parts of the two don't fit together.
    pub(super) fn fetch_if_small(mut self) -> Result<Object> {
        if self.length <= SMALL {
            let (remote, path, digest) = (Arc::clone(&self.remote), self.path.clone(), self.digest);
            let bytes = self.remote.wait(async move { remote.get(&path).await })?;
            let bytes = bytes.ok_or(Error::Missing { digest })?;
            self.length = bytes.len() as u64;
            self.bytes = Some(bytes.into());
        }
        Ok(self)
    }

    /// Returns a reader of its bytes from start to end.
    pub(super) fn sequential(&self) -> Box<dyn Read + Send> {
        match &self.bytes {
            Some(bytes) => Box::new(io::Cursor::new(Arc::clone(bytes))),
            None => Box::new(Ahead::new(&self.remote, self.path.clone(), self.length)),
        }
    }
}

impl ReadAt for Object {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        if let Some(bytes) = &self.bytes {
            return bytes.read_at(buffer, at);
        }
        let range = at.min(self.length)..at.saturating_add(buffer.len() as u64).min(self.length);
        if range.is_empty() {
            return Ok(0);
        }
        let (remote, path, digest) = (Arc::clone(&self.remote), self.path.clone(), self.digest);
        let read = self
            .remote
            .wait(async move { remote.range(&path, range).await?.ok_or(Error::Missing { digest }) });
        let bytes = read.map_err(as_io)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

/// The length up to which an encrypted object is read in one request.
const SMALL: u64 = 4 * 1024 * 1024;
