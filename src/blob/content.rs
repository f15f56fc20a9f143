//! [`Content`]: bytes of any length as a tree of blobs.

use serde::{Deserialize, Serialize};

use crate::{Digest256, Error, Result};

/// Bytes of any length, cut into pieces of 64 KiB, each a blob.
///
/// Few bytes are one blob, which `digest` names. More are several, and `digest` names the list of their digests, 32
/// bytes each; of a list that is too long for one piece, the list of its pieces; and so on, `depth` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// How many bytes.
    pub bytes: u64,
    /// How many lists stand above the pieces.
    pub depth: u8,
    /// The topmost blob.
    pub digest: Digest256,
}

/// The most bytes that a piece has.
pub(crate) const PIECE: usize = 64 * 1024;

/// The length of a digest in a list.
pub(crate) const DIGEST: usize = 32;

/// No content of 64 bits of length is deeper.
const DEEPEST: u8 = 5;

/// Takes pieces in, and tells their digests.
pub(crate) type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Digest256>;

/// Gives blobs out, verified: each with its place in the list.
pub(crate) type Get<'a> = &'a dyn Fn(&[Digest256], &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>;

/// Bytes that become content piece by piece.
#[derive(Debug)]
pub(crate) struct ContentWriter {
    bytes: u64,
    /// What is not a whole piece yet: of the bytes, of their list, of the list of that.
    levels: Vec<Vec<u8>>,
}

impl ContentWriter {
    pub(crate) fn new() -> ContentWriter {
        ContentWriter { bytes: 0, levels: vec![Vec::new()] }
    }

    /// Takes in the next bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8], put: Put<'_>) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.levels[0].len() == PIECE {
                self.pass_on(0, put)?;
            }
            let part = bytes.len().min(PIECE - self.levels[0].len());
            self.levels[0].extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
        }
        Ok(())
    }

    /// Puts what a level has, and notes its digest in the level above.
    fn pass_on(&mut self, level: usize, put: Put<'_>) -> Result<()> {
        let digest = put(&self.levels[level])?;
        self.levels[level].clear();
        if self.levels.len() == level + 1 {
            self.levels.push(Vec::new());
        }
        if self.levels[level + 1].len() == PIECE {
            self.pass_on(level + 1, put)?;
        }
        self.levels[level + 1].extend_from_slice(digest.as_bytes());
        Ok(())
    }

    /// What was written, as content.
    pub(crate) fn finish(mut self, put: Put<'_>) -> Result<Content> {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            self.pass_on(level, put)?;
            level += 1;
        }
        let digest = put(&self.levels[level])?;
        let depth = u8::try_from(level).expect("because each level is 2048 times the one below");
        Ok(Content { bytes: self.bytes, depth, digest })
    }
}

impl Content {
    /// These bytes as content.
    pub(crate) fn of(bytes: &[u8], put: Put<'_>) -> Result<Content> {
        let mut writer = ContentWriter::new();
        writer.write(bytes, put)?;
        writer.finish(put)
    }

    /// Gives the bytes out in order, verified piece by piece.
    pub(crate) fn read(&self, get: Get<'_>, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = self.bytes;
        self.each_piece(get, &mut |pieces| {
            in_order(pieces, get, &mut |piece| {
                left = left.checked_sub(piece.len() as u64).ok_or_else(|| self.corrupt())?;
                out(piece)
            })
        })?;
        if left == 0 { Ok(()) } else { Err(self.corrupt()) }
    }

    /// All the bytes, which may be no more than `ceiling`.
    pub(crate) fn read_all(&self, get: Get<'_>, ceiling: u64) -> Result<Vec<u8>> {
        if self.bytes > ceiling {
            let problem = format!("it has {} bytes, more than {ceiling}", self.bytes);
            return Err(Error::corrupt(format!("the content {}", self.digest), problem));
        }
        let mut bytes = Vec::new();
        self.read(get, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Shows the digests of all blobs that this is made of.
    pub(super) fn blobs(&self, get: Get<'_>, see: &mut dyn FnMut(&[Digest256])) -> Result<()> {
        see(&[self.digest]);
        self.walk(get, self.depth, &[self.digest], &mut |_, list| {
            see(list);
            Ok(())
        })
    }

    fn each_piece(&self, get: Get<'_>, see: &mut dyn FnMut(&[Digest256]) -> Result<()>) -> Result<()> {
        if self.depth == 0 {
            return see(&[self.digest]);
        }
        self.walk(get, self.depth, &[self.digest], &mut |depth, list| match depth {
            0 => see(list),
            _ => Ok(()),
        })
    }

    /// Shows what each list names, with its depth.
    fn walk(
        &self,
        get: Get<'_>,
        depth: u8,
        lists: &[Digest256],
        see: &mut dyn FnMut(u8, &[Digest256]) -> Result<()>,
    ) -> Result<()> {
        if depth > DEEPEST {
            return Err(self.corrupt());
        }
        if depth == 0 {
            return Ok(());
        }
        for list in lists {
            let mut named = Vec::new();
            in_order(&[*list], get, &mut |bytes| {
                named = digests(bytes).ok_or_else(|| self.corrupt())?;
                Ok(())
            })?;
            see(depth - 1, &named)?;
            self.walk(get, depth - 1, &named, see)?;
        }
        Ok(())
    }

    fn corrupt(&self) -> Error {
        Error::corrupt(format!("the content {}", self.digest), "its pieces are not what it says")
    }
}

/// The digests in a list.
pub(crate) fn digests(list: &[u8]) -> Option<Vec<Digest256>> {
    let digests = list.chunks(DIGEST);
    digests.map(|bytes| <[u8; DIGEST]>::try_from(bytes).ok().map(Digest256::from_bytes)).collect()
}

/// Shows blobs in the order of their digests, whatever order they come in.
fn in_order(digests: &[Digest256], get: Get<'_>, see: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    // Few at a time, so that little has to wait for its turn.
    for digests in digests.chunks(16) {
        let mut blobs = vec![Vec::new(); digests.len()];
        get(digests, &mut |place, bytes| {
            blobs[place] = bytes.to_vec();
            Ok(())
        })?;
        blobs.iter().try_for_each(|blob| see(blob))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashMap};

    use super::*;

    #[derive(Default)]
    struct Shelf(RefCell<HashMap<Digest256, Vec<u8>>>);

    impl Shelf {
        fn put(&self, bytes: &[u8]) -> Result<Digest256> {
            let digest = Digest256::of(bytes);
            self.0.borrow_mut().insert(digest, bytes.to_vec());
            Ok(digest)
        }

        fn get(&self, digests: &[Digest256], each: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
            for (place, digest) in digests.iter().enumerate().rev() {
                let bytes = self.0.borrow().get(digest).cloned();
                each(place, &bytes.ok_or(Error::Missing { digest: *digest })?)?;
            }
            Ok(())
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|place| u8::try_from((place * 7 + place / 251) % 256).unwrap()).collect()
    }

    #[test]
    fn bytes_of_any_length_come_back() {
        let shelf = Shelf::default();
        let list = PIECE / DIGEST * PIECE;
        for (length, depth) in
            [(0, 0), (1, 0), (PIECE, 0), (PIECE + 1, 1), (list, 1), (list + 1, 2), (list + PIECE + 1, 2)]
        {
            let bytes = bytes(length);
            let content = Content::of(&bytes, &mut |piece| shelf.put(piece)).unwrap();
            assert_eq!((content.bytes, content.depth), (length as u64, depth));
            let get = |digests: &[Digest256], each: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
                shelf.get(digests, each)
            };
            assert!(content.read_all(&get, u64::MAX).unwrap() == bytes, "{length}");
            let mut seen = Vec::new();
            content.blobs(&get, &mut |digests| seen.extend_from_slice(digests)).unwrap();
            assert!(seen.iter().all(|digest| shelf.0.borrow().contains_key(digest)));
            assert!(seen.contains(&content.digest) && seen.len() >= length.div_ceil(PIECE));
        }
    }

    #[test]
    fn what_lies_about_itself_is_refused() {
        let shelf = Shelf::default();
        let get = |digests: &[Digest256], each: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
            shelf.get(digests, each)
        };
        let content = Content::of(&bytes(3 * PIECE), &mut |piece| shelf.put(piece)).unwrap();
        for lie in [
            Content { bytes: content.bytes - 1, ..content },
            Content { bytes: content.bytes + 1, ..content },
            Content { depth: 0, ..content },
            Content { depth: 2, ..content },
            Content { depth: u8::MAX, ..content },
        ] {
            assert!(lie.read_all(&get, u64::MAX).is_err(), "{lie:?}");
        }
        assert!(matches!(content.read_all(&get, 5), Err(Error::Corrupt { .. })));
    }
}
