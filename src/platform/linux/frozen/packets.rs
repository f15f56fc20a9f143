//! Empty packets that wait in unix sockets (SOCK_SEQPACKET, SOCK_DGRAM).
//!
//! criu takes an empty packet for the end of a queue, and writes down neither that nor what
//! follows. But the kernel passes over an empty packet that was looked at, where the reader keeps
//! an offset (SO_PEEK_OFF), as criu does. So these are looked at before criu comes, which then
//! writes down all others; and then they are added to the images. A queue of datagrams that begins
//! with an empty one criu takes for an empty queue, so all of it is added.

use std::{
    collections::HashSet,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getsockname, send, socketpair},
        stat::fstat,
    },
};

use super::{
    Frozen, OpenFile,
    sockets::{Kind, descriptor_of},
};
use crate::{
    Pid, Result, Warning,
    image::{ImageDir, Queue},
    preflight::Peers,
    sys,
};

const PEEK_OFFSET: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
const CREDENTIALS: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PASSCRED);

/// Contents of a socket that criu does not write down, and a process that has the socket.
pub(super) struct Found {
    pid: i32,
    /// The queue, if it has empty packets.
    queue: Option<Queue>,
    /// Contents that cannot be added to the images.
    lost: Vec<&'static str>,
}

/// Finds the queues with empty packets, and has the kernel pass over these from now on. Finds the
/// datagrams that will come from another sender: criu sends all that wait in a socket from one that
/// is connected to it, or from a new one.
pub(super) fn look(tree: &Frozen) -> Vec<Found> {
    let mut seen = HashSet::new();
    let waiting = tree.files.iter().filter_map(|file| {
        let inode = u32::try_from(file.inode_of("socket")?).ok()?;
        let socket = if seen.insert(inode) { descriptor_of(file.pid, file.fd).ok()? } else { return None };
        let Kind { domain, kind, .. } = Kind::of(&socket).ok()?;
        let kind = match kind {
            libc::SOCK_SEQPACKET => SockType::SeqPacket,
            libc::SOCK_DGRAM => SockType::Datagram,
            _ => return None,
        };
        let packets = if domain == libc::AF_UNIX { waiting(&socket)? } else { return None };
        Some(Waiting { pid: file.pid, inode, socket, kind, packets })
    });
    let waiting: Vec<Waiting> = waiting.collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let twins: Vec<Option<Twins>> = waiting.iter().map(|waiting| Twins::of(waiting).ok()).collect();
    let mut asked: HashSet<u64> = tree.files.iter().filter_map(|file| file.inode_of("socket")).collect();
    asked.extend(twins.iter().flatten().flat_map(|twins| [twins.all.sender, twins.one.sender]));
    let peers = Peers::ask(&asked).unwrap_or_default();
    let found = waiting.iter().zip(&twins).filter_map(|(waiting, twins)| {
        let passed_over = twins.as_ref().and_then(|twins| waiting.passed_over(twins, &peers));
        let mut found = waiting.found(passed_over.unwrap_or(0));
        if waiting.changes_senders(tree, &peers) {
            found.lost.push("addresses of the senders of datagrams that wait in a unix socket");
        }
        (found.queue.is_some() || !found.lost.is_empty()).then_some(found)
    });
    found.collect()
}

/// Adds the empty packets to the images, and tells of those that cannot be added.
pub(super) fn complete(found: &[Found], images: &ImageDir) -> Result<Vec<Warning>> {
    let queues: Vec<&Queue> = found.iter().filter_map(|found| found.queue.as_ref()).collect();
    let missed = images.add_empty_packets(&queues)?;
    let mut warnings = Vec::new();
    for Found { pid, queue, lost } in found {
        let is_missed = queue.as_ref().is_some_and(|queue| missed.contains(&queue.inode));
        let missed = is_missed.then_some("empty packets that wait in a unix socket, and what follows them");
        let lost = lost.iter().copied().chain(missed);
        warnings.extend(lost.map(|what| Warning::Lost { pid: Pid::from(*pid), what }));
    }
    Ok(warnings)
}

/// A socket in which packets wait.
struct Waiting {
    pid: i32,
    inode: u32,
    socket: OwnedFd,
    kind: SockType,
    packets: Vec<Packet>,
}

impl Waiting {
    /// Returns what is to be added to the images. `passed_over` is the number of empty packets that
    /// the kernel has passed over.
    fn found(&self, passed_over: usize) -> Found {
        let is_empty = |packet: &&Packet| packet.length == 0;
        let empty = self.packets.iter().filter(is_empty).count();
        if empty + passed_over == 0 {
            return Found { pid: self.pid, queue: None, lost: Vec::new() };
        }
        let all_empty = empty == self.packets.len();
        let mut queue = Queue { inode: self.inode, ..Queue::default() };
        queue.others_carry = self.packets.iter().any(|packet| packet.carries && packet.length > 0);
        let read = read(&self.socket, &self.packets);
        let lost = if read.is_err() {
            Some("packets that wait in a unix socket")
        } else if self.packets.iter().filter(is_empty).any(|packet| packet.carries) {
            Some("descriptors and credentials that wait in a unix socket with an empty packet")
        } else if passed_over > 0 && !all_empty {
            Some("empty packets that wait in a unix socket and were looked at before")
        } else {
            None
        };
        queue.packets = read.unwrap_or_default();
        if all_empty {
            queue.packets.resize(empty + passed_over, Vec::new());
        }
        Found { pid: self.pid, queue: Some(queue), lost: lost.into_iter().collect() }
    }

    /// The number of empty packets that were looked at before, at an earlier capture or by the
    /// program, and that no look finds. But the kernel tells how much memory the sender's packets
    /// take, and as much is taken by equal ones.
    fn passed_over(&self, twins: &Twins, peers: &Peers) -> Option<usize> {
        let receiver = u64::from(self.inode);
        let sender = peers.other_end(receiver)?;
        if peers.other_end(sender) != Some(receiver) {
            return None; // it may send elsewhere, and others may send here
        }
        let more = peers.unread_of(sender)?.checked_sub(peers.unread_of(twins.all.sender)?)?;
        let size = peers.unread_of(twins.one.sender).filter(|size| *size > 0)?;
        usize::try_from(if more % size == 0 { more / size } else { 0 }).ok()
    }

    /// Returns true if the addresses of the senders may be others in what criu restores.
    fn changes_senders(&self, tree: &Frozen, peers: &Peers) -> bool {
        let receiver = Some(u64::from(self.inode));
        let connected = tree
            .files
            .iter()
            .filter(|file| file.inode_of("socket").and_then(|inode| peers.other_end(inode)) == receiver);
        let mut senders: HashSet<Option<Vec<u8>>> = connected.map(name_of).collect();
        if senders.is_empty() {
            senders.insert(None);
        }
        senders.extend(self.packets.iter().map(|packet| packet.from.clone()));
        self.kind == SockType::Datagram && senders.len() > 1
    }
}

/// The name in an address, if it has one. That of a file ends with a zero, and another begins with
/// one.
fn named(name: &[u8]) -> Option<Vec<u8>> {
    let name = if name.first() == Some(&0) { name } else { name.strip_suffix(&[0]).unwrap_or(name) };
    (!name.is_empty()).then(|| name.to_vec())
}

/// The name of a socket.
fn name_of(file: &OpenFile) -> Option<Vec<u8>> {
    let socket = descriptor_of(file.pid, file.fd).ok()?;
    let address: UnixAddr = getsockname(socket.as_raw_fd()).ok()?;
    match address.as_abstract() {
        Some(name) => Some([&[0], name].concat()),
        None => named(address.path()?.as_os_str().as_bytes()),
    }
}

/// As many packets as wait in a socket, and one that is empty.
struct Twins {
    all: Twin,
    one: Twin,
}

impl Twins {
    fn of(waiting: &Waiting) -> io::Result<Twins> {
        let all = Twin::of(waiting.kind, &waiting.packets)?;
        let one = Twin::of(waiting.kind, &[Packet { length: 0, carries: false, from: None }])?;
        Ok(Twins { all, one })
    }
}

/// A pair of sockets in which packets wait that have the same lengths as others.
struct Twin {
    /// The inode.
    sender: u64,
    _ends: (OwnedFd, OwnedFd),
}

impl Twin {
    fn of(kind: SockType, packets: &[Packet]) -> io::Result<Twin> {
        const ROOM: (i32, i32) = (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);
        let ends = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        sys::set_option(&ends.0, ROOM, &(i32::MAX / 2).to_ne_bytes())?;
        let zeros = vec![0; packets.iter().map(|packet| packet.length).max().unwrap_or(0)];
        for packet in packets {
            send(ends.0.as_raw_fd(), &zeros[..packet.length], MsgFlags::MSG_DONTWAIT)?;
        }
        Ok(Twin { sender: fstat(&ends.0)?.st_ino, _ends: ends })
    }
}

/// A packet without its contents.
struct Packet {
    length: usize,
    /// True if it has descriptors or credentials.
    carries: bool,
    /// The name of the sender's socket, if it has one.
    from: Option<Vec<u8>>,
}

/// The packets that wait in a socket, which stays as it was; `None` if there is nothing to read.
fn waiting(socket: &OwnedFd) -> Option<Vec<Packet>> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN | hangup())];
    if poll(&mut asked, PollTimeout::ZERO).ok()? == 0 {
        return None;
    }
    // A socket that ended reads as an empty packet for ever. Only a packet has credentials.
    let ended = asked[0].revents().is_none_or(|seen| seen.contains(hangup()));
    let told = sys::option(socket, CREDENTIALS).ok()?;
    let tells = told.iter().any(|byte| *byte != 0);
    let look = || match ended {
        false => walk(socket, tells, false),
        true => with(socket, CREDENTIALS, || {
            sys::set_option(socket, CREDENTIALS, &1_i32.to_ne_bytes())?;
            walk(socket, tells, true)
        }),
    };
    with(socket, PEEK_OFFSET, look).ok()
}

/// Reads these packets, and leaves them there.
fn read(socket: &OwnedFd, packets: &[Packet]) -> io::Result<Vec<Vec<u8>>> {
    with(socket, PEEK_OFFSET, || {
        let mut at = 0;
        let read = |packet: &Packet| {
            let mut bytes = vec![0; packet.length];
            if packet.length > 0 {
                begin_at(socket, at)?;
                let got = peek(socket, &mut bytes, false)?;
                if got.is_none_or(|got| got.length != packet.length) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            at += packet.length;
            Ok(bytes)
        };
        packets.iter().map(read).collect()
    })
}

/// Looks at each packet once, which marks the empty ones. One that was marked before is seen only
/// if it is the first.
fn walk(socket: &OwnedFd, tells: bool, ended: bool) -> io::Result<Vec<Packet>> {
    sys::set_option(socket, PEEK_OFFSET, &(-1_i32).to_ne_bytes())?;
    let mut packets: Vec<Packet> = Vec::new();
    packets.extend(peek(socket, &mut [], ended)?.filter(|first| first.length == 0));
    let mut at = 0;
    begin_at(socket, at)?;
    while let Some(packet) = peek(socket, &mut [], ended)? {
        at += packet.length;
        begin_at(socket, at)?;
        packets.push(packet);
    }
    for packet in &mut packets {
        packet.carries |= tells;
    }
    Ok(packets)
}

/// Has the next look pass over so many bytes.
fn begin_at(socket: &OwnedFd, offset: usize) -> io::Result<()> {
    let offset = i32::try_from(offset).map_err(io::Error::other)?;
    sys::set_option(socket, PEEK_OFFSET, &offset.to_ne_bytes())
}

/// Looks at a packet; `None` if there is no other. In a socket that `ended` each packet has
/// credentials, for which there is room, so that no descriptor can come with it.
fn peek(socket: &OwnedFd, buffer: &mut [u8], ended: bool) -> io::Result<Option<Packet>> {
    match sys::peek_packet(socket, buffer, ended) {
        Ok(seen) => {
            let is_packet = !ended || seen.has_more || seen.has_credentials;
            let from = named(&seen.from);
            Ok(is_packet.then_some(Packet { length: seen.length, carries: seen.has_more, from }))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Does something that changes an option of a socket, and sets that as it was.
fn with<T>(socket: &OwnedFd, option: (i32, i32), work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let was = sys::option(socket, option)?;
    let done = work();
    sys::set_option(socket, option, &was)?;
    done
}

/// The other side, or this one, has ended what can be read.
fn hangup() -> PollFlags {
    PollFlags::from_bits_retain(libc::POLLRDHUP)
}
