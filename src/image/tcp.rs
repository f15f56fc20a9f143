//! TCP connections in the images, and making those within a tree restorable.
//!
//! criu sends what a program had written and the kernel had not sent, while it restores the socket. Within a tree the
//! other side is not there by then, or has no room, and the restore fails. As data that was sent and lost on the way,
//! it stays in the queue, and the kernel sends it again once both sides are there. That was seen to work for queues of a
//! few MiB, unless both sides had closed the connection.
//!
//! criu reads the sockets one after the other, and the kernel may deliver data between two of them
//! although all processes stand still: a timer of `TCP_CORK`, or an acknowledgement that was
//! delayed, has the sender send. Data that both sockets have in the images does no harm, because
//! the receiver drops what it has. Data that neither has is [`Missed`].

use std::{collections::HashMap, fs};

use prost::Message;

use super::{ImageDir, frame};
use crate::{
    Error, Result,
    proto::images::{FileEntry, InetSkEntry, TcpStreamEntry},
};

/// The TCP connections in the images.
#[derive(Debug, Default)]
struct Connections {
    sockets: Vec<Connection>,
    /// The state of each, by both ends, the own first, and the network namespace.
    states: HashMap<(End, End, Option<u32>), u32>,
}

/// One end of a connection: the address, as IPv6 has it, and the port.
type End = ([u32; 4], u32);

#[derive(Debug)]
struct Connection {
    inode: u32,
    state: u32,
    local: End,
    remote: End,
    namespace: Option<u32>,
}

impl Connection {
    fn of(socket: &InetSkEntry) -> Option<Connection> {
        const TCP: u32 = 6;
        let local = (address(&socket.src_addr)?, socket.src_port);
        let remote = (address(&socket.dst_addr)?, socket.dst_port);
        let (inode, state, namespace) = (socket.ino, socket.state, socket.ns_id);
        (socket.proto == TCP && socket.dst_port != 0).then_some(Connection {
            inode,
            state,
            local,
            remote,
            namespace,
        })
    }

    fn image(&self) -> String {
        format!("tcp-stream-{:x}.img", self.inode)
    }
}

/// The address as IPv6 has it.
fn address(words: &[u32]) -> Option<[u32; 4]> {
    match *words {
        [word] => Some([0, 0, 0xffff_u32.to_be(), word]),
        [a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

impl Connections {
    fn read(images: &ImageDir) -> Result<Connections> {
        let mut connections = Connections::default();
        images.each("files.img", |file: FileEntry| {
            if let Some(socket) = file.isk.as_ref().and_then(Connection::of) {
                let key = (socket.local, socket.remote, socket.namespace);
                connections.states.insert(key, socket.state);
                connections.sockets.push(socket);
            }
        })?;
        Ok(connections)
    }

    /// The state of the other side, if it is a part of the tree or was closed by all that had it.
    fn other_state(&self, socket: &Connection) -> Option<u32> {
        let other = (socket.remote, socket.local, socket.namespace);
        let closed = socket.state == CLOSE_WAIT && socket.local.0 == socket.remote.0;
        self.states.get(&other).copied().or(closed.then_some(FIN_WAIT))
    }
}

/// States, as the kernel numbers them.
const ESTABLISHED: u32 = 1;
const FIN_WAIT: u32 = 4;
const FIN_WAIT_2: u32 = 5;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// True of a socket that has sent its FIN, which counts as one byte.
fn has_sent_fin(state: u32) -> bool {
    matches!(state, FIN_WAIT | FIN_WAIT_2 | LAST_ACK | CLOSING)
}

fn has_received_fin(state: u32) -> bool {
    matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// The largest queue whose data is sent again, in bytes. It is what Linux lets a socket have by itself.
const MOST_UNSENT: u32 = 4 << 20;

/// A connection within the tree that has data which the other side has not taken. What of it was sent says little: an
/// earlier dump, which the tree survived, may have the kernel take it all for sent.
struct Unsent {
    image: String,
    stream: TcpStreamEntry,
    /// True if the restore can send the data again.
    curable: bool,
}

/// Data that neither end of a connection has in the images: its receiver got it after criu had read
/// that end, and its sender had forgotten it when criu read the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The inode of the socket that received it.
    pub(crate) inode: u32,
    /// The number of unread bytes that are in the images. The missed ones follow these.
    pub(crate) known: u32,
    pub(crate) count: u32,
    /// True if the end of the stream was missed, too.
    end: bool,
}

impl ImageDir {
    /// Finds data of connections within the tree that neither side has in the images.
    pub(crate) fn missed(&self) -> Result<Vec<Missed>> {
        let connections = Connections::read(self)?;
        let mut streams = HashMap::new();
        for socket in &connections.sockets {
            if let Some(stream) = self.first::<TcpStreamEntry>(&socket.image())? {
                streams.insert((socket.local, socket.remote, socket.namespace), (socket, stream));
            }
        }
        let missed = streams.values().filter_map(|(receiver, received)| {
            let (sender, sent) = streams.get(&(receiver.remote, receiver.local, receiver.namespace))?;
            let fin = u32::from(has_sent_fin(sender.state));
            let confirmed = sent.outq_seq.wrapping_sub(fin).wrapping_sub(sent.outq_len);
            let fin = u32::from(has_received_fin(receiver.state));
            let count = confirmed.wrapping_sub(received.inq_seq.wrapping_sub(fin));
            let end = sender.state == FIN_WAIT_2 && receiver.state == ESTABLISHED;
            // The numbers wrap around: in the upper half, the receiver has what the sender keeps.
            let count = if count < 1 << 31 { count } else { 0 };
            (count > 0 || end).then_some(Missed {
                inode: receiver.inode,
                known: received.inq_len,
                count,
                end,
            })
        });
        Ok(missed.collect())
    }

    /// Adds data to the unread bytes of a socket.
    pub(crate) fn add_received(&self, missed: &Missed, bytes: &[u8]) -> Result<()> {
        let image = format!("tcp-stream-{:x}.img", missed.inode);
        let Some(mut frames) = self.frames(&image)? else { return Ok(()) };
        let Some(stream) = frames.next_entry::<TcpStreamEntry>()? else { return Ok(()) };
        let [unread, unsent] = [frames.raw(stream.inq_len)?, frames.raw(stream.outq_len)?];
        let path = self.path().join(&image);
        let doing = || Error::io(format!("edit the image {image}"));
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let longer = TcpStreamEntry {
            inq_len: stream.inq_len.saturating_add(count),
            inq_seq: stream.inq_seq.wrapping_add(count),
            ..stream
        };
        let old = fs::read(&path).map_err(doing())?;
        let mut new = frame::first_extended(&old, &image, &longer.encode_to_vec())?;
        new.truncate(new.len().saturating_sub(unread.len() + unsent.len()));
        fs::write(&path, [&new, &unread, bytes, &unsent].concat()).map_err(doing())
    }

    /// Connections within the tree that would lack data, or wait for it for ever.
    pub(crate) fn missed_beyond_restore(&self) -> Result<Option<String>> {
        let count = self.missed()?.len();
        let words = format!("{count} TCP connections within the tree received data while criu dumped them");
        Ok((count > 0).then_some(words))
    }

    fn unsent(&self) -> Result<Vec<Unsent>> {
        let connections = Connections::read(self)?;
        let mut unsent = Vec::new();
        for socket in &connections.sockets {
            let Some(other) = connections.other_state(socket) else { continue };
            let image = socket.image();
            let stream = self.first::<TcpStreamEntry>(&image)?;
            let Some(stream) = stream.filter(|stream| stream.outq_len > 0) else { continue };
            let is_open = match socket.state {
                ESTABLISHED | CLOSE_WAIT => true,
                FIN_WAIT => other == ESTABLISHED,
                _ => false,
            };
            let curable = is_open && stream.outq_len <= MOST_UNSENT;
            unsent.push(Unsent { image, stream, curable });
        }
        Ok(unsent)
    }

    /// Connections within the tree with so much data in the queue, or in such a state, that it would not arrive.
    pub(super) fn unsent_beyond_restore(&self) -> Result<Option<String>> {
        let beyond = self.unsent()?.into_iter().filter(|unsent| !unsent.curable);
        let bytes: u64 = beyond.map(|unsent| u64::from(unsent.stream.outq_len)).sum();
        let words =
            format!("TCP connections within the tree have {bytes} bytes that the other side has not taken");
        Ok((bytes > 0).then_some(words))
    }

    /// Has the kernel send again what was not sent, of connections within the tree.
    pub(crate) fn keep_unsent(&self) -> Result<()> {
        let unsent = self.unsent()?.into_iter();
        let unsent = unsent.filter(|unsent| unsent.curable && unsent.stream.unsq_len() > 0);
        for Unsent { image, stream, .. } in unsent {
            let path = self.path().join(&image);
            let doing = || Error::io(format!("edit the image {image}"));
            let old = fs::read(&path).map_err(doing())?;
            let all_sent = TcpStreamEntry { unsq_len: Some(0), ..stream }.encode_to_vec();
            fs::write(&path, frame::first_extended(&old, &image, &all_sent)?).map_err(doing())?;
        }
        Ok(())
    }
}
