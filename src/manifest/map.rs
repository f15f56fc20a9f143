//! [`MemoryMap`]: the pages of an owner, and the blobs that have them.
//!
//! Memory is cut by address: into windows of 256 KiB, and those into chunks. A chunk depends only
//! on its own bytes. The chunks of a window are listed in a blob, its *leaf*, so that an unchanged
//! window costs one digest.

use super::content::{DIGEST, digests};
use crate::{
    Digest256, Error, Result,
    pages::{PageRun, PageSize},
};

/// The size of a window, in bytes: 64 of the smallest pages, or fewer larger ones. So a mask of 64
/// bits has a bit for each page, and a window fits into a buffer.
pub(crate) const WINDOW_BYTES: usize = 64 * PageSize::SMALLEST.length();

/// Returns the number of pages in a window: 64, 32, 16, 8 or 4.
pub(crate) fn window_pages(page_size: PageSize) -> u64 {
    (WINDOW_BYTES / page_size.length()) as u64
}

const MAGIC: &[u8; 8] = b"CRIUMAP1";
const HEAD: usize = 24;
const RUN: usize = 16;

/// The memory of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryMap {
    /// The size of the pages.
    pub(crate) page_size: PageSize,
    /// The number of pages in a chunk: a power of two, up to those of a window.
    pub(crate) chunk: u32,
    /// The runs of pages, by address.
    pub(crate) runs: Vec<PageRun>,
    /// The leaves of the windows with present pages, by address.
    pub(crate) leaves: Vec<Digest256>,
}

/// Adjacent pages of [`WINDOW_BYTES`] together, which begin at a multiple of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Its address, in windows.
    pub(crate) number: u64,
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
                address += u64::from(pages) * self.page_size.bytes();
                left -= u64::from(pages);
            }
        }
        bytes.extend(MAGIC);
        bytes.extend(self.chunk.to_le_bytes());
        bytes.extend(u32::try_from(self.page_size.bytes()).unwrap_or(0).to_le_bytes());
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
        if head[..8] != *MAGIC {
            return Err(corrupt("it is not a memory map of a known version"));
        }
        let page_size = PageSize::new(number(12).into())
            .ok_or_else(|| corrupt(&format!("its pages of {} bytes are not supported", number(12))))?;
        let chunk = number(8);
        if !chunk.is_power_of_two() || u64::from(chunk) > window_pages(page_size) {
            return Err(corrupt("its chunk size is not supported"));
        }
        let count = u64::from(number(16)) | u64::from(number(20)) << 32;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(RUN));
        let split = length.and_then(|length| rest.split_at_checked(length));
        let (runs, leaves) = split.ok_or_else(|| corrupt("it is cut short"))?;
        let runs: Vec<_> =
            runs.chunks_exact(RUN).map(|bytes| run(page_size, bytes)).collect::<Result<_>>()?;
        let end = |run: &PageRun| run.address + run.bytes();
        if runs.windows(2).any(|pair| end(&pair[0]) > pair[1].address) {
            return Err(corrupt("its runs are not in order"));
        }
        let leaves = digests(leaves).ok_or_else(|| corrupt("it ends inside a digest"))?;
        let map = MemoryMap { page_size, chunk, runs, leaves };
        // A few runs can span a huge number of windows, so count one more than there are leaves at
        // most.
        if map.windows().take(map.leaves.len() + 1).count() != map.leaves.len() {
            return Err(corrupt("its numbers of leaves and windows differ"));
        }
        Ok(map)
    }

    /// Returns the windows with present pages, by address.
    pub(crate) fn windows(&self) -> impl Iterator<Item = Window> {
        windows(self.page_size, &self.runs)
    }

    /// Returns the size of the present pages, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().filter(|run| run.is_present()).map(PageRun::bytes).fold(0, u64::saturating_add)
    }
}

/// An index of the windows of a map by address. It needs some 24 bytes for each window.
#[derive(Debug)]
pub(crate) struct WindowTable {
    page_size: PageSize,
    chunk: u32,
    windows: Vec<Window>,
}

/// The place of a page in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the window's leaf among those of the map.
    pub(crate) leaf: usize,
    pub(crate) window: Window,
    /// The number of the chunk among those of the leaf.
    pub(crate) chunk: usize,
    /// The offset of the page in the chunk, in bytes.
    pub(crate) offset: usize,
}

#[cfg_attr(not(test), expect(dead_code, reason = "a restore that fetches single pages is to use it"))]
impl WindowTable {
    pub(crate) fn of(map: &MemoryMap) -> WindowTable {
        WindowTable { page_size: map.page_size, chunk: map.chunk, windows: map.windows().collect() }
    }

    /// Returns the place of the page with this address; `None` if it is not present. Needs only the
    /// map.
    pub(crate) fn find(&self, address: u64) -> Option<Place> {
        let page = address / self.page_size.bytes();
        let number = page / window_pages(self.page_size);
        let leaf = self.windows.binary_search_by_key(&number, |window| window.number).ok()?;
        let window = self.windows[leaf];
        let bit = u32::try_from(page % window_pages(self.page_size)).ok()?;
        if window.pages >> bit & 1 == 0 {
            return None;
        }
        let before = |pages: u64| Window { pages: window.pages & pages, ..window };
        let start = bit / self.chunk * self.chunk;
        let (earlier, up_to) = ((1 << start) - 1, (1 << bit) - 1);
        let offset = (window.pages & up_to & !earlier).count_ones() as usize * self.page_size.length();
        Some(Place { leaf, window, chunk: before(earlier).chunks(self.chunk).count(), offset })
    }
}

fn run(page_size: PageSize, bytes: &[u8]) -> Result<PageRun> {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let address = u64::from(number(0)) | u64::from(number(4)) << 32;
    PageRun::new(page_size, address, number(8).into(), number(12))
}

/// Returns the windows of these runs.
fn windows(page_size: PageSize, runs: &[PageRun]) -> impl Iterator<Item = Window> {
    let in_window = window_pages(page_size);
    let mut runs = runs.iter().filter(|run| run.is_present());
    let mut rest: Option<(u64, u64)> = None;
    let mut before = 0;
    std::iter::from_fn(move || {
        let mut next = || runs.next().map(|run| (run.first(), run.pages));
        if rest.is_none() {
            rest = Some(next()?);
        }
        let (first, _) = rest?;
        let index = first / in_window;
        let mut pages = 0_u64;
        while let Some((page, count)) = rest.take().or_else(&mut next) {
            if page / in_window != index {
                rest = Some((page, count));
                break;
            }
            let room = in_window - page % in_window;
            let here = count.min(room);
            pages |= (u64::MAX >> (64 - here)) << (page % in_window);
            if count > here {
                rest = Some((page + here, count - here));
                break;
            }
        }
        let window = Window { number: index, pages, before };
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

    const SMALLEST: PageSize = PageSize::SMALLEST;

    fn run(page: u64, pages: u64, flags: u32) -> PageRun {
        run_of(SMALLEST, page, pages, flags)
    }

    fn run_of(page_size: PageSize, page: u64, pages: u64, flags: u32) -> PageRun {
        PageRun::new(page_size, page * page_size.bytes(), pages, flags).unwrap()
    }

    fn shown(runs: &[PageRun]) -> Vec<(u64, u64)> {
        windows(SMALLEST, runs).map(|window| (window.pages, window.before)).collect()
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
    fn a_window_has_fewer_pages_if_they_are_larger() {
        assert_eq!(PageSize::TESTED.map(window_pages), [64, 16, 4]);
        let page_size = PageSize::new(65536).unwrap();
        let run = |page, pages| run_of(page_size, page, pages, 4);
        let found: Vec<_> = windows(page_size, &[run(1, 2), run(3, 6), run(400, 1)]).collect();
        let found: Vec<_> = found.iter().map(|window| (window.pages, window.before)).collect();
        assert_eq!(found, [(0b1110, 0), (0b1111, 3), (1, 7), (1, 8)]);
    }

    #[test]
    fn windows_have_all_pages_once() {
        PageSize::TESTED.into_iter().for_each(have_all_pages_once);
    }

    fn have_all_pages_once(page_size: PageSize) {
        // Compare runs and gaps of all lengths with a set of pages.
        let mut runs = Vec::new();
        let mut page = 3;
        for step in 0..200_u64 {
            let pages = step * step % 150 + 1;
            runs.push(run_of(page_size, page, pages, if step % 7 == 0 { 2 } else { 6 }));
            page += pages + step * 5 % 70;
        }
        let present = runs.iter().filter(|run| run.is_present());
        let pages: Vec<u64> = present.flat_map(|run| (0..run.pages).map(|page| run.first() + page)).collect();
        let mut expected = std::collections::BTreeMap::<u64, u64>::new();
        for page in &pages {
            let in_window = 262_144 / page_size.bytes();
            *expected.entry(page / in_window).or_default() |= 1 << (page % in_window);
        }
        let found: Vec<u64> = windows(page_size, &runs).map(|window| window.pages).collect();
        assert_eq!(found, expected.into_values().collect::<Vec<_>>());
        let last = windows(page_size, &runs).last().unwrap();
        assert_eq!(last.before + u64::from(last.pages.count_ones()), pages.len() as u64);
    }

    #[test]
    fn chunks_are_cut_along_addresses() {
        let window = |pages| Window { number: 0, pages, before: 0 };
        assert_eq!(window(0b1011).chunks(1).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(window(0b1011).chunks(2).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(window(u64::MAX).chunks(64).collect::<Vec<_>>(), [64]);
        assert_eq!(window(1 << 63).chunks(16).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_page_is_found_by_its_address() {
        for page_size in PageSize::TESTED {
            let run = |page, pages, flags| run_of(page_size, page, pages, flags);
            let runs = [run(3, 2, 4), run(5, 1, 2), run(61, 70, 6), run(640, 131, 4), run(5000, 1, 4)];
            let whole = u32::try_from(window_pages(page_size)).unwrap();
            for chunk in [1, 2, 4, whole] {
                let map = MemoryMap { page_size, chunk, runs: runs.to_vec(), leaves: Vec::new() };
                let table = WindowTable::of(&map);
                // The places of all pages, in order, from the cuts that a capture makes.
                let mut places = Vec::new();
                for (leaf, window) in map.windows().enumerate() {
                    for (number, pages) in window.chunks(chunk).enumerate() {
                        let offsets = (0..pages).map(|page| page * page_size.length());
                        places.extend(offsets.map(|offset| Place { leaf, window, chunk: number, offset }));
                    }
                }
                let present = |page: u64| {
                    let has = |run: &&PageRun| (run.first()..run.first() + run.pages).contains(&page);
                    runs.iter().filter(|run| run.is_present()).any(|run| has(&run))
                };
                let mut expected = places.into_iter();
                for page in 0..5200 {
                    let found = table.find(page * page_size.bytes() + 7);
                    assert_eq!(found, if present(page) { expected.next() } else { None }, "{page}");
                }
                assert_eq!(expected.next(), None);
                assert_eq!(table.find(u64::MAX), None);
            }
        }
    }

    #[test]
    fn a_map_comes_back_and_a_damaged_one_is_refused() {
        for page_size in PageSize::TESTED {
            comes_back(page_size);
        }
    }

    fn comes_back(page_size: PageSize) {
        let run = |page, pages, flags| run_of(page_size, page, pages, flags);
        let runs = vec![run(1, 2, 6), run(3, 500, 4), run(900, 1, 2)];
        let leaves =
            windows(page_size, &runs).map(|window| Digest256::of(&window.pages.to_le_bytes())).collect();
        let map = MemoryMap { page_size, chunk: 4, runs, leaves };
        let bytes = map.encode();
        assert_eq!(bytes[12..16], u32::try_from(page_size.bytes()).unwrap().to_le_bytes());
        assert_eq!(MemoryMap::decode(&bytes).unwrap(), map);
        assert_eq!(map.bytes(), 502 * page_size.bytes());
        for length in 0..bytes.len() {
            assert!(MemoryMap::decode(&bytes[..length]).is_err(), "{length}");
        }
        // The magic, sizes, the number of runs, an impossible address, a wrong order.
        let order = if page_size.bytes() == 65536 { 42 } else { 41 };
        for (at, value) in [(0, 0), (8, 3), (8, 128), (12, 1), (16, 2), (23, 1), (24, 1), (order, 0), (32, 9)]
        {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(MemoryMap::decode(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn pages_of_a_size_that_no_kernel_has_are_refused_by_it() {
        let map = MemoryMap { page_size: SMALLEST, chunk: 1, runs: Vec::new(), leaves: Vec::new() };
        for bytes in [0, 1, 2048, 4095, 5000, 12288, 131_072, u32::MAX] {
            let mut other = map.encode();
            other[12..16].copy_from_slice(&u32::to_le_bytes(bytes));
            let error = MemoryMap::decode(&other).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(&format!("pages of {bytes} bytes")), "{error}");
        }
        // A chunk has at most the pages of a window.
        for page_size in PageSize::TESTED {
            for chunk in [1, 4, 8, 16, 32, 64, 128] {
                let map = MemoryMap { page_size, chunk, ..map.clone() };
                let fits = u64::from(chunk) <= window_pages(page_size);
                assert_eq!(MemoryMap::decode(&map.encode()).is_ok(), fits, "{page_size:?} {chunk}");
            }
        }
    }

    #[test]
    fn windows_beyond_number_are_refused_at_once() {
        let pages = u64::from(u32::MAX);
        let runs = (0..1 << 16).map(|place| run(place * pages, pages, 4)).collect();
        let map = MemoryMap { page_size: SMALLEST, chunk: 1, runs, leaves: vec![Digest256::of(b"")] };
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
