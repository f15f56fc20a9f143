//! The paths that a restore opens or makes files at, and what the tree does with them.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::{Edit, ImageDir};
use crate::{
    Result,
    proto::images::{
        FdinfoEntry, FileEntry, FileLockEntry, FsEntry, MmEntry, RemapFilePathEntry, TaskKobjIdsEntry,
        UnixSkEntry, VmaEntry,
    },
};

/// A file that the images name by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    /// The number of its entry; 0 of a socket.
    pub(crate) id: u32,
    /// From the root of the mount namespace. Paths need not be UTF-8.
    pub(crate) path: Vec<u8>,
    pub(crate) place: Place,
    /// The flags that it was opened with.
    pub(crate) flags: u32,
    /// The place in it, in bytes, that the next byte is read from or written to.
    pub(crate) position: u64,
    /// The size that it must have.
    pub(crate) size: Option<u64>,
    /// Its mode at the dump.
    pub(crate) mode: Option<u32>,
    pub(crate) uses: Uses,
}

/// The treatment of a path by a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It opens what is there.
    Opened,
    /// It makes a file, for which the folder must be there.
    Made,
    /// It makes a file for a while, and folders for it too.
    MadeWithFolders,
}

/// The tree's uses of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Some process has it as a descriptor.
    pub(crate) descriptor: bool,
    /// Some process executes it, has it mapped, or has it as its current or root folder.
    pub(crate) other: bool,
    /// It is the name of a terminal, which a restore opens in ways of its own.
    pub(crate) terminal: bool,
}

/// A file that a process has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) pid: u32,
    /// The number of its entry.
    pub(crate) file: u32,
    pub(crate) as_what: OpenedAs,
}

/// The way in which a process has a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OpenedAs {
    /// As the descriptor of this number.
    Descriptor(u32),
    Program,
    CurrentFolder,
    RootFolder,
    /// Mapped between these addresses.
    Mapped(u64, u64),
}

/// A lock on a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockEntry {
    /// The number of the file's entry.
    pub(crate) file: u32,
    /// The way it was taken, as the kernel's bit.
    pub(crate) flag: u32,
    /// Shared or exclusive, as `fcntl` numbers them.
    pub(crate) kind: u32,
    pub(crate) start: i64,
    /// 0 is to the end of the file.
    pub(crate) length: i64,
}

impl Uses {
    pub(crate) fn any(self) -> bool {
        self.descriptor || self.other || self.terminal
    }
}

impl ImageDir {
    /// Returns true if the tree has a mount namespace of its own. A restore makes it anew, so its
    /// paths mean nothing outside.
    pub(crate) fn has_own_mounts(&self) -> Result<bool> {
        self.has_own(|ids| ids.mnt_ns_id)
    }

    /// Returns true if files without a descriptor may be in use: those in flight in sockets.
    pub(crate) fn has_files_in_flight(&self) -> Result<bool> {
        Ok(self.frames("sk-queues.img")?.is_some_and(|mut frames| matches!(frames.next_bytes(), Ok(Some(_)))))
    }

    /// The files that the images name by path, also those that nothing uses.
    pub(crate) fn named_files(&self) -> Result<Vec<NamedFile>> {
        let mut uses = self.uses()?;
        let remaps = self.remaps()?;
        for other_name in remaps.values().flatten() {
            uses.entry(*other_name).or_default().other = true;
        }
        let mut files = Vec::new();
        self.each("files.img", |file: FileEntry| {
            if let Some(reg) = file.reg.filter(|reg| reg.ext != Some(true)) {
                files.push(NamedFile {
                    id: reg.id,
                    path: reg.name,
                    place: if remaps.contains_key(&reg.id) { Place::MadeWithFolders } else { Place::Opened },
                    flags: reg.flags,
                    position: reg.pos,
                    size: reg.size,
                    mode: reg.mode,
                    uses: uses.get(&reg.id).copied().unwrap_or_default(),
                });
            } else if let Some(socket) = file.usk.and_then(|socket| named_socket(&socket)) {
                files.push(socket);
            }
        })?;
        Ok(files)
    }

    /// criu's names of the open files from outside, for which a restore must be lent others.
    pub(crate) fn external_files(&self) -> Result<Vec<Vec<u8>>> {
        let uses = self.uses()?;
        let mut names = Vec::new();
        self.each("files.img", |file: FileEntry| {
            let external = file.reg.filter(|reg| reg.ext == Some(true) && uses.contains_key(&reg.id));
            names.extend(external.map(|reg| reg.name));
        })?;
        Ok(names)
    }

    /// The paths of all files that are named by one, some more than once.
    pub(crate) fn paths(&self) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        self.each("files.img", |file: FileEntry| {
            paths.extend(file.reg.filter(|reg| reg.ext != Some(true)).map(|reg| reg.name));
        })?;
        Ok(paths)
    }

    /// The uses of the files that have a path, by their entries.
    fn uses(&self) -> Result<HashMap<u32, Uses>> {
        // The entries with the paths of named pipes and of terminals.
        let (mut names, mut terminals) = (HashMap::new(), HashSet::new());
        self.each("files.img", |file: FileEntry| {
            if file.tty.is_some() {
                terminals.insert(file.id);
            }
            let fifo = file.fifo.map(|fifo| fifo.regf_id.unwrap_or(fifo.id));
            let name = fifo.or(file.tty.and_then(|tty| tty.regf_id));
            names.extend(name.map(|name| (file.id, name)));
        })?;
        let mut uses = HashMap::<u32, Uses>::new();
        for opened in self.opened()? {
            let id = names.get(&opened.file).copied();
            let uses = uses.entry(id.unwrap_or(opened.file)).or_default();
            match opened.as_what {
                OpenedAs::Descriptor(_) => uses.descriptor = true,
                _ => uses.other = true,
            }
            uses.terminal |= terminals.contains(&opened.file);
        }
        Ok(uses)
    }

    /// The files that each process has open or mapped, its program, and its folders.
    pub(crate) fn opened(&self) -> Result<Vec<Opened>> {
        let mut all = Vec::new();
        for process in self.processes()? {
            let pid = process.pid;
            let Some(ids) = self.first::<TaskKobjIdsEntry>(&format!("ids-{pid}.img"))? else { continue };
            let mut add = |file, as_what| all.push(Opened { pid, file, as_what });
            self.each(&format!("fdinfo-{}.img", ids.files_id), |descriptor: FdinfoEntry| {
                add(descriptor.id, OpenedAs::Descriptor(descriptor.fd));
            })?;
            if let Some(fs) = self.first::<FsEntry>(&format!("fs-{pid}.img"))? {
                add(fs.cwd_id, OpenedAs::CurrentFolder);
                add(fs.root_id, OpenedAs::RootFolder);
            }
            if let Some(mm) = self.first::<MmEntry>(&format!("mm-{pid}.img"))? {
                add(mm.exe_file_id, OpenedAs::Program);
                for area in &mm.vmas {
                    if let Some(file) = mapped_file(area) {
                        add(file, OpenedAs::Mapped(area.start, area.end));
                    }
                }
            }
        }
        Ok(all)
    }

    /// The file locks of the tree, with the files that they are on.
    pub(crate) fn locks(&self) -> Result<Vec<LockEntry>> {
        let mut locks = Vec::new();
        self.each("filelocks.img", |lock: FileLockEntry| locks.push(lock))?;
        if locks.is_empty() {
            return Ok(Vec::new());
        }
        let mut files = HashMap::new();
        for Opened { pid, file, as_what } in self.opened()? {
            if let OpenedAs::Descriptor(number) = as_what {
                files.insert((i64::from(pid), i64::from(number)), file);
            }
        }
        let entry = |lock: FileLockEntry| {
            let file = *files.get(&(lock.pid.into(), lock.fd.into()))?;
            Some(LockEntry { file, flag: lock.flag, kind: lock.r#type, start: lock.start, length: lock.len })
        };
        Ok(locks.into_iter().filter_map(entry).collect())
    }

    /// Has criu take these files in whatever size they have, and begin in some of them at another
    /// place.
    pub(crate) fn accept_files(&self, entries: &[(u32, Option<u64>)]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let entries: HashMap<_, _> = entries.iter().copied().collect();
        let mut accepted = Vec::new();
        self.each("files.img", |mut file: FileEntry| {
            let Some(position) = entries.get(&file.id) else { return };
            let Some(reg) = &mut file.reg else { return };
            reg.size = None;
            reg.pos = position.unwrap_or(reg.pos);
            accepted.push(file);
        })?;
        let edit = |file: &FileEntry| match file.reg.is_some() && entries.contains_key(&file.id) {
            true => Edit::Drop,
            false => Edit::Keep,
        };
        self.rewrite("files.img", edit, &accepted)
    }

    /// Gives unix sockets, by their inodes, other paths.
    pub(crate) fn move_sockets(&self, paths: &HashMap<u32, Vec<u8>>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let edit = |file: &FileEntry| {
            let socket = file.usk.clone();
            let moved = socket.and_then(|socket| Some((paths.get(&socket.ino)?, socket)));
            let Some((path, socket)) = moved else { return Edit::Keep };
            let (name, name_dir) = address(path);
            let usk = Some(UnixSkEntry { name, name_dir, ..socket });
            Edit::Extend(
                FileEntry { r#type: file.r#type, id: file.id, usk, ..FileEntry::default() }.encode_to_vec(),
            )
        };
        self.rewrite::<_, FileEntry>("files.img", edit, &[])
    }

    /// The files whose names were gone at the dump, by their entries, and the entries of other
    /// names that they have.
    fn remaps(&self) -> Result<HashMap<u32, Option<u32>>> {
        const LINKED: u32 = 0;
        const GHOST: u32 = 1 << 31;
        let mut remaps = HashMap::new();
        self.each("remap-fpath.img", |remap: RemapFilePathEntry| {
            let is_linked = remap.remap_type.map_or(remap.remap_id & GHOST == 0, |kind| kind == LINKED);
            remaps.insert(remap.orig_id, is_linked.then_some(remap.remap_id));
        })?;
        Ok(remaps)
    }
}

/// Returns the name of a socket's address, and the folder that it is relative to if the whole path
/// is too long.
fn address(path: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    const LONGEST: usize = 107;
    let slash =
        path.iter().rposition(|byte| *byte == b'/').filter(|slash| *slash > 0 && path.len() > LONGEST);
    match slash {
        Some(slash) => ([&path[slash + 1..], &[0]].concat(), Some(path[..slash].to_vec())),
        None => ([path, &[0]].concat(), None),
    }
}

/// The entry of the file that is mapped there.
pub(super) fn mapped_file(area: &VmaEntry) -> Option<u32> {
    const FILE: u32 = 1 << 6 | 1 << 7;
    (area.status & FILE != 0).then(|| u32::try_from(area.shmid).ok())?
}

/// A socket that a restore binds to a path, or connects to one.
fn named_socket(socket: &UnixSkEntry) -> Option<NamedFile> {
    const EXTERNAL: u32 = 1;
    const INHERITED: u32 = 8;
    const DATAGRAM: u32 = 2;
    const ESTABLISHED: u32 = 1;
    let by_path = socket.name.first().is_some_and(|first| *first != 0);
    let is_bound = socket.r#type == DATAGRAM || socket.state != ESTABLISHED;
    if !by_path || !is_bound || socket.uflags & INHERITED != 0 {
        return None;
    }
    let end = socket.name.iter().position(|byte| *byte == 0).unwrap_or(socket.name.len());
    let name = &socket.name[..end];
    let path = match (name.first(), &socket.name_dir) {
        (Some(b'/'), _) | (_, None) => name.to_vec(),
        (_, Some(folder)) => [folder, b"/".as_slice(), name].concat(),
    };
    let place = match socket.uflags & EXTERNAL != 0 {
        true => Place::Opened,
        false if socket.deleted == Some(true) => Place::MadeWithFolders,
        false => Place::Made,
    };
    let uses = Uses { descriptor: true, ..Uses::default() };
    Some(NamedFile { id: 0, path, place, flags: 0, position: 0, size: None, mode: None, uses })
}
