//! Lays out a chunked capture as folders of images: small images as files, memory from its chunks
//! when it is read.

use std::{
    fs::File,
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{
    BlobStore, Digest256, Error, Result, Until,
    archive::{is_image, tree_folder},
    image::ImageDir,
    manifest::{
        Budget, ChunkedBlob, ChunkedTree, Content, ImageFile, Leaf, Listing, MemoryLeft, MemoryMap, Window,
    },
    pages::{PIECE, PageFile, PageFiles, PageOwner, PageSize},
    platform::ToRevive,
    private_files,
    store::{fetch, fetch_into},
};

/// One tree: its images in a folder, and its memory in the store.
pub(super) struct StagedTree<'a> {
    folder: PathBuf,
    memory: StoredMemory<'a>,
}

impl StagedTree<'_> {
    pub(super) fn to_revive(&self) -> ToRevive<'_> {
        ToRevive { folder: &self.folder, pages: Some(&self.memory) }
    }
}

/// Fetches, verifies and writes all images but memory below `folder`. All trees together may have
/// at most `limit` bytes.
pub(super) fn write_images<'a>(
    store: &'a dyn BlobStore,
    blob: &ChunkedBlob,
    folder: &Path,
    limit: u64,
    until: &'a Until,
) -> Result<Vec<StagedTree<'a>>> {
    let bytes = blob.trees.iter().flat_map(|tree| [tree.image_bytes, tree.memory_bytes]);
    if bytes.fold(0, u64::saturating_add) > limit {
        return Err(Error::corrupt("the capture", format!("it has more than {limit} bytes")));
    }
    let mut writer = ImageWriter { store, until, budget: Budget::new() };
    let lay = |tree: &ChunkedTree| match blob.trees.len() {
        1 => writer.tree(tree, folder.to_owned()),
        _ => {
            let folder = folder.join(tree_folder(tree.root.as_raw()));
            private_files::create_folder(&folder)
                .map_err(Error::io(format!("make the folder {}", folder.display())))?;
            writer.tree(tree, folder)
        }
    };
    match blob.trees.is_empty() {
        true => Err(Error::corrupt("the manifest", "it has no tree")),
        false => blob.trees.iter().map(lay).collect(),
    }
}

/// Takes a blob, with its index among the requested digests.
type Each<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<()>;

struct ImageWriter<'a> {
    store: &'a dyn BlobStore,
    until: &'a Until,
    budget: Budget,
}

impl<'a> ImageWriter<'a> {
    fn tree(&mut self, tree: &ChunkedTree, folder: PathBuf) -> Result<StagedTree<'a>> {
        let (store, until) = (self.store, self.until);
        let get = |digests: &[Digest256], each: Each<'_>| fetch_until(store, until, digests, each);
        let listing = self.budget.read_listing(tree, &get, is_image)?;
        self.files(&listing, &folder)?;
        let memory = self.memory(&listing, tree, &folder)?;
        Ok(StagedTree { folder, memory })
    }

    fn files(&self, listing: &Listing, folder: &Path) -> Result<()> {
        let create = |file: &ImageFile| {
            private_files::create_file(&folder.join(&file.name))
                .map_err(Error::io(format!("write the image {}", file.name)))
        };
        for file in &listing.files {
            if let Some(content) = file.content {
                let mut image = create(file)?;
                let writing = || Error::io(format!("write the image {}", file.name));
                self.read(&content, &mut |piece| image.write_all(piece).map_err(writing()))?;
            }
        }
        let mut packed = listing.files.iter().filter(|file| file.content.is_none());
        // The image that is being written, and the number of its missing bytes.
        let mut open: Option<(File, u64)> = None;
        self.read(&listing.packed, &mut |mut piece| {
            while !piece.is_empty() {
                let Some((image, left)) = open.as_mut().filter(|(_, left)| *left > 0) else {
                    let file = packed.next().ok_or_else(|| {
                        Error::corrupt("the listing of a capture", "its sizes do not agree")
                    })?;
                    open = Some((create(file)?, file.bytes));
                    continue;
                };
                let part = piece.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                image.write_all(&piece[..part]).map_err(Error::io("write an image"))?;
                *left -= part as u64;
                piece = &piece[part..];
            }
            Ok(())
        })?;
        packed.try_for_each(|file| create(file).map(drop))
    }

    fn memory(&mut self, listing: &Listing, tree: &ChunkedTree, folder: &Path) -> Result<StoredMemory<'a>> {
        let (store, until) = (self.store, self.until);
        let get = |digests: &[Digest256], each: Each<'_>| fetch_until(store, until, digests, each);
        let mut left = MemoryLeft::of(tree);
        let mut memory = StoredMemory { store, page_size: None, maps: Vec::new(), files: Vec::new() };
        let images = ImageDir::new(folder);
        for (id, file) in (1..).zip(&listing.memory) {
            let map = file.read(&mut left, &get)?;
            let owner = PageOwner::of_map(&file.name)
                .ok_or_else(|| Error::corrupt("the listing of a capture", "it has a map without an owner"))?;
            images.write_map(owner, id, &map.runs)?;
            memory.add(format!("pages-{id}.img"), map)?;
        }
        left.finish()?;
        if memory.bytes() != tree.memory_bytes {
            return Err(Error::corrupt(
                "the listing of a capture",
                "its sizes differ from those of the manifest",
            ));
        }
        Ok(memory)
    }

    fn read(&self, content: &Content, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        content.read(&|digests, each| fetch_until(self.store, self.until, digests, each), out)
    }
}

/// Fetches verified blobs, until the time limit.
fn fetch_until(store: &dyn BlobStore, until: &Until, digests: &[Digest256], each: Each<'_>) -> Result<()> {
    until.check(|| "fetch the images of the capture".to_owned())?;
    fetch(store, digests, each)
}

/// Memory in a store, in the form of criu's files of pages.
struct StoredMemory<'a> {
    store: &'a dyn BlobStore,
    /// The size of the pages of all maps.
    page_size: Option<PageSize>,
    maps: Vec<CutMap>,
    files: Vec<PageFile>,
}

struct CutMap {
    chunk: u32,
    windows: Vec<(Window, Digest256)>,
    /// The windows of each piece.
    pieces: Vec<Range<usize>>,
}

impl StoredMemory<'_> {
    /// Cuts a map into pieces of whole windows.
    fn add(&mut self, name: String, map: MemoryMap) -> Result<()> {
        let page_size = *self.page_size.get_or_insert(map.page_size);
        if map.page_size != page_size {
            return Err(Error::corrupt("the maps of memory", "their pages have different sizes"));
        }
        let pages = map.bytes() / page_size.bytes();
        let windows: Vec<_> = map.windows().zip(map.leaves.iter().copied()).collect();
        let (mut pieces, mut ends) = (Vec::new(), Vec::new());
        let (mut first, mut start) = (0, 0);
        for place in 1..=windows.len() {
            let end = windows.get(place).map_or(pages, |(window, _)| window.before);
            let next_end = windows.get(place + 1).map_or(pages, |(window, _)| window.before);
            if place == windows.len() || (next_end - start) * page_size.bytes() > PIECE as u64 {
                pieces.push(first..place);
                ends.push(end * page_size.bytes());
                (first, start) = (place, end);
            }
        }
        self.maps.push(CutMap { chunk: map.chunk, windows, pieces });
        self.files.push(PageFile { name, ends });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(PageFile::bytes).fold(0, u64::saturating_add)
    }
}

impl PageFiles for StoredMemory<'_> {
    fn files(&self) -> &[PageFile] {
        &self.files
    }

    fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> Result<()> {
        let map = &self.maps[file];
        let page = self.page_size.map_or(0, PageSize::length);
        let windows = &map.windows[map.pieces[piece].clone()];
        let mut leaves = vec![Leaf(Vec::new()); windows.len()];
        let digests: Vec<_> = windows.iter().map(|(_, leaf)| *leaf).collect();
        fetch(self.store, &digests, &mut |place, bytes| {
            leaves[place] = Leaf::decode(bytes, windows[place].0.chunks(map.chunk).count())?;
            Ok(())
        })?;

        // The target range of each chunk.
        let (mut digests, mut places) = (Vec::new(), Vec::<Range<usize>>::new());
        let mut used = 0;
        for ((window, _), leaf) in windows.iter().zip(leaves) {
            for (pages, digest) in window.chunks(map.chunk).zip(leaf.0) {
                let place = used..used + pages * page;
                used = place.end;
                match digest {
                    Some(digest) => {
                        digests.push(digest);
                        places.push(place);
                    }
                    None => into[place].fill(0),
                }
            }
        }
        fetch_into(self.store, &digests, &places, into)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, env, fs, io::Read, process};

    use super::*;
    use crate::{
        MemBlobStore,
        manifest::{ContentWriter, Host, MemoryFile},
        pages::{PageRun, PageSink},
    };

    fn chunked(tree: ChunkedTree) -> ChunkedBlob {
        let trees = vec![tree];
        ChunkedBlob {
            pids: vec![7.into()],
            trees,
            host: Host::default(),
            taken: 1,
            frozen_us: None,
            parent: None,
            labels: BTreeMap::new(),
            attached: BTreeMap::new(),
        }
    }

    /// Lays a tree out in a folder, and returns its files.
    fn staged(name: &str, store: &MemBlobStore, tree: ChunkedTree) -> Result<Vec<(String, usize)>> {
        let folder = env::temp_dir().join(format!("criu-rpc-laid-out-{name}-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        let staged = write_images(store, &chunked(tree), &folder, 1 << 40, &Until::forever()).map(drop);
        let files = fs::read_dir(&folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap().len())
        });
        let mut files: Vec<_> = files.collect();
        files.sort();
        fs::remove_dir_all(&folder).unwrap();
        staged.map(|()| files)
    }

    /// Stores a tree whose listing has these packed files and these maps.
    fn tree(store: &MemBlobStore, sizes: &[u64], maps: &[(u32, Content)], memory_bytes: u64) -> ChunkedTree {
        let put = &mut |bytes: &[u8]| store.put(bytes);
        let mut packed = ContentWriter::new();
        for bytes in sizes {
            packed.write(&vec![7; usize::try_from(*bytes).unwrap()], put).unwrap();
        }
        let file = |(number, bytes): (usize, &u64)| ImageFile {
            name: format!("core-{number:05}.img"),
            bytes: *bytes,
            content: None,
        };
        let files = sizes.iter().enumerate().map(file).collect();
        let memory = maps
            .iter()
            .map(|(pid, map)| MemoryFile { name: format!("pagemap-{pid}.img"), map: *map })
            .collect();
        let listing = Listing { packed: packed.finish(put).unwrap(), files, memory };
        let images = Content::of(&listing.to_json(), put).unwrap();
        ChunkedTree { root: 7.into(), images, image_bytes: sizes.iter().sum(), memory_bytes }
    }

    /// Stores a map of windows of zeros.
    fn zeros(store: &MemBlobStore, windows: usize) -> Content {
        let put = &mut |bytes: &[u8]| store.put(bytes);
        let leaf = store.put(&Leaf(vec![None; 64]).encode()).unwrap();
        let page_size = PageSize::SMALLEST;
        let runs = vec![PageRun::new(page_size, 0, windows as u64 * 64, 4).unwrap()];
        Content::of(&MemoryMap { page_size, chunk: 1, runs, leaves: vec![leaf; windows] }.encode(), put)
            .unwrap()
    }

    /// Remembers its runs and their memory.
    #[derive(Default)]
    struct Fed(Vec<PageRun>, Vec<u8>);

    impl PageSink for Fed {
        fn open(&mut self, _owner: PageOwner) -> Result<()> {
            Ok(())
        }

        fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()> {
            self.0.push(run);
            memory.read_to_end(&mut self.1).map(drop).map_err(Error::io("read"))
        }

        fn close(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// Stores memory whose pages are numbered, and returns its map.
    fn numbered(
        store: &MemBlobStore,
        page_size: PageSize,
        chunk: u32,
        runs: &[PageRun],
    ) -> (Content, Vec<u8>) {
        let runs = runs.to_vec();
        let mut map = MemoryMap { page_size, chunk, runs, leaves: Vec::new() };
        let length = page_size.length();
        let mut memory = vec![0; usize::try_from(map.bytes()).unwrap()];
        for (number, page) in memory.chunks_mut(length).enumerate().filter(|(page, _)| page % 3 > 0) {
            page.fill(u8::try_from(number % 250).unwrap());
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        let mut rest = memory.as_slice();
        for window in map.windows().collect::<Vec<_>>() {
            let chunks = window.chunks(chunk).map(|pages| {
                let (bytes, after) = rest.split_at(pages * length);
                rest = after;
                bytes.iter().any(|byte| *byte != 0).then(|| store.put(bytes).unwrap())
            });
            let leaf = Leaf(chunks.collect());
            map.leaves.push(store.put(&leaf.encode()).unwrap());
        }
        (Content::of(&map.encode(), &mut |bytes| store.put(bytes)).unwrap(), memory)
    }

    #[test]
    fn memory_becomes_images_of_pages_of_its_size() {
        for page_size in PageSize::TESTED {
            let run = |page: u64, pages, flags| {
                PageRun::new(page_size, page * page_size.bytes(), pages, flags).unwrap()
            };
            let runs = [run(3, 2, 4), run(7, 9, 2), run(62, 70, 6), run(640, 530, 4), run(5000, 1, 4)];
            for chunk in [1, 2, 4] {
                let store = MemBlobStore::new();
                let (map, memory) = numbered(&store, page_size, chunk, &runs);
                let blob = chunked(tree(&store, &[], &[(7, map)], memory.len() as u64));
                let name = format!("criu-rpc-pages-{}-{chunk}-{}", page_size.bytes(), process::id());
                let folder = env::temp_dir().join(name);
                fs::create_dir(&folder).unwrap();
                let until = Until::forever();
                let staged = write_images(&store, &blob, &folder, 1 << 40, &until).unwrap();
                let pages = staged[0].to_revive().pages.unwrap();
                assert_eq!(pages.page_size(), Some(page_size));
                let file = &pages.files()[0];
                let mut found = Vec::new();
                for piece in 0..file.ends.len() {
                    let mut bytes = vec![1; file.length(piece)];
                    assert!(bytes.len() <= PIECE && bytes.len().is_multiple_of(page_size.length()));
                    pages.read(0, piece, &mut bytes).unwrap();
                    found.extend(bytes);
                }
                assert!(found == memory, "{page_size:?} {chunk}");
                // The folder has what criu would have written.
                fs::write(folder.join(&file.name), &found).unwrap();
                let mut fed = Fed::default();
                ImageDir::new(&folder).feed(page_size, &mut fed).unwrap();
                assert!(fed.0 == runs && fed.1 == memory, "{page_size:?} {chunk}: {:?}", fed.0);
                for other in PageSize::TESTED.into_iter().filter(|other| *other < page_size) {
                    let fed = ImageDir::new(&folder).feed(other, &mut Fed::default());
                    assert!(matches!(fed, Err(Error::Corrupt { .. })), "{page_size:?} {other:?}");
                }
                fs::remove_dir_all(&folder).unwrap();
            }
        }
    }

    #[test]
    fn maps_of_pages_of_different_sizes_are_refused() {
        let store = MemBlobStore::new();
        let maps = [(7, 4096), (8, 65536)].map(|(pid, bytes)| {
            let page_size = PageSize::new(bytes).unwrap();
            let runs = [PageRun::new(page_size, 0, 1, 4).unwrap()];
            (pid, numbered(&store, page_size, 1, &runs).0)
        });
        staged("one-size", &store, tree(&store, &[], &maps[..1], 4096)).unwrap();
        let error = staged("sizes", &store, tree(&store, &[], &maps, 4096 + 65536)).unwrap_err();
        assert!(error.to_string().contains("different sizes"), "{error}");
    }

    #[test]
    fn packed_images_of_all_sizes_are_written() {
        let store = MemBlobStore::new();
        for (name, sizes) in [
            ("none", vec![]),
            ("empty", vec![0, 0]),
            ("mixed", vec![0, 1, 65_535, 0, 3, 65_536, 200_000, 0]),
            ("many", vec![3000; 100]),
        ] {
            let files = staged(name, &store, tree(&store, &sizes, &[], 0)).unwrap();
            let found: Vec<_> = files.iter().map(|(_, bytes)| *bytes as u64).collect();
            assert_eq!(found, sizes, "{name}");
        }
    }

    #[test]
    fn maps_with_more_memory_than_announced_are_refused_before_they_are_kept() {
        let store = MemBlobStore::new();
        let map = zeros(&store, 20_000);
        let maps: Vec<_> = (0..3000).map(|pid| (1000 + pid, map)).collect();
        let bytes = 20_000 * 64 * 4096;
        assert_eq!(staged("right", &store, tree(&store, &[], &maps[..2], 2 * bytes)).unwrap().len(), 2);
        for (name, maps, memory) in [
            ("page", &maps[..], 4096),
            ("two", &maps[..], 2 * bytes),
            ("more", &maps[..2], 2 * bytes + 4096),
            ("all", &maps[..], 3000 * bytes),
            ("nothing", &maps[..1], 0),
        ] {
            let error = staged(name, &store, tree(&store, &[], maps, memory)).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn lists_whose_shape_does_not_follow_from_the_length_are_refused() {
        let store = MemBlobStore::new();
        let mut top = store.put(b"").unwrap();
        for depth in 1..=5 {
            let list: Vec<u8> = std::iter::repeat_n(*top.as_bytes(), 2048).flatten().collect();
            top = store.put(&list).unwrap();
            for bytes in [0, 1, 1 << 27, 1 << 38] {
                let images = Content { bytes, depth, digest: top };
                let lie = ChunkedTree { root: 7.into(), images, image_bytes: 0, memory_bytes: 0 };
                let error = staged(&format!("{depth}-{bytes}"), &store, lie).unwrap_err();
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            }
        }
    }
}
