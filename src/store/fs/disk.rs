//! [`Disk`]: the operations of the store on its folder.
//!
//! They are in one place so that a test can watch them and simulate a power cut after each.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{private_files, store::read_at::ReadAt, unique};

/// Changes files and folders.
#[derive(Clone, Default)]
pub(super) struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

/// Observes every change, after it was made.
pub(super) trait Watch: Send + Sync {
    fn done(&self, step: Step<'_>);
}

/// A change.
#[allow(dead_code, reason = "only tests look inside")]
#[derive(Debug)]
pub(super) enum Step<'a> {
    Create(&'a Path),
    /// A write at a position of the file that was created by this name.
    Write(&'a Path, u64, &'a [u8]),
    /// Bytes written to the file that was created by this name are on the disk.
    Sync(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    MakeFolder(&'a Path),
    /// The names in a folder are on the disk.
    SyncFolder(&'a Path),
}

impl Disk {
    /// Makes a disk that reports its changes.
    #[cfg(test)]
    pub(super) fn watched(watch: Arc<dyn Watch>) -> Disk {
        Disk { watch: Some(watch) }
    }

    /// Returns true if a test watches for power cuts.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    fn tell(&self, step: Step<'_>) {
        if let Some(watch) = &self.watch {
            watch.done(step);
        }
    }

    /// Creates a file in `folder` by a unique name.
    pub(super) fn temporary(&self, folder: &Path) -> io::Result<(Temporary, DiskFile)> {
        loop {
            let path = folder.join(unique::name());
            match private_files::create_file(&path) {
                Ok(file) => {
                    self.tell(Step::Create(&path));
                    if !private_files::hold(&file) || !path.exists() {
                        continue; // another process took it for a leftover, and removed it
                    }
                    let file = DiskFile { file, path: path.clone(), disk: self.clone() };
                    return Ok((Temporary { path, renamed: false, disk: self.clone() }, file));
                }
                // A process that was restored twice exists twice, with equal pids, counts and
                // random numbers.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Opens a file to write to it, and creates it if it is missing.
    pub(super) fn append(&self, path: &Path) -> io::Result<DiskFile> {
        let file = match private_files::create_file(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                File::options().write(true).open(path)?
            }
            created => {
                let file = created?;
                self.tell(Step::Create(path));
                file
            }
        };
        Ok(DiskFile { file, path: path.to_owned(), disk: self.clone() })
    }

    /// Makes a folder and its missing parents, and syncs their names.
    pub(super) fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.make_folder(parent)?;
        }
        match private_files::create_folder(folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            created => {
                created?;
                self.tell(Step::MakeFolder(folder));
            }
        }
        folder.parent().map_or(Ok(()), |parent| self.sync_folder(parent))
    }

    /// Syncs the names in a folder.
    pub(super) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        private_files::sync_folder(folder)?;
        self.tell(Step::SyncFolder(folder));
        Ok(())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        private_files::patiently(|| fs::rename(from, to))?;
        self.tell(Step::Rename(from, to));
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        private_files::patiently(|| fs::remove_file(path))?;
        self.tell(Step::Remove(path));
        Ok(())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

/// A file that is being written.
pub(super) struct DiskFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl DiskFile {
    /// Writes bytes, and starts writeback of each complete mebibyte. Otherwise the disk would idle
    /// until the sync.
    pub(super) fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut end = at;
        for piece in bytes.chunks(STEP) {
            private_files::write_at(&self.file, piece, end)?;
            let step = STEP as u64;
            let before = end / step;
            end += piece.len() as u64;
            if end / step != before {
                // Include the mebibyte before: other threads may have finished their part of it
                // late.
                let from = before.saturating_sub(1) * step;
                private_files::begin_write_back(&self.file, from, end / step * step - from);
            }
        }
        self.disk.tell(Step::Write(&self.path, at, bytes));
        Ok(())
    }

    /// Cuts off what is behind this position.
    pub(super) fn cut(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    /// Returns the number of bytes in the file.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Syncs the written bytes.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.disk.tell(Step::Sync(&self.path));
        Ok(())
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        private_files::read_at(self, buffer, at)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// The name of a temporary file, which is removed on drop.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    renamed: bool,
    disk: Disk,
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file into place. Until then its lock shows others that its writer lives.
    pub(super) fn rename(mut self, file: DiskFile, to: &Path) -> io::Result<()> {
        private_files::rename_and_close(file.file, &self.path, to)?;
        self.disk.tell(Step::Rename(&self.path, to));
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // A file that cannot be removed now is removed as a leftover, a day later.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// The number of bytes handed to the disk at once. Smaller pieces would cost more than they gain.
const STEP: usize = 1024 * 1024;
