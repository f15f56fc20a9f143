//! Which blobs a manifest needs.

use super::{ChunkedBlob, Content, LISTING_CEILING, Leaf, Listing, MemoryMap, ProcsBlob, content::Get};
use crate::{Digest256, Result};

/// How many leaves are looked into at once.
const AT_ONCE: usize = 256;

impl ProcsBlob {
    /// Shows every blob that the capture needs beside this manifest. `is_new` is asked once for each time that one is
    /// named, and what it says it has seen is not looked into again.
    pub(crate) fn blobs(&self, get: Get<'_>, is_new: &mut dyn FnMut(&Digest256) -> bool) -> Result<()> {
        match self {
            ProcsBlob::Criu { criu_dump, .. } => {
                is_new(criu_dump);
                Ok(())
            }
            ProcsBlob::Chunked(blob) => blob.blobs(get, is_new),
            ProcsBlob::Unsupported { .. } => Ok(()),
        }
    }
}

impl ChunkedBlob {
    fn blobs(&self, get: Get<'_>, is_new: &mut dyn FnMut(&Digest256) -> bool) -> Result<()> {
        for tree in &self.trees {
            content(&tree.images, get, is_new)?;
            let json = tree.images.read_all(get, LISTING_CEILING)?;
            let listing = Listing::from_json(&json, |_| true)?;
            content(&listing.packed, get, is_new)?;
            for file in listing.files.iter().filter_map(|file| file.content) {
                content(&file, get, is_new)?;
            }
            for memory in &listing.memory {
                content(&memory.map, get, is_new)?;
                let map = MemoryMap::decode(&memory.map.read_all(get, LISTING_CEILING)?)?;
                chunks(&map, get, is_new)?;
            }
        }
        Ok(())
    }
}

fn content(content: &Content, get: Get<'_>, is_new: &mut dyn FnMut(&Digest256) -> bool) -> Result<()> {
    content.blobs(get, &mut |digests| {
        for digest in digests {
            is_new(digest);
        }
    })
}

/// The leaves of a map, and the chunks that those name.
fn chunks(map: &MemoryMap, get: Get<'_>, is_new: &mut dyn FnMut(&Digest256) -> bool) -> Result<()> {
    let windows = map.windows().zip(&map.leaves);
    let new: Vec<_> = windows.filter(|(_, leaf)| is_new(leaf)).collect();
    for some in new.chunks(AT_ONCE) {
        let digests: Vec<_> = some.iter().map(|(_, leaf)| **leaf).collect();
        get(&digests, &mut |place, bytes| {
            let count = some[place].0.chunks(map.chunk).count();
            for digest in Leaf::decode(bytes, count)?.0.iter().flatten() {
                is_new(digest);
            }
            Ok(())
        })?;
    }
    Ok(())
}
