//! Deleted files whose names are in use again: a restore gets other names for them.
//!
//! criu creates a deleted folder under its old name, opens it, and removes it. A new folder of that
//! name, such as the output of a later build, would make this fail, or would itself be removed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::BufReader,
};

use super::{
    ImageDir,
    frame::{Edit, Frames},
    links::{ghost_of, renamed},
};
use crate::{
    Result,
    proto::images::{FileEntry, GhostFileEntry, RemapFilePathEntry},
};

/// A file that was deleted at the dump. A restore creates it, and deletes it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// The entries of its open files.
    pub(crate) files: BTreeSet<u32>,
    /// The path from the root of the mount namespace.
    pub(crate) name: Vec<u8>,
    pub(crate) is_folder: bool,
}

impl ImageDir {
    /// The deleted files that have no other name.
    pub(crate) fn deleted(&self) -> Result<Vec<Deleted>> {
        let mut of_ghosts = BTreeMap::<u32, BTreeSet<u32>>::new();
        self.each("remap-fpath.img", |remap: RemapFilePathEntry| {
            if let Some(ghost) = ghost_of(&remap) {
                of_ghosts.entry(ghost).or_default().insert(remap.orig_id);
            }
        })?;
        if of_ghosts.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = HashMap::new();
        self.each("files.img", |file: FileEntry| names.extend(file.reg.map(|reg| (reg.id, reg.name))))?;
        let mut all = Vec::new();
        for (ghost, files) in of_ghosts {
            let name = files.iter().find_map(|file| names.get(file));
            if let Some(name) = name.filter(|name| name.starts_with(b"/")) {
                all.push(Deleted { files, name: name.clone(), is_folder: self.is_folder(ghost)? });
            }
        }
        Ok(all)
    }

    /// Returns true if the deleted file is a folder. Reads only the head of its image, not its
    /// contents.
    fn is_folder(&self, ghost: u32) -> Result<bool> {
        const KIND: u32 = 0o170_000;
        const FOLDER: u32 = 0o040_000;
        let name = format!("ghost-file-{ghost:x}.img");
        let Ok(image) = File::open(self.path().join(&name)) else { return Ok(false) };
        let head: Option<GhostFileEntry> = Frames::new(BufReader::new(image), &name)?.next_entry()?;
        Ok(head.is_some_and(|head| head.mode & KIND == FOLDER))
    }

    /// Makes criu create deleted files under other names. `names` has the name for the entry of
    /// each open file.
    pub(crate) fn rename_deleted(&self, names: &BTreeMap<u32, Vec<u8>>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let edit = |file: &FileEntry| match names.get(&file.id) {
            Some(name) if file.reg.is_some() => Edit::Extend(renamed(file, name)),
            _ => Edit::Keep,
        };
        self.rewrite::<_, FileEntry>("files.img", edit, &[])
    }
}
