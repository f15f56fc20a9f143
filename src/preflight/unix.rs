//! Finds the peers of unix sockets with the kernel's socket diagnosis, over netlink. It covers the
//! caller's network namespace only.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Write},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

/// The unix sockets of the tree, and the sockets around them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    sockets: HashMap<u32, Socket>,
    ours: HashSet<u32>,
    /// Connections that wait for a listener of the tree.
    waiting: HashSet<u32>,
    /// Datagram sockets with a name, in the tree and outside.
    named: HashSet<u32>,
    /// The files of all sockets that other programs can connect to.
    listening: HashSet<SocketFile>,
}

/// The file of a socket: its inode, and the device as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SocketFile {
    inode: u32,
    device: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    inode: u32,
    kind: u8,
    state: u8,
    /// The inode of the peer; 0 if there is no peer.
    peer: Option<u32>,
    /// Closed in both directions.
    shut: bool,
    /// The connections that wait at a listener; 0 for a closed one.
    waiting: Vec<u32>,
    /// Bytes that were sent but not read yet.
    unread: u32,
    named: bool,
    file: Option<SocketFile>,
}

/// The kind of a socket's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The socket has no peer, or is unknown.
    None,
    Inside,
    Outside,
    /// The connection waits to be accepted outside of the tree.
    Waiting,
}

impl Peers {
    /// Asks the kernel about these sockets; `None` if it does not answer.
    pub(crate) fn ask(inodes: &HashSet<u64>) -> Option<Peers> {
        let ours = inodes.iter().filter_map(|inode| u32::try_from(*inode).ok()).collect();
        let mut peers = Peers { ours, ..Peers::default() };
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkSockDiag).ok()?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1)).ok()?;
        let mut socket = File::from(socket);
        socket.write_all(&request()).ok()?;
        let mut buffer = vec![0; 64 << 10]; // the maximum size of the kernel's messages
        loop {
            let count = socket.read(&mut buffer).ok().filter(|count| *count > 0)?;
            match peers.take(&buffer[..count]) {
                Turn::More => {}
                Turn::Done => return Some(peers),
                Turn::Failed => return None,
            }
        }
    }

    pub(crate) fn of(&self, inode: u64) -> Peer {
        let Some(socket) = self.get(inode) else { return Peer::None };
        match socket.peer {
            Some(peer) if self.ours.contains(&peer) => Peer::Inside,
            Some(peer) if peer != 0 => Peer::Outside,
            // No process has the other end: it was closed, or the connection waits to be accepted.
            _ if socket.state != ESTABLISHED || socket.shut || socket.kind == DATAGRAM => Peer::None,
            _ if self.waiting.contains(&socket.inode) => Peer::Inside,
            Some(_) => Peer::Waiting,
            None => Peer::None,
        }
    }

    /// Returns true if the peer is a datagram socket with a name, to which a restore can connect
    /// again.
    pub(super) fn can_reconnect(&self, inode: u64) -> bool {
        self.get(inode)
            .is_some_and(|socket| socket.peer.is_some_and(|peer| peer != 0 && self.named.contains(&peer)))
    }

    /// Returns the problem of connections that were not accepted yet: `Some(true)` if criu refuses
    /// them, `Some(false)` if it leaves them out.
    pub(super) fn in_flight(&self, inode: u64) -> Option<bool> {
        let socket = self.get(inode)?;
        if socket.waiting.contains(&0) {
            return Some(true); // it was closed, maybe after sending data
        }
        let has_peer = socket.peer.is_some_and(|peer| peer != 0);
        let waits = socket.state == ESTABLISHED && socket.kind != DATAGRAM && !socket.shut && !has_peer;
        if waits && socket.unread > 0 {
            return Some(true);
        }
        socket.waiting.iter().any(|client| !self.ours.contains(client)).then_some(false)
    }

    /// Returns the inode of the peer, if there is one.
    pub(crate) fn other_end(&self, inode: u64) -> Option<u64> {
        self.get(inode)?.peer.filter(|peer| *peer != 0).map(u64::from)
    }

    /// The memory of what was sent through a socket and not read yet, in bytes.
    pub(crate) fn unread_of(&self, inode: u64) -> Option<u32> {
        Some(self.get(inode)?.unread)
    }

    /// Returns true if a socket is bound to this file, of this device, and can be connected to.
    pub(crate) fn listens_at(&self, inode: u64, (major, minor): (u64, u64)) -> bool {
        let number = |number: u64| u32::try_from(number).ok();
        let device = major.checked_shl(20).and_then(|major| number(major | minor));
        // The kernel also reports only the lower 32 bits of an inode.
        let inode = number(inode & u64::from(u32::MAX));
        inode
            .zip(device)
            .is_some_and(|(inode, device)| self.listening.contains(&SocketFile { inode, device }))
    }

    fn get(&self, inode: u64) -> Option<&Socket> {
        self.sockets.get(&u32::try_from(inode).ok()?)
    }

    /// Parses the answers of one read.
    fn take(&mut self, mut bytes: &[u8]) -> Turn {
        while let Some(header) = bytes.get(..HEADER) {
            let Ok(length) = usize::try_from(number(&header[..4])) else { return Turn::Failed };
            let Some(message) = bytes.get(HEADER..length) else { return Turn::Failed };
            match u16::from_ne_bytes([header[4], header[5]]) {
                DONE => return Turn::Done,
                ERROR => return Turn::Failed,
                _ => {}
            }
            let Some(socket) = Socket::parse(message) else {
                bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
                continue;
            };
            if socket.named && socket.kind == DATAGRAM {
                self.named.insert(socket.inode);
            }
            if socket.kind == DATAGRAM || socket.state == LISTENING {
                self.listening.extend(socket.file);
            }
            if self.ours.contains(&socket.inode) {
                self.waiting.extend(&socket.waiting);
                self.sockets.insert(socket.inode, socket);
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Turn::More
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    More,
    Done,
    Failed,
}

impl Socket {
    /// Parses a `struct unix_diag_msg` and its attributes.
    fn parse(message: &[u8]) -> Option<Socket> {
        let mut attributes = message.get(16..)?;
        let inode = number(message.get(4..8)?);
        let mut socket = Socket {
            inode,
            kind: message[1],
            state: message[2],
            peer: None,
            shut: false,
            waiting: Vec::new(),
            unread: 0,
            named: false,
            file: None,
        };
        while let Some(header) = attributes.get(..4) {
            let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let value = attributes.get(4..length)?;
            match u16::from_ne_bytes([header[2], header[3]]) {
                PEER => socket.peer = Some(number(value.get(..4)?)),
                WAITING => socket.waiting = value.chunks_exact(4).map(number).collect(),
                NAME => socket.named = true,
                FILE => {
                    let [inode, device] = [number(value.get(..4)?), number(value.get(4..8)?)];
                    socket.file = Some(SocketFile { inode, device });
                }
                QUEUES => socket.unread = number(value.get(4..8)?),
                SHUTDOWN => socket.shut = value.first() == Some(&3),
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(socket)
    }
}

/// Reads four bytes in native order.
fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// Makes a `struct nlmsghdr` and a `struct unix_diag_req` for all unix sockets, with names, files,
/// peers, waiting connections and queues.
fn request() -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const UNIX: u8 = 1;
    const SHOW_NAME_FILE_PEER_WAITING_AND_QUEUES: u32 = 1 | 2 | 4 | 8 | 16;
    let mut request = Vec::new();
    request.extend(40_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence number and port: the kernel fills them in
    request.extend([UNIX, 0, 0, 0]);
    for word in [u32::MAX, 0, SHOW_NAME_FILE_PEER_WAITING_AND_QUEUES, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes()); // states, inode, attributes to show, no cookie
    }
    request
}

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NAME: u16 = 0;
const FILE: u16 = 1;
const PEER: u16 = 2;
const WAITING: u16 = 3;
const QUEUES: u16 = 4;
const SHUTDOWN: u16 = 6;
const ESTABLISHED: u8 = 1;
const LISTENING: u8 = 10;
const DATAGRAM: u8 = 2;

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::MetadataExt, net::UnixStream};

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn socket(inode: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1, 1, ESTABLISHED, 0];
        body.extend(inode.to_ne_bytes());
        body.extend([0; 8]);
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(20, &body)
    }

    fn peers(ours: &[u32]) -> Peers {
        Peers { ours: ours.iter().copied().collect(), ..Peers::default() }
    }

    #[test]
    fn a_peer_is_inside_or_outside_or_gone() {
        let mut peers = peers(&[1, 2, 3, 4, 5, 6]);
        let bytes = [
            socket(1, &[(PEER, &2_u32.to_ne_bytes())]),
            socket(3, &[(PEER, &99_u32.to_ne_bytes()), (SHUTDOWN, &[0])]),
            socket(4, &[(PEER, &[0; 4]), (SHUTDOWN, &[3])]),
            socket(5, &[(PEER, &[0; 4])]),
            socket(6, &[(WAITING, &7_u32.to_ne_bytes())]),
            socket(50, &[(PEER, &1_u32.to_ne_bytes())]),
        ]
        .concat();
        assert_eq!(peers.take(&bytes), Turn::More);
        let found = [1, 2, 3, 4, 5, 6, 50, 1 << 40].map(|inode| peers.of(inode));
        let [none, inside] = [Peer::None, Peer::Inside];
        assert_eq!(found, [inside, none, Peer::Outside, none, Peer::Waiting, none, none, none]);
        peers.waiting.insert(5);
        assert_eq!(peers.of(5), inside);
        assert_eq!(peers.take(&message(DONE, &[0; 4])), Turn::Done);
        assert_eq!(peers.take(&message(ERROR, &[0; 4])), Turn::Failed);
    }

    #[test]
    fn connections_that_wait_are_refused_or_left_out() {
        let mut peers = peers(&[1, 2, 3, 4, 5, 6]);
        let queues = |unread: u32| [0_u32.to_ne_bytes(), unread.to_ne_bytes()].concat();
        let bytes = [
            socket(1, &[(WAITING, &[2_u32.to_ne_bytes(), 3_u32.to_ne_bytes()].concat())]),
            socket(2, &[(QUEUES, &queues(9))]),
            socket(3, &[(QUEUES, &queues(0))]),
            socket(4, &[(WAITING, &[0; 4])]),
            socket(5, &[(WAITING, &99_u32.to_ne_bytes())]),
            socket(6, &[(PEER, &2_u32.to_ne_bytes()), (QUEUES, &queues(9))]),
        ]
        .concat();
        assert_eq!(peers.take(&bytes), Turn::More);
        let found = [1, 2, 3, 4, 5, 6, 99].map(|inode| peers.in_flight(inode));
        assert_eq!(found, [None, Some(true), None, Some(true), Some(false), None, None]);
    }

    #[test]
    fn what_is_cut_short_or_nonsense_harms_nobody() {
        let whole = socket(1, &[(PEER, &2_u32.to_ne_bytes()), (WAITING, &[7; 9])]);
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            peers(&[1]).take(&cut);
            if length >= HEADER {
                cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                peers(&[1]).take(&cut);
            }
        }
        for length in [0_u32, 1, 15, 17, u32::MAX] {
            let mut wrong = whole.clone();
            wrong[..4].copy_from_slice(&length.to_ne_bytes());
            peers(&[1]).take(&wrong);
        }
        for length in [0_u16, 3, 5, u16::MAX] {
            let mut wrong = whole.clone();
            wrong[HEADER + 16..HEADER + 18].copy_from_slice(&length.to_ne_bytes());
            peers(&[1]).take(&wrong);
        }
    }

    #[test]
    fn the_kernel_tells_the_ends_of_a_pair() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |stream: &UnixStream| {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(stream));
            std::fs::metadata(path).unwrap().ino()
        };
        let (one, other) = (inode(&one), inode(&other));
        let Some(peers) = Peers::ask(&HashSet::from([one, other])) else { return };
        assert_eq!((peers.of(one), peers.of(other)), (Peer::Inside, Peer::Inside));
        let peers = Peers::ask(&HashSet::from([one])).unwrap();
        assert_eq!(peers.of(one), Peer::Outside);
    }
}
