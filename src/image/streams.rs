//! The standard streams of a dumped tree that lead out of it, and giving it others.
//!
//! criu can put a file of ours in the place of a resource (`inherit_fd`), but only by the resource's name, and the names
//! are too coarse: a program in a terminal has one file as all three streams, and whoever revives it may have a pipe, a
//! file and nothing. A terminal can be replaced by a terminal only. So the images are edited: each standard stream
//! that leads out becomes a regular file of its own, whose name we choose, and that is what criu replaces. It takes
//! whatever we lend for it, as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ImageDir;
use crate::{
    Result,
    proto::images::{FdTypes, FdinfoEntry, FileEntry, RegFileEntry, TtyInfoEntry, TtyType},
};

/// Makes the standard streams that lead out of the tree replaceable, and those in `chosen` wherever they lead, unless
/// to another task of the tree. Gives the number of each stream and its name for `inherit_fd`.
pub(crate) fn detach_streams(images: &ImageDir, chosen: [bool; 3]) -> Result<Vec<(usize, String)>> {
    let tree = Tables::read(images)?;
    let replaced = tree.replaced(chosen);
    if replaced.is_empty() {
        return Ok(Vec::new());
    }
    let first = tree.files.keys().max().copied().unwrap_or(0).saturating_add(1);
    let substitute = |stream: u32| regular_file(first.saturating_add(stream), stream);

    let mut used = BTreeSet::new();
    for (files_id, mut descriptors) in tree.descriptors {
        let mut changed = false;
        for descriptor in &mut descriptors {
            let Some(home) = replaced.get(&descriptor.id) else { continue };
            let stream = if descriptor.fd <= 2 { descriptor.fd } else { *home };
            descriptor.id = substitute(stream).id;
            descriptor.r#type = FdTypes::Reg.into();
            used.insert(stream);
            changed = true;
        }
        if changed {
            images.rewrite(&fdinfo(files_id), |_: &FdinfoEntry| false, &descriptors)?;
        }
    }
    let added: Vec<FileEntry> = used.iter().map(|stream| substitute(*stream)).collect();
    // Regular files stay: they may be mapped, too.
    let gone = |file: &FileEntry| replaced.contains_key(&file.id) && file.reg.is_none();
    images.rewrite("files.img", |file| !gone(file), &added)?;
    Ok(used.into_iter().map(|stream| (stream as usize, name(stream))).collect())
}

/// The name of the file that stands for a stream, without its leading slash, as `inherit_fd` wants it.
fn name(stream: u32) -> String {
    format!("criu-rpc/stream-{stream}")
}

/// A file that nobody else has, and that is never opened.
fn regular_file(id: u32, stream: u32) -> FileEntry {
    let file = RegFileEntry { id, name: format!("/{}", name(stream)), ..RegFileEntry::default() };
    FileEntry { r#type: FdTypes::Reg.into(), id, reg: Some(file), ..FileEntry::default() }
}

fn fdinfo(files_id: u32) -> String {
    format!("fdinfo-{files_id}.img")
}

/// What the images say of files.
struct Tables {
    files: HashMap<u32, FileEntry>,
    terminals: HashMap<u32, TtyInfoEntry>,
    /// The open descriptors, by the number of the table, which tasks may share. Parents' before children's.
    descriptors: Vec<(u32, Vec<FdinfoEntry>)>,
    /// The pipes of which the tree has both ends: they are its own business.
    inner_pipes: BTreeSet<u32>,
}

impl Tables {
    fn read(images: &ImageDir) -> Result<Tables> {
        let files: HashMap<_, _> =
            images.all("files.img")?.into_iter().map(|file: FileEntry| (file.id, file)).collect();
        let terminals =
            images.all("tty-info.img")?.into_iter().map(|tty: TtyInfoEntry| (tty.id, tty)).collect();
        let mut descriptors: Vec<(u32, Vec<FdinfoEntry>)> = Vec::new();
        for process in images.processes()? {
            let Some(files_id) = images.files_id(process.pid)? else { continue };
            if descriptors.iter().all(|(known, _)| *known != files_id) {
                descriptors.push((files_id, images.all(&fdinfo(files_id))?));
            }
        }
        Ok(Tables { inner_pipes: inner_pipes(&files), files, terminals, descriptors })
    }

    /// The files to replace, and which standard stream each was first.
    fn replaced(&self, chosen: [bool; 3]) -> BTreeMap<u32, u32> {
        let mut replaced = BTreeMap::new();
        for descriptor in self.descriptors.iter().flat_map(|(_, descriptors)| descriptors) {
            let Some(chosen) = chosen.get(descriptor.fd as usize) else { continue };
            let Some(file) = self.files.get(&descriptor.id) else { continue };
            if self.leads_out(file) || *chosen && file.reg.is_some() {
                replaced.entry(file.id).or_insert(descriptor.fd);
            }
        }
        replaced
    }

    /// Whether the other side of the file was not a part of the tree, and so is gone.
    fn leads_out(&self, file: &FileEntry) -> bool {
        const EXTERNAL: u32 = 1;
        if let Some(pipe) = &file.pipe {
            return !self.inner_pipes.contains(&pipe.pipe_id);
        }
        if let Some(tty) = &file.tty {
            let info = self.terminals.get(&tty.tty_info_id);
            return info.is_some_and(|info| info.r#type == i32::from(TtyType::ExtTty));
        }
        file.usk.as_ref().is_some_and(|socket| socket.uflags & EXTERNAL != 0)
    }
}

fn inner_pipes(files: &HashMap<u32, FileEntry>) -> BTreeSet<u32> {
    const ACCESS_MODE: u32 = 3;
    const READ_WRITE: u32 = 2;
    let mut ends: HashMap<u32, BTreeSet<u32>> = HashMap::new();
    for pipe in files.values().filter_map(|file| file.pipe.as_ref()) {
        ends.entry(pipe.pipe_id).or_default().insert(pipe.flags & ACCESS_MODE);
    }
    let both = |modes: &BTreeSet<u32>| modes.len() > 1 || modes.contains(&READ_WRITE);
    ends.into_iter().filter(|(_, modes)| both(modes)).map(|(pipe, _)| pipe).collect()
}
