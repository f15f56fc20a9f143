//! [`Place`]: a private folder for one run of one program, and copies of its files at one moment.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::UNIX_EPOCH,
};

use crate::failure::{Failure, Result};

/// A private folder with three folders in it: `work` for the program, `store` for captures, `files`
/// for a [`Snapshot`].
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// Creates a folder in `parent`.
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Place> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("{}-{count}", name.replace(' ', "-")));
        fs::create_dir(&folder)?;
        for part in ["work", "store", "home"] {
            fs::create_dir(folder.join(part))?;
        }
        Ok(Place { folder })
    }

    /// The program's working directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// The program's home.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// A path in the working directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work().join(name)
    }

    /// Writes a file into the working directory.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).map_err(|error| Failure::wrong(format!("write {}: {error}", path.display())))
    }

    /// The text of a file in the working directory.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|error| Failure::wrong(format!("read {}: {error}", path.display())))
    }

    /// Copies the program's files.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let copy = self.folder.join("files");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        fs::create_dir(&copy)?;
        let live = [self.work(), self.home()];
        let mut stamps = Vec::new();
        for (number, folder) in live.iter().enumerate() {
            mirror(folder, &copy.join(number.to_string()))?;
            stamp(folder, &mut stamps)?;
        }
        Ok(Snapshot { live, copy, stamps })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::env::var_os("TEST_PROGRAMS_KEEP").is_none() {
            // The removal of the parent folder at the end reports errors.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A copy of the program's files. An agent that goes back to a capture restores it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    live: [PathBuf; 2],
    copy: PathBuf,
    stamps: Vec<Stamp>,
}

type Stamp = (PathBuf, u64, u64, i64, i64, u32);

impl Snapshot {
    /// True if no file changed since the copy was made.
    pub(crate) fn is_current(&self) -> Result<bool> {
        let mut stamps = Vec::new();
        for folder in &self.live {
            stamp(folder, &mut stamps)?;
        }
        Ok(stamps == self.stamps)
    }

    /// Restores the files. Existing files keep their inode, as programs such as sqlite need it.
    pub(crate) fn put_back(&self) -> Result {
        for (number, folder) in self.live.iter().enumerate() {
            mirror(&self.copy.join(number.to_string()), folder)?;
        }
        Ok(())
    }
}

/// Notes everything that changes when a file below the folder changes.
fn stamp(folder: &Path, into: &mut Vec<Stamp>) -> Result {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<std::result::Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        // A file that was removed meanwhile shows in the folder's own stamp.
        let Ok(meta) = entry.metadata() else { continue };
        into.push((entry.path(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.mode()));
        if meta.is_dir() {
            stamp(&entry.path(), into)?;
        }
    }
    Ok(())
}

/// Makes the second folder equal to the first.
fn mirror(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let there = from.join(name).symlink_metadata().ok().map(|meta| meta.file_type());
        let here = entry.symlink_metadata()?.file_type();
        if there != Some(here) {
            if here.is_dir() { fs::remove_dir_all(&entry)? } else { fs::remove_file(&entry)? }
        }
    }
    for entry in fs::read_dir(from)? {
        let (source, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        let Ok(meta) = source.symlink_metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            mirror(&source, &target)?;
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            copy(&source, &target, &meta)?;
        } else if !target.exists() && (kind.is_socket() || kind.is_fifo()) {
            let kind =
                if kind.is_fifo() { nix::sys::stat::SFlag::S_IFIFO } else { nix::sys::stat::SFlag::S_IFSOCK };
            nix::sys::stat::mknod(&target, kind, nix::sys::stat::Mode::from_bits_truncate(meta.mode()), 0)?;
        }
    }
    fs::set_permissions(to, from.metadata()?.permissions())?;
    Ok(())
}

/// Copies a regular file unless the other one has the same size and time.
fn copy(from: &Path, to: &Path, meta: &fs::Metadata) -> Result {
    if let Ok(other) = to.symlink_metadata()
        && (other.size(), other.modified()?, other.mode()) == (meta.size(), meta.modified()?, meta.mode())
    {
        return Ok(());
    }
    let Ok(mut source) = fs::File::open(from) else { return Ok(()) }; // removed meanwhile
    let mut target = fs::File::options().write(true).create(true).truncate(true).open(to)?;
    std::io::copy(&mut source, &mut target)?;
    target.set_permissions(meta.permissions())?;
    let modified = meta.modified().unwrap_or(UNIX_EPOCH);
    target.set_times(fs::FileTimes::new().set_modified(modified))?;
    Ok(())
}
