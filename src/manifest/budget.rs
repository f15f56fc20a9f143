//! [`Budget`]: limits for the lists of one capture.
//!
//! A few blobs can refer to each other many times. So a reader's work is limited by the sizes in
//! the manifest, and by these ceilings. A capture stays within them too, so every stored capture
//! can be restored.

use super::{ChunkedTree, LISTING_CEILING, Listing, MemoryFile, MemoryMap, chunked::ENTRIES, content::Fetch};
use crate::{Error, Result, pages::PageSize};

/// The maximum number of images of a capture, maps included: the limit of an archive's entries.
const IMAGES: u64 = ENTRIES as u64;

/// The maximum size of all maps of a capture, in bytes: 32 million windows, or 8 TiB of dense
/// memory.
const MAPS: u64 = 1 << 30;

/// The bytes that a tree's maps may have beyond the needs of its pages, for runs without pages.
const RUNS: u64 = 16 << 20;

/// The maximum size of a map for each page of the smallest size, in bytes: a run and a leaf.
const EACH_PAGE: u64 = 48;

/// The bytes and images that the lists of one capture may still use.
#[derive(Debug)]
pub(crate) struct Budget {
    listings: u64,
    maps: u64,
    images: u64,
}

/// The bytes of memory that the maps of one tree may still have, according to its manifest.
#[derive(Debug)]
pub(crate) struct MemoryLeft(u64);

impl Budget {
    pub(crate) fn new() -> Budget {
        Budget { listings: LISTING_CEILING, maps: MAPS, images: IMAGES }
    }

    /// Deducts a listing of this size.
    pub(crate) fn spend_listing(&mut self, bytes: u64) -> Result<()> {
        spend(&mut self.listings, bytes, "bytes of listings")
    }

    /// Deducts this number of images.
    pub(crate) fn spend_images(&mut self, count: usize) -> Result<()> {
        spend(&mut self.images, count as u64, "images")
    }

    /// Deducts a map of this size.
    pub(crate) fn spend_map(&mut self, bytes: u64) -> Result<()> {
        if bytes > LISTING_CEILING {
            let problem = format!("one has {bytes} bytes, more than {LISTING_CEILING}");
            return Err(Error::corrupt("the maps of memory of a capture", problem));
        }
        spend(&mut self.maps, bytes, "bytes of maps of memory")
    }

    /// Reads the listing of a tree, and checks the sizes in the manifest.
    pub(crate) fn read_listing(
        &mut self,
        tree: &ChunkedTree,
        get: Fetch<'_>,
        is_image: impl Fn(&str) -> bool,
    ) -> Result<Listing> {
        self.spend_listing(tree.images.bytes)?;
        let listing = Listing::from_json(&tree.images.read_all(get, LISTING_CEILING)?, is_image)?;
        self.spend_images(listing.files.len() + listing.memory.len())?;
        let bytes = listing.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        if bytes != tree.image_bytes {
            let problem =
                format!("its images have {bytes} bytes, and the manifest says {}", tree.image_bytes);
            return Err(Error::corrupt("the listing of a capture", problem));
        }
        let pages = tree.memory_bytes / PageSize::SMALLEST.bytes();
        let enough = pages.saturating_mul(EACH_PAGE).saturating_add(RUNS);
        let bytes = listing.memory.iter().map(|memory| memory.map.bytes).fold(0, u64::saturating_add);
        if bytes > enough {
            let memory = tree.memory_bytes;
            let problem =
                format!("its maps have {bytes} bytes, and {enough} are enough for {memory} bytes of memory");
            return Err(Error::corrupt("the listing of a capture", problem));
        }
        listing.memory.iter().try_for_each(|memory| self.spend_map(memory.map.bytes))?;
        Ok(listing)
    }
}

impl MemoryFile {
    /// Reads the map, unless it has more memory than the tree has left.
    pub(crate) fn read(&self, left: &mut MemoryLeft, get: Fetch<'_>) -> Result<MemoryMap> {
        let map = MemoryMap::decode(&self.map.read_all(get, LISTING_CEILING)?)?;
        let bytes = map.bytes();
        left.0 = left.0.checked_sub(bytes).ok_or_else(|| {
            let problem =
                format!("it has {bytes} bytes of memory, and the manifest leaves {} for it", left.0);
            Error::corrupt(format!("the map {}", self.name), problem)
        })?;
        Ok(map)
    }
}

impl MemoryLeft {
    /// Starts with all memory that the manifest states for this tree.
    pub(crate) fn of(tree: &ChunkedTree) -> MemoryLeft {
        MemoryLeft(tree.memory_bytes)
    }

    /// Checks that the maps had all of the memory.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0 {
            0 => Ok(()),
            left => Err(Error::corrupt(
                "the listing of a capture",
                format!("the manifest announces {left} bytes of memory more than its maps have"),
            )),
        }
    }
}

fn spend(left: &mut u64, amount: u64, what: &str) -> Result<()> {
    *left = left.checked_sub(amount).ok_or_else(|| {
        Error::corrupt(
            "the capture",
            format!("it has {amount} more {what}, and {left} are left of the ceiling"),
        )
    })?;
    Ok(())
}
