//! Files that are open under a deleted name while they have another one, such as the semaphore
//! behind `sem_open`.
//!
//! criu makes a link to such a file, notes its name, and removes the link after a dump of a tree
//! that goes on, or after the first restore. So the images are edited while the link is there: the
//! file gets the name that it still has, or becomes a file whose contents are in the images (criu
//! calls it a ghost).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
};

use prost::Message;

use super::{
    ImageDir,
    frame::{self, Edit},
};
use crate::{
    Error, Result, private_files,
    proto::images::{FileEntry, GhostChunkEntry, GhostFileEntry, RegFileEntry, RemapFilePathEntry},
};

const REMAPS: &str = "remap-fpath.img";
const FILES: &str = "files.img";
/// The kind of image that has the contents of a deleted file.
const GHOST_FILE: u32 = 0x5258_3605;

/// Kinds of remaps.
const LINKED: u32 = 0;
const GHOST: u32 = 1;
/// The bit in the number of a remap without a kind that marks a ghost.
const IS_GHOST: u32 = 1 << 31;

fn is_linked(remap: &RemapFilePathEntry) -> bool {
    remap.remap_type.map_or(remap.remap_id & IS_GHOST == 0, |kind| kind == LINKED)
}

/// The number of the ghost file that stands in for a deleted file.
pub(super) fn ghost_of(remap: &RemapFilePathEntry) -> Option<u32> {
    match remap.remap_type {
        Some(GHOST) => Some(remap.remap_id),
        None if remap.remap_id & IS_GHOST != 0 => Some(remap.remap_id & !IS_GHOST),
        _ => None,
    }
}

/// A file that criu has made a link to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkRemap {
    /// The number of the open file.
    pub(crate) file: u32,
    /// The deleted name, from the root of the mount namespace.
    pub(crate) name: Vec<u8>,
    /// The number of the link, which is an entry of its own.
    pub(crate) link: u32,
    /// The link's name.
    pub(crate) link_name: Vec<u8>,
}

/// The replacement of a link.
#[derive(Debug, Clone)]
pub(crate) enum LinkCure {
    /// The file still has this name.
    Name(Vec<u8>),
    /// The contents of the ghost with this number, which is in the images by now.
    Ghost(u32),
}

/// The owner and the mode of a file whose contents go into the images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GhostMeta {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) size: u64,
}

impl ImageDir {
    /// Reads which files criu has made links to.
    pub(crate) fn link_remaps(&self) -> Result<Vec<LinkRemap>> {
        let mut remaps: Vec<RemapFilePathEntry> = self.all(REMAPS)?;
        remaps.retain(is_linked);
        if remaps.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: BTreeSet<u32> = remaps.iter().flat_map(|remap| [remap.orig_id, remap.remap_id]).collect();
        let mut names = BTreeMap::new();
        self.each(FILES, |file: FileEntry| {
            if let Some(reg) = file.reg.filter(|reg| wanted.contains(&reg.id)) {
                names.insert(reg.id, reg.name);
            }
        })?;
        let name = |id: u32| {
            let missing =
                || Error::corrupt(format!("the image {REMAPS}"), format!("there is no file {id:#x}"));
            names.get(&id).cloned().ok_or_else(missing)
        };
        let remap = |remap: RemapFilePathEntry| {
            let (file, link) = (remap.orig_id, remap.remap_id);
            Ok(LinkRemap { file, name: name(file)?, link, link_name: name(link)? })
        };
        remaps.into_iter().map(remap).collect()
    }

    /// Puts something else in the place of these links.
    pub(crate) fn replace_links(&self, cures: &[(LinkRemap, LinkCure)]) -> Result<()> {
        if cures.is_empty() {
            return Ok(());
        }
        let links: BTreeSet<u32> = cures.iter().map(|(remap, _)| remap.link).collect();
        let files: BTreeSet<u32> = cures.iter().map(|(remap, _)| remap.file).collect();
        let mut ghosts = Vec::new();
        let mut names = BTreeMap::new();
        for (remap, cure) in cures {
            match cure {
                LinkCure::Name(name) => drop(names.insert(remap.file, name.as_slice())),
                LinkCure::Ghost(ghost) => ghosts.push(RemapFilePathEntry {
                    orig_id: remap.file,
                    remap_id: *ghost,
                    remap_type: Some(GHOST),
                }),
            }
        }
        let edit = |file: &FileEntry| match names.get(&file.id) {
            _ if links.contains(&file.id) => Edit::Drop,
            Some(name) => Edit::Extend(renamed(file, name)),
            None => Edit::Keep,
        };
        self.rewrite::<_, FileEntry>(FILES, edit, &[])?;
        let gone = |remap: &RemapFilePathEntry| is_linked(remap) && files.contains(&remap.orig_id);
        self.rewrite(REMAPS, |remap| if gone(remap) { Edit::Drop } else { Edit::Keep }, &ghosts)
    }

    /// A number that no ghost has yet.
    pub(crate) fn next_ghost(&self) -> Result<u32> {
        let mut next = 1;
        self.each(REMAPS, |remap: RemapFilePathEntry| next = next.max(remap.remap_id.saturating_add(1)))?;
        Ok(next)
    }

    /// Takes the contents of a file into the images, as criu does with a deleted one.
    pub(crate) fn add_ghost(&self, number: u32, file: File, meta: GhostMeta) -> Result<()> {
        let name = format!("ghost-file-{number:x}.img");
        let entry = GhostFileEntry {
            uid: meta.uid,
            gid: meta.gid,
            mode: meta.mode,
            chunks: Some(true),
            size: Some(meta.size),
        };
        let chunk = GhostChunkEntry { len: meta.size, off: 0 };
        let entries = [entry.encode_to_vec(), chunk.encode_to_vec()];
        // Of an empty file there is no chunk.
        let entries = entries.into_iter().take(if meta.size == 0 { 1 } else { 2 });
        let head = frame::image(GHOST_FILE, entries)?;
        let doing = || Error::io(format!("make the image {name}"));
        let mut image = private_files::create_file(&self.path().join(&name)).map_err(doing())?;
        image.write_all(&head).map_err(doing())?;
        let copied = io::copy(&mut file.take(meta.size), &mut image).map_err(doing())?;
        match copied == meta.size {
            true => Ok(()),
            false => Err(doing()(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl ImageDir {
    /// Makes external files ordinary ones. `paths` has the path for criu's name of each file.
    pub(crate) fn name_external(&self, paths: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let path = |file: &FileEntry| {
            let reg = file.reg.as_ref().filter(|reg| reg.ext == Some(true))?;
            paths.get(std::str::from_utf8(&reg.name).ok()?)
        };
        let edit = |file: &FileEntry| match path(file) {
            Some(path) => {
                let reg = file.reg.clone().map(|reg| RegFileEntry { ext: Some(false), ..reg });
                Edit::Extend(renamed(&FileEntry { reg, ..file.clone() }, path))
            }
            None => Edit::Keep,
        };
        self.rewrite::<_, FileEntry>("files.img", edit, &[])
    }
}

/// The bytes to append to a file's entry to change its name. protobuf merges a message that is
/// there twice, and the later fields win.
pub(super) fn renamed(file: &FileEntry, name: &[u8]) -> Vec<u8> {
    let reg = file.reg.clone().map(|reg| RegFileEntry { name: name.to_owned(), ..reg });
    FileEntry { r#type: file.r#type, id: file.id, reg, ..FileEntry::default() }.encode_to_vec()
}
