//! [`Hashing`]: writes bytes to a store, and hashes them at the same time.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use crate::{Digest256, Result, Until, digest::Hasher, store::BlobWriter, threads::joined, wiped::Wiped};

/// Writes to a store, and hashes in a second thread, which is started once there is enough to hash.
pub(super) struct Hashing<'a> {
    store: Box<dyn BlobWriter + 'a>,
    until: &'a Until,
    /// Bytes that are not hashed yet.
    pending: Wiped,
    hasher: Side,
}

/// The thread that hashes: this one, or another.
enum Side {
    Here(Hasher),
    Beside(Beside),
}

/// The number of bytes handed to the thread at once. An archive with fewer bytes gets no thread.
const PIECE: usize = 1 << 20;

/// The maximum number of pieces that wait to be hashed.
const AHEAD: usize = 4;

impl<'a> Hashing<'a> {
    /// Makes a writer whose writes fail once `until` is over.
    pub(super) fn new(store: Box<dyn BlobWriter + 'a>, until: &'a Until) -> Hashing<'a> {
        Hashing { store, until, pending: Wiped::default(), hasher: Side::Here(Hasher::new()) }
    }

    /// Commits the blob under the computed digest.
    pub(super) fn commit(mut self) -> Result<Digest256> {
        let mut hasher = match self.hasher {
            Side::Here(hasher) => hasher,
            Side::Beside(beside) => beside.finish(),
        };
        hasher.update(&self.pending);
        let digest = hasher.finish();
        self.until.check(keeping)?;
        self.pending.clear();
        self.store.commit(&digest)?;
        Ok(digest)
    }

    /// Hashes the pending bytes, or hands them to the thread.
    fn hash(&mut self) {
        if let Side::Here(hasher) = &mut self.hasher {
            match Beside::start(hasher.clone()) {
                Ok(beside) => self.hasher = Side::Beside(beside),
                Err(_) => hasher.update(&self.pending), // the limit of threads is reached
            }
        }
        match &mut self.hasher {
            Side::Here(_) => self.pending.clear(),
            Side::Beside(beside) => beside.hash(&mut self.pending),
        }
    }
}

fn keeping() -> String {
    "keep the archive of the images".to_owned()
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until.check(keeping).map_err(io::Error::other)?;
        let part = &bytes[..bytes.len().min(PIECE)];
        self.pending.extend_from_slice(part);
        if self.pending.len() >= PIECE {
            self.hash();
        }
        self.store.write_all(part)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.store.flush()
    }
}

/// A thread that hashes the pieces it receives, in order.
struct Beside {
    /// Both are set until the end.
    send: Option<SyncSender<Wiped>>,
    thread: Option<JoinHandle<Hasher>>,
    returned: Receiver<Wiped>,
}

impl Beside {
    fn start(mut hasher: Hasher) -> io::Result<Beside> {
        let (send, receive) = sync_channel::<Wiped>(AHEAD);
        let (give_back, returned) = sync_channel(AHEAD + 1);
        let work = move || {
            for piece in receive {
                hasher.update(&piece);
                let _ = give_back.try_send(piece); // a full channel frees it
            }
            hasher
        };
        let thread = thread::Builder::new().name("criu-hash".to_owned()).spawn(work)?;
        Ok(Beside { send: Some(send), thread: Some(thread), returned })
    }

    /// Sends the bytes, and leaves an empty vector.
    fn hash(&mut self, bytes: &mut Wiped) {
        let mut empty = self.returned.try_recv().unwrap_or_else(|_| Wiped::with_capacity(2 * PIECE));
        empty.clear();
        let piece = std::mem::replace(bytes, empty);
        let sent = self.send.as_ref().map(|send| send.send(piece));
        if !matches!(sent, Some(Ok(()))) {
            self.join(); // the thread panicked
        }
    }

    fn finish(mut self) -> Hasher {
        self.join().expect("because it is joined once")
    }

    /// Waits for the thread, and resumes its panic here.
    fn join(&mut self) -> Option<Hasher> {
        self.send = None;
        let thread = self.thread.take()?;
        Some(joined(thread.join()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.send = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // only the first failure is reported
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{BlobStore, Error, MemBlobStore};

    #[test]
    fn what_is_written_in_parts_of_any_size_has_its_digest() {
        let bytes: Vec<u8> = (0..=250).cycle().take(9 * PIECE + 77).collect();
        for part in [1000, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, bytes.len()] {
            for length in [0, 5, PIECE, bytes.len()] {
                let (store, forever) = (MemBlobStore::new(), Until::forever());
                let mut hashing = Hashing::new(store.writer().unwrap(), &forever);
                bytes[..length].chunks(part).for_each(|part| hashing.write_all(part).unwrap());
                let digest = hashing.commit().unwrap();
                assert_eq!(digest, Digest256::of(&bytes[..length]), "{length} by {part}");
                assert!(store.get(&digest).unwrap() == bytes[..length]);
            }
        }
    }

    #[test]
    fn nothing_is_written_or_kept_when_the_time_is_over() {
        let (store, over) = (MemBlobStore::new(), Until::within(Duration::ZERO));
        let mut hashing = Hashing::new(store.writer().unwrap(), &over);
        let error = hashing.write_all(b"late").unwrap_err().downcast::<Error>().unwrap();
        assert!(error.is_timeout(), "{error}");
        assert!(hashing.commit().unwrap_err().is_timeout());
        assert!(!store.contains(&Digest256::of(b"")).unwrap());
    }
}
