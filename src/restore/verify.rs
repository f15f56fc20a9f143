//! [`verified`]: reads a blob and hashes it at the same time.

use std::{
    io::{self, BufRead, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use crate::{
    Digest256, Error, Result, Until,
    digest::Hasher,
    threads::{joined, spawn},
    wiped::Wiped,
};

/// Hands the blob to `consume` while another thread reads and hashes it. The result of `consume` is
/// returned only if all bytes were read and the digest is right. A wrong digest takes precedence
/// over an error of `consume`. A blob of more than `ceiling` bytes is refused, and reading stops
/// when `until` expires.
pub(super) fn verified<T>(
    blob: Box<dyn Read + Send + '_>,
    digest: &Digest256,
    ceiling: u64,
    until: &Until,
    consume: impl FnOnce(Stream) -> Result<T>,
) -> Result<T> {
    thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        let (give_back, returned) = sync_channel(AHEAD + 2);
        let reading = || until.check(|| format!("read the blob {digest}")).map_err(io::Error::other);
        let hash = move || hash(blob, ceiling, reading, &send, &returned);
        let hashing = spawn(scope, hash)?;
        let stream = Stream { receive, give_back, current: Wiped::default(), used: 0 };
        let made = consume(stream);
        let hashed = joined(hashing.join());
        match hashed {
            // A store whose reader verifies reports the damage itself.
            Err(error) => {
                Err(error.downcast::<Error>().unwrap_or_else(Error::io(format!("read the blob {digest}"))))
            }
            Ok(Hashed::All(found)) if found != *digest => Err(Error::corrupt(
                format!("the blob {digest}"),
                format!("its bytes have the digest {found}"),
            )),
            Ok(Hashed::All(_)) => made,
            Ok(Hashed::TooLarge) if made.is_ok() => {
                Err(Error::corrupt(format!("the blob {digest}"), format!("it has more than {ceiling} bytes")))
            }
            Ok(Hashed::TooLarge | Hashed::GivenUp) => match made {
                Ok(_) => Err(Error::corrupt(format!("the blob {digest}"), "it was not read to its end")),
                complaint => complaint,
            },
        }
    })
}

/// The number of pieces that may wait for the consumer.
const AHEAD: usize = 4;
/// The size of a piece, in bytes.
const PIECE: usize = 1 << 20;

/// The number of pieces that are still read after the consumer has failed, to find out whether a
/// wrong digest is the reason.
const AFTERWARDS: u32 = 256;

/// The result of hashing the blob.
enum Hashed {
    All(Digest256),
    /// It has more bytes than the ceiling.
    TooLarge,
    /// The consumer has stopped, and the blob is too long to be hashed to its end.
    GivenUp,
}

/// Reads the blob to its end, and for a while even without a consumer: the digest decides which
/// error is reported.
fn hash(
    mut blob: Box<dyn Read + Send + '_>,
    ceiling: u64,
    may_go_on: impl Fn() -> io::Result<()>,
    send: &SyncSender<Wiped>,
    returned: &Receiver<Wiped>,
) -> io::Result<Hashed> {
    let mut hasher = Hasher::new();
    let (mut total, mut unheard) = (0_u64, 0);
    loop {
        may_go_on()?;
        let mut piece = returned.try_recv().unwrap_or_default();
        piece.clear();
        // The consumer's first vectors are empty. A growing vector would leave copies behind.
        piece.reserve(PIECE + 1);
        if blob.by_ref().take(PIECE as u64).read_to_end(piece.vec())? == 0 {
            return Ok(Hashed::All(hasher.finish()));
        }
        total = total.saturating_add(piece.len() as u64);
        if total > ceiling {
            return Ok(Hashed::TooLarge);
        }
        hasher.update(&piece);
        if send.send(piece).is_err() {
            unheard += 1;
            if unheard > AFTERWARDS {
                return Ok(Hashed::GivenUp);
            }
        }
    }
}

/// The bytes of the blob. They are not verified yet.
pub(super) struct Stream {
    receive: Receiver<Wiped>,
    give_back: SyncSender<Wiped>,
    current: Wiped,
    used: usize,
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.current.len()
            && let Ok(next) = self.receive.recv()
        {
            // The vector is freed if the channel is full.
            let _ = self.give_back.try_send(std::mem::replace(&mut self.current, next));
            self.used = 0;
        }
        Ok(&self.current[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], digest: &Digest256) -> Result<Vec<u8>> {
        verified(Box::new(bytes), digest, u64::MAX, &Until::forever(), |mut stream| {
            let mut read = Vec::new();
            stream.read_to_end(&mut read).unwrap();
            Ok(read)
        })
    }

    #[test]
    fn what_was_read_is_given_out_when_the_digest_is_right() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 * PIECE + 5] {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            assert_eq!(read(&bytes, &Digest256::of(&bytes)).unwrap(), bytes, "{size}");
        }
    }

    /// A blob of twelve pieces that is read into large buffers only. A growing vector is filled
    /// through small buffers at its end.
    struct InLargeParts(usize);

    impl Read for InLargeParts {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(self.0 == 0 || into.len() >= 4096, "{} bytes are asked for", into.len());
            let count = into.len().min(self.0);
            into[..count].fill(1);
            self.0 -= count;
            Ok(count)
        }
    }

    #[test]
    fn pieces_are_read_into_room_that_is_there() {
        let digest = Digest256::of(&vec![1; 12 * PIECE]);
        let blob = Box::new(InLargeParts(12 * PIECE));
        let read = verified(blob, &digest, u64::MAX, &Until::forever(), |mut stream| {
            Ok(io::copy(&mut stream, &mut io::sink()).unwrap())
        });
        assert_eq!(read.unwrap(), 12 * PIECE as u64);
    }

    #[test]
    fn a_wrong_digest_is_told_before_what_the_consumer_complains_of() {
        let digest = Digest256::of(b"other");
        assert!(matches!(read(b"bytes", &digest), Err(Error::Corrupt { what, .. }) if what.contains("blob")));
        let bytes = vec![1; 20 * PIECE];
        let complains =
            verified(Box::new(bytes.as_slice()), &digest, u64::MAX, &Until::forever(), |_| -> Result<()> {
                Err(Error::Revived)
            });
        assert!(matches!(complains, Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_blob_without_an_end_is_read_until_the_time_is_over() {
        let until = Until::within(std::time::Duration::from_millis(50));
        let digest = Digest256::of(b"");
        let late = verified(Box::new(io::repeat(1)), &digest, u64::MAX, &until, |mut stream| {
            io::copy(&mut stream, &mut io::sink()).unwrap();
            Ok(())
        });
        assert!(late.unwrap_err().is_timeout());
    }

    #[test]
    fn a_blob_without_an_end_is_given_up() {
        let digest = Digest256::of(b"");
        let complains =
            verified(Box::new(io::repeat(1)), &digest, u64::MAX, &Until::forever(), |_| -> Result<()> {
                Err(Error::Revived)
            });
        assert!(matches!(complains, Err(Error::Revived)));
        let swallows =
            verified(Box::new(io::repeat(1)), &digest, 5 << 20, &Until::forever(), |mut stream| {
                io::copy(&mut stream, &mut io::sink()).unwrap();
                Ok(())
            });
        assert!(matches!(swallows, Err(Error::Corrupt { problem, .. }) if problem.contains("more than")));
    }

    #[test]
    fn the_consumers_complaint_comes_through_when_the_bytes_are_right() {
        let bytes = vec![1; 20 * PIECE];
        let digest = Digest256::of(&bytes);
        let complains =
            verified(Box::new(bytes.as_slice()), &digest, u64::MAX, &Until::forever(), |_| -> Result<()> {
                Err(Error::Revived)
            });
        assert!(matches!(complains, Err(Error::Revived)));
    }
}
