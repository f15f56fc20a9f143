//! [`Content`]: bytes of any length as a tree of blobs.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{Digest256, Error, Result, wiped::Wiped};

/// Bytes of any length, cut into pieces of 64 KiB, each a blob.
///
/// A piece or less is one blob, which `digest` names. For more pieces, `digest` names the list of
/// their digests, 32 bytes each. A list that is longer than a piece is cut in the same way, and so
/// on, `depth` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Content {
    /// The length in bytes.
    pub bytes: u64,
    /// The number of levels of lists above the pieces.
    pub depth: u8,
    /// The topmost blob.
    pub digest: Digest256,
}

/// The maximum size of a piece, in bytes.
pub(crate) const PIECE: usize = 64 * 1024;

/// The length of a digest in a list.
pub(crate) const DIGEST: usize = 32;

/// The maximum number of digests in a list.
const FAN: u64 = (PIECE / DIGEST) as u64;

/// Stores a piece, and returns its digest.
pub(crate) type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Digest256>;

/// Reads verified blobs; the callback gets each with its index in the list.
pub(crate) type Fetch<'a> =
    &'a dyn Fn(&[Digest256], &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>;

/// Content that is written piece by piece.
#[derive(Debug)]
pub(crate) struct ContentWriter {
    bytes: u64,
    /// The incomplete piece of each level: of the bytes, of their list, of the list of that.
    levels: Vec<Wiped>,
}

impl ContentWriter {
    pub(crate) fn new() -> ContentWriter {
        ContentWriter { bytes: 0, levels: vec![Wiped::default()] }
    }

    /// Adds the next bytes.
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

    /// Stores the piece of a level, and adds its digest to the level above.
    fn pass_on(&mut self, level: usize, put: Put<'_>) -> Result<()> {
        let digest = put(&self.levels[level])?;
        self.levels[level].clear();
        if self.levels.len() == level + 1 {
            self.levels.push(Wiped::default());
        }
        if self.levels[level + 1].len() == PIECE {
            self.pass_on(level + 1, put)?;
        }
        self.levels[level + 1].extend_from_slice(digest.as_bytes());
        Ok(())
    }

    /// Finishes writing and returns the content.
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
    /// Stores these bytes as content.
    pub(crate) fn of(bytes: &[u8], put: Put<'_>) -> Result<Content> {
        let mut writer = ContentWriter::new();
        writer.write(bytes, put)?;
        writer.finish(put)
    }

    /// Reads the bytes in order, verified piece by piece.
    pub(crate) fn read(&self, get: Fetch<'_>, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        read_nodes(&[self.root()?], get, out)
    }

    /// Returns all bytes, at most `ceiling` of them.
    pub(crate) fn read_all(&self, get: Fetch<'_>, ceiling: u64) -> Result<Vec<u8>> {
        if self.bytes > ceiling {
            return Err(self.corrupt(format!("it has {} bytes, more than {ceiling}", self.bytes)));
        }
        let mut bytes = Vec::new();
        self.read(get, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Calls `show` for the digests of all blobs of this content. Lists in `read` are not read
    /// again.
    pub(super) fn blobs(
        &self,
        get: Fetch<'_>,
        read: &mut HashSet<Node>,
        see: &mut dyn FnMut(&Digest256),
    ) -> Result<()> {
        let root = self.root()?;
        see(&root.digest);
        name_nodes(vec![root], get, read, see)
    }

    /// Returns the topmost blob, if the number of levels matches the length.
    fn root(&self) -> Result<Node> {
        let depth = (0..).find(|depth| self.bytes <= span(*depth)).unwrap_or_default();
        if self.depth != depth {
            let problem =
                format!("it has {} levels of lists, and its {} bytes take {depth}", self.depth, self.bytes);
            return Err(self.corrupt(problem));
        }
        Ok(Node { digest: self.digest, depth, bytes: self.bytes })
    }

    fn corrupt(&self, problem: String) -> Error {
        Error::corrupt(format!("the content {}", self.digest), problem)
    }
}

/// One blob of a content: a piece, or a list of blobs one level deeper.
///
/// Its length follows from the number of bytes below it. So a few blobs that refer to each other
/// cannot stand for more bytes than the content states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    digest: Digest256,
    depth: u8,
    bytes: u64,
}

/// Returns the maximum number of bytes below a blob of this level.
fn span(depth: u8) -> u64 {
    // Five levels are enough for a length of 64 bits.
    FAN.saturating_pow(depth.into()).saturating_mul(PIECE as u64)
}

impl Node {
    /// Returns the length that the blob must have.
    fn length(&self) -> u64 {
        match self.depth {
            0 => self.bytes,
            depth => self.bytes.div_ceil(span(depth - 1)) * DIGEST as u64,
        }
    }

    fn check(&self, blob: &[u8]) -> Result<()> {
        let (found, length) = (blob.len(), self.length());
        if found as u64 != length {
            let what = if self.depth == 0 { "the piece" } else { "the list" };
            let problem = format!("it has {found} bytes, and {length} follow from the length of the content");
            return Err(Error::corrupt(format!("{what} {}", self.digest), problem));
        }
        Ok(())
    }

    /// Returns the nodes that a list names. The list has the right length.
    fn below<'a>(&self, list: &'a [u8]) -> impl Iterator<Item = Node> + 'a {
        let (depth, mut left) = (self.depth.saturating_sub(1), self.bytes);
        list.chunks_exact(DIGEST).flat_map(<[u8; DIGEST]>::try_from).map(move |digest| {
            let bytes = left.min(span(depth));
            left -= bytes;
            Node { digest: Digest256::from_bytes(digest), depth, bytes }
        })
    }
}

/// The maximum number of blobs in one request: few, to buffer little data.
const AT_ONCE: usize = 16;

/// Hands out the bytes below these blobs, which are all on one level.
fn read_nodes(nodes: &[Node], get: Fetch<'_>, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    for some in nodes.chunks(AT_ONCE) {
        for (node, blob) in some.iter().zip(blobs_of(some, get)?) {
            match node.depth {
                0 => out(&blob)?,
                _ => read_nodes(&node.below(&blob).collect::<Vec<_>>(), get, out)?,
            }
        }
    }
    Ok(())
}

/// Calls `show` for the digests in the lists below these nodes.
fn name_nodes(
    mut nodes: Vec<Node>,
    get: Fetch<'_>,
    read: &mut HashSet<Node>,
    see: &mut dyn FnMut(&Digest256),
) -> Result<()> {
    nodes.retain(|node| node.depth > 0 && read.insert(*node));
    for some in nodes.chunks(AT_ONCE) {
        for (node, list) in some.iter().zip(blobs_of(some, get)?) {
            let below: Vec<_> = node.below(&list).collect();
            below.iter().for_each(|node| see(&node.digest));
            name_nodes(below, get, read, see)?;
        }
    }
    Ok(())
}

/// Reads the blobs of these nodes in order, and checks their lengths.
fn blobs_of(nodes: &[Node], get: Fetch<'_>) -> Result<Vec<Wiped>> {
    let digests: Vec<_> = nodes.iter().map(|node| node.digest).collect();
    let mut blobs: Vec<_> = nodes.iter().map(|_| Wiped::default()).collect();
    get(&digests, &mut |place, bytes| {
        nodes[place].check(bytes)?;
        blobs[place] = bytes.to_vec().into();
        Ok(())
    })?;
    Ok(blobs)
}

/// Parses the digests in a list.
pub(crate) fn digests(list: &[u8]) -> Option<Vec<Digest256>> {
    let digests = list.chunks(DIGEST);
    digests.map(|bytes| <[u8; DIGEST]>::try_from(bytes).ok().map(Digest256::from_bytes)).collect()
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
            content.blobs(&get, &mut HashSet::new(), &mut |digest| seen.push(*digest)).unwrap();
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
