//! Loose blobs: one file each, with the name of the blob. Blobs that are put one by one are kept
//! like this, whatever their size.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use super::{
    FsBlobStore,
    disk::{Disk, DiskFile, Temporary},
};
use crate::{
    Digest256, Error, Result,
    lock::Mutex,
    private_files,
    store::{
        BlobWriter,
        codec::{Encoder, or_io},
        name::Name,
    },
    wiped::Wiped,
};

/// A folder of files, in shards named by the first two digits of the names.
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

    /// Returns the shard folder of a blob, and its file.
    pub(super) fn place(&self, name: &Name) -> (PathBuf, PathBuf) {
        let hex = name.hex();
        let shard = self.folder.join(&hex[..2]);
        let file = shard.join(&hex);
        (shard, file)
    }

    /// Makes the shard and syncs its name.
    ///
    /// Another process may have just made the shard without syncing it yet, so each handle syncs
    /// once.
    pub(super) fn make(&self, shard: &Path) -> io::Result<()> {
        let durable = || self.durable.lock();
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

    /// Lists the blobs in all shards with their files. Files with other names are skipped.
    pub(super) fn list(&self) -> io::Result<Vec<(Name, PathBuf)>> {
        let mut files = Vec::new();
        for shard in entries(&self.folder)? {
            for path in entries(&shard)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(name) = name.and_then(Name::parse) {
                    files.push((name, path));
                }
            }
        }
        Ok(files)
    }
}

/// Returns the sorted entries of a folder; empty if there is no such folder.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = match private_files::patiently(|| fs::read_dir(folder)) {
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
    pub(super) fn open_loose(&self, name: &Name) -> Result<Option<(PathBuf, File)>> {
        let (_, path) = self.blobs.place(name);
        if let Some(file) = open(&path)? {
            return Ok(Some((path, file)));
        }
        self.open_condemned(name)
    }

    /// Reads a blob that is a file of its own.
    pub(super) fn read_loose(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        let Some((path, file)) = self.open_loose(name)? else { return Ok(None) };
        let what = || format!("blob {}", path.display());
        let read = self.codec.open(name, file, what).and_then(|blob| blob.range(0, usize::MAX));
        let mut bytes = Wiped::from(read.map_err(or_io(|| format!("read {}", what())))?);
        self.codec.verify(name, &bytes, what)?;
        Ok(Some(std::mem::take(bytes.vec())))
    }

    /// Returns true if the file exists and has the blob of this name. An unreadable file does not
    /// count.
    pub(super) fn is_whole(&self, path: &Path, name: &Name) -> bool {
        private_files::open_file(path).and_then(|file| self.codec.is_whole(name, &file)).unwrap_or(false)
    }

    /// Returns true if the blob is a file of its own and not condemned.
    pub(super) fn is_loose(&self, name: &Name) -> Result<bool> {
        let (_, path) = self.blobs.place(name);
        match private_files::patiently(|| fs::metadata(&path)) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("look for blob {}", path.display()))(error)),
        }
    }

    pub(super) fn put_loose(&self, name: &Name, bytes: &[u8]) -> Result<()> {
        let (shard, path) = self.blobs.place(name);
        if self.is_whole(&path, name) {
            // The process that put it may not have synced it yet.
            return self.blobs.sync(&shard).map_err(Error::io(format!("sync {}", shard.display())));
        }
        let mut writer = self.start_loose()?;
        writer.write_all(bytes).map_err(Error::io(format!("write blob {}", path.display())))?;
        writer.commit_as(name)
    }

    pub(super) fn start_loose(&self) -> Result<FsWriter<'_>> {
        let doing = || format!("create a temporary file in {}", self.tmp.display());
        let encoder = self.codec.encoder()?;
        let (temporary, file) = self.disk.temporary(&self.tmp).map_err(Error::io(doing()))?;
        let file = Growing { file, end: 0, gathered: Wiped::default() };
        Ok(FsWriter { store: self, encoder, file, temporary })
    }
}

/// Opens a file that may be missing.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    match private_files::open_file(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("open blob {}", path.display()))(error)),
    }
}

/// Writes a blob to a file.
pub(super) struct FsWriter<'a> {
    store: &'a FsBlobStore,
    encoder: Encoder,
    // Before `temporary`, so that the file is closed before it is removed.
    file: Growing,
    temporary: Temporary,
}

impl FsWriter<'_> {
    /// Makes the written bytes the blob of this name.
    pub(super) fn commit_as(self, name: &Name) -> Result<()> {
        let FsWriter { store, encoder, mut file, temporary } = self;
        let (shard, path) = store.blobs.place(name);
        let doing = || format!("store blob {}", path.display());
        let finished = encoder.finish(name, &mut |bytes| file.write(bytes));
        finished.and_then(|()| file.write_gathered()).map_err(or_io(doing))?;
        file.file.sync().map_err(Error::io(doing()))?;
        let placed = store.blobs.make(&shard).and_then(|()| temporary.rename(file.file, &path));
        if let Err(error) = placed {
            // Some systems don't replace a file that is open for reading. It may be the same blob.
            if !store.is_whole(&path, name) {
                return Err(Error::io(doing())(error));
            }
        }
        store.disk.sync_folder(&shard).map_err(Error::io(doing()))?;
        store.note_loose(name);
        Ok(())
    }
}

impl BlobWriter for FsWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let name = self.store.codec.name(digest)?;
        self.commit_as(&name)
    }
}

impl Write for FsWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let FsWriter { encoder, file, .. } = self;
        encoder.write(bytes, &mut |bytes| file.write(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_gathered()
    }
}

/// A file that is written sequentially.
struct Growing {
    file: DiskFile,
    end: u64,
    /// Small pieces that were not written yet.
    gathered: Wiped,
}

impl Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.gathered.len() + bytes.len() > BUFFER {
            self.write_gathered()?;
        }
        match bytes.len() < BUFFER {
            true => self.gathered.extend_from_slice(bytes),
            false => self.append(bytes)?,
        }
        Ok(())
    }

    fn write_gathered(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.append(&gathered)?;
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.file.write_at(bytes, self.end)?;
            self.end += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Small pieces are gathered up to this size before a system call.
const BUFFER: usize = 128 * 1024;
