//! [`Ahead`]: reads an object piece by piece, with requests running ahead.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use object_store::path::Path;

use super::remote::{AHEAD, PART, Remote, Task, as_io, ranges};
use crate::{Error, Result};

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
