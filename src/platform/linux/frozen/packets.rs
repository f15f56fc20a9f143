//! Empty packets that wait in unix sockets (SOCK_SEQPACKET, SOCK_DGRAM).
//!
//! criu takes an empty packet for the end of a queue, and writes down neither that nor what follows. But the kernel
//! passes over an empty packet that was looked at, where the reader keeps an offset (SO_PEEK_OFF), as criu does. So
//! these are looked at before criu comes, which then writes down all others; and then they are added to the images. A
//! queue of datagrams that begins with an empty one criu takes for an empty queue, so all of it is added.

use std::{
    collections::HashSet,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg, send,
            socketpair,
        },
        stat::fstat,
    },
};

use super::{
    Frozen,
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

/// A queue with an empty packet, and a process that has its socket.
pub(super) struct Found {
    pid: i32,
    queue: Queue,
    /// What cannot be added to the images.
    lost: Option<&'static str>,
}

/// Finds the queues with empty packets, and has the kernel pass over these from now on.
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
    let passed_over = if waiting.is_empty() { Vec::new() } else { passed_over(tree, &waiting) };
    waiting.iter().zip(passed_over).filter_map(|(waiting, count)| waiting.found(count)).collect()
}

/// Adds the empty packets to the images, and tells of those that cannot be added.
pub(super) fn complete(found: &[Found], images: &ImageDir) -> Result<Vec<Warning>> {
    let queues: Vec<&Queue> = found.iter().map(|found| &found.queue).collect();
    let missed = images.add_empty_packets(&queues)?;
    let lost = found.iter().filter_map(|Found { pid, queue, lost }| {
        let missed = missed.contains(&queue.inode);
        let what = if missed {
            Some("empty packets that wait in a unix socket, and what follows them")
        } else {
            *lost
        };
        Some(Warning::Lost { pid: Pid::from(*pid), what: what? })
    });
    Ok(lost.collect())
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
    /// What is to be added to the images, with so many empty packets that the kernel has passed over.
    fn found(&self, passed_over: usize) -> Option<Found> {
        let is_empty = |packet: &&Packet| packet.length == 0;
        let empty = self.packets.iter().filter(is_empty).count();
        if empty + passed_over == 0 {
            return None;
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
        Some(Found { pid: self.pid, queue, lost })
    }
}

/// The number of empty packets in each queue that were looked at before, at an earlier capture or by the program, and that
/// no look finds. But the kernel tells how much memory the sender's packets take, and as much is taken by equal ones.
fn passed_over(tree: &Frozen, waiting: &[Waiting]) -> Vec<usize> {
    let twins = waiting.iter().map(|waiting| {
        let all = Twin::of(waiting.kind, &waiting.packets)?;
        let one = Twin::of(waiting.kind, &[Packet { length: 0, carries: false }])?;
        Ok::<_, io::Error>((all, one))
    });
    let twins: Vec<_> = twins.map(Result::ok).collect();
    let mut asked: HashSet<u64> = tree.files.iter().filter_map(|file| file.inode_of("socket")).collect();
    asked.extend(twins.iter().flatten().flat_map(|(all, one)| [all.sender, one.sender]));
    let Some(peers) = Peers::ask(&asked) else { return vec![0; waiting.len()] };
    let count = |waiting: &Waiting, (all, one): &(Twin, Twin)| {
        let receiver = u64::from(waiting.inode);
        let sender = peers.other_end(receiver)?;
        if peers.other_end(sender) != Some(receiver) {
            return None; // it may send elsewhere, and others may send here
        }
        let more = peers.unread_of(sender)?.checked_sub(peers.unread_of(all.sender)?)?;
        let size = peers.unread_of(one.sender).filter(|size| *size > 0)?;
        usize::try_from(if more % size == 0 { more / size } else { 0 }).ok()
    };
    let counts = waiting.iter().zip(&twins).map(|(waiting, twin)| count(waiting, twin.as_ref()?));
    counts.map(|count| count.unwrap_or(0)).collect()
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

/// What is known of a packet without its contents.
struct Packet {
    length: usize,
    /// True if it has descriptors or credentials.
    carries: bool,
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

/// Looks at each packet once, which marks the empty ones. One that was marked before is seen only if it is the first.
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

/// Looks at a packet; `None` if there is no other. In a socket that `ended` each packet has credentials, for which
/// there is room, so that no descriptor can come with it.
fn peek(socket: &OwnedFd, buffer: &mut [u8], ended: bool) -> io::Result<Option<Packet>> {
    let mut room = cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    let got = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, ended.then_some(&mut room), flags) {
        Ok(got) => got,
        Err(nix::Error::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let carries = got.flags.contains(MsgFlags::MSG_CTRUNC);
    let credentials = |message| matches!(message, ControlMessageOwned::ScmCredentials(_));
    let is_packet = !ended || carries || got.cmsgs()?.any(credentials);
    Ok(is_packet.then_some(Packet { length: got.bytes, carries }))
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
