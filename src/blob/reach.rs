//! Which blobs a manifest needs.

use std::collections::HashSet;

use super::{ChunkedBlob, Content, LISTING_CEILING, Leaf, Listing, MemoryMap, ProcsBlob, content::Get};
use crate::{Digest256, Result};

/// How many leaves are looked into at once.
const AT_ONCE: usize = 256;

impl ProcsBlob {
    /// Names every blob that the capture needs beside this manifest, some more than once. Leaves that were read are not read again.
    pub(crate) fn blobs(
        &self,
        get: Get<'_>,
        read: &mut Leaves,
        name: &mut dyn FnMut(&Digest256),
    ) -> Result<()> {
        match self {
            ProcsBlob::Criu { criu_dump, .. } => {
                name(criu_dump);
                Ok(())
            }
            ProcsBlob::Chunked(blob) => blob.blobs(get, read, name),
            ProcsBlob::Unsupported { .. } => Ok(()),
        }
    }
}

/// Leaves whose chunks were named, each with how many it has: the same bytes may be something else as well, of which nothing
/// was read.
pub(crate) type Leaves = HashSet<(Digest256, usize)>;

impl ChunkedBlob {
    fn blobs(&self, get: Get<'_>, read: &mut Leaves, name: &mut dyn FnMut(&Digest256)) -> Result<()> {
        for tree in &self.trees {
            content(&tree.images, get, name)?;
            let json = tree.images.read_all(get, LISTING_CEILING)?;
            let listing = Listing::from_json(&json, |_| true)?;
            content(&listing.packed, get, name)?;
            for file in listing.files.iter().filter_map(|file| file.content) {
                content(&file, get, name)?;
            }
            for memory in &listing.memory {
                content(&memory.map, get, name)?;
                let map = MemoryMap::decode(&memory.map.read_all(get, LISTING_CEILING)?)?;
                chunks(&map, get, read, name)?;
            }
        }
        Ok(())
    }
}

fn content(content: &Content, get: Get<'_>, name: &mut dyn FnMut(&Digest256)) -> Result<()> {
    content.blobs(get, &mut |digests| digests.iter().for_each(&mut *name))
}

/// The leaves of a map, and the chunks that those name.
fn chunks(map: &MemoryMap, get: Get<'_>, read: &mut Leaves, name: &mut dyn FnMut(&Digest256)) -> Result<()> {
    map.leaves.iter().for_each(&mut *name);
    let windows = map.windows().map(|window| window.chunks(map.chunk).count());
    let new: Vec<_> = map.leaves.iter().copied().zip(windows).filter(|leaf| read.insert(*leaf)).collect();
    for some in new.chunks(AT_ONCE) {
        let digests: Vec<_> = some.iter().map(|(leaf, _)| *leaf).collect();
        get(&digests, &mut |place, bytes| {
            Leaf::decode(bytes, some[place].1)?.0.iter().flatten().for_each(&mut *name);
            Ok(())
        })?;
    }
    Ok(())
}
