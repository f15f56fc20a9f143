//! A chunked capture to folders of images: what criu wrote as it was, and memory put together from its chunks, when it is
//! wanted.

use std::{
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{
    BlobStore, ChunkedBlob, ChunkedTree, Content, Digest256, Error, Result,
    archive::{is_image, tree_folder},
    blob::{LISTING_CEILING, Leaf, Listing, MemoryMap, Window},
    image::ImageDir,
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

/// Fetches, verifies and writes all images but memory beneath `folder`. All trees may have `limit` bytes at most.
pub(super) fn lay_out<'a>(
    store: &'a dyn BlobStore,
    blob: &ChunkedBlob,
    folder: &Path,
    limit: u64,
) -> Result<Vec<LaidOut<'a>>> {
    let bytes = blob.trees.iter().flat_map(|tree| [tree.image_bytes, tree.memory_bytes]);
    if bytes.fold(0, u64::saturating_add) > limit {
        return Err(Error::corrupt("the capture", format!("it has more than {limit} bytes")));
    }
    let laying = Laying { store, limit };
    let lay = |tree: &ChunkedTree| match blob.trees.len() {
        1 => laying.tree(tree, folder.to_owned()),
        _ => {
            let folder = folder.join(tree_folder(tree.root));
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

struct Laying<'a> {
    store: &'a dyn BlobStore,
    limit: u64,
}

impl<'a> Laying<'a> {
    fn tree(&self, tree: &ChunkedTree, folder: PathBuf) -> Result<LaidOut<'a>> {
        let json = self.all(&tree.images, LISTING_CEILING)?;
        let listing = Listing::from_json(&json, is_image)?;
        let files = listing.files.iter().map(|file| file.bytes);
        if files.fold(0, u64::saturating_add) != tree.image_bytes {
            return Err(Error::corrupt("the listing of a capture", "it has other sizes than the manifest"));
        }
        self.files(&listing, &folder)?;
        let memory = self.memory(&listing, tree, &folder)?;
        Ok(LaidOut { folder, memory })
    }

    fn files(&self, listing: &Listing, folder: &Path) -> Result<()> {
        let packed = self.all(&listing.packed, LISTING_CEILING)?;
        let mut packed = packed.as_slice();
        for file in &listing.files {
            let path = folder.join(&file.name);
            let writing = || Error::io(format!("write the image {}", file.name));
            let mut image = private::create_file(&path).map_err(writing())?;
            match file.content {
                Some(content) => {
                    self.read(&content, &mut |piece| image.write_all(piece).map_err(writing()))?
                }
                None => {
                    let bytes = usize::try_from(file.bytes).unwrap_or(usize::MAX);
                    let (own, rest) = packed.split_at_checked(bytes).ok_or_else(|| {
                        Error::corrupt("the listing of a capture", "its sizes do not fit each other")
                    })?;
                    packed = rest;
                    image.write_all(own).map_err(writing())?;
                }
            }
        }
        Ok(())
    }

    fn memory(&self, listing: &Listing, tree: &ChunkedTree, folder: &Path) -> Result<StoredMemory<'a>> {
        let mut memory = StoredMemory { store: self.store, maps: Vec::new(), files: Vec::new() };
        let images = ImageDir::new(folder);
        for (id, file) in (1..).zip(&listing.memory) {
            let map = MemoryMap::decode(&self.all(&file.map, LISTING_CEILING)?)?;
            let owner = PageOwner::of_map(&file.name)
                .ok_or_else(|| Error::corrupt("the listing of a capture", "it has a map of nobody"))?;
            images.write_map(owner, id, &map.runs)?;
            memory.add(format!("pages-{id}.img"), map);
        }
        if memory.bytes() != tree.memory_bytes {
            return Err(Error::corrupt("the listing of a capture", "it has other sizes than the manifest"));
        }
        Ok(memory)
    }

    fn all(&self, content: &Content, ceiling: u64) -> Result<Vec<u8>> {
        content.read_all(&|digests, each| fetch(self.store, digests, each), ceiling.min(self.limit))
    }

    fn read(&self, content: &Content, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        content.read(&|digests, each| fetch(self.store, digests, each), out)
    }
}

/// Memory in a store, as the files of pages that criu knows.
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

        // Where each chunk goes.
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
