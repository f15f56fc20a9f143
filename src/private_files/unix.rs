//! Files and folders that only we can open, on systems with modes; and folders that can be synced.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// A new file, to be written and read; an error if anything of that name is there, a dangling link
/// too.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// A new folder; an error if anything of that name is there.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Writes all of it at this place, whatever other threads do with the file.
pub(crate) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)
}

#[cfg(target_os = "linux")]
pub(crate) use crate::sys::begin_write_back;

/// Nothing: all is left to the sync.
#[cfg(not(target_os = "linux"))]
pub(crate) fn begin_write_back(_file: &File, _at: u64, _length: u64) {}

/// Reads up to a buffer full from this place, whatever other threads do with the file.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    file.read_at(buffer, at)
}

/// Brings the names in a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Runs the work once, without a retry: Unix renames and removes open files.
pub(crate) fn patiently<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    work()
}

/// A file to be read.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Marks a file as being written, as long as it is open. False if another process is removing it.
pub(crate) fn hold(file: &File) -> bool {
    // On a file system without locks, age alone tells.
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Renames a file, which stays locked until it has its name.
pub(crate) fn rename_and_close(file: File, from: &Path, to: &Path) -> io::Result<()> {
    let renamed = std::fs::rename(from, to);
    drop(file);
    renamed
}

/// Removes a file unless its writer lives; of one that cannot be locked, `old` says whether it may
/// go. Tells whether it went.
pub(crate) fn remove_unless_held(path: &Path, old: bool) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(_)) if old => {}
        Err(TryLockError::Error(_)) => return Ok(false),
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

/// Returns the device of a file, major and minor, and its inode: what the kernel's list of locks
/// calls it by.
pub(crate) fn identity(file: &File) -> Option<[u64; 3]> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let major = device >> 8 & 0xfff | device >> 32 & !0xfff;
    let minor = device & 0xff | device >> 12 & !0xff;
    Some([major, minor, metadata.ino()])
}
