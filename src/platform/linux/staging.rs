//! [`Staging`]: the private folder that images are in for a while.

use std::{
    env, fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    process,
};

use crate::{Error, Result, private};

/// A folder that only we can open, removed with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Staging(PathBuf);

impl Staging {
    /// A new folder in `parent`, or in the system's folder for temporary files.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Staging> {
        let parent = parent.map_or_else(env::temp_dir, Path::to_path_buf);
        let doing = || format!("make a folder for images in {}", parent.display());
        let parent = std::path::absolute(&parent).map_err(Error::io(doing()))?;
        loop {
            let random = RandomState::new().hash_one(0);
            let folder = parent.join(format!("criu-rpc-{}-{random:016x}", process::id()));
            match private::create_folder(&folder) {
                Ok(()) => return Ok(Staging(folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(doing())(error)),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A new folder in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.0.join(name);
        private::create_folder(&folder)
            .map_err(Error::io(format!("make the folder {}", folder.display())))?;
        Ok(folder)
    }

    /// Leaves the folder alone: for the revived copy of a process, whose folder it never was.
    pub(crate) fn forget(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.0); // nobody is left to tell
        }
    }
}
