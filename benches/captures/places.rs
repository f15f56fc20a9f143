//! Folders that are removed on drop, and their sizes.

use std::{
    env,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::run::Result;

/// A folder of our own, removed on drop.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Creates a folder among the temporary files.
    pub(crate) fn temporary() -> Result<Folder> {
        Folder::within(&env::temp_dir())
    }

    pub(crate) fn within(place: &Path) -> Result<Folder> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("criu-rpc-bench-{}-{count}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tmpfs of our own, unmounted on drop.
#[derive(Debug)]
pub(crate) struct Tmpfs(Folder);

impl Tmpfs {
    pub(crate) fn mount() -> Result<Tmpfs> {
        let folder = Folder::temporary()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=0700,size=90%", "criu-rpc-bench"]).arg(folder.path());
        succeed(&mut mount)?;
        Ok(Tmpfs(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Returns the disk space that a folder takes, in bytes.
pub(crate) fn disk_use(folder: &Path) -> io::Result<u64> {
    let mut bytes = fs::symlink_metadata(folder)?.blocks() * 512;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            disk_use(&entry.path())?
        } else {
            entry.metadata()?.blocks() * 512
        };
    }
    Ok(bytes)
}

/// Runs a command that must succeed; its output appears only in the error.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {}", output.status, said.trim()).into());
    }
    Ok(())
}
