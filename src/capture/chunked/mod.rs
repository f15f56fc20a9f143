//! [`Chunking`], and chunked captures: memory from criu's stream is cut, hashed and stored.
//!
//! [`cut`] receives a stream into buffers, [`buffers`] queues them, and workers here make blobs of
//! their contents. All blobs of a capture are one batch of the store.

mod buffers;
mod cut;
mod owner;
mod pool;
mod rounds;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Scope},
    time::SystemTime,
};

pub use self::pool::BufferPool;
use self::{
    buffers::{Buffers, Part, Task},
    cut::{Cutter, Maps},
    owner::OwnerMap,
    rounds::TrackedPages,
};
use super::Stored;
use crate::{
    BlobStore, Digest256, Error, Pid, ProcsBlob, Result, Until,
    archive::{Trees, is_image},
    image::ImageDir,
    lock::{Mutex, RwLock},
    manifest::{
        Additions, Budget, ChunkedBlob, ChunkedTree, Content, ContentWriter, Host, ImageFile, Leaf, Listing,
        MemoryFile, MemoryMap, WINDOW_BYTES,
    },
    pages::{PageOwner, PageRun, PageSink, PageSize},
    platform::{self, Images, Job, Memory, Outcome},
    store::BlobBatch,
    wiped::Wiped,
};

/// Settings of a chunked capture; see [`ProcsCapture::chunked`](crate::ProcsCapture::chunked).
///
/// ```no_run
/// use criu_rpc::{Chunking, FsBlobStore, ProcsCapture};
///
/// let store = FsBlobStore::open("captures")?;
/// let chunking = Chunking::default().chunk(16384);
/// let digest = ProcsCapture::new([4242]).chunked(chunking).capture(&store)?;
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunking {
    /// The size of a chunk in bytes: a power of two, up to the size of a window.
    chunk: u64,
    parent: Option<Digest256>,
    pre_dumps: u32,
}

impl Default for Chunking {
    /// Chunks of one page, no pre-dumps.
    fn default() -> Chunking {
        Chunking { chunk: PageSize::SMALLEST.bytes(), parent: None, pre_dumps: 0 }
    }
}

impl Chunking {
    /// Sets the size of a chunk of memory in bytes: 4096 to 262144, rounded up to a power of two,
    /// and to at least one page of the kernel. Chunks begin at multiples of their size in the
    /// memory of a process.
    ///
    /// Small chunks cost least for small scattered changes, which most programs make. Large chunks
    /// are fewer, which suits a store without [batches](crate::BlobStoreExt::batch) of its own.
    /// `docs/formats.md` has measurements.
    #[must_use]
    pub fn chunk(mut self, bytes: u64) -> Chunking {
        self.chunk = bytes.clamp(PageSize::SMALLEST.bytes(), WINDOW_BYTES as u64).next_power_of_two();
        self
    }

    /// Names the previous capture in the manifest. Nothing else depends on it.
    #[must_use]
    pub fn parent(mut self, digest: Digest256) -> Chunking {
        self.parent = Some(digest);
        self
    }

    /// Makes up to this many pre-dumps before the dump, so that the trees are frozen for less time.
    /// Pre-dumps send memory while the trees run; the dump sends only later changes. Two or three
    /// are enough for most programs. They stop early if one sends little less than the one before,
    /// or less than 1 MiB.
    ///
    /// The capture is the same as without pre-dumps: self-contained, with the memory of the moment
    /// of the dump. Outdated chunks of pre-dumps stay in the store until a
    /// [collection](crate::FsBlobStore::gc) removes them. Each pre-dump freezes the trees for a
    /// moment, and while it sends memory that processes share, which is sent each time. Each page
    /// needs some 35 bytes of this program's memory. The [deadline](crate::ProcsCapture::deadline)
    /// covers all rounds together.
    ///
    /// Pre-dumps need a kernel that tracks changes of memory (`CONFIG_MEM_SOFT_DIRTY`) and criu
    /// 3.17. Without these, and for a process that captures itself, the capture has no pre-dumps:
    /// see [`Stored::pre_dumps`](crate::Stored::pre_dumps). [Chunks](Chunking::chunk) must have one
    /// page, because the kernel tracks pages. The kernel has one set of marks for all programs. If
    /// trees overlap, only one capture with pre-dumps can run at a time, and others fail at once.
    /// **No other program may clear the marks meanwhile** (`/proc/<pid>/clear_refs`, and criu with
    /// [`track_mem`](crate::DumpOptions::track_mem)): changes would be missed.
    ///
    /// ```no_run
    /// use criu_rpc::{Chunking, FsBlobStore, ProcsCapture};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// let stored = ProcsCapture::new([4242]).chunked(Chunking::default().pre_dumps(3)).run(&store)?;
    /// println!("{}: frozen for {:?}, after {} pre-dumps", stored.digest, stored.frozen, stored.pre_dumps);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    #[must_use]
    pub fn pre_dumps(mut self, most: u32) -> Chunking {
        self.pre_dumps = most;
        self
    }

    /// Returns the number of pages in a chunk.
    fn pages(&self, page_size: PageSize) -> Result<u32> {
        let pages = u32::try_from(self.chunk / page_size.bytes()).unwrap_or(1).max(1);
        match self.pre_dumps > 0 && pages > 1 {
            true => Err(Error::Options {
                option: "pre_dumps",
                problem: format!(
                    "chunks have {} bytes, and must have {}, because the kernel tracks pages",
                    self.chunk,
                    page_size.bytes()
                ),
            }),
            false => Ok(pages),
        }
    }
}

/// Makes a chunked capture.
pub(super) fn run(
    job: &Job,
    chunking: &Chunking,
    additions: &Additions,
    pool: &BufferPool,
    store: &dyn BlobStore,
) -> Result<Outcome<Stored>> {
    let processors = thread::available_parallelism().map_or(1, |count| count.get());
    let pipeline = ChunkPipeline::new(
        store,
        &job.until,
        chunking,
        platform::page_size(),
        Buffers::new(pool, processors),
    )?;
    let outcome = thread::scope(|scope| {
        let _close = Closing(&pipeline.buffers);
        let streaming = Streaming { pipeline: &pipeline, additions, processors, scope };
        let outcome = platform::checkpoint(job, Some(&streaming), &mut |images| streaming.keep(job, images));
        pipeline.buffers.close();
        outcome.map_err(|error| match pipeline.buffers.failure() {
            // Workers stop at the deadline too, but criu's failure has more details.
            Some(late) if (late.is_timeout() || late.is_cancelled()) && error.failure().is_some() => error,
            // Report the worker's error; criu's own is only its consequence.
            failure => failure.unwrap_or(error),
        })
    });
    match pipeline.panic.into_inner() {
        Some(panic) => panic::resume_unwind(panic),
        None => outcome,
    }
}

/// Stops the workers, also on panic.
struct Closing<'a>(&'a Buffers);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The state that all threads of a capture share.
struct ChunkPipeline<'a> {
    store: &'a dyn BlobStore,
    until: &'a Until,
    chunking: &'a Chunking,
    page_size: PageSize,
    /// The number of pages in a chunk.
    chunk: u32,
    /// Set from the first blob to the commit.
    batch: RwLock<Option<Box<dyn BlobBatch + 'a>>>,
    buffers: Buffers,
    /// True if memory comes in rounds.
    tracked: AtomicBool,
    /// The unfinished maps of memory, by the roots of their trees.
    owners: Mutex<BTreeMap<i32, Owners>>,
    /// The page digests of the previous round, for each process.
    known: Mutex<BTreeMap<(i32, PageOwner), TrackedPages>>,
    /// The number of bytes that were new to the store.
    stored: AtomicU64,
    /// The panic of a store in a worker, which is resumed in the caller.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

type Owners = BTreeMap<PageOwner, Arc<OwnerMap>>;

impl<'a> ChunkPipeline<'a> {
    fn new(
        store: &'a dyn BlobStore,
        until: &'a Until,
        chunking: &'a Chunking,
        page_size: PageSize,
        buffers: Buffers,
    ) -> Result<ChunkPipeline<'a>> {
        Ok(ChunkPipeline {
            store,
            until,
            chunking,
            page_size,
            chunk: chunking.pages(page_size)?,
            batch: RwLock::new(None),
            buffers,
            tracked: AtomicBool::new(false),
            owners: Mutex::default(),
            known: Mutex::default(),
            stored: AtomicU64::new(0),
            panic: Mutex::default(),
        })
    }

    fn start(&self) -> Result<()> {
        let mut batch = self.batch.write();
        if batch.is_none() {
            *batch = Some(self.store.batch_until(self.until)?);
        }
        Ok(())
    }

    fn put(&self, blobs: &[(Digest256, &[u8])]) -> Result<()> {
        let batch = self.batch.read();
        let batch = batch.as_ref().ok_or_else(|| Error::store("store a blob", "the capture has ended"))?;
        self.until.check(|| "keep the memory of the tree".to_owned())?;
        self.stored.fetch_add(batch.put(blobs)?, Ordering::Relaxed);
        Ok(())
    }

    fn put_one(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        self.put(&[(digest, bytes)])?;
        Ok(digest)
    }

    fn commit(&self) -> Result<()> {
        let batch = self.batch.write().take();
        self.until.check(|| "keep the capture".to_owned())?;
        batch.map_or(Ok(()), |batch| batch.commit())
    }

    /// Runs a worker until no work is left.
    fn run_worker(&self, worker: usize) {
        if worker == 0 {
            Digest256::of_each(&[]); // one-time setup, while the tree still runs
        }
        while let Some(task) = self.buffers.next(worker) {
            match task {
                Task::Warm => self.buffers.warm(),
                Task::Store(share) => {
                    // Report every outcome, panics included: a receiver may wait for the buffer
                    // while its tree is frozen.
                    let done =
                        panic::catch_unwind(AssertUnwindSafe(|| self.store(share.part(), share.memory())));
                    let error = match done {
                        Ok(done) => done.err(),
                        Err(panic) => {
                            let mut first = self.panic.lock();
                            first.get_or_insert(panic);
                            Some(Error::store("store a blob", "the store panicked"))
                        }
                    };
                    self.buffers.done(share, error);
                }
            }
        }
    }

    fn store(&self, part: &Part, memory: &[u8]) -> Result<()> {
        let mut rest = memory;
        let (mut leaf, mut places, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
        for pages in part.window.chunks(self.chunk) {
            let (chunk, after) = rest.split_at(pages * self.page_size.length());
            rest = after;
            if !is_zero(chunk) {
                places.push(leaf.len());
                chunks.push(chunk);
            }
            leaf.push(None);
        }
        let digests = Digest256::of_each(&chunks);
        places.iter().zip(&digests).for_each(|(place, digest)| leaf[*place] = Some(*digest));
        let mut blobs: Vec<_> = digests.into_iter().zip(chunks).collect();
        if part.owner.tracked {
            // The leaf is computed after the last round.
            self.put(&blobs)?;
            part.owner.set_chunks(part.leaf, leaf);
            return Ok(());
        }
        let leaf = Leaf(leaf).encode();
        let digest = Digest256::of(&leaf);
        blobs.push((digest, &leaf));
        self.put(&blobs)?;
        part.owner.set_leaf(part.leaf, digest);
        Ok(())
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<i32, Owners>> {
        self.owners.lock()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(i32, PageOwner), TrackedPages>> {
        self.known.lock()
    }

    /// Returns the map of an owner; with rounds, stores the leaves of the last one first.
    fn map(&self, root: i32, owner: PageOwner, map: &OwnerMap) -> Result<MemoryMap> {
        let (page_size, chunk) = (self.page_size, self.chunk);
        if !map.tracked {
            return Ok(MemoryMap { page_size, chunk, runs: map.runs(), leaves: map.leaves() });
        }
        let before = self.known().remove(&(root, owner));
        let known = TrackedPages::after(page_size, &map.runs(), map.chunks(), before.as_ref())?;
        let leaves: Vec<Vec<u8>> = known.leaves().map(|leaf| leaf.encode()).collect();
        let blobs: Vec<_> = leaves.iter().map(|leaf| (Digest256::of(leaf), leaf.as_slice())).collect();
        self.put(&blobs)?;
        Ok(MemoryMap {
            page_size,
            chunk,
            runs: known.runs()?,
            leaves: blobs.iter().map(|(digest, _)| *digest).collect(),
        })
    }
}

/// The maps of one tree.
struct TreeMaps<'env, 'store> {
    pipeline: &'env ChunkPipeline<'store>,
    root: i32,
}

impl Maps for TreeMaps<'_, '_> {
    fn knows(&self, owner: PageOwner) -> Option<bool> {
        let tracked = self.pipeline.tracked.load(Ordering::Relaxed);
        tracked.then(|| self.pipeline.known().contains_key(&(self.root, owner)))
    }

    fn note(&self, owner: PageOwner, map: Arc<OwnerMap>) -> bool {
        self.pipeline.owners().entry(self.root).or_default().insert(owner, map).is_none()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|page| *page == ZEROS[..page.len()])
}

/// The pipeline, and the scope of its worker threads.
struct Streaming<'scope, 'env, 'store> {
    pipeline: &'env ChunkPipeline<'store>,
    additions: &'env Additions,
    processors: usize,
    scope: &'scope Scope<'scope, 'env>,
}

impl Memory for Streaming<'_, '_, '_> {
    fn pre_dumps(&self) -> u32 {
        self.pipeline.chunking.pre_dumps
    }

    fn prepare(&self, bytes: u64, tracked: bool) -> Result<()> {
        self.pipeline.tracked.store(tracked, Ordering::Relaxed);
        self.pipeline.start()?;
        let chunks = bytes / (u64::from(self.pipeline.chunk) * self.pipeline.page_size.bytes());
        self.pipeline.buffers.expect(bytes, chunks * NOTED);
        self.start_workers()?;
        self.pipeline.buffers.wait_until_warm();
        Ok(())
    }

    fn sink(&self, root: Pid) -> Box<dyn PageSink + '_> {
        Box::new(self.cutter(root.as_raw()))
    }

    fn end_round(&self) -> Result<u64> {
        let pipeline = self.pipeline;
        pipeline.buffers.drain()?;
        let owners = std::mem::take(&mut *pipeline.owners());
        let mut before = std::mem::take(&mut *pipeline.known());
        let mut brought = 0;
        for (root, owners) in owners {
            // Memory that processes share is sent completely each time, because criu may reuse its
            // number for another segment.
            for (owner, map) in owners.into_iter().filter(|(owner, _)| matches!(owner, PageOwner::Task(_))) {
                let runs = map.runs();
                brought += runs.iter().filter(|run| run.is_present()).map(PageRun::bytes).sum::<u64>();
                let known = TrackedPages::after(
                    pipeline.page_size,
                    &runs,
                    map.chunks(),
                    before.remove(&(root, owner)).as_ref(),
                )?;
                pipeline.known().insert((root, owner), known);
            }
        }
        Ok(brought)
    }
}

impl<'env> Streaming<'_, 'env, '_> {
    fn cutter(&self, root: i32) -> Cutter<'env> {
        Cutter::new(&self.pipeline.buffers, Box::new(TreeMaps { pipeline: self.pipeline, root }))
    }

    fn start_workers(&self) -> Result<()> {
        for worker in 0..self.processors {
            let pipeline = self.pipeline;
            let run = move || pipeline.run_worker(worker);
            let started = thread::Builder::new().spawn_scoped(self.scope, run);
            if let (0, Err(error)) = (worker, started) {
                return Err(Error::io("start a thread")(error));
            }
        }
        Ok(())
    }

    /// Stores images and maps as blobs, and commits the batch.
    fn keep(&self, job: &Job, images: &Images<'_>) -> Result<Stored> {
        let pipeline = self.pipeline;
        let began = pipeline.batch.read().is_some();
        if !began {
            pipeline.start()?;
            self.start_workers()?;
        }
        let mut trees = Vec::new();
        let mut frozen = None;
        for (root, folder) in folders(images) {
            let folder = ImageDir::new(folder);
            // A tree that contains this process is dumped without a page receiver, so its memory is
            // in the images.
            let mut cutter = self.cutter(root);
            folder.feed(pipeline.page_size, &mut cutter)?;
            cutter.close()?;
            drop(cutter);
            frozen = frozen.max(folder.frozen());
            trees.push((root, folder));
        }
        pipeline.buffers.drain()?;
        let mut budget = Budget::new();
        let trees = trees
            .into_iter()
            .map(|(root, folder)| self.tree(root, &folder, &mut budget))
            .collect::<Result<_>>()?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let manifest = ProcsBlob::Chunked(Box::new(ChunkedBlob {
            pids: job.pids.clone(),
            trees,
            host: Host {
                criu: images.criu.as_ref().map(ToString::to_string).unwrap_or_default(),
                ..platform::host()
            },
            taken: since.map_or(0, |since| since.as_secs()),
            frozen_us: frozen.and_then(|frozen| u64::try_from(frozen.as_micros()).ok()),
            parent: pipeline.chunking.parent,
            labels: self.additions.labels.clone(),
            attached: self.additions.attached.clone(),
        }));
        let json = manifest.to_json();
        if json.len() > ProcsBlob::CEILING {
            let problem = format!("its manifest has {} bytes, more than {}", json.len(), ProcsBlob::CEILING);
            return Err(Error::store("keep the capture", problem));
        }
        let digest = pipeline.put_one(&json)?;
        pipeline.commit()?;
        let bytes = pipeline.stored.load(Ordering::Relaxed);
        Ok(Stored { bytes, ..Stored::new(digest, manifest) })
    }

    fn tree(&self, root: i32, folder: &ImageDir, budget: &mut Budget) -> Result<ChunkedTree> {
        let put = &mut |bytes: &[u8]| self.pipeline.put_one(bytes);
        let mut packed = ContentWriter::new();
        let mut files = Vec::new();
        for name in names(folder.path())? {
            files.push(keep_image(folder.path(), name, &mut packed, put)?);
        }
        let owners = self.pipeline.owners().remove(&root).unwrap_or_default();
        folder.check_owners(|owner| owners.contains_key(&owner))?;
        let (mut memory, mut memory_bytes) = (Vec::new(), 0);
        for (owner, map) in owners {
            let map = self.pipeline.map(root, owner, &map)?;
            folder.check_regions(owner, &map.runs)?;
            memory_bytes += map.bytes();
            let map = Content::of(&map.encode(), put)?;
            budget.spend_map(map.bytes).map_err(too_large)?;
            memory.push(MemoryFile { name: owner.map_name(), map });
        }
        let image_bytes = files.iter().map(|file| file.bytes).sum();
        let listing = Listing { packed: packed.finish(put)?, files, memory };
        let images = Content::of(&listing.to_json(), put)?;
        budget.spend_images(listing.files.len() + listing.memory.len()).map_err(too_large)?;
        budget.spend_listing(images.bytes).map_err(too_large)?;
        Ok(ChunkedTree { root: root.into(), images, image_bytes, memory_bytes })
    }
}

/// Returns the image folder of each tree, with the pid of its root.
fn folders<'a>(images: &Images<'a>) -> Vec<(i32, &'a Path)> {
    match images.trees {
        Trees::One(folder) => images.roots.iter().map(|root| (root.as_raw(), folder.as_path())).collect(),
        Trees::Several(folders) => folders.iter().map(|(root, folder)| (*root, folder.as_path())).collect(),
    }
}

/// Makes the error for a capture that no restore would accept.
fn too_large(error: Error) -> Error {
    Error::store("keep the tree in chunks, of which readers take fewer; capture it as an archive", error)
}

/// The size of a store's index for each chunk, in bytes.
const NOTED: u64 = 16;

/// Returns the sorted names of the images in a folder that are not memory.
fn names(folder: &Path) -> Result<Vec<String>> {
    let reading = || Error::io(format!("list {}", folder.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading())? {
        let name = entry.map_err(reading())?.file_name().to_string_lossy().into_owned();
        let is_memory = PageOwner::of_map(&name).is_some() || name.starts_with("pages-");
        if is_image(&name) && !is_memory {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A smaller image shares a blob with others.
const SMALL: usize = 4096;

fn keep_image(
    folder: &Path,
    name: String,
    packed: &mut ContentWriter,
    put: &mut dyn FnMut(&[u8]) -> Result<Digest256>,
) -> Result<ImageFile> {
    let reading = || Error::io(format!("read the image {name}"));
    let mut file = File::open(folder.join(&name)).map_err(reading())?;
    let small = file.metadata().map_err(reading())?.len() < SMALL as u64;
    let mut own = ContentWriter::new();
    let mut bytes = 0;
    let mut buffer = Wiped::zeroed(if small { SMALL } else { 1 << 18 });
    loop {
        let count = file.read(&mut buffer).map_err(reading())?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        let into = if small { &mut *packed } else { &mut own };
        into.write(&buffer[..count], put)?;
    }
    let content = if small { None } else { Some(own.finish(put)?) };
    Ok(ImageFile { name, bytes, content })
}
