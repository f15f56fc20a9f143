//! The standard streams of a dumped tree that lead out of it.

use std::collections::{HashMap, HashSet};

use super::ImageDir;
use crate::{
    Result,
    proto::images::{FdTypes, FileEntry, PstreeEntry, TtyType},
};

/// A standard stream whose other end was outside the tree, and so is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    /// 0, 1 or 2: which of the standard streams it was, in the first process that had it.
    pub(crate) number: usize,
    /// What criu calls the resource, for `inherit_fd`.
    pub(crate) key: String,
}

/// Every resource outside the tree that one of its processes has as a standard stream, once each, parents' before
/// children's.
pub(crate) fn outside_streams(images: &ImageDir) -> Result<Vec<Stream>> {
    let processes = images.processes()?;
    let files: HashMap<u32, FileEntry> = images.files()?.into_iter().map(|file| (file.id, file)).collect();
    let terminals: HashMap<u32, _> = images
        .all::<crate::proto::images::TtyInfoEntry>("tty-info.img")?
        .into_iter()
        .map(|tty| (tty.id, tty))
        .collect();
    let inner = InnerPipes::of(&files);
    let mut streams: Vec<Stream> = Vec::new();
    for PstreeEntry { pid, .. } in processes {
        for descriptor in images.descriptors(pid)?.into_iter().filter(|descriptor| descriptor.fd <= 2) {
            let Some(file) = files.get(&descriptor.id) else { continue };
            let key = match FdTypes::try_from(file.r#type) {
                Ok(FdTypes::Pipe) => file.pipe.as_ref().and_then(|pipe| inner.outside_key(pipe.pipe_id)),
                Ok(FdTypes::Tty) => file.tty.as_ref().and_then(|tty| {
                    let info = terminals.get(&tty.tty_info_id)?;
                    (info.r#type == i32::from(TtyType::ExtTty))
                        .then(|| format!("tty[{:x}:{:x}]", info.rdev, info.dev.unwrap_or(0)))
                }),
                Ok(FdTypes::Unixsk) => file.usk.as_ref().and_then(|socket| {
                    const EXTERNAL: u32 = 1;
                    (socket.uflags & EXTERNAL != 0).then(|| format!("socket:[{}]", socket.ino))
                }),
                _ => None,
            };
            if let Some(key) = key.filter(|key| streams.iter().all(|stream| stream.key != *key)) {
                streams.push(Stream { number: descriptor.fd as usize, key });
            }
        }
    }
    Ok(streams)
}

/// The pipes of which the tree has both ends: they are its own business.
struct InnerPipes(HashSet<u32>);

impl InnerPipes {
    fn of(files: &HashMap<u32, FileEntry>) -> InnerPipes {
        const ACCESS_MODE: u32 = 3;
        let mut ends: HashMap<u32, HashSet<u32>> = HashMap::new();
        for pipe in files.values().filter_map(|file| file.pipe.as_ref()) {
            ends.entry(pipe.pipe_id).or_default().insert(pipe.flags & ACCESS_MODE);
        }
        // An end opened for reading and writing (mode 2) is both.
        InnerPipes(
            ends.into_iter()
                .filter(|(_, modes)| modes.len() > 1 || modes.contains(&2))
                .map(|(id, _)| id)
                .collect(),
        )
    }

    fn outside_key(&self, pipe: u32) -> Option<String> {
        (!self.0.contains(&pipe)).then(|| format!("pipe:[{pipe}]"))
    }
}
