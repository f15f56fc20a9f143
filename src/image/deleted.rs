//! Deleted files whose names lead elsewhere now: a restore gets other names for them.
//!
//! criu makes a deleted folder anew under its old name, opens it and removes it. What was put there
//! since, such as the folder of a build that starts afresh, would be in its way, or be removed in
//! its place.

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

/// A file that was deleted at the dump, and that a restore makes for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// The entries of its open files.
    pub(crate) files: BTreeSet<u32>,
    /// From the root of the mount namespace.
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

    /// The contents of the file follow in the image, and are not read.
    fn is_folder(&self, ghost: u32) -> Result<bool> {
        const KIND: u32 = 0o170_000;
        const FOLDER: u32 = 0o040_000;
        let name = format!("ghost-file-{ghost:x}.img");
        let Ok(image) = File::open(self.path().join(&name)) else { return Ok(false) };
        let head: Option<GhostFileEntry> = Frames::new(BufReader::new(image), &name)?.next_entry()?;
        Ok(head.is_some_and(|head| head.mode & KIND == FOLDER))
    }

    /// Has criu make deleted files under other names, given by the entries of the open files.
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
