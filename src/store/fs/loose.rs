//! Loose blobs: one file each, named by its digest. Blobs that are put one by one are kept like
//! this, whatever their size.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, ErrorKind, Read as _, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    FsBlobStore,
    disk::{Disk, DiskFile, Temporary},
};
use crate::{
    Digest256, Error, Result,
    digest::Hasher,
    private,
    store::{BlobWriter, pack::ReadAt as _},
    wiped::Wiped,
};

/// A folder of files, in shards named by the first two digits of the digests.
#[derive(Debug)]
pub(super) struct Shards {
    folder: PathBuf,
    disk: Disk,
    /// The shards whose own names this handle has synced.
    durable: Mutex<BTreeSet<PathBuf>>,
}

impl Shards {
    pub(super) fn new(folder: PathBuf, disk: Disk) -> Shards {
        Shards { folder, disk, durable: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the shard folder of a digest, and its file.
    pub(super) fn place(&self, digest: &Digest256) -> (PathBuf, PathBuf) {
        let hex = digest.hex();
        let shard = self.folder.join(&hex[..2]);
        let file = shard.join(&hex);
        (shard, file)
    }

    /// Makes the shard and syncs its name.
    ///
    /// Another process may have just made the shard without syncing it yet, so each handle syncs
    /// once.
    pub(super) fn make(&self, shard: &Path) -> io::Result<()> {
        let durable = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable().contains(shard) && shard.is_dir() {
            return Ok(());
        }
        self.disk.make_folder(shard)?;
        self.disk.sync_folder(&self.folder)?;
        durable().insert(shard.to_owned());
        Ok(())
    }

    /// Syncs the names in a shard, and the shard's own name.
    pub(super) fn sync(&self, shard: &Path) -> io::Result<()> {
        self.make(shard)?;
        self.disk.sync_folder(shard)
    }

    /// Lists the files in all shards with their digests. Files with other names are skipped.
    pub(super) fn list(&self) -> io::Result<Vec<(Digest256, PathBuf)>> {
        let mut files = Vec::new();
        for shard in entries(&self.folder)? {
            for path in entries(&shard)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(digest) = name.and_then(|name| format!("sha256:{name}").parse().ok()) {
                    files.push((digest, path));
                }
            }
        }
        Ok(files)
    }
}

/// Returns the sorted entries of a folder; empty if there is no such folder.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = match private::patiently(|| fs::read_dir(folder)) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

impl FsBlobStore {
    /// Opens a loose blob, or a condemned one if there is no other.
    pub(super) fn open_loose(&self, digest: &Digest256) -> Result<Option<(PathBuf, File)>> {
        let (_, path) = self.blobs.place(digest);
        if let Some(file) = open(&path)? {
            return Ok(Some((path, file)));
        }
        self.open_condemned("blobs", digest)
    }

    /// Reads a blob that is a file of its own.
    pub(super) fn read_loose(&self, digest: &Digest256) -> Result<Option<Vec<u8>>> {
        let Some((path, mut file)) = self.open_loose(digest)? else { return Ok(None) };
        let reading = || Error::io(format!("read blob {}", path.display()));
        // `read_to_end` reserves room for the whole file first. A growing vector would leave copies
        // behind.
        let mut bytes = Wiped::default();
        file.read_to_end(bytes.vec()).map_err(reading())?;
        crate::store::verify(digest, &bytes, || format!("blob {}", path.display()))?;
        Ok(Some(std::mem::take(bytes.vec())))
    }

    /// Returns true if the blob is a file of its own and not condemned.
    pub(super) fn is_loose(&self, digest: &Digest256) -> Result<bool> {
        let (_, path) = self.blobs.place(digest);
        match private::patiently(|| fs::metadata(&path)) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("look for blob {}", path.display()))(error)),
        }
    }

    pub(super) fn put_loose(&self, digest: &Digest256, bytes: &[u8]) -> Result<()> {
        let (shard, path) = self.blobs.place(digest);
        if is_file_with(&path, bytes) {
            // The process that put it may not have synced it yet.
            return self.blobs.sync(&shard).map_err(Error::io(format!("sync {}", shard.display())));
        }
        let mut writer = Box::new(self.start_loose()?);
        writer.write_all(bytes).map_err(Error::io(format!("write blob {}", path.display())))?;
        writer.commit(digest)
    }

    pub(super) fn start_loose(&self) -> Result<FsWriter<'_>> {
        let doing = || format!("create a temporary file in {}", self.tmp.display());
        let (temporary, file) = self.disk.temporary(&self.tmp).map_err(Error::io(doing()))?;
        Ok(FsWriter { store: self, file: Growing { file, end: 0 }, gathered: Wiped::default(), temporary })
    }
}

/// Opens a file that may be missing.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    match private::open_file(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("open blob {}", path.display()))(error)),
    }
}

/// Returns true if the file exists and has this digest.
pub(super) fn is_whole(path: &Path, digest: &Digest256) -> bool {
    let Ok(mut file) = private::open_file(path) else { return false };
    let (mut hasher, mut piece) = (Hasher::new(), Wiped::zeroed(BUFFER));
    loop {
        match file.read(&mut piece) {
            Ok(0) => return hasher.finish() == *digest,
            Ok(count) => hasher.update(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Writes a blob to a file.
pub(super) struct FsWriter<'a> {
    store: &'a FsBlobStore,
    // Before `temporary`, so that the file is closed before it is removed.
    file: Growing,
    temporary: Temporary,
    /// Small pieces that were not written yet.
    gathered: Wiped,
}

impl FsWriter<'_> {
    fn write_gathered(&mut self) -> io::Result<()> {
        self.file.write(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

impl BlobWriter for FsWriter<'_> {
    fn commit(mut self: Box<Self>, digest: &Digest256) -> Result<()> {
        let (shard, path) = self.store.blobs.place(digest);
        let doing = || format!("store blob {}", path.display());
        self.write_gathered().map_err(Error::io(doing()))?;
        let FsWriter { store, file, temporary, .. } = *self;
        file.file.sync().map_err(Error::io(doing()))?;
        let placed = store.blobs.make(&shard).and_then(|()| temporary.rename(file.file, &path));
        if let Err(error) = placed {
            // Some systems don't replace a file that is open for reading. It may be the same blob.
            if !is_whole(&path, digest) {
                return Err(Error::io(doing())(error));
            }
        }
        store.disk.sync_folder(&shard).map_err(Error::io(doing()))?;
        store.note_loose(digest);
        Ok(())
    }
}

impl Write for FsWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.len() + bytes.len() > BUFFER {
            self.write_gathered()?;
        }
        match bytes.len() < BUFFER {
            true => self.gathered.extend_from_slice(bytes),
            false => self.file.write(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_gathered()
    }
}

/// A file that is written sequentially.
struct Growing {
    file: DiskFile,
    end: u64,
}

impl Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.file.write_at(bytes, self.end)?;
            self.end += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Returns true if the file exists and has exactly these bytes. An unreadable file does not count.
fn is_file_with(path: &Path, bytes: &[u8]) -> bool {
    let same = || -> io::Result<bool> {
        let file = private::open_file(path)?;
        if file.metadata()?.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let (mut piece, mut at) = (Wiped::zeroed(bytes.len().min(BUFFER)), 0);
        for expected in bytes.chunks(BUFFER) {
            let piece = &mut piece[..expected.len()];
            if file.read_full(piece, at)? < piece.len() || piece != expected {
                return Ok(false);
            }
            at += piece.len() as u64;
        }
        Ok(true)
    };
    same().unwrap_or(false)
}

/// Small pieces are gathered up to this size before a system call.
const BUFFER: usize = 128 * 1024;
