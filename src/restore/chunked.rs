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
        Budget, ChunkedBlob, ChunkedTree, Content, ImageFile, Leaf, Listing, MemoryMap, PagesLeft, Window,
    },
    pages::{PAGE_SIZE, PageOwner},
    platform::{PIECE, PageFile, PageFiles, ToRevive},
    private,
    store::{fetch, fetch_into},
};

/// One tree: its images in a folder, and its memory in the store.
pub(super) struct LaidOut<'a> {
    folder: PathBuf,
    memory: StoredMemory<'a>,
}

impl LaidOut<'_> {
    pub(super) fn to_revive(&self) -> ToRevive<'_> {
        ToRevive { folder: &self.folder, pages: Some(&self.memory) }
    }
}

/// Fetches, verifies and writes all images but memory below `folder`. All trees together may have
/// at most `limit` bytes.
pub(super) fn lay_out<'a>(
    store: &'a dyn BlobStore,
    blob: &ChunkedBlob,
    folder: &Path,
    limit: u64,
    until: &'a Until,
) -> Result<Vec<LaidOut<'a>>> {
    let bytes = blob.trees.iter().flat_map(|tree| [tree.image_bytes, tree.memory_bytes]);
    if bytes.fold(0, u64::saturating_add) > limit {
        return Err(Error::corrupt("the capture", format!("it has more than {limit} bytes")));
    }
    let mut laying = Laying { store, until, budget: Budget::new() };
    let lay = |tree: &ChunkedTree| match blob.trees.len() {
        1 => laying.tree(tree, folder.to_owned()),
        _ => {
            let folder = folder.join(tree_folder(tree.root.as_raw()));
            private::create_folder(&folder)
                .map_err(Error::io(format!("make the folder {}", folder.display())))?;
            laying.tree(tree, folder)
        }
    };
    match blob.trees.is_empty() {
        true => Err(Error::corrupt("the manifest", "it has no tree")),
        false => blob.trees.iter().map(lay).collect(),
    }
}

/// Takes a blob, with its index among the requested digests.
type Each<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<()>;

struct Laying<'a> {
    store: &'a dyn BlobStore,
    until: &'a Until,
    budget: Budget,
}

impl<'a> Laying<'a> {
    fn tree(&mut self, tree: &ChunkedTree, folder: PathBuf) -> Result<LaidOut<'a>> {
        let (store, until) = (self.store, self.until);
        let get = |digests: &[Digest256], each: Each<'_>| fetch_until(store, until, digests, each);
        let listing = self.budget.read_listing(tree, &get, is_image)?;
        self.files(&listing, &folder)?;
        let memory = self.memory(&listing, tree, &folder)?;
        Ok(LaidOut { folder, memory })
    }

    fn files(&self, listing: &Listing, folder: &Path) -> Result<()> {
        let create = |file: &ImageFile| {
            private::create_file(&folder.join(&file.name))
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
        let mut left = PagesLeft::of(tree);
        let mut memory = StoredMemory { store, maps: Vec::new(), files: Vec::new() };
        let images = ImageDir::new(folder);
        for (id, file) in (1..).zip(&listing.memory) {
            let map = file.read(&mut left, &get)?;
            let owner = PageOwner::of_map(&file.name)
                .ok_or_else(|| Error::corrupt("the listing of a capture", "it has a map without an owner"))?;
            images.write_map(owner, id, &map.runs)?;
            memory.add(format!("pages-{id}.img"), map);
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
    fn add(&mut self, name: String, map: MemoryMap) {
        let windows: Vec<_> = map.windows().zip(map.leaves.iter().copied()).collect();
        let (mut pieces, mut ends) = (Vec::new(), Vec::new());
        let (mut first, mut start) = (0, 0);
        for place in 1..=windows.len() {
            let end = windows.get(place).map_or(map.pages(), |(window, _)| window.before);
            let next_end = windows.get(place + 1).map_or(map.pages(), |(window, _)| window.before);
            if place == windows.len() || (next_end - start) * PAGE_SIZE as u64 > PIECE as u64 {
                pieces.push(first..place);
                ends.push(end * PAGE_SIZE as u64);
                (first, start) = (place, end);
            }
        }
        self.maps.push(CutMap { chunk: map.chunk, windows, pieces });
        self.files.push(PageFile { name, ends });
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(PageFile::bytes).fold(0, u64::saturating_add)
    }
}

impl PageFiles for StoredMemory<'_> {
    fn files(&self) -> &[PageFile] {
        &self.files
    }

    fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> Result<()> {
        let map = &self.maps[file];
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
                let place = used..used + pages * PAGE_SIZE;
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
    use std::{env, fs, process};

    use super::*;
    use crate::{
        MemBlobStore,
        manifest::{ContentWriter, Host, MemoryFile},
        pages::PageRun,
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
        }
    }

    /// Lays a tree out in a folder, and returns its files.
    fn laid_out(name: &str, store: &MemBlobStore, tree: ChunkedTree) -> Result<Vec<(String, usize)>> {
        let folder = env::temp_dir().join(format!("criu-rpc-laid-out-{name}-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        let laid_out = lay_out(store, &chunked(tree), &folder, 1 << 40, &Until::forever()).map(drop);
        let files = fs::read_dir(&folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap().len())
        });
        let mut files: Vec<_> = files.collect();
        files.sort();
        fs::remove_dir_all(&folder).unwrap();
        laid_out.map(|()| files)
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
        let runs = vec![PageRun::new(0, windows as u64 * 64, 4).unwrap()];
        Content::of(&MemoryMap { chunk: 1, runs, leaves: vec![leaf; windows] }.encode(), put).unwrap()
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
            let files = laid_out(name, &store, tree(&store, &sizes, &[], 0)).unwrap();
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
        assert_eq!(laid_out("right", &store, tree(&store, &[], &maps[..2], 2 * bytes)).unwrap().len(), 2);
        for (name, maps, memory) in [
            ("page", &maps[..], 4096),
            ("two", &maps[..], 2 * bytes),
            ("more", &maps[..2], 2 * bytes + 4096),
            ("all", &maps[..], 3000 * bytes),
            ("nothing", &maps[..1], 0),
        ] {
            let error = laid_out(name, &store, tree(&store, &[], maps, memory)).unwrap_err();
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
                let error = laid_out(&format!("{depth}-{bytes}"), &store, lie).unwrap_err();
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            }
        }
    }
}
