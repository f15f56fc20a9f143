//! The way of memory from a stream of pages into a store, for each size of pages.

use super::*;
use crate::MemBlobStore;

const OWNER: PageOwner = PageOwner::Task(7);

/// Returns memory of so many pages. Some pages are zeros, and the others differ.
fn memory(page_size: PageSize, pages: usize) -> Vec<u8> {
    let mut memory = vec![0; pages * page_size.length()];
    for (number, page) in memory.chunks_mut(page_size.length()).enumerate().filter(|(page, _)| page % 5 > 1) {
        page.fill(u8::try_from(number % 250).unwrap() + 1);
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    memory
}

/// Receives memory of one owner as a capture does, and returns its map.
fn receive(pipeline: &ChunkPipeline<'_>, runs: &[PageRun], mut memory: &[u8]) -> MemoryMap {
    pipeline.start().unwrap();
    thread::scope(|scope| {
        let _close = Closing(&pipeline.buffers);
        scope.spawn(|| pipeline.run_worker(0));
        let mut cutter = Cutter::new(&pipeline.buffers, Box::new(TreeMaps { pipeline, root: 7 }));
        cutter.open(OWNER).unwrap();
        for run in runs {
            cutter.run(*run, &mut memory.by_ref().take(run.bytes())).unwrap();
        }
        cutter.close().unwrap();
        pipeline.buffers.drain().unwrap();
    });
    assert!(memory.is_empty());
    let map = pipeline.owners().remove(&7).unwrap().remove(&OWNER).unwrap();
    let map = pipeline.map(7, OWNER, &map).unwrap();
    pipeline.commit().unwrap();
    map
}

/// Reads the chunks of a map.
fn chunks(store: &MemBlobStore, map: &MemoryMap) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    for (window, leaf) in map.windows().zip(&map.leaves) {
        let pages: Vec<_> = window.chunks(map.chunk).collect();
        let leaf = Leaf::decode(&store.get(leaf).unwrap(), pages.len()).unwrap();
        for (pages, digest) in pages.into_iter().zip(leaf.0) {
            let zeros = || vec![0; pages * map.page_size.length()];
            chunks.push(digest.map_or_else(zeros, |digest| store.get(&digest).unwrap()));
        }
    }
    chunks
}

#[test]
fn memory_comes_back_from_its_chunks_whatever_the_size_of_its_pages() {
    for page_size in PageSize::TESTED {
        let run = |page: u64, pages| {
            PageRun::new(page_size, page * page_size.bytes(), pages, PageRun::PRESENT).unwrap()
        };
        let runs = [run(3, 2), run(5, 1), run(62, 70), run(640, 130), run(5000, 1)];
        let memory = memory(page_size, 204);
        for bytes in [1, 16384, 65536, 1 << 18] {
            for tracked in [false, true] {
                let (store, until) = (MemBlobStore::new(), Until::forever());
                let chunking = Chunking::default().chunk(bytes);
                let buffers = Buffers::new(&BufferPool::new(16 << 20), 2);
                let pipeline = ChunkPipeline::new(&store, &until, &chunking, page_size, buffers).unwrap();
                if tracked && pipeline.chunk > 1 {
                    continue; // not with pre-dumps
                }
                pipeline.tracked.store(tracked, Ordering::Relaxed);
                let map = receive(&pipeline, &runs, &memory);
                assert_eq!(MemoryMap::decode(&map.encode()).unwrap(), map);
                assert_eq!((map.page_size, map.bytes()), (page_size, memory.len() as u64));
                let chunks = chunks(&store, &map);
                assert!(chunks.iter().all(|chunk| chunk.len() as u64 <= bytes.max(page_size.bytes())));
                assert!(chunks.concat() == memory, "{page_size:?} {bytes} {tracked}");
            }
        }
    }
}

#[test]
fn a_chunk_has_whole_pages_and_pre_dumps_need_chunks_of_one() {
    let large = PageSize::new(65536).unwrap();
    for (bytes, small_pages, large_pages) in [
        (0, 1, 1),
        (4096, 1, 1),
        (4097, 2, 1),
        (65536, 16, 1),
        (65537, 32, 2),
        (1 << 18, 64, 4),
        (u64::MAX, 64, 4),
    ] {
        let chunking = Chunking::default().chunk(bytes);
        let pages = |page_size| chunking.pages(page_size).unwrap();
        assert_eq!((pages(PageSize::SMALLEST), pages(large)), (small_pages, large_pages), "{bytes}");
        let chunking = chunking.pre_dumps(1);
        assert_eq!(chunking.pages(PageSize::SMALLEST).is_ok(), small_pages == 1, "{bytes}");
        assert_eq!(chunking.pages(large).is_ok(), large_pages == 1, "{bytes}");
    }
}
