//! Files and folders where there are no modes: they are as private as the folder they are made in.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// A new file, to be written; an error if anything of that name is there, a dangling link too.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// A new folder; an error if anything of that name is there.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Nothing: a folder cannot be opened to be synced, and the file system brings names to the disk by itself.
pub(crate) fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}
