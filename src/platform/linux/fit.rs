//! Options that follow from the tree, so that a caller need not know criu to capture a program: a
//! root that leads no session, terminals and streams to sockets from outside. At the restore, they
//! follow from the images.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, DirEntry},
    mem,
    path::Path,
};

use super::enclosed::Enclosed;
use crate::{
    DumpOptions, Pid, RestoreOptions, Result,
    image::ImageDir,
    options::{External, NetworkLock},
    platform::Job,
    preflight::{Peer, Peers},
    procfs::{Stat, fdinfo_number, lineage, read_start, tree},
    sys::{Statx, is_same_file},
};

/// The caller's options, and what this tree needs beyond them.
pub(super) fn for_dump(job: &Job, root: Pid, roots: &[Pid]) -> DumpOptions {
    let mut options = job.options.clone();
    if !options.names_shell_job() && leads_no_session(root) {
        options = options.shell_job(true);
    }
    if !options.names_ghost_limit() {
        options = options.ghost_limit(GHOST_LIMIT);
    }
    if !options.names_link_remap() {
        options = options.link_remap(true); // and what criu makes of it is mended
    }
    let enclosed = Enclosed::of(root);
    if !options.names_tcp() && enclosed.has_own_connections() {
        options = options.tcp_established(true);
        // Both ends stand still. To block their traffic, criu needs a program that many machines
        // lack, and leaves rules behind when the tree ends.
        if !options.names_network_lock() {
            options = options.network_lock(NetworkLock::Skip);
        }
    }
    if !options.names_file_locks() && enclosed.has_own_locks() {
        options = options.file_locks(true);
    }
    let outside = Outside::of(root, roots, &job.streams.iter().flatten().map(String::as_str).collect());
    for terminal in outside.terminals {
        options = options.external(terminal);
    }
    for inode in outside.sockets {
        options = options.external(External::Unix { inode });
    }
    options
}

/// The largest deleted file that is carried along unless the caller says something, in bytes. criu
/// by itself takes one MiB.
const GHOST_LIMIT: u32 = 256 << 20;

fn leads_no_session(root: Pid) -> bool {
    Stat::of(root.as_raw()).is_ok_and(|stat| stat.session != root.as_raw())
}

/// The files of a tree that it does not hold the other side of.
struct Outside {
    /// As criu names them.
    terminals: BTreeSet<String>,
    /// The unix sockets that are standard streams, by inode, and those whose other side another
    /// tree of the capture has. A restore can give no others anew.
    sockets: BTreeSet<u64>,
}

impl Outside {
    /// Those of `told` count as standard streams, wherever they are.
    fn of(root: Pid, roots: &[Pid], told: &HashSet<&str>) -> Outside {
        let (mut streams, mut sockets, mut terminals) =
            (BTreeSet::new(), HashSet::new(), Terminals::default());
        for pid in tree(root.as_raw()) {
            for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let Ok(target) = fs::read_link(descriptor.path()) else { continue };
                if target.is_absolute() {
                    terminals.add(pid, &descriptor, pid == root.as_raw() && is_stream(&descriptor));
                } else if let Some(inode) = socket_inode(&target) {
                    sockets.insert(inode);
                    if is_stream(&descriptor) || told.contains(format!("socket:[{inode}]").as_str()) {
                        streams.insert(inode);
                    }
                }
            }
        }
        let others: Vec<_> = roots.iter().filter(|other| **other != root).collect();
        let peers = if streams.is_empty() && others.is_empty() { None } else { Peers::ask(&sockets) };
        let leads_out = |inode: &u64| peers.as_ref().is_some_and(|peers| peers.of(*inode) == Peer::Outside);
        streams.retain(leads_out);
        if !others.is_empty() {
            let theirs = others.into_iter().flat_map(|root| tree(root.as_raw())).flat_map(sockets_of);
            let together = Peers::ask(&sockets.iter().copied().chain(theirs).collect());
            let is_between =
                |inode: &u64| together.as_ref().is_some_and(|peers| peers.of(*inode) != Peer::Outside);
            streams.extend(sockets.into_iter().filter(|inode| leads_out(inode) && is_between(inode)));
        }
        terminals.forget_leaked(root.as_raw(), told);
        Outside { terminals: terminals.outside(), sockets: streams }
    }
}

/// The terminals of a tree. criu restores those that it has both sides of.
#[derive(Default)]
struct Terminals {
    masters: Vec<Master>,
    /// By index, file system and criu's name.
    slaves: BTreeSet<(u64, u64, String)>,
    /// The indexes of those that are standard streams of the root.
    streams: BTreeSet<u64>,
    /// `/dev/tty`, by the index of the terminal that it is.
    controlling: BTreeSet<(Option<u64>, String)>,
}

impl Terminals {
    fn add(&mut self, pid: i32, descriptor: &DirEntry, is_root_stream: bool) {
        let Ok(file) = Statx::of(descriptor.path()) else { return };
        let name = || format!("tty[{:x}:{:x}]", file.rdev(), file.dev());
        if file.is_master() {
            self.masters.extend(Master::of(pid, descriptor, &file));
        } else if let Some(index) = file.slave() {
            if is_root_stream {
                self.streams.insert(index);
            }
            self.slaves.insert((index, file.dev(), name()));
        } else if file.is_controlling_terminal() {
            let device = Stat::of(pid).ok().and_then(|stat| stat.terminal());
            self.controlling.insert((device.and_then(Statx::slave_index), name()));
        }
    }

    /// Takes out the masters of the root's standard streams that leaked into the tree: those that
    /// this process has open, too, and those of terminals that the caller `told`.
    fn forget_leaked(&mut self, root: i32, told: &HashSet<&str>) {
        if lineage(Pid::own().as_raw()).contains(&root) {
            return; // the tree has them because this process is a part of it
        }
        let told = self.slaves.iter().filter(|(.., name)| told.contains(name.as_str()));
        let told: BTreeSet<u64> = told.map(|(index, ..)| *index).collect();
        let streams = mem::take(&mut self.streams);
        self.masters.retain(|master| {
            let leaked = streams.contains(&master.index) && master.is_ours();
            !leaked && !told.contains(&master.index)
        });
    }

    /// Those whose other side the tree does not have, as criu names them.
    fn outside(self) -> BTreeSet<String> {
        let systems: BTreeSet<u64> = self.slaves.iter().map(|(_, system, _)| *system).collect();
        // A master may be opened by a device file anywhere; then its index is all that there is.
        let is_inner = |index: u64, system: Option<u64>| {
            let matches = |own: u64| !systems.contains(&own) || system.is_none_or(|system| system == own);
            self.masters.iter().any(|master| master.index == index && matches(master.system))
        };
        let slaves = self.slaves.iter().filter(|(index, system, _)| !is_inner(*index, Some(*system)));
        let mut outside: BTreeSet<String> = slaves.map(|(_, _, name)| name.clone()).collect();
        let controlling = self.controlling.iter();
        let controlling = controlling.filter(|(index, _)| index.is_none_or(|index| !is_inner(index, None)));
        outside.extend(controlling.map(|(_, name)| name.clone()));
        outside
    }
}

/// An open file that is the master of a terminal.
struct Master {
    index: u64,
    /// The file system that it was opened on, which may be that of its slave.
    system: u64,
    /// A process that has it, and its number there.
    place: (i32, i32),
}

impl Master {
    fn of(pid: i32, descriptor: &DirEntry, file: &Statx) -> Option<Master> {
        let number = descriptor.file_name().to_str()?.parse().ok()?;
        let info = read_start(format!("/proc/{pid}/fdinfo/{number}"))?;
        let index = u64::try_from(fdinfo_number(&info, "tty-index")?).ok()?;
        Some(Master { index, system: file.dev(), place: (pid, number) })
    }

    /// Returns true if this process has the same open file.
    fn is_ours(&self) -> bool {
        let own = Pid::own().as_raw();
        let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let mut numbers = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
        numbers.any(|number| is_same_file((own, number), self.place).unwrap_or(false))
    }
}

fn is_stream(descriptor: &DirEntry) -> bool {
    ["0", "1", "2"].iter().any(|stream| descriptor.file_name() == *stream)
}

/// The sockets of a process, by inode.
fn sockets_of(pid: i32) -> impl Iterator<Item = u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| socket_inode(&fs::read_link(descriptor.path()).ok()?))
}

/// The inode in a target such as `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The caller's options, and what these images need beyond them.
pub(super) fn for_restore(options: &RestoreOptions, images: &ImageDir) -> Result<RestoreOptions> {
    let mut options = options.clone().rst_sibling(true);
    let leads_session = images.processes()?.first().is_none_or(|root| root.sid == root.pid);
    if !options.names_shell_job() && !leads_session {
        options = options.shell_job(true);
    }
    if !options.names_tcp() {
        if images.tcp_closed()? {
            options = options.tcp_close(true);
        } else if images.has_tcp_streams()? {
            options = options.tcp_established(true);
        }
    }
    if !options.names_file_locks() && images.has_file_locks()? {
        options = options.file_locks(true);
    }
    Ok(options)
}
