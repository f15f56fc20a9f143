//! [`MemoryMap`]: the pages of an owner, and the blobs that have them.
//!
//! Memory is cut by address: into windows of 64 pages, and those into chunks. A chunk depends only
//! on its own bytes. The chunks of a window are listed in a blob, its *leaf*, so that an unchanged
//! window costs one digest.

use super::content::{DIGEST, digests};
use crate::{
    Digest256, Error, Result,
    pages::{PAGE_SIZE, PageRun},
};

/// The number of pages in a window.
pub(crate) const WINDOW: u64 = 64;

const MAGIC: &[u8; 8] = b"CRIUMAP1";
const HEAD: usize = 24;
const RUN: usize = 16;

/// The memory of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryMap {
    /// The number of pages in a chunk: a power of two, up to those of a window.
    pub(crate) chunk: u32,
    /// The runs of pages, by address.
    pub(crate) runs: Vec<PageRun>,
    /// The leaves of the windows with present pages, by address.
    pub(crate) leaves: Vec<Digest256>,
}

/// 64 adjacent pages, the first at a multiple of their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// A bit for each present page; the first page is bit 0.
    pub(crate) pages: u64,
    /// The number of present pages in the windows before.
    pub(crate) before: u64,
}

impl Window {
    /// Returns the number of pages of each chunk, in order. Chunks without pages are left out.
    pub(crate) fn chunks(self, chunk: u32) -> impl Iterator<Item = usize> {
        let mask = if chunk == 64 { u64::MAX } else { (1 << chunk) - 1 };
        (0..64 / chunk)
            .map(move |place| (self.pages >> (place * chunk) & mask).count_ones() as usize)
            .filter(|pages| *pages > 0)
    }
}

impl MemoryMap {
    /// Encodes the map for a store.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + RUN * self.runs.len() + DIGEST * self.leaves.len());
        let mut runs = Vec::new();
        for run in &self.runs {
            let (mut address, mut left) = (run.address, run.pages);
            while left > 0 {
                let pages = u32::try_from(left).unwrap_or(1 << 31);
                runs.push((address, pages, run.flags));
                address += u64::from(pages) * PAGE_SIZE as u64;
                left -= u64::from(pages);
            }
        }
        bytes.extend(MAGIC);
        bytes.extend(self.chunk.to_le_bytes());
        bytes.extend(4096_u32.to_le_bytes());
        bytes.extend((runs.len() as u64).to_le_bytes());
        for (address, pages, flags) in runs {
            bytes.extend(address.to_le_bytes());
            bytes.extend(pages.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        for leaf in &self.leaves {
            bytes.extend(leaf.as_bytes());
        }
        bytes
    }

    /// Decodes a map: sorted runs, and a leaf for each window.
    pub(crate) fn decode(bytes: &[u8]) -> Result<MemoryMap> {
        let corrupt = |problem: &str| Error::corrupt("a map of memory", problem);
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or_else(|| corrupt("it is cut short"))?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != *MAGIC || number(12) != 4096 {
            return Err(corrupt("it is not a memory map of a known version"));
        }
        let chunk = number(8);
        if !chunk.is_power_of_two() || u64::from(chunk) > WINDOW {
            return Err(corrupt("its chunk size is not supported"));
        }
        let count = u64::from(number(16)) | u64::from(number(20)) << 32;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(RUN));
        let split = length.and_then(|length| rest.split_at_checked(length));
        let (runs, leaves) = split.ok_or_else(|| corrupt("it is cut short"))?;
        let runs: Vec<_> = runs.chunks_exact(RUN).map(run).collect::<Result<_>>()?;
        let end = |run: &PageRun| run.address + run.bytes();
        if runs.windows(2).any(|pair| end(&pair[0]) > pair[1].address) {
            return Err(corrupt("its runs are not in order"));
        }
        let leaves = digests(leaves).ok_or_else(|| corrupt("it ends inside a digest"))?;
        let map = MemoryMap { chunk, runs, leaves };
        // A few runs can span a huge number of windows, so count one more than there are leaves at
        // most.
        if map.windows().take(map.leaves.len() + 1).count() != map.leaves.len() {
            return Err(corrupt("its numbers of leaves and windows differ"));
        }
        Ok(map)
    }

    /// Returns the windows with present pages, by address.
    pub(crate) fn windows(&self) -> impl Iterator<Item = Window> {
        windows(&self.runs)
    }

    /// Returns the number of present pages.
    pub(crate) fn pages(&self) -> u64 {
        self.runs.iter().filter(|run| run.is_present()).map(|run| run.pages).sum()
    }
}

fn run(bytes: &[u8]) -> Result<PageRun> {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let address = u64::from(number(0)) | u64::from(number(4)) << 32;
    PageRun::new(address, number(8).into(), number(12))
}

/// Returns the windows of these runs.
fn windows(runs: &[PageRun]) -> impl Iterator<Item = Window> {
    let mut runs = runs.iter().filter(|run| run.is_present());
    let mut rest: Option<(u64, u64)> = None;
    let mut before = 0;
    std::iter::from_fn(move || {
        let mut next = || runs.next().map(|run| (run.address / PAGE_SIZE as u64, run.pages));
        if rest.is_none() {
            rest = Some(next()?);
        }
        let (first, _) = rest?;
        let index = first / WINDOW;
        let mut pages = 0_u64;
        while let Some((page, count)) = rest.take().or_else(&mut next) {
            if page / WINDOW != index {
                rest = Some((page, count));
                break;
            }
            let room = WINDOW - page % WINDOW;
            let here = count.min(room);
            pages |= (u64::MAX >> (WINDOW - here)) << (page % WINDOW);
            if count > here {
                rest = Some((page + here, count - here));
                break;
            }
        }
        let window = Window { pages, before };
        before += u64::from(pages.count_ones());
        Some(window)
    })
}

/// The chunks of a window: the digest of each, or `None` for a chunk of zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf(pub(crate) Vec<Option<Digest256>>);

impl Leaf {
    /// Encodes the leaf for a store.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let zeros = self.0.iter().enumerate().filter(|(_, digest)| digest.is_none());
        let zeros = zeros.fold(0_u64, |zeros, (place, _)| zeros | 1 << place);
        let mut bytes = zeros.to_le_bytes().to_vec();
        for digest in self.0.iter().flatten() {
            bytes.extend(digest.as_bytes());
        }
        bytes
    }

    /// Decodes a leaf of this number of chunks.
    pub(crate) fn decode(bytes: &[u8], chunks: usize) -> Result<Leaf> {
        let corrupt = || Error::corrupt("the leaf of a window", "its length does not match its map");
        let (zeros, list) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let zeros = u64::from_le_bytes(*zeros);
        let mut digests = digests(list).ok_or_else(corrupt)?.into_iter();
        let leaf: Option<Vec<_>> = (0..chunks)
            .map(|place| if zeros >> place & 1 == 1 { Some(None) } else { digests.next().map(Some) })
            .collect();
        let within = chunks >= 64 || zeros >> chunks == 0;
        leaf.filter(|_| within && digests.next().is_none()).map(Leaf).ok_or_else(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, pages: u64, flags: u32) -> PageRun {
        PageRun::new(page * PAGE_SIZE as u64, pages, flags).unwrap()
    }

    fn shown(runs: &[PageRun]) -> Vec<(u64, u64)> {
        windows(runs).map(|window| (window.pages, window.before)).collect()
    }

    #[test]
    fn windows_follow_addresses() {
        assert_eq!(shown(&[]), []);
        assert_eq!(shown(&[run(0, 1, 4)]), [(1, 0)]);
        assert_eq!(shown(&[run(63, 2, 4)]), [(1 << 63, 0), (1, 1)]);
        assert_eq!(shown(&[run(64, 64, 4)]), [(u64::MAX, 0)]);
        assert_eq!(shown(&[run(1, 2, 4), run(5, 1, 4), run(200, 1, 6)]), [(0b100_110, 0), (1 << 8, 3)]);
        assert_eq!(
            shown(&[run(0, 1, 4), run(1, 64, 2), run(65, 130, 4)]),
            [(1, 0), (u64::MAX << 1, 1), (u64::MAX, 64), (7, 128)]
        );
    }

    #[test]
    fn windows_have_all_pages_once() {
        // Compare runs and gaps of all lengths with a set of pages.
        let mut runs = Vec::new();
        let mut page = 3;
        for step in 0..200_u64 {
            let pages = step * step % 150 + 1;
            runs.push(run(page, pages, if step % 7 == 0 { 2 } else { 6 }));
            page += pages + step * 5 % 70;
        }
        let present = runs.iter().filter(|run| run.is_present());
        let pages: Vec<u64> =
            present.flat_map(|run| (0..run.pages).map(|page| run.address / 4096 + page)).collect();
        let mut expected = std::collections::BTreeMap::<u64, u64>::new();
        for page in &pages {
            *expected.entry(page / 64).or_default() |= 1 << (page % 64);
        }
        let found: Vec<u64> = windows(&runs).map(|window| window.pages).collect();
        assert_eq!(found, expected.into_values().collect::<Vec<_>>());
        let last = windows(&runs).last().unwrap();
        assert_eq!(last.before + u64::from(last.pages.count_ones()), pages.len() as u64);
    }

    #[test]
    fn chunks_are_cut_along_addresses() {
        let window = |pages| Window { pages, before: 0 };
        assert_eq!(window(0b1011).chunks(1).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(window(0b1011).chunks(2).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(window(u64::MAX).chunks(64).collect::<Vec<_>>(), [64]);
        assert_eq!(window(1 << 63).chunks(16).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_map_comes_back_and_a_damaged_one_is_refused() {
        let runs = vec![run(1, 2, 6), run(3, 500, 4), run(900, 1, 2)];
        let leaves = windows(&runs).map(|window| Digest256::of(&window.pages.to_le_bytes())).collect();
        let map = MemoryMap { chunk: 4, runs, leaves };
        let bytes = map.encode();
        assert_eq!(MemoryMap::decode(&bytes).unwrap(), map);
        assert_eq!(map.pages(), 502);
        for length in 0..bytes.len() {
            assert!(MemoryMap::decode(&bytes[..length]).is_err(), "{length}");
        }
        // The magic, sizes, the number of runs, an impossible address, a wrong order.
        for (at, value) in [(0, 0), (8, 3), (8, 128), (12, 1), (16, 2), (23, 1), (24, 1), (41, 0), (32, 9)] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(MemoryMap::decode(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn windows_beyond_number_are_refused_at_once() {
        let pages = u64::from(u32::MAX);
        let runs = (0..1 << 16).map(|place| run(place * pages, pages, 4)).collect();
        let map = MemoryMap { chunk: 1, runs, leaves: vec![Digest256::of(b"")] };
        assert!(MemoryMap::decode(&map.encode()).is_err());
    }

    #[test]
    fn a_leaf_comes_back_and_one_that_does_not_fit_is_refused() {
        let digest = |byte| Some(Digest256::of(&[byte]));
        for leaf in [vec![None; 64], vec![digest(1), None, digest(2)], vec![digest(1); 64], vec![None]] {
            let chunks = leaf.len();
            let bytes = Leaf(leaf.clone()).encode();
            assert_eq!(Leaf::decode(&bytes, chunks).unwrap(), Leaf(leaf));
            assert!(Leaf::decode(&bytes, chunks - 1).is_err());
            assert!(Leaf::decode(&bytes[..bytes.len() - 1], chunks).is_err());
            assert!(chunks == 64 || Leaf::decode(&bytes, chunks + 1).is_err());
        }
    }
}
