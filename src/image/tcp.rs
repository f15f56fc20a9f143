//! TCP connections in the images, and making those within a tree restorable.
//!
//! criu sends what a program had written and the kernel had not sent, while it restores the socket. Within a tree the
//! other side is not there by then, or has no room, and the restore fails. As data that was sent and lost on the way,
//! it stays in the queue, and the kernel sends it again once both sides are there. That was seen to work for queues of a
//! few MiB, unless both sides had closed the connection.

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
const CLOSE_WAIT: u32 = 8;

/// The largest queue whose data is sent again, in bytes. It is what Linux lets a socket have by itself.
const MOST_UNSENT: u32 = 4 << 20;

/// A connection within the tree that has data which the other side has not taken. What of it was sent says little: an
/// earlier dump, which the tree survived, may have the kernel take it all for sent.
struct Unsent {
    image: String,
    stream: TcpStreamEntry,
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
