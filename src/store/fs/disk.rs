//! [`Disk`]: the few things that the store does to its folder, all in one place so that a test can watch them and
//! pull the plug after each.

use std::{
    collections::hash_map::RandomState,
    fmt,
    fs::{self, File},
    hash::BuildHasher as _,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{private, store::pack::ReadAt};

/// Changes files and folders.
#[derive(Clone, Default)]
pub(super) struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

/// Is told of every change once it was made.
pub(super) trait Watch: Send + Sync {
    fn done(&self, step: Step<'_>);
}

/// A change.
#[allow(dead_code, reason = "only tests look inside")]
#[derive(Debug)]
pub(super) enum Step<'a> {
    Create(&'a Path),
    /// Bytes at a place of the file that was created by this name.
    Write(&'a Path, u64, &'a [u8]),
    /// What was written to the file that was created by this name is on the disk.
    Sync(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    MakeFolder(&'a Path),
    /// The names in a folder are on the disk.
    SyncFolder(&'a Path),
}

impl Disk {
    /// One that tells of what it does.
    #[cfg(test)]
    pub(super) fn watched(watch: Arc<dyn Watch>) -> Disk {
        Disk { watch: Some(watch) }
    }

    fn tell(&self, step: Step<'_>) {
        if let Some(watch) = &self.watch {
            watch.done(step);
        }
    }

    /// A new file in `folder` by a name that nobody else uses.
    pub(super) fn temporary(&self, folder: &Path) -> io::Result<(Temporary, DiskFile)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let random = RandomState::new().hash_one(count);
            let path = folder.join(format!("{}-{count}-{random:016x}", process::id()));
            match private::create_file(&path) {
                Ok(file) => {
                    self.tell(Step::Create(&path));
                    if !private::hold(&file) || !path.exists() {
                        continue; // taken for a leftover, and removed
                    }
                    let file = DiskFile { file, path: path.clone(), disk: self.clone() };
                    return Ok((Temporary { path, renamed: false, disk: self.clone() }, file));
                }
                // A process that was restored twice exists twice, with equal pids, counts and randomness.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a folder and those above it, where missing, and sees to it that their names are on the disk.
    pub(super) fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.make_folder(parent)?;
        }
        match private::create_folder(folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            created => {
                created?;
                self.tell(Step::MakeFolder(folder));
            }
        }
        folder.parent().map_or(Ok(()), |parent| self.sync_folder(parent))
    }

    /// Brings the names in a folder to the disk.
    pub(super) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        private::sync_folder(folder)?;
        self.tell(Step::SyncFolder(folder));
        Ok(())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        private::patiently(|| fs::rename(from, to))?;
        self.tell(Step::Rename(from, to));
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        private::patiently(|| fs::remove_file(path))?;
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
    /// Writes it, and has the disk begin with each mebibyte that is complete. Otherwise it would idle until the sync.
    pub(super) fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut end = at;
        for piece in bytes.chunks(STEP) {
            private::write_at(&self.file, piece, end)?;
            let step = STEP as u64;
            let before = end / step;
            end += piece.len() as u64;
            if end / step != before {
                // One more: threads write beside each other, and some are late with their part of the one before.
                let from = before.saturating_sub(1) * step;
                private::begin_write_back(&self.file, from, end / step * step - from);
            }
        }
        self.disk.tell(Step::Write(&self.path, at, bytes));
        Ok(())
    }

    /// Brings what was written to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.disk.tell(Step::Sync(&self.path));
        Ok(())
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        private::read_at(self, buffer, at)
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

    /// Gives the file its name. Until then, that it is open and locked tells others that its writer lives.
    pub(super) fn rename(mut self, file: DiskFile, to: &Path) -> io::Result<()> {
        private::rename_and_close(file.file, &self.path, to)?;
        self.disk.tell(Step::Rename(&self.path, to));
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is removed as a leftover, a day later.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// How much is handed to the disk at once: for less, asking would cost more than it gains.
const STEP: usize = 1024 * 1024;
