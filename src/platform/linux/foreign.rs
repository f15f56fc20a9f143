//! [`Foreign`]: files of a copy that were opened in another mount namespace: those that the restore
//! lent it.
//!
//! criu finds no path for such a file, and takes it only as an external one, which a restore would
//! need again. So the images get the path: the next restore opens the file by it, like any other.
//! A file that has no path in the copy is left to criu, which refuses it.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::{
    DumpOptions, Error, Pid, Result,
    image::ImageDir,
    options::External,
    procfs::{each_line, fdinfo_number, read_start, tree},
    sys::Statx,
};

/// The files, by criu's name for them.
#[derive(Default)]
pub(super) struct Foreign(BTreeMap<String, File>);

struct File {
    path: PathBuf,
    /// Its device and inode.
    identity: (u64, u64),
}

impl Foreign {
    /// Finds them in the tree, except for those that the options have.
    pub(super) fn of(root: Pid, options: &DumpOptions) -> Foreign {
        let mut mounts = HashSet::new();
        each_line(format!("/proc/{root}/mountinfo"), |line| {
            mounts.extend(line.split(' ').next().and_then(|id| id.parse::<i32>().ok()));
        });
        let mut found = BTreeMap::new();
        for pid in tree(root.as_raw()) {
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().display());
                let mount = read_start(info).and_then(|info| fdinfo_number(&info, "mnt_id"));
                let Some(mount) = mount.filter(|mount| !mounts.contains(mount)) else { continue };
                let (Ok(path), Ok(file)) = (fs::read_link(entry.path()), Statx::of(entry.path())) else {
                    continue;
                };
                let is_terminal =
                    file.is_master() || file.slave().is_some() || file.is_controlling_terminal();
                let name = External::File { mount, inode: file.ino() }.to_string();
                let file = File { path, identity: (file.dev(), file.ino()) };
                if !is_terminal && file.is_at_its_path(root) && !options.is_external(&name) {
                    found.insert(name, file);
                }
            }
        }
        Foreign(found)
    }

    /// Adds them to the options of a dump.
    pub(super) fn declare(&self, options: DumpOptions) -> DumpOptions {
        self.0.keys().fold(options, |options, name| options.external(name.as_str()))
    }

    /// Gives them their paths in the images of a tree that stands still.
    ///
    /// # Errors
    ///
    /// The capture fails if a file has got another path since it was looked at.
    pub(super) fn name(&self, root: Pid, images: &ImageDir) -> Result<()> {
        if let Some(moved) = self.0.values().find(|file| !file.is_at_its_path(root)) {
            let doing = format!("find {}, which the tree has open", moved.path.display());
            return Err(Error::io(doing)(io::Error::other("it was renamed or replaced; capture again")));
        }
        let paths =
            self.0.iter().map(|(name, file)| (name.clone(), file.path.as_os_str().as_bytes().to_owned()));
        images.name_external(&paths.collect())
    }
}

impl File {
    /// Returns true if the tree finds it by its path. Paths in `/proc` mean other processes in the
    /// copy.
    fn is_at_its_path(&self, root: Pid) -> bool {
        let Ok(path) = self.path.strip_prefix("/") else { return false };
        let there = Path::new("/proc").join(root.to_string()).join("root").join(path);
        let found = Statx::of(&there).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        found && statfs(&there).is_ok_and(|system| system.filesystem_type() != PROC_SUPER_MAGIC)
    }
}
