//! Standard streams that lead to the caller.
//!
//! A caller that makes a pipe without `O_CLOEXEC` starts a program that has both ends of it, and
//! other programs that have one. By the images alone such a pipe is one within a tree or between
//! two, which a restore would not replace.

use std::collections::HashSet;

use super::{Frozen, OpenFile, open_files};
use crate::{Pid, preflight::Peers, procfs::access_mode, proto::images::StreamNote};

/// Finds the root's streams that are pipes and sockets, and whose other end this process has, even
/// if another process has it, too. Streams and files that the caller has `told` are left out.
pub(super) fn look(tree: &Frozen, told: &[StreamNote]) -> Vec<StreamNote> {
    let own = Pid::own().as_raw();
    if tree.pids.contains(&own) {
        return Vec::new();
    }
    let own: Vec<OpenFile> = open_files(own).collect();
    let sockets: HashSet<u64> = tree.root_streams().filter_map(|(_, file)| file.inode_of("socket")).collect();
    let peers = if sockets.is_empty() { None } else { Peers::ask(&sockets) };
    let led_here = tree.root_streams().filter(|(stream, file)| {
        let is_other_end = |other: &OpenFile| match (file.inode_of("pipe"), file.inode_of("socket")) {
            (Some(pipe), _) => other.inode_of("pipe") == Some(pipe) && is_open(other, *stream != 0),
            (_, Some(socket)) => {
                let end = peers.as_ref().and_then(|peers| peers.other_end(socket));
                end.is_some() && other.inode_of("socket") == end
            }
            _ => false,
        };
        is_open(file, *stream == 0) && own.iter().any(is_other_end)
    });
    let notes = led_here
        .filter_map(|(stream, file)| Some(StreamNote { stream, key: file.target.to_str()?.to_owned() }));
    let is_told =
        |note: &StreamNote| told.iter().any(|told| told.stream == note.stream || told.key == note.key);
    notes.filter(|note| !is_told(note)).collect()
}

/// Returns true if the file is open for reading, or for writing.
fn is_open(file: &OpenFile, to_read: bool) -> bool {
    let only = if to_read { libc::O_RDONLY } else { libc::O_WRONLY };
    access_mode(file.pid, file.fd).is_some_and(|mode| mode == only || mode == libc::O_RDWR)
}

impl Frozen {
    /// The files that are standard streams of the root, with the numbers of those.
    fn root_streams(&self) -> impl Iterator<Item = (u32, &OpenFile)> {
        let root = self.pids.first().copied();
        let files = self.files.iter().filter(move |file| Some(file.pid) == root);
        files.filter_map(|file| Some((u32::try_from(file.fd).ok().filter(|fd| *fd <= 2)?, file)))
    }
}
