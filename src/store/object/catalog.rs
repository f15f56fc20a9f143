//! [`Catalog`]: the frame and pack of each blob, from the indexes of the packs.
//!
//! An index is the header of the pack, the headers of its frames, and the digest of all this.
//!
//! Whole names are kept, some sixty bytes a blob. `FsBlobStore` keeps a few bits of each and
//! checks the frame's header; here such a check would be a request.

use std::collections::{HashMap, HashSet};

use crate::{
    Digest256,
    store::{
        name::Name,
        pack::{self, Frame, PackId},
    },
};

/// The position of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) pack: PackId,
    pub(super) at: u64,
    /// The length, header included.
    pub(super) length: u32,
}

/// The contents of all known packs.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    packs: Vec<Pack>,
    numbers: HashMap<PackId, u32>,
    /// Numbers of removed packs, to be reused.
    free: Vec<u32>,
    blobs: HashMap<Name, Place>,
}

#[derive(Debug)]
struct Pack {
    id: PackId,
    /// The position and length of each frame.
    frames: Vec<(u64, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pack: u32,
    frame: u32,
}

impl Catalog {
    pub(super) fn blob(&self, name: &Name) -> Option<Spot> {
        self.blobs.get(name).map(|place| self.spot(*place))
    }

    pub(super) fn has(&self, name: &Name) -> bool {
        self.blobs.contains_key(name)
    }

    fn spot(&self, place: Place) -> Spot {
        let pack = &self.packs[place.pack as usize];
        let (at, length) = pack.frames[place.frame as usize];
        Spot { pack: pack.id, at, length }
    }

    /// Returns the known packs.
    pub(super) fn packs(&self) -> HashSet<PackId> {
        self.numbers.keys().copied().collect()
    }

    /// Adds a pack. For a blob in several packs, the last added pack counts.
    pub(super) fn add(&mut self, id: PackId, frames: &[Frame]) {
        if self.numbers.contains_key(&id) {
            return;
        }
        let next =
            || u32::try_from(self.packs.len()).expect("because memory has no room for four billion packs");
        let number = self.free.pop().unwrap_or_else(next);
        let mut spots = Vec::with_capacity(frames.len());
        for (index, frame) in (0..).zip(frames) {
            let place = Place { pack: number, frame: index };
            let length = u32::try_from(frame.end() - frame.at).expect("because frames are far below 4 GiB");
            spots.push((frame.at, length));
            for entry in &frame.entries {
                self.blobs.insert(entry.name, place);
            }
        }
        let pack = Pack { id, frames: spots };
        match self.packs.get_mut(number as usize) {
            Some(free) => *free = pack,
            None => self.packs.push(pack),
        }
        self.numbers.insert(id, number);
    }

    /// Removes packs that are gone.
    pub(super) fn remove(&mut self, gone: &HashSet<PackId>) {
        let numbers: HashSet<u32> = gone.iter().filter_map(|id| self.numbers.remove(id)).collect();
        if !numbers.is_empty() {
            self.blobs.retain(|_, place| !numbers.contains(&place.pack));
            for number in &numbers {
                self.packs[*number as usize].frames = Vec::new();
            }
            self.free.extend(numbers);
        }
    }

    /// Removes a blob's entry for this frame, because it is missing or damaged there.
    pub(super) fn forget(&mut self, name: &Name, spot: &Spot) {
        if self.blob(name).as_ref() == Some(spot) {
            self.blobs.remove(name);
        }
    }
}

/// Makes the index of a pack from the headers of its frames, one after the other.
pub(super) fn index(id: &PackId, heads: &[u8]) -> Vec<u8> {
    let mut index = [&pack::header(id)[..], heads].concat();
    let digest = Digest256::of(&index);
    index.extend_from_slice(digest.as_bytes());
    index
}

/// Parses an index; returns the frames that lie within a pack of this length. `None` if it is
/// damaged, or of another pack.
pub(super) fn parse_index(id: &PackId, index: &[u8], pack_length: u64) -> Option<Vec<Frame>> {
    let (told, digest) = index.split_at(index.len().checked_sub(32)?);
    if Digest256::of(told).as_bytes() != digest {
        return None;
    }
    let mut rest = told.strip_prefix(&pack::header(id)[..])?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let frame = Frame::parse(rest)?;
        rest = &rest[frame.head..];
        if frame.pack != *id {
            return None;
        }
        frames.push(frame);
    }
    frames.retain(|frame| frame.end() <= pack_length);
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StoreOptions, pack::Builder};

    fn name(bytes: &[u8]) -> Name {
        Name::plain(Digest256::of(bytes))
    }

    fn pack(blobs: &[&[u8]]) -> (PackId, Vec<u8>) {
        let (id, mut heads, mut at) = (PackId::new(), Vec::new(), 48);
        for blob in blobs {
            let mut builder = Builder::new(&StoreOptions::new().alone());
            builder.push(&name(blob), blob);
            let sealed = builder.seal();
            let (head, length) = (sealed.head(), sealed.length());
            heads.extend_from_slice(&sealed.at(&id, at).unwrap()[..head]);
            at += length as u64;
        }
        (id, heads)
    }

    #[test]
    fn an_index_tells_where_blobs_are() {
        let (id, heads) = pack(&[b"one", b"two"]);
        let frames = parse_index(&id, &index(&id, &heads), 1000).unwrap();
        let mut catalog = Catalog::default();
        catalog.add(id, &frames);
        let spot = catalog.blob(&name(b"two")).unwrap();
        assert_eq!(
            (spot.pack, spot.at, u64::from(spot.length)),
            (id, frames[0].end(), frames[1].end() - spot.at)
        );
        assert!(catalog.has(&name(b"one")) && !catalog.has(&name(b"three")));
        catalog.forget(&name(b"two"), &spot);
        assert!(!catalog.has(&name(b"two")));
        catalog.remove(&catalog.packs());
        assert!(!catalog.has(&name(b"one")));
    }

    #[test]
    fn packs_that_come_and_go_leave_nothing() {
        let mut catalog = Catalog::default();
        let mut before = None;
        for n in 0..1000_u32 {
            let (id, heads) = pack(&[b"always", &n.to_le_bytes()]);
            catalog.add(id, &parse_index(&id, &index(&id, &heads), 1000).unwrap());
            if let Some(before) = before.replace(id) {
                catalog.remove(&HashSet::from([before]));
            }
            let spot = catalog.blob(&name(b"always")).unwrap();
            assert_eq!((spot.pack, catalog.blob(&name(&n.to_le_bytes())).unwrap().pack), (id, id));
            assert!(n == 0 || !catalog.has(&name(&(n - 1).to_le_bytes())));
        }
        assert!(catalog.packs.len() <= 2 && catalog.numbers.len() == 1);
    }

    #[test]
    fn a_pack_that_was_cut_short_has_the_frames_that_are_left() {
        let (id, heads) = pack(&[b"one", b"two"]);
        let frames = parse_index(&id, &index(&id, &heads), 1000).unwrap();
        assert_eq!(parse_index(&id, &index(&id, &heads), frames[1].end() - 1).unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_index_is_none() {
        let (id, heads) = pack(&[b"one", b"two"]);
        let whole = index(&id, &heads);
        assert!(parse_index(&PackId::new(), &whole, 1000).is_none());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(parse_index(&id, &damaged, 1000).is_none());
            assert!(parse_index(&id, &whole[..at], 1000).is_none());
        }
    }
}
