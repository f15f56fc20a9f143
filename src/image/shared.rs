//! Pipes and sockets that may have an end in another tree of the same capture.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ImageDir;
use crate::{Result, proto::images::FileEntry};

/// The pipes and sockets of a tree.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// By criu's numbers.
    pub(crate) pipes: HashSet<u32>,
    /// By inode.
    pub(crate) sockets: BTreeMap<u32, UnixSocket>,
}

/// A unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnixSocket {
    /// The number of its file.
    pub(crate) file: u32,
    /// The inode of its other end; 0 without one.
    pub(crate) peer: u32,
    /// 1 for streams, 2 for datagrams, 5 for packets.
    pub(crate) kind: u32,
    /// Its closed directions, as bits: 1 read, 2 write.
    pub(crate) shut: u32,
}

impl ImageDir {
    pub(crate) fn channels(&self) -> Result<Channels> {
        const EXTERNAL: u32 = 1;
        let mut channels = Channels::default();
        self.each("files.img", |file: FileEntry| {
            if let Some(pipe) = &file.pipe {
                channels.pipes.insert(pipe.pipe_id);
            }
            if let Some(socket) = file.usk.as_ref().filter(|socket| socket.uflags & EXTERNAL == 0) {
                let (peer, kind, shut) = (socket.peer, socket.r#type, socket.shutdown.unwrap_or(0));
                channels.sockets.insert(socket.ino, UnixSocket { file: file.id, peer, kind, shut });
            }
        })?;
        Ok(channels)
    }
}

/// criu's names of the pipes and sockets between these trees, which a restore of all of them makes
/// anew.
pub(crate) fn shared_keys(trees: &[ImageDir]) -> Result<Vec<String>> {
    if trees.len() < 2 {
        return Ok(Vec::new());
    }
    let channels = trees.iter().map(ImageDir::channels).collect::<Result<Vec<_>>>()?;
    let sockets = shared_sockets(&channels).into_iter().flatten();
    let mut keys: Vec<String> = sockets.map(|(_, inode)| format!("socket:[{inode}]")).collect();
    keys.extend(shared_pipes(&channels).into_iter().map(|pipe| format!("pipe:[{pipe}]")));
    Ok(keys)
}

/// The pipes that more than one tree has.
pub(crate) fn shared_pipes(trees: &[Channels]) -> HashSet<u32> {
    let mut count = HashMap::<u32, usize>::new();
    for pipe in trees.iter().flat_map(|tree| &tree.pipes) {
        *count.entry(*pipe).or_default() += 1;
    }
    count.into_iter().filter(|(_, count)| *count > 1).map(|(pipe, _)| pipe).collect()
}

/// The pairs of sockets that are in different trees: for each, twice the place of the tree and the inode.
pub(crate) fn shared_sockets(trees: &[Channels]) -> Vec<[(usize, u32); 2]> {
    let mut homes = HashMap::new();
    for (place, tree) in trees.iter().enumerate() {
        homes.extend(tree.sockets.keys().map(|inode| (*inode, place)));
    }
    let mut pairs = Vec::new();
    for (place, tree) in trees.iter().enumerate() {
        for (inode, socket) in tree.sockets.iter().filter(|(inode, socket)| **inode < socket.peer) {
            let Some(other) = homes.get(&socket.peer).filter(|other| **other != place) else { continue };
            if trees[*other].sockets.get(&socket.peer).is_some_and(|peer| peer.peer == *inode) {
                pairs.push([(place, *inode), (*other, socket.peer)]);
            }
        }
    }
    pairs
}
