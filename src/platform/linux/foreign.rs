//! [`Foreign`]: files that a restore lent to a copy. They were opened in another mount namespace.
//!
//! criu finds no path for such a file. It would take the file only as external, and then each
//! restore must lend it again. So the images get the path. A file that has no path in the copy is
//! left to criu, which refuses it.

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
    /// Finds the lent files of a tree, except those that the options name as external.
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

    /// Declares the files as external in the options of a dump.
    pub(super) fn declare(&self, options: DumpOptions) -> DumpOptions {
        self.0.keys().fold(options, |options, name| options.external(name.as_str()))
    }

    /// Writes the paths of the files into the images. The tree stands still.
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
    /// Returns true if the path leads to this file inside the copy. A path in `/proc` means another
    /// process there.
    fn is_at_its_path(&self, root: Pid) -> bool {
        let Ok(path) = self.path.strip_prefix("/") else { return false };
        let there = Path::new("/proc").join(root.to_string()).join("root").join(path);
        let found = Statx::of(&there).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        found && statfs(&there).is_ok_and(|system| system.filesystem_type() != PROC_SUPER_MAGIC)
    }
}
