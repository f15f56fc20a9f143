//! Stores that look closely, and stores that fail.

use std::{
    io::{self, Write},
    panic::resume_unwind,
    sync::Mutex,
    thread,
    time::Duration,
};

use criu_rpc::{BlobStore, Digest256, Error, FsBlobStore, Result, store::BlobWriter};

use crate::places::state;

/// A store that notes in which state these processes are whenever a blob is made to last.
#[derive(Debug)]
pub(crate) struct Watching {
    pub(crate) inner: FsBlobStore,
    pub(crate) pids: Vec<i32>,
    pub(crate) seen: Mutex<Vec<Option<char>>>,
}

impl Watching {
    fn look(&self) {
        self.seen.lock().unwrap().extend(self.pids.iter().map(|pid| state(*pid)));
    }
}

impl BlobStore for Watching {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = self.inner.put(bytes)?;
        self.look();
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.inner.contains(digest)
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(WatchingWriter { store: self, inner: self.inner.writer()? }))
    }
}

struct WatchingWriter<'a> {
    store: &'a Watching,
    inner: Box<dyn BlobWriter + 'a>,
}

impl Write for WatchingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobWriter for WatchingWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        self.inner.commit(digest)?;
        self.store.look();
        Ok(())
    }
}

/// The fault of a [`Failing`] store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// It takes nothing in.
    Writer,
    /// It takes so many bytes in.
    WriteAfter(usize),
    /// It panics after so many bytes.
    PanicAfter(usize),
    Commit,
    PanicAtCommit,
    Put,
    PanicAtPut,
}

/// The payload with which a store panics.
#[derive(Debug, PartialEq)]
pub(crate) struct Burst;

/// Panics without a word, so that a search for failures does not find this one.
pub(crate) fn burst() -> ! {
    resume_unwind(Box::new(Burst))
}

/// A store that fails.
#[derive(Debug)]
pub(crate) struct Failing {
    pub(crate) inner: FsBlobStore,
    pub(crate) fault: Fault,
}

/// The message of a [`Failing`] store, also in panics.
pub(crate) const FULL: &str = "the shelf is full";

fn full() -> Error {
    Error::store("put it on the shelf", FULL)
}

impl BlobStore for Failing {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        match self.fault {
            Fault::Put => Err(full()),
            Fault::PanicAtPut => burst(),
            _ => self.inner.put(bytes),
        }
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.inner.contains(digest)
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        match self.fault {
            Fault::Writer => Err(full()),
            fault => Ok(Box::new(FailingWriter { fault, written: 0, inner: self.inner.writer()? })),
        }
    }
}

struct FailingWriter<'a> {
    fault: Fault,
    written: usize,
    inner: Box<dyn BlobWriter + 'a>,
}

impl Write for FailingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written += count;
        match self.fault {
            Fault::WriteAfter(limit) if self.written > limit => Err(io::Error::other(FULL)),
            Fault::PanicAfter(limit) if self.written > limit => burst(),
            _ => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobWriter for FailingWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        match self.fault {
            Fault::Commit => Err(full()),
            Fault::PanicAtCommit => burst(),
            _ => self.inner.commit(digest),
        }
    }
}

/// A store that takes its time for the manifest.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) inner: FsBlobStore,
    pub(crate) pause: Duration,
}

impl BlobStore for Slow {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        thread::sleep(self.pause);
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.inner.contains(digest)
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        self.inner.writer()
    }
}

/// Returns true if the error, or one that it came from, says this.
pub(crate) fn says(error: &(dyn std::error::Error + 'static), text: &str) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.to_string().contains(text) {
            return true;
        }
        next = error.source();
    }
    false
}
