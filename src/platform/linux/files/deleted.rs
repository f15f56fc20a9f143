//! Finds names for deleted files whose old names are in use again.

use std::{
    collections::{BTreeMap, HashSet},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::SFlag;

use super::{
    path,
    walk::{Root, Walked, kind},
};
use crate::{
    Error, Result,
    image::{Deleted, ImageDir},
};

/// The maximum length of the part of a new name that comes from the old name. The kernel allows 255
/// bytes in all.
const MOST_OF_NAME: usize = 200;

/// Gives each deleted folder a free name, and each deleted file a folder that exists. criu would
/// remove a folder that it finds under the old name. It would create missing folders, and leave
/// them there.
///
/// A mount namespace that criu has yet to create cannot be searched. There, all deleted folders get
/// other names.
pub(in super::super) fn settle_deleted(images: &ImageDir) -> Result<()> {
    let deleted = images.deleted()?;
    if deleted.is_empty() {
        return Ok(());
    }
    let root = match images.has_own_mounts()? {
        true => None,
        false => Some(Root::open().map_err(Error::io("open the root folder"))?),
    };
    let gone = deleted.iter().filter(|file| file.is_folder).map(|file| path(&file.name)).collect();
    let mut names = Names { root, gone, given: HashSet::new() };
    let mut renamed = BTreeMap::new();
    for file in &deleted {
        if let Some(name) = names.other(file) {
            let name = name.into_os_string().into_vec();
            renamed.extend(file.files.iter().map(|entry| (*entry, name.clone())));
        }
    }
    images.rename_deleted(&renamed)
}

struct Names<'a> {
    /// `None` if the tree's mount namespace does not exist yet.
    root: Option<Root>,
    /// The old names of the deleted folders.
    gone: HashSet<&'a Path>,
    /// The names of deleted folders in this restore.
    given: HashSet<PathBuf>,
}

/// The finding at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Nothing,
    Folder,
    Other,
    /// The path cannot be read, or leads through a link, which the checks of all files report.
    Unknown,
}

impl Names<'_> {
    /// Another name for a deleted file; `None` if it can keep its name.
    fn other(&mut self, file: &Deleted) -> Option<PathBuf> {
        let old = path(&file.name);
        let (mut folder, name) = (old.parent()?, old.file_name()?.as_bytes());
        while self.gone.contains(folder) || self.is_no_folder(folder) {
            folder = folder.parent()?;
        }
        let moves = Some(folder) != old.parent();
        if !moves && (!file.is_folder || self.take(old)) {
            return None; // criu adds to the name of a file until it is free
        }
        let name = &name[..name.len().min(MOST_OF_NAME)];
        let mut names = (0_u32..).map(|number| {
            let end = format!(".deleted-{}-{number}", std::process::id());
            folder.join(path(&[name, end.as_bytes()].concat()))
        });
        match &self.root {
            Some(_) => names.find(|name| self.take(name)),
            None => names.find(|name| self.given.insert(name.clone())),
        }
    }

    fn is_no_folder(&self, folder: &Path) -> bool {
        self.root.as_ref().is_some_and(|root| matches!(at(root, folder), At::Nothing | At::Other))
    }

    /// Takes the name if it is free; returns false if it may be in use.
    fn take(&mut self, name: &Path) -> bool {
        let is_free = self.root.as_ref().is_some_and(|root| at(root, name) == At::Nothing);
        is_free && self.given.insert(name.to_owned())
    }
}

fn at(root: &Root, path: &Path) -> At {
    match root.walk(path, false) {
        Ok(Walked::File(file)) if kind(file.stat.st_mode) == SFlag::S_IFDIR => At::Folder,
        Ok(Walked::File(_)) => At::Other,
        Ok(Walked::Missing) => At::Nothing,
        Ok(Walked::Link(_)) | Err(_) => At::Unknown,
    }
}
