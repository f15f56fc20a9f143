//! Files and folders where there are no modes: they are as private as the folder they are made in.

use std::{
    fs::{self, File},
    io,
    os::windows::fs::FileExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// A new file, to be written and read; an error if anything of that name is there, a dangling link
/// too.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// A new folder; an error if anything of that name is there.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Writes all bytes at this place. Threads may do so at once, because no caller uses the file's
/// cursor.
pub(crate) fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_write(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Nothing: all is left to the sync.
pub(crate) fn begin_write_back(_file: &File, _at: u64, _length: u64) {}

/// Reads up to a buffer full from this place. Threads may do so at once.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    file.seek_read(buffer, at)
}

/// Nothing: a folder cannot be opened to be synced, and the file system brings names to the disk by
/// itself.
pub(crate) fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Retries for a while, if the system says that another process has the file: a file that is being
/// replaced or removed can be neither opened nor removed for a moment.
pub(crate) fn patiently<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match work() {
            Err(error)
                if error.raw_os_error().is_some_and(|code| HELD.contains(&code)) && Instant::now() < end =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(1);

/// Windows's codes for access denied, a sharing violation and a lock violation.
const HELD: [i32; 3] = [5, 32, 33];

/// A file to be read, though it is being replaced.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    patiently(|| File::open(path))
}

/// Nothing: a lock would keep readers out of the file, so age alone tells whether a file is being
/// written.
pub(crate) fn hold(_file: &File) -> bool {
    true
}

/// Renames a file, which must not be open for that.
pub(crate) fn rename_and_close(file: File, from: &Path, to: &Path) -> io::Result<()> {
    drop(file);
    patiently(|| fs::rename(from, to))
}

/// Removes a file that is `old` enough. Tells whether it went.
pub(crate) fn remove_unless_held(path: &Path, old: bool) -> io::Result<bool> {
    if old {
        fs::remove_file(path)?;
    }
    Ok(old)
}

/// Nothing: the system has no list of locks.
pub(crate) fn identity(_file: &File) -> Option<[u64; 3]> {
    None
}
