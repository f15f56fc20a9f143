//! [`Tables`]: what the images say of open files, as far as streams go.

use std::collections::{HashMap, HashSet};

use crate::{
    Result,
    image::ImageDir,
    proto::images::{FdinfoEntry, FileEntry, StreamNote, TtyInfoEntry, TtyType},
};

/// Open files and descriptors.
pub(super) struct Tables {
    pub(super) files: HashMap<u32, Kind>,
    /// The open descriptors, by the number of the table, which tasks may share. Parents' before
    /// children's.
    pub(super) descriptors: Vec<(u32, Vec<FdinfoEntry>)>,
    pub(super) terminals: Terminals,
    /// The standard streams that each resource was when the tree was started, as noted at the
    /// capture: by the caller's word, or because the caller has the other end.
    pub(super) told: HashMap<Resource, Vec<usize>>,
}

/// The facts about an open file that matter. The whole entry takes a hundred times the space, and
/// the images may be hostile.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Regular,
    /// The other side of the file was not a part of the tree, and so is gone.
    Outside(Outside),
    /// No process had the other side.
    Ended(Outside),
    Inner,
}

/// An open file whose other side was outside.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Outside {
    pub(super) resource: Resource,
    /// As `open` has them.
    pub(super) flags: u32,
    /// A socket that nothing comes from any more, once what is in it is read.
    pub(super) input_ended: bool,
}

impl Outside {
    /// Returns true if it was opened for writing only.
    pub(super) fn writes(self) -> bool {
        self.flags & super::ACCESS_MODE == super::WRITE_ONLY
    }

    /// Returns true if it was opened for the direction of this standard stream.
    fn can_be(self, stream: usize) -> bool {
        const READ_ONLY: u32 = 0;
        let other = if stream == 0 { super::WRITE_ONLY } else { READ_ONLY };
        self.flags & super::ACCESS_MODE != other
    }
}

/// Something that may be open more than once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Pipe(u32),
    /// By inode.
    Socket(u32),
    /// By the number of the first entry of this terminal.
    Terminal(u32),
}

/// criu's names of the resources that the caller lends files for.
pub(super) struct Inherited<'a>(pub(super) &'a [&'a str]);

impl Inherited<'_> {
    fn has(&self, key: &str) -> bool {
        self.0.contains(&key)
    }
}

impl Tables {
    pub(super) fn read(images: &ImageDir, inherited: &Inherited<'_>) -> Result<Tables> {
        let terminals = Terminals::read(images, inherited)?;
        let (mut files, mut pipes, mut sockets) = (HashMap::new(), Pipes::default(), Sockets::default());
        images.each("files.img", |file: FileEntry| {
            pipes.add(&file);
            sockets.add(&file);
            files.insert(file.id, kind(&file, &terminals, inherited));
        })?;
        let (mut descriptors, mut known) = (Vec::new(), HashSet::new());
        for process in images.processes()? {
            if let Some(files_id) = images.files_id(process.pid)?.filter(|files_id| known.insert(*files_id)) {
                descriptors.push((files_id, images.all(&super::fdinfo(files_id))?));
            }
        }
        let notes = images.notes()?.unwrap_or_default();
        let (told, ended) =
            (told(&notes.streams), notes.pipes.map(|pipes| pipes.ended.into_iter().collect()));
        files.extend(pipes.leading_out(ended.as_ref(), &told, &root_streams(&descriptors), inherited));
        files.extend(sockets.leading_out(&told, inherited));
        Ok(Tables { files, descriptors, terminals, told })
    }

    /// The descriptors of the root.
    pub(super) fn of_root(&self) -> impl Iterator<Item = &FdinfoEntry> {
        self.descriptors.first().into_iter().flat_map(|(_, descriptors)| descriptors)
    }

    pub(super) fn all_descriptors(&self) -> impl Iterator<Item = &FdinfoEntry> {
        self.descriptors.iter().flat_map(|(_, descriptors)| descriptors)
    }

    pub(super) fn outside(&self, file: u32) -> Option<Outside> {
        match self.files.get(&file) {
            Some(Kind::Outside(outside)) => Some(*outside),
            _ => None,
        }
    }
}

/// The standard streams that each pipe and socket was, in order.
fn told(notes: &[StreamNote]) -> HashMap<Resource, Vec<usize>> {
    let mut told = HashMap::<_, Vec<_>>::new();
    for (stream, note) in (0..3).flat_map(|stream| notes.iter().map(move |note| (stream, note))) {
        let number = |kind| note.key.strip_prefix(kind)?.strip_suffix(']')?.parse().ok();
        let resource = number("pipe:[").map(Resource::Pipe).or(number("socket:[").map(Resource::Socket));
        if let Some(resource) = resource.filter(|_| usize::try_from(note.stream) == Ok(stream)) {
            told.entry(resource).or_default().push(stream);
        }
    }
    told
}

/// The files that are standard streams of the root.
fn root_streams(descriptors: &[(u32, Vec<FdinfoEntry>)]) -> HashSet<u32> {
    let root = descriptors.first().into_iter().flat_map(|(_, descriptors)| descriptors);
    root.filter(|descriptor| descriptor.fd <= 2).map(|descriptor| descriptor.id).collect()
}

fn kind(file: &FileEntry, terminals: &Terminals, inherited: &Inherited<'_>) -> Kind {
    if let Some(tty) = &file.tty {
        return match terminals.resource(tty.tty_info_id) {
            Some(resource) => Kind::Outside(Outside { resource, flags: tty.flags, input_ended: false }),
            None => Kind::Inner,
        };
    }
    match &file.reg {
        Some(reg) if inherited.has(String::from_utf8_lossy(&reg.name).trim_start_matches('/')) => Kind::Inner,
        Some(_) => Kind::Regular,
        // A named pipe is a file with a path, too.
        None if file.fifo.is_some() => Kind::Regular,
        None => Kind::Inner,
    }
}

/// The terminals whose other side was outside. criu has an entry for each open file of such a
/// terminal.
#[derive(Default)]
pub(super) struct Terminals {
    /// By the number of the entry.
    known: HashMap<u32, Terminal>,
}

/// An entry of a terminal.
#[derive(Clone, Copy)]
pub(super) struct Terminal {
    resource: u32,
    pub(super) session: u32,
    /// The process group in the foreground.
    pub(super) foreground: u32,
    /// No process had the other side.
    pub(super) hung: bool,
}

impl Terminals {
    fn read(images: &ImageDir, inherited: &Inherited<'_>) -> Result<Terminals> {
        /// `/dev/tty`: the controlling terminal of the process that opens it.
        const CONTROLLING: u32 = 0x500;
        let mut entries = Vec::new();
        images.each("tty-info.img", |tty: TtyInfoEntry| {
            if tty.r#type == i32::from(TtyType::ExtTty) {
                entries.push(tty);
            }
        })?;
        let (mut by_device, mut by_session) = (HashMap::new(), HashMap::new());
        for tty in entries.iter().filter(|tty| tty.rdev != CONTROLLING) {
            let first = *by_device.entry((tty.rdev, tty.dev)).or_insert(tty.id);
            if tty.sid != 0 {
                by_session.entry(tty.sid).or_insert(first);
            }
        }
        let mut known = HashMap::new();
        for tty in &entries {
            let key = format!("tty[{:x}:{:x}]", tty.rdev, tty.dev.unwrap_or(0));
            if inherited.has(&key) {
                continue;
            }
            let resource = match by_device.get(&(tty.rdev, tty.dev)) {
                Some(first) => *first,
                None => by_session.get(&tty.sid).copied().unwrap_or(tty.id),
            };
            let hung = tty.termios.is_none();
            known.insert(tty.id, Terminal { resource, session: tty.sid, foreground: tty.pgrp, hung });
        }
        Ok(Terminals { known })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The entry of this number, if the terminal was outside and nothing is lent for it.
    pub(super) fn get(&self, tty_info: u32) -> Option<Terminal> {
        self.known.get(&tty_info).copied()
    }

    fn resource(&self, tty_info: u32) -> Option<Resource> {
        self.get(tty_info).map(|terminal| Resource::Terminal(terminal.resource))
    }

    /// Returns true if the terminal had hung up when the tree was captured.
    pub(super) fn is_hung(&self, resource: u32) -> bool {
        self.get(resource).is_none_or(|terminal| terminal.hung)
    }
}

/// The pipes, and which ends of them the tree has.
#[derive(Default)]
struct Pipes {
    /// The files that are an end of a pipe, the pipe, and the file's flags.
    files: Vec<(u32, u32, u32)>,
    /// The access modes of the ends, as bits.
    ends: HashMap<u32, u8>,
}

impl Pipes {
    fn add(&mut self, file: &FileEntry) {
        if let Some(pipe) = &file.pipe {
            self.files.push((file.id, pipe.pipe_id, pipe.flags));
            *self.ends.entry(pipe.pipe_id).or_default() |= 1 << (pipe.flags & super::ACCESS_MODE);
        }
    }

    /// The kind of each file that is an end of a pipe. Of pipes with no other end, some are
    /// `ended`. Where that was not noted, nothing is certain; the root's streams are the likeliest
    /// to lead out.
    ///
    /// The end by which the tree uses a pipe that was `told` leads out, even if the tree has the
    /// other end as well: that one has leaked into the tree.
    fn leading_out(
        &self,
        ended: Option<&HashSet<u32>>,
        told: &HashMap<Resource, Vec<usize>>,
        root_streams: &HashSet<u32>,
        inherited: &Inherited<'_>,
    ) -> Vec<(u32, Kind)> {
        let root_pipes: HashSet<u32> = self
            .files
            .iter()
            .filter(|(file, ..)| root_streams.contains(file))
            .map(|(_, pipe, _)| *pipe)
            .collect();
        let kind = |pipe: u32, flags| {
            let outside = Outside { resource: Resource::Pipe(pipe), flags, input_ended: false };
            let streams = told.get(&outside.resource).map_or([].as_slice(), Vec::as_slice);
            let is_told = streams.iter().any(|stream| outside.can_be(*stream));
            match ended {
                _ if inherited.has(&format!("pipe:[{pipe}]")) => Kind::Inner,
                _ if self.is_inner(pipe) && !is_told => Kind::Inner,
                Some(ended) if ended.contains(&pipe) => Kind::Ended(outside),
                None if !root_pipes.contains(&pipe) => Kind::Inner,
                _ => Kind::Outside(outside),
            }
        };
        self.files.iter().map(|(file, pipe, flags)| (*file, kind(*pipe, *flags))).collect()
    }

    /// Returns true if the tree has both ends of the pipe.
    fn is_inner(&self, pipe: u32) -> bool {
        const READ_WRITE: u8 = 1 << 2;
        self.ends.get(&pipe).is_some_and(|ends| ends.count_ones() > 1 || ends & READ_WRITE != 0)
    }
}

/// The unix sockets. criu notes the other end of one that leads out as a socket of its own, or not
/// at all.
#[derive(Default)]
struct Sockets {
    files: Vec<Socket>,
    /// The inodes of those that the tree has itself.
    inner: HashSet<u32>,
}

struct Socket {
    file: u32,
    inode: u32,
    /// The inode of the other end; 0 without one.
    peer: u32,
    flags: u32,
    /// Its closed directions, as bits: 1 read, 2 write.
    shut: u32,
}

impl Sockets {
    fn add(&mut self, file: &FileEntry) {
        const EXTERNAL: u32 = 1;
        if let Some(socket) = file.usk.as_ref().filter(|socket| socket.uflags & EXTERNAL == 0) {
            let (inode, peer, flags) = (socket.ino, socket.peer, socket.flags);
            let shut = socket.shutdown.unwrap_or(0);
            self.files.push(Socket { file: file.id, inode, peer, flags, shut });
            self.inner.insert(inode);
        }
    }

    /// The kind of each socket that leads out. One that was `told` does so even if the tree has the
    /// other end as well, as with pipes.
    fn leading_out<'a>(
        &'a self,
        told: &'a HashMap<Resource, Vec<usize>>,
        inherited: &'a Inherited<'_>,
    ) -> impl Iterator<Item = (u32, Kind)> + 'a {
        let sockets = self.files.iter();
        let sockets = sockets.filter(|socket| !inherited.has(&format!("socket:[{}]", socket.inode)));
        sockets.filter_map(move |socket| {
            const READ: u32 = 1;
            const BOTH: u32 = 3;
            let resource = Resource::Socket(socket.inode);
            let outside = Outside { resource, flags: socket.flags, input_ended: socket.shut & READ != 0 };
            match socket.peer {
                0 if socket.shut == BOTH => Some((socket.file, Kind::Ended(outside))),
                0 => None,
                peer if self.inner.contains(&peer) && !told.contains_key(&resource) => None,
                _ => Some((socket.file, Kind::Outside(outside))),
            }
        })
    }
}
