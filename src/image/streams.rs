//! The standard streams of a dumped tree that lead out of it, and giving it others.
//!
//! criu can put a file of ours in the place of a resource (`inherit_fd`), but only by the resource's name, and the names
//! are too coarse: a program in a terminal has one file as all three streams, and whoever revives it may have a pipe, a
//! file and nothing. A terminal can be replaced by a terminal only. So the images are edited: each standard stream
//! that leads out becomes a regular file of its own, whose name we choose, and that is what criu replaces. It takes
//! whatever we lend for it, as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
    files: HashMap<u32, Kind>,
    /// The open descriptors, by the number of the table, which tasks may share. Parents' before children's.
    descriptors: Vec<(u32, Vec<FdinfoEntry>)>,
}

/// What matters of an open file. The whole entry takes a hundred times the space, and the images may be hostile.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Regular,
    /// The other side of the file was not a part of the tree, and so is gone.
    LeadsOut,
    Inner,
}

impl Tables {
    fn read(images: &ImageDir) -> Result<Tables> {
        let mut terminals_outside = HashSet::new();
        images.each("tty-info.img", |tty: TtyInfoEntry| {
            if tty.r#type == i32::from(TtyType::ExtTty) {
                terminals_outside.insert(tty.id);
            }
        })?;
        let (mut files, mut pipes, mut sockets) = (HashMap::new(), Pipes::default(), Sockets::default());
        images.each("files.img", |file: FileEntry| {
            pipes.add(&file);
            sockets.add(&file);
            files.insert(file.id, kind(&file, &terminals_outside));
        })?;
        files.extend(sockets.leading_out().map(|file| (file, Kind::LeadsOut)));
        let (mut descriptors, mut known) = (Vec::new(), HashSet::new());
        for process in images.processes()? {
            if let Some(files_id) = images.files_id(process.pid)?.filter(|files_id| known.insert(*files_id)) {
                descriptors.push((files_id, images.all(&fdinfo(files_id))?));
            }
        }
        let ended = images.notes()?.and_then(|notes| notes.pipes);
        let ended = ended.map(|pipes| pipes.ended.into_iter().collect());
        let outer = pipes.leading_out(ended.as_ref(), root_streams(&descriptors));
        files.extend(outer.into_iter().map(|file| (file, Kind::LeadsOut)));
        Ok(Tables { files, descriptors })
    }

    /// The files to replace, and which standard stream each was first.
    fn replaced(&self, chosen: [bool; 3]) -> BTreeMap<u32, u32> {
        let mut replaced = BTreeMap::new();
        for descriptor in self.descriptors.iter().flat_map(|(_, descriptors)| descriptors) {
            let Some(chosen) = chosen.get(descriptor.fd as usize) else { continue };
            match self.files.get(&descriptor.id) {
                Some(Kind::Regular) if *chosen => {}
                Some(Kind::LeadsOut) => {}
                _ => continue,
            }
            replaced.entry(descriptor.id).or_insert(descriptor.fd);
        }
        replaced
    }
}

/// The files that are standard streams of the root.
fn root_streams(descriptors: &[(u32, Vec<FdinfoEntry>)]) -> HashSet<u32> {
    let root = descriptors.first().into_iter().flat_map(|(_, descriptors)| descriptors);
    root.filter(|descriptor| descriptor.fd <= 2).map(|descriptor| descriptor.id).collect()
}

fn kind(file: &FileEntry, terminals_outside: &HashSet<u32>) -> Kind {
    let leads_out = file.tty.as_ref().is_some_and(|tty| terminals_outside.contains(&tty.tty_info_id));
    match &file.reg {
        _ if leads_out => Kind::LeadsOut,
        Some(_) => Kind::Regular,
        None => Kind::Inner,
    }
}

/// The pipes, and which ends of them the tree has.
#[derive(Default)]
struct Pipes {
    /// The files that are an end of a pipe.
    files: Vec<(u32, u32)>,
    /// The access modes of the ends, as bits.
    ends: HashMap<u32, u8>,
}

impl Pipes {
    fn add(&mut self, file: &FileEntry) {
        const ACCESS_MODE: u32 = 3;
        if let Some(pipe) = &file.pipe {
            self.files.push((file.id, pipe.pipe_id));
            *self.ends.entry(pipe.pipe_id).or_default() |= 1 << (pipe.flags & ACCESS_MODE);
        }
    }

    /// The files that are an end of a pipe with the other end outside. Of those with no other end, some are `ended`. Where
    /// that was not noted, it is certain of nothing; the root's streams are the likeliest to lead out.
    fn leading_out(&self, ended: Option<&HashSet<u32>>, root_streams: HashSet<u32>) -> Vec<u32> {
        let root_pipes: HashSet<u32> = self
            .files
            .iter()
            .filter(|(file, _)| root_streams.contains(file))
            .map(|(_, pipe)| *pipe)
            .collect();
        let leads_out = |pipe: &u32| match ended {
            Some(ended) => !ended.contains(pipe),
            None => root_pipes.contains(pipe),
        };
        let outer = self.files.iter().filter(|(_, pipe)| !self.is_inner(*pipe) && leads_out(pipe));
        outer.map(|(file, _)| *file).collect()
    }

    /// Whether the tree has both ends of it, so that it is its own business.
    fn is_inner(&self, pipe: u32) -> bool {
        const READ_WRITE: u8 = 1 << 2;
        self.ends.get(&pipe).is_some_and(|ends| ends.count_ones() > 1 || ends & READ_WRITE != 0)
    }
}

/// The unix sockets. criu notes the other end of one that leads out as a socket of its own, or not at all.
#[derive(Default)]
struct Sockets {
    /// The files, and the inodes of their other ends.
    files: Vec<(u32, u32)>,
    /// Those that the tree has itself.
    inner: HashSet<u32>,
}

impl Sockets {
    fn add(&mut self, file: &FileEntry) {
        const EXTERNAL: u32 = 1;
        if let Some(socket) = file.usk.as_ref().filter(|socket| socket.uflags & EXTERNAL == 0) {
            self.files.push((file.id, socket.peer));
            self.inner.insert(socket.ino);
        }
    }

    fn leading_out(&self) -> impl Iterator<Item = u32> + '_ {
        let outside = |peer: u32| peer != 0 && !self.inner.contains(&peer);
        self.files.iter().filter(move |(_, peer)| outside(*peer)).map(|(file, _)| *file)
    }
}
