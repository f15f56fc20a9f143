//! Unread bytes in pipes and sockets.

use std::collections::{HashMap, HashSet};

use super::ImageDir;
use crate::{
    Result,
    proto::images::{PipeDataEntry, SkPacketEntry},
};

/// The bytes in a pipe.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct InPipe {
    pub(crate) bytes: Vec<u8>,
    /// The capacity of the pipe in bytes; 0 if the images do not tell.
    pub(crate) room: u32,
}

impl ImageDir {
    /// The contents of these pipes, by criu's numbers. criu has them if the tree had an end to read from.
    pub(crate) fn in_pipes(&self, pipes: &HashSet<u32>) -> Result<HashMap<u32, InPipe>> {
        let mut contents = HashMap::new();
        let Some(mut frames) = self.frames("pipes-data.img")? else { return Ok(contents) };
        while let Some(entry) = frames.next_entry::<PipeDataEntry>()? {
            let bytes = frames.raw(entry.bytes)?;
            if pipes.contains(&entry.pipe_id) {
                contents.insert(entry.pipe_id, InPipe { bytes, room: entry.size.unwrap_or(0) });
            }
        }
        Ok(contents)
    }

    /// The packets that were on their way to these sockets, by the numbers of their files.
    pub(crate) fn in_sockets(&self, files: &HashSet<u32>) -> Result<HashMap<u32, Vec<Vec<u8>>>> {
        let mut packets = HashMap::<u32, Vec<Vec<u8>>>::new();
        let Some(mut frames) = self.frames("sk-queues.img")? else { return Ok(packets) };
        while let Some(entry) = frames.next_entry::<SkPacketEntry>()? {
            let bytes = frames.raw(entry.length)?;
            if files.contains(&entry.id_for) {
                packets.entry(entry.id_for).or_default().push(bytes);
            }
        }
        Ok(packets)
    }
}
