//! Messages in unix sockets that tell their program the senders (SO_PASSCRED).
//!
//! criu refuses a message with anything but descriptors. So the option is off while criu reads the
//! messages. The revived program gets pid 0 and user 65534 as their senders.

use std::{collections::HashSet, os::fd::OwnedFd};

use super::{Frozen, sockets::descriptor_of};
use crate::{
    preflight::{TELL_SENDERS, holds_credentials},
    sys,
};

/// Sockets of a tree that stands still, which tell no sender until this is dropped.
pub(in crate::platform) struct Quiet(Vec<(OwnedFd, (i32, i32), Vec<u8>)>);

impl Quiet {
    /// Quiets all such sockets of the tree, if messages wait in one. At the restore, criu sends the
    /// messages itself: no socket may tell of a sender at either end.
    pub(in crate::platform) fn of(tree: &Frozen) -> Quiet {
        let mut quiet = Quiet(Vec::new());
        if holders(tree).is_empty() {
            return quiet;
        }
        let mut seen = HashSet::new();
        let sockets =
            tree.files.iter().filter(|file| file.inode_of("socket").is_some_and(|inode| seen.insert(inode)));
        for socket in sockets {
            for option in TELL_SENDERS {
                let Ok(socket) = descriptor_of(socket.pid, socket.fd) else { continue };
                let Ok(value) = sys::option(&socket, option) else { continue };
                let is_set = value.iter().any(|byte| *byte != 0);
                if is_set && sys::set_option(&socket, option, &0_i32.to_ne_bytes()).is_ok() {
                    quiet.0.push((socket, option, value));
                }
            }
        }
        quiet
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (socket, option, value) in &self.0 {
            let _ = sys::set_option(socket, *option, value); // the kernel took it before
        }
    }
}

/// The processes with messages whose senders a revived program will not know. Standard streams are
/// not among them: a restore may put others in their place.
pub(super) fn holders(tree: &Frozen) -> Vec<i32> {
    let mut streams = HashSet::new();
    for file in tree.files.iter().filter(|file| file.fd <= 2) {
        streams.extend(file.inode_of("socket"));
    }
    let sockets = tree
        .files
        .iter()
        .filter(|file| file.inode_of("socket").is_some_and(|inode| !streams.contains(&inode)));
    let holds = |socket: OwnedFd| holds_credentials(&socket).unwrap_or(false);
    sockets.filter(|file| descriptor_of(file.pid, file.fd).is_ok_and(holds)).map(|file| file.pid).collect()
}
