//! [`scan`]: finds the frames of a pack by their headers, and skips damage.

use std::{io, ops::Range};

use super::{
    HEADER, Header, PackId,
    frame::{FIXED, Frame, MAGIC, MAX_HEAD},
    parse_header,
};
use crate::{store::read_at::ReadAt, wiped::Wiped};

/// The contents at a position of a pack.
#[derive(Debug)]
pub(crate) enum Found {
    /// A frame with an intact header. Its data was not checked and may be truncated.
    Frame(Frame),
    /// Bytes outside of all frames with an intact header.
    Damaged(Range<u64>),
}

/// Calls `each` for all contents of a pack, from start to end; returns the id of the pack if one is
/// readable.
///
/// # Errors
///
/// Errors of reading; `Unsupported` if a newer version has written the pack.
pub(crate) fn scan(
    source: &(impl ReadAt + ?Sized),
    mut each: impl FnMut(Found),
) -> io::Result<Option<PackId>> {
    let length = source.length()?;
    let mut window = Window { source, bytes: Wiped::default(), at: 0 };
    let mut pack = None;
    let mut damaged = 0;
    if let Ok(header) = <&[u8; HEADER]>::try_from(window.have(0, HEADER)?) {
        match parse_header(header) {
            Header::Pack(id) => {
                pack = Some(id);
                damaged = HEADER as u64;
            }
            Header::Version(version) => {
                let problem = format!("a pack of version {version}, which this version cannot read");
                return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
            }
            Header::Damaged => {}
        }
    }
    let mut at = HEADER as u64;
    while at < length {
        match window.frame(at, pack)? {
            Some(frame) => {
                if damaged < at {
                    each(Found::Damaged(damaged..at));
                }
                pack = Some(frame.pack);
                at = frame.end();
                damaged = at;
                each(Found::Frame(frame));
            }
            None => at = window.search(at + 1, length)?,
        }
    }
    if damaged < length {
        each(Found::Damaged(damaged..length));
    }
    Ok(pack)
}

/// A piece of the pack in memory. It is read for headers, and blobs come with them.
struct Window<'a, S: ?Sized> {
    source: &'a S,
    bytes: Wiped,
    at: u64,
}

impl<S: ReadAt + ?Sized> Window<'_, S> {
    /// Returns up to `length` bytes from `at` on.
    fn have(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let inside = at >= self.at && at + length as u64 <= self.at + self.bytes.len() as u64;
        if !inside {
            self.bytes.resize(length.max(STEP));
            let filled = self.source.read_full(&mut self.bytes, at)?;
            self.bytes.truncate(filled);
            self.at = at;
        }
        let start = usize::try_from(at - self.at).unwrap_or(usize::MAX).min(self.bytes.len());
        Ok(&self.bytes[start..self.bytes.len().min(start + length)])
    }

    /// Parses the frame at this position. A frame of another pack or position is only a copy within
    /// the memory of a captured process.
    fn frame(&mut self, at: u64, pack: Option<PackId>) -> io::Result<Option<Frame>> {
        let Some(head) = Frame::head_of(self.have(at, FIXED)?) else { return Ok(None) };
        let frame = Frame::parse(self.have(at, head.min(MAX_HEAD))?);
        Ok(frame.filter(|frame| frame.at == at && pack.is_none_or(|pack| pack == frame.pack)))
    }

    /// Returns the next position at or after `at` where a frame could begin, or the end.
    fn search(&mut self, mut at: u64, length: u64) -> io::Result<u64> {
        while at < length {
            let bytes = self.have(at, SEARCH)?;
            let begins = |start: &usize| bytes[*start] == MAGIC[0] && bytes[*start..].starts_with(&MAGIC);
            if let Some(found) = (0..bytes.len()).find(begins) {
                return Ok(at + found as u64);
            }
            if bytes.len() < SEARCH {
                break;
            }
            at += (SEARCH - MAGIC.len() + 1) as u64;
        }
        Ok(length)
    }
}

/// The number of bytes read for a header: enough for 64 to 128 entries at no extra cost.
const STEP: usize = 8 * 1024;

/// The number of bytes searched at once.
const SEARCH: usize = 256 * 1024;
