//! Data of TCP connections within the tree that the other side has not taken.
//!
//! Given to criu, the data is lost where the kernel sends it before criu has made the other socket:
//! the kernel finds no socket at the address, and answers with a reset, which ends the connection.
//! criu has the kernel send what was never sent at once, and the rest after a time that can be as
//! short as 200 ms.
//!
//! So criu gets such a socket without the data, and the data is written when both sockets are
//! there. It stays in the image, behind what criu reads.
//!
//! An end of a stream is lost likewise. Where one side knows that the other one writes no more,
//! criu sends that side a packet as if from the other, which the kernel confirms to a socket that
//! may not be there yet. So criu gets both sockets as ones of which no stream has ended, and each
//! stream is ended again.
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
    tcp::{CLOSE_WAIT, CLOSED, Connection, Connections, ESTABLISHED, FIN_WAIT_2},
};
use crate::{
    Error, Result,
    proto::images::{FileEntry, TcpStreamEntry},
};

const FILES: &str = "files.img";

/// Data that criu is not given. It is to be written to a socket, once that and the other one are
/// there. Without data and end, an error is to be taken from the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// A process with the socket, as the images number it.
    pub(crate) pid: u32,
    pub(crate) descriptor: u32,
    image: String,
    /// The number of bytes before these in the image.
    before: u32,
    count: u32,
    /// The directions to shut down after the data.
    pub(crate) ends: Option<Shutdown>,
}

/// An end of a connection within the tree with data or an end of a stream that the other side has
/// not taken, or will not have taken in what criu restores. What of it was sent says little: an
/// earlier dump, which the tree survived, may have the kernel take it all for sent.
struct Unsent {
    /// The number of the open file.
    file: u32,
    image: String,
    stream: TcpStreamEntry,
    /// As criu is to restore it, with nothing to send.
    empty: TcpStreamEntry,
    /// The number of bytes in the queue that the other side has, which the sender does not know.
    taken: u32,
    ends: Option<Shutdown>,
    /// True if criu is to restore it as one of which no stream has ended.
    reopens: bool,
    /// True if the other side knew that this one writes no more.
    was_heard: bool,
    /// True if a restore delivers the data.
    curable: bool,
}

impl ImageDir {
    fn unsent(&self) -> Result<Vec<Unsent>> {
        let connections = Connections::read(self)?;
        let mut unsent = Vec::new();
        for socket in &connections.sockets {
            if connections.other_state(socket).is_none() {
                continue;
            }
            let image = socket.image();
            let Some(stream) = self.first::<TcpStreamEntry>(&image)? else { continue };
            let reopens = socket.state != ESTABLISHED && connections.can_reopen(socket);
            if stream.outq_len == 0 && !reopens {
                continue;
            }
            let curable = reopens || matches!(socket.state, ESTABLISHED | CLOSE_WAIT);
            let other = connections.other(socket);
            let mut taken = 0;
            if let Some(other) = other
                && let Some(received) = self.first::<TcpStreamEntry>(&other.image())?
            {
                let first = socket.end(&stream).wrapping_sub(stream.outq_len);
                taken = other.next(&received).wrapping_sub(first);
            }
            // The numbers wrap around: in the upper half, the sender knows more than is in the
            // images.
            let taken = if taken < 1 << 31 { taken.min(stream.outq_len) } else { 0 };
            let next = socket.end(&stream).wrapping_sub(stream.outq_len - taken);
            let mut empty = TcpStreamEntry { outq_len: 0, outq_seq: next, unsq_len: Some(0), ..stream };
            if reopens {
                reopen_windows(socket, &mut empty);
            }
            unsent.push(Unsent {
                file: socket.file,
                image,
                stream,
                empty,
                taken,
                ends: socket.said().filter(|_| reopens),
                reopens,
                was_heard: other.is_some_and(Connection::has_received_fin),
                curable,
            });
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
        let mut unsent: Vec<_> = self.unsent()?.into_iter().filter(|unsent| unsent.curable).collect();
        let closed = self.closed()?;
        if unsent.is_empty() && closed.is_empty() {
            return Ok(Vec::new());
        }
        // In the order in which the sides ended.
        unsent.sort_by_key(|unsent| !unsent.was_heard);
        let mut holders = HashMap::new();
        for opened in self.opened()? {
            if let OpenedAs::Descriptor(descriptor) = opened.as_what {
                holders.entry(opened.file).or_insert((opened.pid, descriptor));
            }
        }
        let (mut all, mut reopened) = (Vec::new(), HashSet::new());
        for Unsent { file, image, stream, empty, taken, ends, reopens, .. } in unsent {
            self.edit_stream(&image, &empty)?;
            if reopens {
                reopened.insert(file);
            }
            let count = stream.outq_len - taken;
            if count == 0 && ends.is_none() {
                continue;
            }
            let Some((pid, descriptor)) = holders.get(&file).copied() else {
                return Err(Error::corrupt(
                    format!("the image {FILES}"),
                    format!("no process has the socket {file}"),
                ));
            };
            let before = stream.inq_len.saturating_add(taken);
            all.push(Held { pid, descriptor, image, before, count, ends });
        }
        self.reopen(&reopened)?;
        for (file, image) in closed {
            if let Some((pid, descriptor)) = holders.get(&file).copied() {
                all.push(Held { pid, descriptor, image, before: 0, count: 0, ends: None });
            }
        }
        Ok(all)
    }

    /// The connections that both sides have closed: the files, and the images. Where the other
    /// socket is not there yet, the kernel notes an error in what criu restores.
    fn closed(&self) -> Result<Vec<(u32, String)>> {
        let mut closed = Vec::new();
        for socket in Connections::read(self)?.sockets.iter().filter(|socket| socket.state == CLOSED) {
            if self.first::<TcpStreamEntry>(&socket.image())?.is_some() {
                closed.push((socket.file, socket.image()));
            }
        }
        Ok(closed)
    }

    /// Has criu restore a connection from this entry.
    fn edit_stream(&self, image: &str, entry: &TcpStreamEntry) -> Result<()> {
        let path = self.path().join(image);
        let doing = || Error::io(format!("edit the image {image}"));
        let old = fs::read(&path).map_err(doing())?;
        fs::write(&path, frame::first_extended(&old, image, &entry.encode_to_vec())?).map_err(doing())
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

/// Takes the byte that stands for the end of a stream out of the numbers of a connection: of the
/// data that was received, and of the windows.
fn reopen_windows(socket: &Connection, stream: &mut TcpStreamEntry) {
    let more = |window: Option<u32>| window.map(|bytes| bytes.saturating_add(1));
    if socket.has_received_fin() {
        stream.inq_seq = socket.next(stream);
        stream.rcv_wup = stream.rcv_wup.map(|number| number.wrapping_sub(1));
        stream.rcv_wnd = more(stream.rcv_wnd);
    }
    if socket.state == FIN_WAIT_2 {
        stream.snd_wnd = more(stream.snd_wnd);
        stream.max_window = stream.max_window.max(stream.snd_wnd);
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

/// Returns the contents of a field that is a message.
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
    fn the_end_of_a_stream_is_taken_out_of_its_numbers() {
        let socket = |state| {
            let (src_addr, dst_addr, dst_port) = (vec![1], vec![2], 3);
            let entry = InetSkEntry { proto: 6, state, src_addr, dst_addr, dst_port, ..Default::default() };
            Connection::of(&entry).unwrap()
        };
        let of = |inq_seq, windows: Option<[u32; 4]>| TcpStreamEntry {
            inq_seq,
            snd_wnd: windows.map(|[sender, ..]| sender),
            max_window: windows.map(|[_, largest, ..]| largest),
            rcv_wnd: windows.map(|[_, _, own, _]| own),
            rcv_wup: windows.map(|[.., start]| start),
            ..TcpStreamEntry::default()
        };
        let reopened = |state, mut stream| {
            reopen_windows(&socket(state), &mut stream);
            stream
        };
        assert_eq!(reopened(CLOSE_WAIT, of(0, Some([5, 6, 7, 0]))), of(u32::MAX, Some([5, 6, 8, u32::MAX])));
        assert_eq!(reopened(FIN_WAIT_2, of(9, Some([6, 6, 7, 8]))), of(9, Some([7, 7, 7, 8])));
        assert_eq!(reopened(FIN_WAIT_2, of(9, Some([5, 9, 7, 8]))), of(9, Some([6, 9, 7, 8])));
        assert_eq!(reopened(CLOSE_WAIT, of(9, None)), of(8, None));
    }

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
        let new = reopened(&entry(of(FIN_WAIT_2, Some(2)))).unwrap();
        let file = FileEntry::decode(&*new).unwrap();
        assert_eq!((file.id, file.isk), (9, Some(of(ESTABLISHED, None))));
        assert_eq!(new.windows(UNKNOWN.len()).filter(|bytes| *bytes == UNKNOWN).count(), 2);
        assert!(reopened(&[0x22, 5, 1]).is_err());
    }
}
