//! Options that follow from what the tree is, so that nobody need know criu to capture a program: a root that leads
//! no session, terminals and streams to sockets from outside, and at the restore whatever the images say of the dump.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
};

use crate::{
    DumpOptions, Pid, RestoreOptions, Result,
    image::ImageDir,
    options::External,
    preflight::{Peer, Peers},
    procfs::{Stat, tree},
    sys::Known,
};

/// The caller's options, and what this tree needs beyond them.
pub(super) fn for_dump(options: &DumpOptions, root: Pid) -> DumpOptions {
    let mut options = options.clone();
    if !options.names_shell_job() && leads_no_session(root) {
        options = options.shell_job(true);
    }
    let outside = Outside::of(root);
    for terminal in outside.terminals {
        options = options.external(terminal);
    }
    for inode in outside.streams {
        options = options.external(External::Unix { inode });
    }
    options
}

fn leads_no_session(root: Pid) -> bool {
    Stat::of(root.as_raw()).is_ok_and(|stat| stat.session != root.as_raw())
}

/// What the tree has open but does not hold the other side of.
struct Outside {
    /// As criu names them.
    terminals: BTreeSet<String>,
    /// The unix sockets that are standard streams, by inode. A restore can give no others anew.
    streams: BTreeSet<u64>,
}

impl Outside {
    fn of(root: Pid) -> Outside {
        let (mut terminals, mut streams, mut sockets) = (BTreeSet::new(), BTreeSet::new(), HashSet::new());
        let mut holds_masters = false;
        for pid in tree(root.as_raw()) {
            for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let Ok(target) = fs::read_link(descriptor.path()) else { continue };
                if target.is_absolute() {
                    let Ok(file) = Known::of(descriptor.path()) else { continue };
                    holds_masters |= file.is_master();
                    if file.slave().is_some() {
                        terminals.insert(format!("tty[{:x}:{:x}]", file.rdev(), file.dev()));
                    }
                } else if let Some(inode) = socket_inode(&target) {
                    sockets.insert(inode);
                    if ["0", "1", "2"].iter().any(|stream| descriptor.file_name() == *stream) {
                        streams.insert(inode);
                    }
                }
            }
        }
        let peers = if streams.is_empty() { None } else { Peers::ask(&sockets) };
        streams.retain(|inode| peers.as_ref().is_some_and(|peers| peers.of(*inode) == Peer::Outside));
        // A tree with a terminal program in it: criu knows which of them belong together.
        let terminals = if holds_masters { BTreeSet::new() } else { terminals };
        Outside { terminals, streams }
    }
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
