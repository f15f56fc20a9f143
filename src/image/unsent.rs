//! Data of TCP connections within the tree that the other side has not taken.
//!
//! Given to criu, the data is lost where the kernel sends it before criu has made the other socket:
//! the kernel finds no socket at the address, and answers with a reset, which ends the connection.
//! criu has the kernel send what was never sent at once, and the rest after a time that can be as
//! short as 200 ms.
//!
//! So criu gets such a socket without the data, and the data is written when both sockets are
//! there. It stays in the image, behind what criu reads. So it is with the end of a stream that the
//! other side has not taken.
//!
//! The sender may not know yet that the other side has taken some. That is left out: the other side
//! would confirm what was never sent, and a socket drops every packet that does.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::Shutdown,
};

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field},
};

use super::{
    ImageDir, OpenedAs, frame,
    tcp::{CLOSE_WAIT, Connections, ESTABLISHED, FIN_WAIT},
};
use crate::{
    Error, Result,
    proto::images::{FileEntry, TcpStreamEntry},
};

const FILES: &str = "files.img";

/// Data that criu is not given. It is to be written to a socket, once that and the other one are
/// there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// A process with the socket, as the images number it.
    pub(crate) pid: u32,
    pub(crate) descriptor: u32,
    image: String,
    /// The number of bytes before these in the image.
    before: u32,
    count: u32,
    /// What ends after the data.
    pub(crate) ends: Option<Shutdown>,
}

/// A connection within the tree that has data or an end which the other side has not taken. What of
/// it was sent says little: an earlier dump, which the tree survived, may have the kernel take it
/// all for sent.
struct Unsent {
    /// The number of the open file.
    file: u32,
    image: String,
    stream: TcpStreamEntry,
    /// The number of bytes in the queue that the other side has, which the sender does not know.
    taken: u32,
    ends: Option<Shutdown>,
    /// Whether it is seen to that the data arrives.
    curable: bool,
}

impl ImageDir {
    fn unsent(&self) -> Result<Vec<Unsent>> {
        let connections = Connections::read(self)?;
        let mut unsent = Vec::new();
        for socket in &connections.sockets {
            let Some(other) = connections.other_state(socket) else { continue };
            let image = socket.image();
            let Some(stream) = self.first::<TcpStreamEntry>(&image)? else { continue };
            if stream.outq_len == 0 && socket.state != FIN_WAIT {
                continue;
            }
            let curable = match socket.state {
                ESTABLISHED | CLOSE_WAIT => true,
                FIN_WAIT => other == ESTABLISHED,
                _ => false,
            };
            let ends = (socket.state == FIN_WAIT).then_some(socket.ends);
            let mut taken = 0;
            if let Some(other) = connections.other(socket)
                && let Some(received) = self.first::<TcpStreamEntry>(&other.image())?
            {
                let first = stream.outq_seq.wrapping_sub(ends.is_some().into()).wrapping_sub(stream.outq_len);
                taken = other.next(&received).wrapping_sub(first);
            }
            // The numbers wrap around: in the upper half, the sender knows more than is in the
            // images.
            let taken = if taken < 1 << 31 { taken.min(stream.outq_len) } else { 0 };
            unsent.push(Unsent { file: socket.file, image, stream, taken, ends, curable });
        }
        Ok(unsent)
    }

    /// Connections within the tree in such a state that data in the queue would not arrive.
    pub(super) fn unsent_beyond_restore(&self) -> Result<Option<String>> {
        let beyond = self.unsent()?.into_iter().filter(|unsent| !unsent.curable);
        let bytes: u64 = beyond.map(|unsent| u64::from(unsent.stream.outq_len)).sum();
        let words =
            format!("TCP connections within the tree have {bytes} bytes that the other side has not taken");
        Ok((bytes > 0).then_some(words))
    }

    /// Takes what was not sent, of connections within the tree, out of what criu restores.
    pub(crate) fn hold_unsent(&self) -> Result<Vec<Held>> {
        let unsent: Vec<_> = self.unsent()?.into_iter().filter(|unsent| unsent.curable).collect();
        if unsent.is_empty() {
            return Ok(Vec::new());
        }
        let mut holders = HashMap::new();
        for opened in self.opened()? {
            if let OpenedAs::Descriptor(descriptor) = opened.as_what {
                holders.entry(opened.file).or_insert((opened.pid, descriptor));
            }
        }
        let (mut all, mut ending) = (Vec::new(), HashSet::new());
        for Unsent { file, image, stream, taken, ends, .. } in unsent {
            let Some((pid, descriptor)) = holders.get(&file).copied() else {
                return Err(Error::corrupt(
                    format!("the image {FILES}"),
                    format!("no process has the socket {file}"),
                ));
            };
            let count = stream.outq_len - taken;
            let first = stream.outq_seq.wrapping_sub(ends.is_some().into()).wrapping_sub(count);
            self.empty_queue(&image, &stream, first)?;
            ending.extend(ends.map(|_| file));
            let before = stream.inq_len.saturating_add(taken);
            all.push(Held { pid, descriptor, image, before, count, ends });
        }
        self.reopen(&ending)?;
        Ok(all)
    }

    /// Has criu restore a socket that has nothing to send. `next` is the number of the next byte.
    fn empty_queue(&self, image: &str, stream: &TcpStreamEntry, next: u32) -> Result<()> {
        let path = self.path().join(image);
        let doing = || Error::io(format!("edit the image {image}"));
        let old = fs::read(&path).map_err(doing())?;
        let empty = TcpStreamEntry { outq_len: 0, outq_seq: next, unsq_len: Some(0), ..*stream };
        fs::write(&path, frame::first_extended(&old, image, &empty.encode_to_vec())?).map_err(doing())
    }

    /// Has criu restore these sockets as ones that have not said that they end.
    fn reopen(&self, files: &HashSet<u32>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let path = self.path().join(FILES);
        let doing = || Error::io(format!("edit the image {FILES}"));
        let old = fs::read(&path).map_err(doing())?;
        let new = frame::edited(&old, FILES, |entry| {
            let is_one = files.contains(&FileEntry::decode(entry)?.id);
            if is_one { reopened(entry) } else { Ok(entry.to_vec()) }
        })?;
        fs::write(&path, new).map_err(doing())
    }

    /// The data itself.
    pub(crate) fn held(&self, held: &Held) -> Result<Vec<u8>> {
        let frames = self.frames(&held.image)?;
        let mut frames =
            frames.ok_or_else(|| Error::corrupt("a capture", format!("it has no {}", held.image)))?;
        frames.next_bytes()?;
        frames.raw(held.before)?;
        frames.raw(held.count)
    }
}

/// The entry of an open file whose socket is to be an established one.
fn reopened(file: &[u8]) -> Result<Vec<u8>, DecodeError> {
    const SOCKET: u32 = 4; // of `file_entry`
    const STATE: u32 = 6; // of `inet_sk_entry`, as the next one
    const SHUTDOWN: u32 = 19;
    let (mut new, mut rest) = (Vec::new(), file);
    while let Some((number, field)) = next_field(&mut rest)? {
        if number == SOCKET {
            let mut socket = without(contents(field)?, &[STATE, SHUTDOWN])?;
            encode_key(STATE, WireType::Varint, &mut socket);
            encode_varint(ESTABLISHED.into(), &mut socket);
            encode_key(SOCKET, WireType::LengthDelimited, &mut new);
            encode_varint(socket.len() as u64, &mut new);
            new.extend(socket);
        } else {
            new.extend(field);
        }
    }
    Ok(new)
}

/// A message without the fields of these numbers.
fn without(mut message: &[u8], numbers: &[u32]) -> Result<Vec<u8>, DecodeError> {
    let mut kept = Vec::new();
    while let Some((number, field)) = next_field(&mut message)? {
        if !numbers.contains(&number) {
            kept.extend(field);
        }
    }
    Ok(kept)
}

/// Takes the next field off a message: its number, and all its bytes.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, DecodeError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let start = *rest;
    let (number, kind) = decode_key(rest)?;
    skip_field(kind, number, rest, DecodeContext::default())?;
    Ok(Some((number, &start[..start.len() - rest.len()])))
}

/// What is in a field that is a message.
fn contents(mut field: &[u8]) -> Result<&[u8], DecodeError> {
    decode_key(&mut field)?;
    prost::encoding::decode_varint(&mut field)?;
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::images::InetSkEntry;

    #[test]
    fn a_reopened_socket_is_an_established_one_with_all_else_that_it_was() {
        const UNKNOWN: &[u8] = &[0xf2, 0x07, 2, 1, 2]; // field 126, two bytes
        let of = |state, shutdown| {
            let (src_addr, dst_addr) = (vec![1], vec![2]);
            InetSkEntry { ino: 7, state, shutdown, src_addr, dst_addr, ..InetSkEntry::default() }
        };
        let entry = |socket: InetSkEntry| {
            let socket = [socket.encode_to_vec(), UNKNOWN.to_vec()].concat();
            let file = FileEntry { id: 9, ..FileEntry::default() }.encode_to_vec();
            let size = u8::try_from(socket.len()).unwrap();
            [file, vec![0x22, size], socket, UNKNOWN.to_vec()].concat()
        };
        let new = reopened(&entry(of(FIN_WAIT, Some(2)))).unwrap();
        let file = FileEntry::decode(&*new).unwrap();
        assert_eq!((file.id, file.isk), (9, Some(of(ESTABLISHED, None))));
        assert_eq!(new.windows(UNKNOWN.len()).filter(|bytes| *bytes == UNKNOWN).count(), 2);
        assert!(reopened(&[0x22, 5, 1]).is_err());
    }
}
