//! TCP connections in the images, and making those within a tree restorable.
//!
//! What a program had written and the other side had not taken is [held back](super::unsent).
//!
//! criu reads the sockets one after the other, and the kernel may deliver data between two of them
//! although all processes stand still: a timer of `TCP_CORK`, or an acknowledgement that was
//! delayed, has the sender send. Data that both sockets have in the images does no harm, because
//! the receiver drops what it has. Data that neither has is [`Missed`]. An end of the stream that
//! the receiver does not know of is [said once more](super::unsent).

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{Shutdown, SocketAddrV6},
};

use prost::Message;

use super::{ImageDir, frame};
use crate::{
    Error, Result,
    proto::images::{FileEntry, InetSkEntry, TcpStreamEntry},
};

/// The TCP connections in the images.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) sockets: Vec<Connection>,
    /// The place of each, by both ends, the own first, and the network namespace.
    places: HashMap<(End, End, Option<u32>), usize>,
}

/// One end of a connection: the address, as IPv6 has it, and the port.
type End = ([u32; 4], u32);

#[derive(Debug)]
pub(super) struct Connection {
    /// The number of the open file.
    pub(super) file: u32,
    pub(super) inode: u32,
    pub(super) state: u32,
    /// The directions that the program has ended. `Write` if it has ended none.
    pub(super) ends: Shutdown,
    local: End,
    remote: End,
    namespace: Option<u32>,
}

impl Connection {
    pub(super) fn of(socket: &InetSkEntry) -> Option<Connection> {
        const TCP: u32 = 6;
        const BOTH: u32 = 3;
        let local = (address(&socket.src_addr)?, socket.src_port);
        let remote = (address(&socket.dst_addr)?, socket.dst_port);
        let ends = if socket.shutdown == Some(BOTH) { Shutdown::Both } else { Shutdown::Write };
        let (inode, state, namespace) = (socket.ino, socket.state, socket.ns_id);
        (socket.proto == TCP && socket.dst_port != 0).then_some(Connection {
            file: socket.id,
            inode,
            state,
            ends,
            local,
            remote,
            namespace,
        })
    }

    /// Returns the directions that the program ended itself; `None` if it has sent no FIN.
    pub(super) fn said(&self) -> Option<Shutdown> {
        // Reading may have ended because of the other side's FIN, whose data is still to come.
        let ends = if self.has_received_fin() { Shutdown::Write } else { self.ends };
        has_sent_fin(self.state).then_some(ends)
    }

    pub(super) fn has_received_fin(&self) -> bool {
        has_received_fin(self.state)
    }

    /// The number of the byte after the last one that was written.
    pub(super) fn end(&self, stream: &TcpStreamEntry) -> u32 {
        stream.outq_seq.wrapping_sub(has_sent_fin(self.state).into())
    }

    /// The number of the byte after the last one that was received.
    pub(super) fn next(&self, stream: &TcpStreamEntry) -> u32 {
        stream.inq_seq.wrapping_sub(has_received_fin(self.state).into())
    }

    pub(super) fn image(&self) -> String {
        format!("tcp-stream-{:x}.img", self.inode)
    }
}

fn socket_address((words, port): End) -> Option<SocketAddrV6> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address: [u8; 16] = bytes.try_into().ok()?;
    Some(SocketAddrV6::new(address.into(), port.try_into().ok()?, 0, 0))
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
    pub(super) fn read(images: &ImageDir) -> Result<Connections> {
        let mut connections = Connections::default();
        images.each("files.img", |file: FileEntry| {
            if let Some(socket) = file.isk.as_ref().and_then(Connection::of) {
                let key = (socket.local, socket.remote, socket.namespace);
                connections.places.insert(key, connections.sockets.len());
                connections.sockets.push(socket);
            }
        })?;
        Ok(connections)
    }

    /// The other side, if it is a part of the tree.
    pub(super) fn other(&self, socket: &Connection) -> Option<&Connection> {
        let place = self.places.get(&(socket.remote, socket.local, socket.namespace))?;
        self.sockets.get(*place)
    }

    /// Returns true if each side can end the connection once more, as the program has. They stay in
    /// [`ESTABLISHED`] until then.
    pub(super) fn can_reopen(&self, socket: &Connection) -> bool {
        is_connected(socket.state) && self.other(socket).is_some_and(|other| is_connected(other.state))
    }

    /// The state of the other side, if it is a part of the tree or was closed by all that had it.
    pub(super) fn other_state(&self, socket: &Connection) -> Option<u32> {
        let closed = socket.state == CLOSE_WAIT && socket.local.0 == socket.remote.0;
        self.other(socket).map(|other| other.state).or(closed.then_some(FIN_WAIT))
    }
}

/// States, as the kernel numbers them.
pub(super) const ESTABLISHED: u32 = 1;
const FIN_WAIT: u32 = 4;
pub(super) const FIN_WAIT_2: u32 = 5;
pub(super) const CLOSED: u32 = 7;
pub(super) const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// True of a socket that has sent its FIN, which counts as one byte.
fn has_sent_fin(state: u32) -> bool {
    matches!(state, FIN_WAIT | FIN_WAIT_2 | LAST_ACK | CLOSING)
}

fn has_received_fin(state: u32) -> bool {
    matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// True of a socket that was connected, and that data or a FIN can still reach.
fn is_connected(state: u32) -> bool {
    state == ESTABLISHED || has_sent_fin(state) || has_received_fin(state)
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
            let confirmed = sender.end(sent).wrapping_sub(sent.outq_len);
            let count = confirmed.wrapping_sub(receiver.next(received));
            // The numbers wrap around: in the upper half, the receiver has what the sender keeps.
            let count = if count < 1 << 31 { count } else { 0 };
            (count > 0).then_some(Missed { inode: receiver.inode, known: received.inq_len, count })
        });
        Ok(missed.collect())
    }

    /// The ports of this machine that the TCP sockets of the tree have.
    pub(crate) fn tcp_ports(&self) -> Result<HashSet<u16>> {
        const TCP: u32 = 6;
        let mut ports = HashSet::new();
        self.each("files.img", |file: FileEntry| {
            let socket = file.isk.filter(|socket| socket.proto == TCP && socket.src_port > 0);
            ports.extend(socket.and_then(|socket| u16::try_from(socket.src_port).ok()));
        })?;
        Ok(ports)
    }

    /// The TCP connections of which the tree has both ends, each from either end.
    pub(crate) fn inner_connections(&self) -> Result<Vec<[SocketAddrV6; 2]>> {
        let connections = Connections::read(self)?;
        let inner = connections.sockets.iter().filter(|socket| connections.other(socket).is_some());
        let ends =
            inner.filter_map(|socket| Some([socket_address(socket.local)?, socket_address(socket.remote)?]));
        Ok(ends.collect())
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

    /// Connections within the tree that would lack data.
    pub(crate) fn missed_beyond_restore(&self) -> Result<Option<String>> {
        let count = self.missed()?.len();
        let words = format!("{count} TCP connections within the tree received data while criu dumped them");
        Ok((count > 0).then_some(words))
    }
}
