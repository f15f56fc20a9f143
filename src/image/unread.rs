//! Unread bytes in pipes and sockets.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
};

use prost::Message;

use super::{ImageDir, frame};
use crate::{
    Error, Result,
    proto::images::{FileEntry, PipeDataEntry, SkPacketEntry},
};

const QUEUES: &str = "sk-queues.img";
/// The second number of that image.
const QUEUES_KIND: u32 = 0x5626_4026;

/// The bytes in a pipe.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct InPipe {
    pub(crate) bytes: Vec<u8>,
    /// The capacity of the pipe in bytes; 0 if the images do not tell.
    pub(crate) room: u32,
}

/// The packets that wait in a unix socket, in order. Some are empty.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) inode: u32,
    pub(crate) packets: Vec<Vec<u8>>,
    /// True if a packet that is not empty also carries descriptors or credentials, which only criu
    /// can store.
    pub(crate) others_carry: bool,
}

impl Queue {
    /// Returns true if criu wrote down these packets, and those make this queue with the empty
    /// ones.
    fn continues(&self, written: &[Vec<u8>]) -> bool {
        let others = self.packets.iter().filter(|packet| !packet.is_empty());
        others.eq(written) || (written.is_empty() && !self.others_carry)
    }
}

impl ImageDir {
    /// The contents of these pipes, by criu's numbers. criu has them if the tree had an end to read
    /// from.
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
        let Some(mut frames) = self.frames(QUEUES)? else { return Ok(packets) };
        while let Some(entry) = frames.next_entry::<SkPacketEntry>()? {
            let bytes = frames.raw(entry.length)?;
            if files.contains(&entry.id_for) {
                packets.entry(entry.id_for).or_default().push(bytes);
            }
        }
        Ok(packets)
    }

    /// Adds the empty packets to these queues, and all packets where criu wrote down none. Gives
    /// the inodes of those where criu wrote down something else, which stay as they are.
    pub(crate) fn add_empty_packets(&self, queues: &[&Queue]) -> Result<Vec<u32>> {
        if queues.is_empty() {
            return Ok(Vec::new());
        }
        let mut files = HashMap::new();
        self.each("files.img", |file: FileEntry| {
            if let Some(socket) = file.usk {
                files.insert(socket.ino, file.id);
            }
        })?;
        let written = self.in_sockets(&files.values().copied().collect())?;
        let (mut missed, mut waiting) = (Vec::new(), BTreeMap::new());
        for queue in queues {
            // Without an entry of the socket, the restore puts another in its place.
            let Some(file) = files.get(&queue.inode).copied() else { continue };
            let written = written.get(&file).map(Vec::as_slice).unwrap_or_default();
            match queue.continues(written) {
                true => drop(waiting.insert(file, queue.packets.iter().peekable())),
                false => missed.push(queue.inode),
            }
        }
        let path = self.path().join(QUEUES);
        let doing = || Error::io(format!("edit the image {QUEUES}"));
        let old = match path.exists() {
            true => fs::read(&path).map_err(doing())?,
            false => frame::image(QUEUES_KIND, std::iter::empty())?,
        };
        let mut packets = Vec::new();
        let mut rest = old.as_slice();
        let mut frames = frame::Frames::new(&mut rest, QUEUES)?;
        while let Some(entry) = frames.next_bytes()? {
            let packet = SkPacketEntry::decode(entry.as_slice())
                .map_err(|error| Error::corrupt(format!("the image {QUEUES}"), error.to_string()))?;
            if let Some(waiting) = waiting.get_mut(&packet.id_for) {
                while waiting.next_if(|next| next.is_empty()).is_some() {
                    packets.push((packet_to(packet.id_for, 0), Vec::new()));
                }
                waiting.next();
            }
            packets.push((entry, frames.raw(packet.length)?));
        }
        for (file, rest) in waiting {
            for bytes in rest {
                let length = u32::try_from(bytes.len())
                    .map_err(|_| Error::corrupt(format!("the image {QUEUES}"), "a packet is too large"))?;
                packets.push((packet_to(file, length), bytes.clone()));
            }
        }
        fs::write(&path, frame::with_raw(&old, QUEUES, &packets)?).map_err(doing())?;
        Ok(missed)
    }
}

fn packet_to(id_for: u32, length: u32) -> Vec<u8> {
    SkPacketEntry { id_for, length, scm: Vec::new() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_goes_on_from_what_criu_wrote_or_is_left_alone() {
        let bytes =
            |packets: &[&str]| packets.iter().map(|packet| packet.as_bytes().to_vec()).collect::<Vec<_>>();
        let queue = |others_carry| Queue { inode: 1, packets: bytes(&["", "one", "", "two"]), others_carry };
        for (written, plain, carries) in [
            (&["one", "two"][..], true, true),
            (&["one"], false, false),
            (&["two", "one"], false, false),
            (&["one", "two", "three"], false, false),
            (&[], true, false),
        ] {
            let continues = [false, true].map(|carries| queue(carries).continues(&bytes(written)));
            assert_eq!(continues, [plain, carries], "{written:?}");
        }
    }
}
