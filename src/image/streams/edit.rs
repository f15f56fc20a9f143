//! [`Edits`]: the images, changed so that criu takes what is lent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;

use super::{Lending, Lent, Offer, Was, fdinfo, tables::Tables};
use crate::{
    Result,
    image::{Edit, ImageDir},
    proto::images::{FdTypes, FdinfoEntry, FileEntry, RegFileEntry, TtyInfoEdit, TtyInfoEntry, WinsizeEntry},
};

/// A regular file that only the images name. criu opens the lent file in its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Substitute(pub(super) Lent);

/// The changes to the images of a tree.
pub(super) struct Edits {
    /// The number of the first file that is added.
    first: u32,
    substitutes: Vec<Substitute>,
    /// The descriptors that change, by the number of their table.
    tables: BTreeMap<u32, HashMap<u32, u32>>,
    /// The files that lose a descriptor.
    replaced: HashSet<u32>,
    /// The files that stay terminals, and the stream and flags of what each gets.
    kept: BTreeMap<u32, (usize, u32)>,
}

impl Edits {
    pub(super) fn new(tables: &Tables) -> Edits {
        let first = tables.files.keys().max().copied().unwrap_or(0).saturating_add(1);
        Edits {
            first,
            substitutes: Vec::new(),
            tables: BTreeMap::new(),
            replaced: HashSet::new(),
            kept: BTreeMap::new(),
        }
    }

    pub(super) fn replace(&mut self, table: u32, descriptor: &FdinfoEntry, by: Substitute) {
        let place = self.substitutes.iter().position(|known| *known == by).unwrap_or_else(|| {
            self.substitutes.push(by);
            self.substitutes.len() - 1
        });
        let id = self.id(place);
        self.tables.entry(table).or_default().insert(descriptor.fd, id);
        self.replaced.insert(descriptor.id);
    }

    pub(super) fn keep_terminal(&mut self, file: u32, stream: usize, flags: u32) {
        self.kept.insert(file, (stream, flags));
    }

    /// Returns true if a descriptor of this file is replaced.
    pub(super) fn replaces(&self, file: u32) -> bool {
        self.replaced.contains(&file)
    }

    fn id(&self, place: usize) -> u32 {
        self.first.saturating_add(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// Writes the images anew, and gives what is to be lent.
    pub(super) fn apply(self, images: &ImageDir, tables: &Tables, offer: &Offer<'_>) -> Result<Vec<Lending>> {
        for (table, descriptors) in &tables.descriptors {
            let Some(changed) = self.tables.get(table) else { continue };
            let mut descriptors = descriptors.clone();
            for descriptor in &mut descriptors {
                if let Some(id) = changed.get(&descriptor.fd) {
                    descriptor.id = *id;
                    descriptor.r#type = FdTypes::Reg.into();
                }
            }
            images.rewrite(&fdinfo(*table), |_: &FdinfoEntry| Edit::Drop, &descriptors)?;
        }
        let mut lent: Vec<_> = self.substitutes.iter().map(|substitute| substitute.lending()).collect();
        if !self.replaced.is_empty() {
            self.edit_files(images)?;
        }
        if !tables.terminals.is_empty() {
            lent.extend(self.edit_terminals(images, tables, offer)?);
        }
        Ok(lent)
    }

    /// Returns true if a file has no descriptor left.
    fn is_gone(&self, file: &FileEntry) -> bool {
        // Regular files stay: they may be mapped, too.
        self.replaced.contains(&file.id) && !self.kept.contains_key(&file.id) && file.reg.is_none()
    }

    fn edit_files(&self, images: &ImageDir) -> Result<()> {
        let added = self.substitutes.iter().enumerate().map(|(place, by)| by.file(self.id(place)));
        let mut added: Vec<FileEntry> = added.collect();
        let hung_up = self.hung_up(images)?;
        let drops = |file: &FileEntry| self.is_gone(file) || hung_up.iter().any(|other| other.id == file.id);
        let edit = |file: &FileEntry| if drops(file) { Edit::Drop } else { Edit::Keep };
        added.extend(hung_up.iter().cloned());
        images.rewrite("files.img", edit, &added)
    }

    /// The sockets in the tree whose other end is replaced, hung up as criu writes it.
    fn hung_up(&self, images: &ImageDir) -> Result<Vec<FileEntry>> {
        const BOTH: u32 = 3;
        let (mut gone, mut hung_up) = (HashSet::new(), Vec::new());
        images.each("files.img", |file: FileEntry| {
            let socket = file.usk.as_ref().filter(|_| self.is_gone(&file));
            gone.extend(socket.map(|socket| socket.ino));
        })?;
        images.each("files.img", |mut file: FileEntry| {
            let is_gone = self.is_gone(&file);
            let socket = file.usk.as_mut().filter(|socket| !is_gone && gone.contains(&socket.peer));
            let is_hung_up = socket.map(|socket| (socket.peer, socket.shutdown) = (0, Some(BOTH)));
            hung_up.extend(is_hung_up.map(|()| file));
        })?;
        Ok(hung_up)
    }

    /// Gives each open file of a terminal that stays a name of its own, and takes out what nothing
    /// is open of.
    fn edit_terminals(&self, images: &ImageDir, tables: &Tables, offer: &Offer<'_>) -> Result<Vec<Lending>> {
        let mut of_entry = BTreeMap::new();
        images.each("files.img", |file: FileEntry| {
            let kept = self.kept.get(&file.id);
            if let (Some(tty), Some(kept)) = (&file.tty, kept) {
                of_entry.insert(tty.tty_info_id, *kept);
            }
        })?;
        let mut processes = Processes::default();
        for process in images.processes()? {
            processes.pids.insert(process.pid);
            processes.groups.insert(process.pgid);
        }
        let lend = |(place, (_, (stream, flags))): (usize, (&u32, &(usize, u32)))| {
            let (stream, flags) = (*stream, *flags);
            (device(place), Lent::Terminal { stream, flags })
        };
        let lent: BTreeMap<u32, (u32, Lent)> =
            of_entry.keys().copied().zip(of_entry.iter().enumerate().map(lend)).collect();
        let edit = |tty: &TtyInfoEntry| {
            let Some(terminal) = tables.terminals.get(tty.id) else { return Edit::Keep };
            let Some((device, Lent::Terminal { stream, .. })) = lent.get(&tty.id) else { return Edit::Drop };
            let taken = offer.terminals[*stream].and_then(|terminal| terminal.taken);
            let mut edit = TtyInfoEdit { dev: Some(*device), ..TtyInfoEdit::default() };
            if taken.is_some() || !processes.pids.contains(&terminal.session) {
                (edit.sid, edit.pgrp) = (Some(0), Some(0));
            } else if !processes.groups.contains(&terminal.foreground) {
                edit.pgrp = Some(terminal.session);
            }
            if let Some([ws_row, ws_col, uid, gid]) = taken {
                edit.winsize = Some(WinsizeEntry { ws_row, ws_col, ..WinsizeEntry::default() });
                (edit.uid, edit.gid) = (Some(uid), Some(gid));
            }
            Edit::Extend(edit.encode_to_vec())
        };
        images.rewrite::<TtyInfoEntry, TtyInfoEntry>("tty-info.img", edit, &[])?;
        let mut lendings = Vec::new();
        images.each("tty-info.img", |tty: TtyInfoEntry| {
            if let Some((device, what)) = lent.get(&tty.id) {
                lendings.push(Lending { key: format!("tty[{:x}:{device:x}]", tty.rdev), what: *what });
            }
        })?;
        Ok(lendings)
    }
}

/// The numbers that the processes of a tree have.
#[derive(Default)]
struct Processes {
    pids: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

/// The number of a file system that there is not: no terminal outside of the images is on it.
fn device(place: usize) -> u32 {
    u32::MAX.saturating_sub(u32::try_from(place).unwrap_or(0))
}

impl Substitute {
    /// Its name, without its leading slash, as `inherit_fd` wants it.
    fn name(self) -> String {
        match self.0 {
            Lent::Stream { stream, was: Was::Other } => format!("criu-rpc/stream-{stream}"),
            Lent::Stream { stream, was: Was::Channel } => format!("criu-rpc/channel-{stream}"),
            Lent::Stream { stream, was: Was::Nonblocking } => format!("criu-rpc/nonblocking-{stream}"),
            Lent::Terminal { stream, .. } => format!("criu-rpc/terminal-{stream}"),
            Lent::HungUp => "criu-rpc/hung-up".to_owned(),
            Lent::Ended => "criu-rpc/ended".to_owned(),
        }
    }

    fn lending(self) -> Lending {
        Lending { key: self.name(), what: self.0 }
    }

    fn file(self, id: u32) -> FileEntry {
        let file = RegFileEntry { id, name: format!("/{}", self.name()).into(), ..RegFileEntry::default() };
        FileEntry { r#type: FdTypes::Reg.into(), id, reg: Some(file), ..FileEntry::default() }
    }
}
