//! [`FsBlobStore`]: blobs as files.
//!
//! ```text
//! <root>/blobs/sha256/2c/2cf24dba…   one file a blob, in the folder of its first two digits
//! <root>/tmp/<pid>-<count>-<random>  blobs that are not whole yet
//! ```
//!
//! A blob is written to a temporary file, synced, renamed to its place, and the folder synced: whoever sees
//! the name sees all the bytes, after a crash too.

mod early_sync;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, BufReader, BufWriter, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use self::early_sync::EarlySync;
use super::{BlobStore, BlobWriter};
use crate::{Digest256, Error, Hasher, Result, private};

/// A store in a folder, which any number of threads and processes may share.
///
/// Blobs hold the memory of processes, secrets included: on Unix the folders that the store makes are 0700 and
/// its files 0600. A blob is on the disk when [`put`](BlobStore::put) or [`commit`](BlobWriter::commit) returns.
/// Between calls the store has no file open.
///
/// Putting a blob whose file is damaged repairs it.
///
/// ```
/// use criu_rpc::{BlobStore, FsBlobStore};
///
/// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-{}", std::process::id()));
/// let store = FsBlobStore::open(&folder)?;
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// # std::fs::remove_dir_all(folder).unwrap();
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug)]
pub struct FsBlobStore {
    blobs: PathBuf,
    tmp: PathBuf,
    /// The shards whose own names this handle knows to be on the disk.
    durable: Mutex<BTreeSet<PathBuf>>,
}

impl FsBlobStore {
    /// Opens the store in the folder `root`; makes what is missing, the folder itself included.
    ///
    /// Temporary files that nobody has written to for a day are removed: the process that wrote them has died.
    /// A writer that pauses longer than that may find that it cannot commit.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folders cannot be made.
    pub fn open(root: impl AsRef<Path>) -> Result<FsBlobStore> {
        let root = root.as_ref();
        let opening = || format!("open the blob store in {}", root.display());
        let root = std::path::absolute(root).map_err(Error::io(opening()))?;
        let blobs = root.join("blobs").join("sha256");
        let tmp = root.join("tmp");
        make_folder(&blobs).and_then(|()| make_folder(&tmp)).map_err(Error::io(opening()))?;
        remove_leftovers(&tmp);
        Ok(FsBlobStore { blobs, tmp, durable: Mutex::default() })
    }

    /// The shard folder of a blob, and its file.
    fn place(&self, digest: &Digest256) -> (PathBuf, PathBuf) {
        let hex = digest.hex();
        let shard = self.blobs.join(&hex[..2]);
        let file = shard.join(&hex);
        (shard, file)
    }

    fn open_blob(&self, digest: &Digest256) -> Result<(PathBuf, File)> {
        let (_, path) = self.place(digest);
        match File::open(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::Missing { digest: *digest }),
            Err(error) => Err(Error::io(format!("open blob {}", path.display()))(error)),
        }
    }

    /// Whether the blob is there and undamaged.
    fn has_whole(&self, digest: &Digest256) -> bool {
        let Ok((_, mut file)) = self.open_blob(digest) else { return false };
        let mut hasher = Hasher::new();
        io::copy(&mut file, &mut hasher).is_ok() && hasher.finish() == *digest
    }

    fn start(&self) -> Result<FsWriter<'_>> {
        let doing = || format!("create a temporary file in {}", self.tmp.display());
        let (temporary, file) = Temporary::create(&self.tmp).map_err(Error::io(doing()))?;
        Ok(FsWriter { store: self, file: BufWriter::with_capacity(BUFFER, EarlySync::new(file)), temporary })
    }

    /// Makes the shard and sees to it that its name is on the disk.
    ///
    /// A shard that is there already may have been made a moment ago by somebody who has not synced it yet, so
    /// each handle syncs once for itself.
    fn make_shard(&self, shard: &Path) -> io::Result<()> {
        let durable = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable().contains(shard) && shard.is_dir() {
            return Ok(());
        }
        make_folder(shard)?;
        private::sync_folder(&self.blobs)?;
        durable().insert(shard.to_owned());
        Ok(())
    }
}

impl BlobStore for FsBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        let (shard, path) = self.place(&digest);
        if is_file_with(&path, bytes) {
            // Whoever put it may not have come to this line yet.
            let synced = self.make_shard(&shard).and_then(|()| private::sync_folder(&shard));
            synced.map_err(Error::io(format!("sync {}", shard.display())))?;
            return Ok(digest);
        }
        let mut writer = Box::new(self.start()?);
        writer.write_all(bytes).map_err(Error::io(format!("write blob {}", path.display())))?;
        writer.commit(&digest)?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let (path, mut file) = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(format!("read blob {}", path.display())))?;
        super::verify(digest, &bytes, || format!("blob {}", path.display()))?;
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        let (_, path) = self.place(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("look for blob {}", path.display()))(error)),
        }
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(self.start()?))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        let (_, file) = self.open_blob(digest)?;
        Ok(Box::new(file))
    }
}

/// A blob on its way to the disk.
struct FsWriter<'a> {
    store: &'a FsBlobStore,
    // Before `temporary`, so that it is closed when that is removed.
    file: BufWriter<EarlySync>,
    temporary: Temporary,
}

impl BlobWriter for FsWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let FsWriter { store, file, temporary } = *self;
        let (shard, path) = store.place(digest);
        let doing = || format!("store blob {}", path.display());
        let file = file.into_inner().map_err(|unwritten| Error::io(doing())(unwritten.into_error()))?;
        file.finish().map_err(Error::io(doing()))?;
        let placed = store.make_shard(&shard).and_then(|()| temporary.rename(&path));
        if let Err(error) = placed {
            // Some systems don't replace a file that somebody is reading. It may be the very blob.
            if !store.has_whole(digest) {
                return Err(Error::io(doing())(error));
            }
        }
        private::sync_folder(&shard).map_err(Error::io(doing()))
    }
}

impl Write for FsWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name of a temporary file, which is removed on drop.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn create(folder: &Path) -> io::Result<(Temporary, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let random = RandomState::new().hash_one(count);
            let path = folder.join(format!("{}-{count}-{random:016x}", process::id()));
            match private::create_file(&path) {
                Ok(file) => return Ok((Temporary { path, renamed: false }, file)),
                // A process that was restored twice exists twice, with equal pids, counts and randomness.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is removed as a leftover, a day later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the file is there and has exactly these bytes. One that cannot be read has not.
fn is_file_with(path: &Path, bytes: &[u8]) -> bool {
    let same = || -> io::Result<bool> {
        let file = File::open(path)?;
        if file.metadata()?.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let mut file = BufReader::with_capacity(BUFFER, file);
        let mut rest = bytes;
        loop {
            let piece = io::BufRead::fill_buf(&mut file)?;
            if piece.is_empty() || !rest.starts_with(piece) {
                return Ok(piece.is_empty() && rest.is_empty());
            }
            let length = piece.len();
            rest = &rest[length..];
            io::BufRead::consume(&mut file, length);
        }
    };
    same().unwrap_or(false)
}

/// Makes a folder and those above it, where missing, and sees to it that their names are on the disk.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
    }
    match private::create_folder(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        created => created?,
    }
    folder.parent().map_or(Ok(()), private::sync_folder)
}

/// Removes temporary files that nobody writes to any more.
///
/// Age tells, not pids: several pid namespaces, or several machines, may share the folder. What cannot be
/// removed is somebody else's, or gone already.
fn remove_leftovers(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let age = written.ok().and_then(|written| written.elapsed().ok());
        if age.is_some_and(|age| age > LEFTOVER) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A temporary file that has not been written to for so long belongs to nobody.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Small pieces are gathered to this size before the system is called.
const BUFFER: usize = 128 * 1024;
