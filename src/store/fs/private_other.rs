//! The same where access comes from the folder above, and a folder cannot be opened to be synced.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Makes one folder, which must not exist.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Makes a file to be written, which must not exist.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    File::create_new(path)
}

/// Nothing: the file system brings names to the disk by itself.
pub(super) fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}
