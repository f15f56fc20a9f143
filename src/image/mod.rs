//! Images that criu wrote, as far as a restore has to look into them.
//!
//! [`frame`] splits a file into entries. This module reads the entries.

mod beyond;
mod complete;
mod deleted;
mod frame;
mod inner_tty;
mod lines;
mod links;
mod locks;
mod memory;
mod notes;
mod order;
mod paths;
mod polls;
mod renumber;
mod shared;
mod streams;
mod tcp;
mod timers;
mod unread;
mod unsent;

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use prost::Message;

use self::frame::{Edit, Frames};
pub(crate) use self::{
    complete::{MemoryIn, check_complete, check_version},
    deleted::Deleted,
    lines::lines_in_names,
    links::{GhostMeta, LinkCure, LinkRemap},
    locks::{LostLock, ProcessLock},
    notes::Notes,
    paths::{LockEntry, NamedFile, OpenedAs, Place},
    polls::{MovedPoll, RestartedPoll},
    shared::{Channels, shared_keys, shared_pipes, shared_sockets},
    streams::{LedOut, Lending, Lent, Offer, OfferedTerminal, Was, detach_streams},
    tcp::Missed,
    unread::{InPipe, Queue},
    unsent::Held,
};
use crate::{
    Error, Result,
    proto::images::{InventoryEntry, PstreeEntry, StatsEntry, TaskKobjIdsEntry},
};

/// The largest image that we look into, in bytes. A million open files take a hundred million.
const CEILING: u64 = 256 << 20;

/// The processes of the tree in a `pstree.img`: parents before children, so the root is the first.
pub(crate) fn tree_pids(pstree: impl Read) -> Result<Vec<i32>> {
    let mut frames = Frames::new(pstree, "pstree.img")?;
    let mut pids = Vec::new();
    while let Some(entry) = frames.next_entry::<PstreeEntry>()? {
        let pid = i32::try_from(entry.pid);
        pids.push(pid.map_err(|_| Error::corrupt("pstree.img", format!("a pid of {}", entry.pid)))?);
    }
    match pids.is_empty() {
        true => Err(Error::corrupt("pstree.img", "it has no process")),
        false => Ok(pids),
    }
}

/// The highest number of a process, thread, group or session in a `pstree.img`.
pub(crate) fn highest_number(pstree: impl Read) -> Result<u32> {
    let mut frames = Frames::new(pstree, "pstree.img")?;
    let mut highest = 0;
    while let Some(entry) = frames.next_entry::<PstreeEntry>()? {
        highest = entry
            .threads
            .iter()
            .copied()
            .chain([highest, entry.pid, entry.pgid, entry.sid])
            .max()
            .unwrap_or(0);
    }
    Ok(highest)
}

/// The root of the tree in a `pstree.img`.
pub(crate) fn root(pstree: impl Read) -> Result<PstreeEntry> {
    let first = Frames::new(pstree, "pstree.img")?.next_entry()?;
    first.ok_or_else(|| Error::corrupt("pstree.img", "it has no process"))
}

/// The image of a table of descriptors.
fn fdinfo(files_id: u32) -> String {
    format!("fdinfo-{files_id}.img")
}

/// A folder of images.
#[derive(Debug)]
pub(crate) struct ImageDir(PathBuf);

impl ImageDir {
    pub(crate) fn new(folder: impl Into<PathBuf>) -> ImageDir {
        ImageDir(folder.into())
    }

    /// The processes, parents before children.
    pub(crate) fn processes(&self) -> Result<Vec<PstreeEntry>> {
        self.all("pstree.img")
    }

    /// The number of a process's table of descriptors; a zombie has none.
    fn files_id(&self, pid: u32) -> Result<Option<u32>> {
        let ids = self.first::<TaskKobjIdsEntry>(&format!("ids-{pid}.img"))?;
        Ok(ids.map(|ids| ids.files_id))
    }

    /// Returns true if the tree has a pid namespace of its own, which a restore makes anew.
    pub(crate) fn has_own_pids(&self) -> Result<bool> {
        self.has_own(|ids| ids.pid_ns_id)
    }

    /// Returns true if the root of the tree was in another namespace of this kind than criu was.
    fn has_own(&self, kind: impl Fn(&TaskKobjIdsEntry) -> Option<u32>) -> Result<bool> {
        let Some(root) = self.processes()?.first().map(|root| root.pid) else { return Ok(false) };
        let own = self.first::<TaskKobjIdsEntry>(&format!("ids-{root}.img"))?.and_then(|ids| kind(&ids));
        let inventory = self.first::<InventoryEntry>("inventory.img")?;
        let criu = inventory.and_then(|inventory| inventory.root_ids).and_then(|ids| kind(&ids));
        Ok(own.is_some() && criu.is_some() && own != criu)
    }

    /// Returns true if the dump dropped TCP connections.
    pub(crate) fn tcp_closed(&self) -> Result<bool> {
        let inventory = self.first::<InventoryEntry>("inventory.img")?;
        Ok(inventory.and_then(|inventory| inventory.tcp_close).unwrap_or(false))
    }

    /// Returns true if the dump carries an established TCP connection.
    pub(crate) fn has_tcp_streams(&self) -> Result<bool> {
        let folder =
            fs::read_dir(&self.0).map_err(Error::io(format!("read the folder {}", self.0.display())))?;
        Ok(folder.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("tcp-stream-")))
    }

    /// Returns true if the dump carries file locks.
    pub(crate) fn has_file_locks(&self) -> Result<bool> {
        Ok(self.frames("filelocks.img")?.is_some_and(|mut frames| matches!(frames.next_bytes(), Ok(Some(_)))))
    }

    /// Returns the time for which the tree stood still, if the folder has the statistics of a dump.
    pub(crate) fn frozen(&self) -> Option<Duration> {
        let stats: StatsEntry = self.first("stats-dump").ok()??;
        stats.dump.map(|dump| Duration::from_micros(dump.frozen_time.into()))
    }

    /// The times that criu noted of the restore in this work folder: for forking the descendants of
    /// the root, and for the whole restore.
    pub(crate) fn restored(&self) -> Option<[Duration; 2]> {
        let stats: StatsEntry = self.first("stats-restore").ok()??;
        let micros = |time: u32| Duration::from_micros(time.into());
        stats.restore.map(|restore| [micros(restore.forking_time), micros(restore.restore_time)])
    }

    fn frames(&self, name: &str) -> Result<Option<Frames<BufReader<File>>>> {
        match File::open(self.0.join(name)) {
            Ok(file) => {
                let size = file.metadata().map_err(Error::io(format!("look at the image {name}")))?.len();
                if size > CEILING {
                    return Err(Error::corrupt(format!("the image {name}"), format!("it has {size} bytes")));
                }
                Frames::new(BufReader::new(file), name).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read the image {name}"))(error)),
        }
    }

    fn first<M: Message + Default>(&self, name: &str) -> Result<Option<M>> {
        self.frames(name)?.map_or(Ok(None), |mut frames| frames.next_entry())
    }

    fn all<M: Message + Default>(&self, name: &str) -> Result<Vec<M>> {
        let mut entries = Vec::new();
        self.each(name, |entry| entries.push(entry))?;
        Ok(entries)
    }

    fn each<M: Message + Default>(&self, name: &str, mut see: impl FnMut(M)) -> Result<()> {
        if let Some(mut frames) = self.frames(name)? {
            while let Some(entry) = frames.next_entry()? {
                see(entry);
            }
        }
        Ok(())
    }

    /// Writes an image anew: its entries as `edit` says, and then the `added` ones.
    fn rewrite<Old: Message + Default, New: Message>(
        &self,
        name: &str,
        edit: impl Fn(&Old) -> Edit,
        added: &[New],
    ) -> Result<()> {
        let path = self.0.join(name);
        let doing = || Error::io(format!("edit the image {name}"));
        let old = fs::read(&path).map_err(doing())?;
        let new = frame::rewritten(&old, name, edit, added)?;
        fs::write(&path, new).map_err(doing())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
