//! Pipes and sockets that may have an end in another tree of the same capture.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ImageDir;
use crate::{
    Result,
    proto::images::{FdinfoEntry, FileEntry},
};

/// The pipes and sockets of a tree.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// By criu's numbers.
    pub(crate) pipes: HashSet<u32>,
    /// Those pipes that are standard streams of the root.
    streams: HashSet<u32>,
    /// Those pipes that were noted as standard streams which lead to the caller.
    noted: HashSet<u32>,
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
        let root = self.processes()?.first().map(|root| root.pid);
        let (mut streams, files_id) = (HashSet::new(), root.map(|root| self.files_id(root)).transpose()?);
        if let Some(files_id) = files_id.flatten() {
            self.each(&super::fdinfo(files_id), |descriptor: FdinfoEntry| {
                streams.extend((descriptor.fd <= 2).then_some(descriptor.id));
            })?;
        }
        for note in self.notes()?.unwrap_or_default().streams {
            let number = note.key.strip_prefix("pipe:[").and_then(|key| key.strip_suffix(']'));
            channels.noted.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        self.each("files.img", |file: FileEntry| {
            if let Some(pipe) = &file.pipe {
                channels.pipes.insert(pipe.pipe_id);
                channels.streams.extend(streams.contains(&file.id).then_some(pipe.pipe_id));
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

/// The pipes that more than one tree has. A stream that leads to the caller is not shared if only
/// one tree has it as a stream: it has leaked into the others.
pub(crate) fn shared_pipes(trees: &[Channels]) -> HashSet<u32> {
    let count = |has: &dyn Fn(&Channels) -> bool| trees.iter().filter(|tree| has(tree)).count();
    let is_shared = |pipe: &u32| {
        let leads_to_caller = trees.iter().any(|tree| tree.noted.contains(pipe));
        let is_between = !leads_to_caller || count(&|tree| tree.streams.contains(pipe)) > 1;
        is_between && count(&|tree| tree.pipes.contains(pipe)) > 1
    };
    trees.iter().flat_map(|tree| tree.pipes.iter().copied()).filter(is_shared).collect()
}

/// The pairs of sockets that are in different trees: for each, twice the place of the tree and the
/// inode.
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
