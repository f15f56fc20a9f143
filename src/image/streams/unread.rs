//! Input that was on its way to a tree in files that are replaced.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    edit::Edits,
    tables::{Resource, Tables},
};
use crate::{Result, image::ImageDir};

/// The unread bytes of replaced files, by the number of the first descriptor of each.
pub(super) fn of(images: &ImageDir, tables: &Tables, edits: &Edits) -> Result<Vec<(u32, Vec<u8>)>> {
    let (mut pipes, mut sockets) = (BTreeMap::new(), BTreeMap::new());
    for descriptor in tables.all_descriptors().filter(|descriptor| edits.replaces(descriptor.id)) {
        match tables.outside(descriptor.id).map(|outside| outside.resource) {
            Some(Resource::Pipe(pipe)) => {
                pipes.entry(pipe).or_insert(descriptor.fd);
            }
            Some(Resource::Socket(_)) => {
                sockets.entry(descriptor.id).or_insert(descriptor.fd);
            }
            _ => {}
        }
    }
    let mut unread = Vec::new();
    let in_pipes = images.in_pipes(&pipes.keys().copied().collect())?;
    let bytes = |pipe: &u32| in_pipes.get(pipe).map(|pipe| pipe.bytes.clone());
    unread.extend(pipes.iter().filter_map(|(pipe, fd)| Some((*fd, bytes(pipe)?))));
    let queues: HashMap<u32, Vec<Vec<u8>>> =
        images.in_sockets(&sockets.keys().copied().collect::<HashSet<_>>())?;
    unread.extend(sockets.iter().filter_map(|(file, fd)| Some((*fd, queues.get(file)?.concat()))));
    unread.retain(|(_, bytes)| !bytes.is_empty());
    unread.sort();
    Ok(unread)
}
