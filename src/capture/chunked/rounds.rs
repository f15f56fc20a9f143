//! [`TrackedPages`]: the digest of every page of an owner after a round of pre-dumps.

use std::collections::BTreeMap;

use super::owner::Chunks;
use crate::{
    Error, Result,
    manifest::{Leaf, window_pages},
    pages::{PageRun, PageSize},
};

/// All pages of an owner at the end of a round, as chunks of one page.
#[derive(Debug)]
pub(super) struct TrackedPages {
    page_size: PageSize,
    windows: BTreeMap<u64, TrackedWindow>,
}

/// The pages of a window. Page `n` is bit `n`.
#[derive(Debug, Default)]
struct TrackedWindow {
    pages: u64,
    /// The pages that may be restored lazily.
    lazy: u64,
    /// The chunks of the pages, in order.
    chunks: Chunks,
}

/// The maximum length of a run in windows: runs are split at its multiples. criu's own runs are
/// hardly longer.
const LONGEST_RUN: u64 = 8;

impl TrackedPages {
    /// Computes the memory after a round from its runs and the chunks of their present pages. Other
    /// pages come from the round before. Pages that the runs do not mention are gone.
    pub(super) fn after(
        page_size: PageSize,
        runs: &[PageRun],
        brought: Vec<Chunks>,
        before: Option<&TrackedPages>,
    ) -> Result<TrackedPages> {
        let mut known = TrackedPages { page_size, windows: BTreeMap::new() };
        let mut brought = brought.into_iter().flatten();
        for run in runs {
            if run.is_present() {
                for (window, pages) in pieces(run) {
                    let held = known.windows.entry(window).or_default();
                    held.pages |= pages;
                    held.lazy |= if run.flags & PageRun::LAZY == 0 { 0 } else { pages };
                    held.chunks.extend(brought.by_ref().take(pages.count_ones() as usize));
                }
            } else if run.is_in_parent() {
                // Checked before the loop, because a run can claim any length.
                if before.is_none_or(|before| before.count(run) != run.pages) {
                    return Err(corrupt(run, "are not in the previous dump"));
                }
                for (window, pages) in pieces(run) {
                    let Some(old) = before.and_then(|before| before.windows.get(&window)) else { continue };
                    let held = known.windows.entry(window).or_default();
                    held.pages |= pages;
                    held.lazy |= old.lazy & pages;
                    held.chunks.extend(old.of(pages));
                }
            } else {
                return Err(corrupt(run, "are neither in this dump nor in the previous one"));
            }
        }
        let whole = known.windows.values().all(|held| held.chunks.len() == held.pages.count_ones() as usize);
        match whole && brought.next().is_none() {
            true => Ok(known),
            false => Err(Error::corrupt("criu's stream of memory", "its pages do not match its runs")),
        }
    }

    /// Counts the pages of the run that are known.
    fn count(&self, run: &PageRun) -> u64 {
        let in_window = window_pages(self.page_size);
        let (first, last) = (run.first(), run.first() + (run.pages - 1));
        let windows = self.windows.range(first / in_window..=last / in_window);
        let pages = |window: u64| within(window * in_window, in_window, first, last);
        windows.map(|(window, held)| u64::from((held.pages & pages(*window)).count_ones())).sum()
    }

    /// Returns the runs of all pages, by address.
    pub(super) fn runs(&self) -> Result<Vec<PageRun>> {
        let mut runs: Vec<PageRun> = Vec::new();
        let in_window = window_pages(self.page_size);
        for (window, held) in &self.windows {
            for place in (0..in_window).filter(|place| held.pages >> place & 1 == 1) {
                let lazy = if held.lazy >> place & 1 == 1 { PageRun::LAZY } else { 0 };
                let page = window * in_window + place;
                let address = page * self.page_size.bytes();
                let next = PageRun::new(self.page_size, address, 1, PageRun::PRESENT | lazy)?;
                match runs.last_mut() {
                    Some(run)
                        if run.address + run.bytes() == next.address
                            && run.flags == next.flags
                            && !page.is_multiple_of(LONGEST_RUN * in_window) =>
                    {
                        run.pages += 1;
                    }
                    _ => runs.push(next),
                }
            }
        }
        Ok(runs)
    }

    /// Returns the leaves of all windows, by address.
    pub(super) fn leaves(&self) -> impl Iterator<Item = Leaf> {
        self.windows.values().map(|held| Leaf(held.chunks.clone()))
    }
}

impl TrackedWindow {
    /// Returns the chunks of the given pages.
    fn of(&self, pages: u64) -> impl Iterator<Item = Option<crate::Digest256>> {
        let here = (0..64_u64).filter(|page| self.pages >> page & 1 == 1);
        here.zip(&self.chunks).filter(move |(page, _)| pages >> page & 1 == 1).map(|(_, chunk)| *chunk)
    }
}

/// Returns the windows of a run, each with a bit for each of the run's pages.
fn pieces(run: &PageRun) -> impl Iterator<Item = (u64, u64)> + use<> {
    let in_window = window_pages(run.page_size);
    let (first, last) = (run.first(), run.first() + (run.pages - 1));
    (first / in_window..=last / in_window)
        .map(move |window| (window, within(window * in_window, in_window, first, last)))
}

/// Returns the bits of a window's pages from the first to the last. The window begins with the page
/// `start`, and has `in_window` pages.
fn within(start: u64, in_window: u64, first: u64, last: u64) -> u64 {
    let from = first.saturating_sub(start).min(in_window - 1);
    let to = last.saturating_sub(start).min(in_window - 1);
    (u64::MAX << from) & (u64::MAX >> (63 - to))
}

fn corrupt(run: &PageRun, problem: &str) -> Error {
    let PageRun { address, pages, .. } = run;
    Error::corrupt("criu's stream of memory", format!("{pages} pages at {address:#x} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest256;

    const PRESENT: u32 = PageRun::PRESENT;
    const LAZY: u32 = PageRun::PRESENT | PageRun::LAZY;
    const HOLE: u32 = PageRun::PARENT;

    const SMALLEST: PageSize = PageSize::SMALLEST;

    fn run(page: u64, pages: u64, flags: u32) -> PageRun {
        run_of(SMALLEST, page, pages, flags)
    }

    fn run_of(page_size: PageSize, page: u64, pages: u64, flags: u32) -> PageRun {
        PageRun::new(page_size, page * page_size.bytes(), pages, flags).unwrap()
    }

    /// Makes a chunk that names its page and its round; some are of zeros.
    fn chunk(page: u64, round: u64) -> Option<Digest256> {
        (!(page + round).is_multiple_of(5)).then(|| Digest256::of(format!("{page} {round}").as_bytes()))
    }

    /// Returns the chunks that workers make of the runs, window by window.
    fn brought(runs: &[PageRun], round: u64) -> Vec<Chunks> {
        let mut windows = BTreeMap::<u64, Chunks>::new();
        for run in runs.iter().filter(|run| run.is_present()) {
            for page in run.first()..run.first() + run.pages {
                windows.entry(page / window_pages(run.page_size)).or_default().push(chunk(page, round));
            }
        }
        windows.into_values().collect()
    }

    fn after(runs: &[PageRun], round: u64, before: Option<&TrackedPages>) -> Result<TrackedPages> {
        TrackedPages::after(runs[0].page_size, runs, brought(runs, round), before)
    }

    /// Returns each page with its flags and its chunk.
    fn pages(known: &TrackedPages) -> Vec<(u64, u32, Option<Digest256>)> {
        let chunks = known.leaves().flat_map(|leaf| leaf.0);
        let runs = known.runs().unwrap();
        let pages = runs.iter().flat_map(|run| (0..run.pages).map(|page| (run.first() + page, run.flags)));
        let pages: Vec<_> = pages.collect();
        assert_eq!(known.leaves().map(|leaf| leaf.0.len()).sum::<usize>(), pages.len());
        pages.into_iter().zip(chunks).map(|((page, flags), chunk)| (page, flags, chunk)).collect()
    }

    #[test]
    fn what_did_not_change_is_what_it_was() {
        let first = after(&[run(60, 10, LAZY), run(200, 2, PRESENT)], 1, None).unwrap();
        let runs =
            [run(60, 3, HOLE), run(63, 2, PRESENT), run(66, 4, HOLE), run(201, 1, HOLE), run(300, 1, LAZY)];
        let second = after(&runs, 2, Some(&first)).unwrap();
        // Holes again: 65 and 200 are gone since the round before, and 300 existed for one round
        // only.
        let runs = [run(60, 5, HOLE), run(66, 4, HOLE), run(201, 1, HOLE)];
        let third = after(&runs, 3, Some(&second)).unwrap();
        let rounds =
            [(60, 1), (61, 1), (62, 1), (63, 2), (64, 2), (66, 1), (67, 1), (68, 1), (69, 1), (201, 1)];
        let expected = rounds.map(|(page, round)| {
            let flags = if page == 63 || page == 64 || page == 201 { PRESENT } else { LAZY };
            (page, flags, chunk(page, round))
        });
        assert_eq!(pages(&third), expected);
    }

    #[test]
    fn rounds_come_to_what_one_dump_would() {
        PageSize::TESTED.into_iter().for_each(come_to_what_one_dump_would);
    }

    fn come_to_what_one_dump_would(page_size: PageSize) {
        // Each page changes, vanishes and returns in a pattern of its number and the round.
        let mut before: Option<TrackedPages> = None;
        let mut last = BTreeMap::<u64, u64>::new();
        for round in 1..12_u64 {
            let mut runs = Vec::<PageRun>::new();
            let mut now = BTreeMap::new();
            for page in (0..700_u64).filter(|page| (page / 7 + round * 3) % 11 != 0) {
                let kept = last.get(&page).copied().filter(|_| (page * 7 + round * 13) % 3 != 0);
                let flags = if kept.is_some() { HOLE } else { LAZY };
                now.insert(page, kept.unwrap_or(round));
                match runs.last_mut() {
                    Some(run)
                        if run.address + run.bytes() == page * page_size.bytes() && run.flags == flags =>
                    {
                        run.pages += 1;
                    }
                    _ => runs.push(run_of(page_size, page, 1, flags)),
                }
            }
            let known = after(&runs, round, before.as_ref()).unwrap();
            let expected: Vec<_> =
                now.iter().map(|(page, round)| (*page, LAZY, chunk(*page, *round))).collect();
            assert_eq!(pages(&known), expected, "round {round}");
            (before, last) = (Some(known), now);
        }
    }

    #[test]
    fn holes_without_memory_behind_them_are_refused() {
        let first = after(&[run(10, 100, LAZY), run(500, 1, PRESENT)], 1, None).unwrap();
        let far = PageRun::new(SMALLEST, 0, u64::MAX / 4096, HOLE).unwrap();
        for hole in [run(9, 2, HOLE), run(109, 2, HOLE), run(200, 1, HOLE), run(0, 4096, HOLE), far] {
            assert!(after(&[hole], 2, Some(&first)).is_err(), "{hole:?}");
            assert!(after(&[hole], 2, None).is_err(), "{hole:?}");
        }
        assert!(after(&[run(10, 100, HOLE)], 2, Some(&first)).is_ok());
        // A page that is in no dump.
        assert!(after(&[run(10, 1, PageRun::LAZY)], 2, Some(&first)).is_err());
        assert!(after(&[run(10, 1, 0)], 2, Some(&first)).is_err());
    }

    #[test]
    fn pages_and_chunks_must_be_as_many() {
        let runs = [run(62, 4, PRESENT)];
        let chunks = brought(&runs, 1);
        assert!(TrackedPages::after(SMALLEST, &runs, chunks.clone(), None).is_ok());
        assert!(TrackedPages::after(SMALLEST, &runs, chunks[..1].to_vec(), None).is_err());
        assert!(TrackedPages::after(SMALLEST, &runs[..0], chunks.clone(), None).is_err());
        let more = [chunks, vec![vec![None]]].concat();
        assert!(TrackedPages::after(SMALLEST, &runs, more, None).is_err());
    }

    #[test]
    fn runs_are_no_longer_than_criu_makes_them() {
        let runs = |page_size| {
            let runs = [run_of(page_size, 100, 2000, LAZY), run_of(page_size, 2100, 1, PRESENT)];
            let runs = after(&runs, 1, None).unwrap().runs().unwrap();
            runs.iter().map(|run| (run.first(), run.pages)).collect::<Vec<_>>()
        };
        assert_eq!(runs(SMALLEST), [(100, 412), (512, 512), (1024, 512), (1536, 512), (2048, 52), (2100, 1)]);
        let large = runs(PageSize::new(65536).unwrap());
        assert_eq!(large[..3], [(100, 28), (128, 32), (160, 32)]);
        assert_eq!(large.last(), Some(&(2100, 1)));
    }
}
