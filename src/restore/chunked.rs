//! A chunked capture to folders of images: what criu wrote as it was, and memory put together from its chunks.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    BlobStore, ChunkedBlob, ChunkedTree, Content, Digest256, Error, Result,
    archive::{Trees, is_image, tree_folder},
    blob::{LISTING_CEILING, Leaf, Listing, MemoryMap, Window},
    image::ImageDir,
    pages::{PAGE_SIZE, PageOwner},
    private,
    store::fetch,
};

/// Fetches, verifies and writes all images beneath `folder`, which may have `limit` bytes at most.
pub(super) fn lay_out(store: &dyn BlobStore, blob: &ChunkedBlob, folder: &Path, limit: u64) -> Result<Trees> {
    let laying = Laying { store, limit };
    if let [tree] = blob.trees.as_slice() {
        laying.tree(tree, folder)?;
        return Ok(Trees::One(folder.to_owned()));
    }
    let mut folders = std::collections::BTreeMap::new();
    for tree in &blob.trees {
        let folder = folder.join(tree_folder(tree.root));
        private::create_folder(&folder)
            .map_err(Error::io(format!("make the folder {}", folder.display())))?;
        laying.tree(tree, &folder)?;
        folders.insert(tree.root, folder);
    }
    match folders.is_empty() {
        true => Err(Error::corrupt("the manifest", "it has no tree")),
        false => Ok(Trees::Several(folders)),
    }
}

struct Laying<'a> {
    store: &'a dyn BlobStore,
    limit: u64,
}

/// A window whose pages have to be written.
struct Job<'a> {
    path: &'a Path,
    chunk: u32,
    window: Window,
    leaf: Digest256,
}

/// How many windows are fetched at once: 16 MiB.
const AT_ONCE: usize = 64;

impl Laying<'_> {
    fn tree(&self, tree: &ChunkedTree, folder: &Path) -> Result<()> {
        if tree.image_bytes.saturating_add(tree.memory_bytes) > self.limit {
            return Err(too_large(self.limit));
        }
        let json = self.all(&tree.images, LISTING_CEILING)?;
        let listing = Listing::from_json(&json, is_image)?;
        let files = listing.files.iter().map(|file| file.bytes);
        if files.fold(0, u64::saturating_add) != tree.image_bytes {
            return Err(Error::corrupt("the listing of a capture", "it has other sizes than the manifest"));
        }
        self.files(&listing, folder)?;
        self.memory(&listing, tree, folder)
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

    fn memory(&self, listing: &Listing, tree: &ChunkedTree, folder: &Path) -> Result<()> {
        let mut owners: Vec<(PathBuf, MemoryMap)> = Vec::new();
        let images = ImageDir::new(folder);
        for (id, memory) in (1..).zip(&listing.memory) {
            let map = MemoryMap::decode(&self.all(&memory.map, LISTING_CEILING)?)?;
            let owner = PageOwner::of_map(&memory.name)
                .ok_or_else(|| Error::corrupt("the listing of a capture", "it has a map of nobody"))?;
            images.write_map(owner, id, &map.runs)?;
            owners.push((folder.join(format!("pages-{id}.img")), map));
        }
        let pages = owners.iter().map(|(_, map)| map.pages()).fold(0, u64::saturating_add);
        if pages.saturating_mul(PAGE_SIZE as u64) != tree.memory_bytes {
            return Err(Error::corrupt("the listing of a capture", "it has other sizes than the manifest"));
        }
        let mut jobs = Vec::new();
        for (path, map) in &owners {
            let making = || Error::io(format!("make the image {}", path.display()));
            let file = private::create_file(path).map_err(making())?;
            file.set_len(map.pages() * PAGE_SIZE as u64).map_err(making())?;
            let windows = map.windows().zip(&map.leaves);
            jobs.extend(windows.map(|(window, leaf)| Job { path, chunk: map.chunk, window, leaf: *leaf }));
        }
        self.write_all(&jobs)
    }

    /// Works the jobs off on all processors.
    fn write_all(&self, jobs: &[Job<'_>]) -> Result<()> {
        let batches: Vec<_> = jobs.chunks(AT_ONCE).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut writer = Writer::default();
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = writer.write(self.store, batch) {
                    next.store(batches.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let others = thread::available_parallelism().map_or(1, |count| count.get()).min(batches.len());
        thread::scope(|scope| {
            let threads: Vec<_> =
                (1..others).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            let mut done = work();
            for thread in threads {
                let other = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                done = done.and(other);
            }
            done
        })
    }

    fn all(&self, content: &Content, ceiling: u64) -> Result<Vec<u8>> {
        content.read_all(&|digests, each| fetch(self.store, digests, each), ceiling.min(self.limit))
    }

    fn read(&self, content: &Content, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        content.read(&|digests, each| fetch(self.store, digests, each), out)
    }
}

fn too_large(limit: u64) -> Error {
    Error::corrupt("the capture", format!("it has more than {limit} bytes"))
}

/// Puts windows together, with one buffer for all.
#[derive(Default)]
struct Writer<'a> {
    buffer: Vec<u8>,
    file: Option<(&'a Path, File)>,
}

impl<'a> Writer<'a> {
    fn write(&mut self, store: &dyn BlobStore, jobs: &[Job<'a>]) -> Result<()> {
        let counts: Vec<_> = jobs.iter().map(|job| job.window.chunks(job.chunk).count()).collect();
        let mut leaves = vec![Leaf(Vec::new()); jobs.len()];
        let digests: Vec<_> = jobs.iter().map(|job| job.leaf).collect();
        fetch(store, &digests, &mut |place, bytes| {
            leaves[place] = Leaf::decode(bytes, counts[place])?;
            Ok(())
        })?;

        // Where each chunk goes in the buffer; and what of the buffer goes where.
        let (mut digests, mut places) = (Vec::new(), Vec::<Range<usize>>::new());
        let mut pieces: Vec<(&Job<'_>, u64, Range<usize>)> = Vec::new();
        let mut used = 0;
        for (job, leaf) in jobs.iter().zip(leaves) {
            let mut offset = job.window.before * PAGE_SIZE as u64;
            for (pages, digest) in job.window.chunks(job.chunk).zip(leaf.0) {
                let bytes = pages * PAGE_SIZE;
                if let Some(digest) = digest {
                    digests.push(digest);
                    places.push(used..used + bytes);
                    match pieces.last_mut() {
                        Some((last, at, range))
                            if last.path == job.path && *at + range.len() as u64 == offset =>
                        {
                            range.end += bytes;
                        }
                        _ => pieces.push((job, offset, used..used + bytes)),
                    }
                    used += bytes;
                }
                offset += bytes as u64; // of zeros the file is full already
            }
        }
        self.buffer.resize(self.buffer.len().max(used), 0);
        let buffer = &mut self.buffer;
        fetch(store, &digests, &mut |place, bytes| {
            let room = &mut buffer[places[place].clone()];
            if room.len() != bytes.len() {
                let problem = format!("it has {} bytes where {} are wanted", bytes.len(), room.len());
                return Err(Error::corrupt(format!("the chunk {}", digests[place]), problem));
            }
            room.copy_from_slice(bytes);
            Ok(())
        })?;
        pieces.into_iter().try_for_each(|(job, offset, range)| self.write_at(job.path, offset, range))
    }

    fn write_at(&mut self, path: &'a Path, offset: u64, range: Range<usize>) -> Result<()> {
        let writing = || Error::io(format!("write the image {}", path.display()));
        if self.file.as_ref().is_none_or(|(open, _)| *open != path) {
            let file = File::options().write(true).open(path).map_err(writing())?;
            self.file = Some((path, file));
        }
        let Some((_, file)) = &mut self.file else { return Ok(()) };
        file.seek(SeekFrom::Start(offset)).map_err(writing())?;
        file.write_all(&self.buffer[range]).map_err(writing())
    }
}
