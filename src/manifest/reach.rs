//! Finds the blobs that a manifest needs.

use std::collections::HashSet;

use super::{
    Budget, ChunkedBlob, ChunkedTree, Content, Leaf, MemoryLeft, MemoryMap, ProcsBlob,
    content::{Fetch, Node},
};
use crate::{Digest256, Result};

/// The number of leaves that are read at once.
const AT_ONCE: usize = 256;

/// Blobs that were read before, and are not read again.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// Leaves, with their numbers of chunks: the same bytes may also be another kind of blob, which
    /// was not read.
    leaves: HashSet<(Digest256, usize)>,
    lists: HashSet<Node>,
    listings: HashSet<Content>,
    maps: HashSet<Content>,
}

impl ProcsBlob {
    /// Shows every blob that the capture needs beside this manifest, some more than once. Blobs in
    /// `walked` are not read again.
    pub(crate) fn blobs(
        &self,
        get: Fetch<'_>,
        walked: &mut Walked,
        name: &mut dyn FnMut(&Digest256),
    ) -> Result<()> {
        match self {
            ProcsBlob::Criu { criu_dump, .. } => {
                name(criu_dump);
                Ok(())
            }
            ProcsBlob::Chunked(blob) => blob.blobs(get, walked, name),
            ProcsBlob::Unsupported { .. } => Ok(()),
        }
    }
}

impl ProcsBlob {
    /// Returns the needed blobs that can have any length and form. All others are small.
    pub(crate) fn opaque(&self) -> HashSet<Digest256> {
        match self {
            ProcsBlob::Criu { criu_dump, .. } => [*criu_dump].into(),
            ProcsBlob::Chunked(blob) => blob.attached.values().copied().collect(),
            ProcsBlob::Unsupported { .. } => HashSet::new(),
        }
    }
}

impl ChunkedBlob {
    fn blobs(&self, get: Fetch<'_>, walked: &mut Walked, name: &mut dyn FnMut(&Digest256)) -> Result<()> {
        self.attached.values().for_each(&mut *name);
        let mut budget = Budget::new();
        self.trees.iter().try_for_each(|tree| tree.blobs(get, walked, &mut budget, name))
    }
}

impl ChunkedTree {
    fn blobs(
        &self,
        get: Fetch<'_>,
        walked: &mut Walked,
        budget: &mut Budget,
        name: &mut dyn FnMut(&Digest256),
    ) -> Result<()> {
        if !walked.listings.insert(self.images) {
            return Ok(());
        }
        self.images.blobs(get, &mut walked.lists, name)?;
        let listing = budget.read_listing(self, get, |_| true)?;
        listing.packed.blobs(get, &mut walked.lists, name)?;
        for file in listing.files.iter().filter_map(|file| file.content) {
            file.blobs(get, &mut walked.lists, name)?;
        }
        let mut left = MemoryLeft::of(self);
        for memory in &listing.memory {
            if walked.maps.insert(memory.map) {
                memory.map.blobs(get, &mut walked.lists, name)?;
                chunks(&memory.read(&mut left, get)?, get, walked, name)?;
            }
        }
        Ok(())
    }
}

/// Shows the leaves of a map, and their chunks.
fn chunks(
    map: &MemoryMap,
    get: Fetch<'_>,
    walked: &mut Walked,
    name: &mut dyn FnMut(&Digest256),
) -> Result<()> {
    map.leaves.iter().for_each(&mut *name);
    let windows = map.windows().map(|window| window.chunks(map.chunk).count());
    let leaves = map.leaves.iter().copied().zip(windows);
    let new: Vec<_> = leaves.filter(|leaf| walked.leaves.insert(*leaf)).collect();
    for some in new.chunks(AT_ONCE) {
        let digests: Vec<_> = some.iter().map(|(leaf, _)| *leaf).collect();
        get(&digests, &mut |place, bytes| {
            Leaf::decode(bytes, some[place].1)?.0.iter().flatten().for_each(&mut *name);
            Ok(())
        })?;
    }
    Ok(())
}
