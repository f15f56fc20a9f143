//! Options of sockets that criu does not carry along: read while the tree stands still, and set
//! before a revived tree runs.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::Path,
};

use super::{Frozen, settings::inner_number};
use crate::{
    Result,
    image::ImageDir,
    preflight::Bound,
    proto::images::{OptionNote, SocketNotes},
    sys,
};

/// The most notes of one tree. Sockets beyond these come back without their options.
const MOST: usize = 20_000;

/// Reads the options of each socket that are not as in a new one.
pub(super) fn look(tree: &Frozen) -> Vec<SocketNotes> {
    let mut new = HashMap::new();
    let (mut seen, mut notes) = (HashSet::new(), Vec::new());
    let mut streams = HashSet::new();
    for file in tree.files.iter().filter(|file| file.fd <= 2) {
        streams.extend(file.inode_of("socket")); // a restore may put others in their place
    }
    for file in &tree.files {
        let Some(inode) = file.inode_of("socket") else { continue };
        if streams.contains(&inode) || !seen.insert(inode) || notes.len() >= MOST {
            continue;
        }
        let numbers = [inner_number(file.pid), Some(file.fd)].map(|number| u32::try_from(number?).ok());
        let [Some(pid), Some(descriptor)] = numbers else { continue };
        let Ok(socket) = descriptor_of(file.pid, file.fd) else { continue };
        let Ok(Kind { domain, kind, protocol }) = Kind::of(&socket) else { continue };
        let usual = new.entry((domain, kind, protocol)).or_insert_with(|| usual(domain, kind, protocol));
        let listens = sys::option(&socket, LISTENS).is_ok_and(|value| value.iter().any(|byte| *byte != 0));
        let is_wanted = |option: &(i32, i32)| match kind {
            libc::SOCK_STREAM if OF_DATAGRAMS.contains(option) => false,
            _ => listens || !OF_LISTENERS.contains(option),
        };
        let wanted = options(domain).filter(is_wanted);
        let read = wanted.filter_map(|option| Some((option, sys::option(&socket, option).ok()?)));
        let unusual = read.filter(|(option, value)| usual.get(option).is_some_and(|usual| usual != value));
        let options: Vec<_> = unusual.map(|(option, value)| noted(option, value)).collect();
        if !options.is_empty() {
            let [domain, kind] = [domain, kind].map(i32::unsigned_abs);
            notes.push(SocketNotes { pid, descriptor, domain, kind, options });
        }
    }
    notes
}

/// Gives sockets whose files were renamed the present paths, in the images.
pub(super) fn follow(tree: &Frozen, images: &ImageDir) -> Result<()> {
    let mut seen = HashSet::new();
    let new =
        tree.files.iter().filter(|file| file.inode_of("socket").is_some_and(|inode| seen.insert(inode)));
    let moved = new.filter_map(|file| {
        let inode = u32::try_from(file.inode_of("socket")?).ok()?;
        let bound = Bound::of(&descriptor_of(file.pid, file.fd).ok()?)?;
        // In another root folder, paths mean something else.
        let root = fs::read_link(format!("/proc/{}/root", file.pid)).ok()?;
        (root == Path::new("/") && bound.has_moved()).then(|| (inode, bound.path.into_os_string().into_vec()))
    });
    images.move_sockets(&moved.collect())
}

/// Sets the noted options of a socket that a restored process has.
pub(in crate::platform) fn set(process: i32, note: &SocketNotes) -> io::Result<()> {
    let Ok(descriptor) = i32::try_from(note.descriptor) else { return Ok(()) };
    let socket = descriptor_of(process, descriptor)?;
    let found = Kind::of(&socket)?;
    if (found.domain.unsigned_abs(), found.kind.unsigned_abs()) != (note.domain, note.kind) {
        return Ok(()); // the caller has put another in its place
    }
    const PRIORITY: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PRIORITY);
    let priority = sys::option(&socket, PRIORITY);
    let mut failed = Ok(());
    for option in &note.options {
        let [Ok(level), Ok(name)] = [option.level, option.name].map(i32::try_from) else { continue };
        let known = options(found.domain).any(|known| known == (level, name));
        let is_set = || sys::option(&socket, (level, name)).is_ok_and(|value| value == option.value);
        if known && !is_set() {
            let set = sys::set_option(&socket, (level, name), &option.value);
            // What cannot be set on this kind of socket followed from something else.
            let set = set.or_else(|error| match error.raw_os_error() {
                Some(libc::ENOPROTOOPT) => Ok(()),
                _ => Err(io::Error::other(format!("option {name} of level {level}: {error}"))),
            });
            failed = failed.and(set);
        }
    }
    // IP_TOS has set this as well.
    if let Ok(priority) = priority {
        failed = failed.and(sys::set_option(&socket, PRIORITY, &priority));
    }
    failed
}

/// Returns a descriptor of our own for the open file behind that of a process.
pub(in crate::platform) fn descriptor_of(pid: i32, descriptor: i32) -> io::Result<OwnedFd> {
    sys::take_descriptor(sys::pidfd_open(pid)?, descriptor)
}

fn noted((level, name): (i32, i32), value: Vec<u8>) -> OptionNote {
    OptionNote { level: level.unsigned_abs(), name: name.unsigned_abs(), value }
}

/// The kind of a socket.
pub(super) struct Kind {
    pub(super) domain: i32,
    pub(super) kind: i32,
    pub(super) protocol: i32,
}

impl Kind {
    pub(super) fn of(socket: &OwnedFd) -> io::Result<Kind> {
        let ask = |name| {
            let value = sys::option(socket, (libc::SOL_SOCKET, name))?;
            value.try_into().map(i32::from_ne_bytes).map_err(|_| io::ErrorKind::InvalidData.into())
        };
        let number = |name| -> io::Result<i32> { ask(name) };
        Ok(Kind {
            domain: number(libc::SO_DOMAIN)?,
            kind: number(libc::SO_TYPE)?,
            protocol: number(libc::SO_PROTOCOL)?,
        })
    }
}

/// The options of a new socket.
fn usual(domain: i32, kind: i32, protocol: i32) -> HashMap<(i32, i32), Vec<u8>> {
    let Ok(socket) = sys::new_socket(domain, kind, protocol) else { return HashMap::new() };
    options(domain).filter_map(|option| Some((option, sys::option(&socket, option).ok()?))).collect()
}

/// The options that criu passes over, and that are set as they are read, for sockets of this
/// domain.
fn options(domain: i32) -> impl Iterator<Item = (i32, i32)> {
    let levels: &[_] = match domain {
        libc::AF_INET => &[GENERAL, IP, TCP, UDP],
        libc::AF_INET6 => &[GENERAL, IP, IPV6, TCP, UDP],
        libc::AF_NETLINK => &[GENERAL, NETLINK],
        _ => &[GENERAL],
    };
    levels.iter().flat_map(|(level, names)| names.iter().map(|name| (*level, *name)))
}

/// SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, which may be off while criu reads the sockets.
/// SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_RXQ_OVFL, SO_WIFI_STATUS, SO_PEEK_OFF,
/// SO_NOFCS, SO_SELECT_ERR_QUEUE, SO_BUSY_POLL, SO_MAX_PACING_RATE, SO_PREFER_BUSY_POLL,
/// SO_RESERVE_MEM, SO_TXREHASH, SO_RCVMARK, SO_RCVPRIORITY.
const GENERAL: (i32, &[i32]) = (1, &[16, 34, 76, 29, 35, 37, 40, 41, 42, 43, 45, 46, 47, 69, 73, 74, 75, 82]);
/// IP_TOS, IP_TTL, IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL,
/// IP_RECVTOS, IP_FREEBIND, IP_PASSSEC, IP_TRANSPARENT, IP_ORIGDSTADDR, IP_MINTTL, IP_NODEFRAG,
/// IP_CHECKSUM, IP_BIND_ADDRESS_NO_PORT, IP_RECVFRAGSIZE, IP_RECVERR_RFC4884, IP_MULTICAST_IF,
/// IP_MULTICAST_TTL, IP_MULTICAST_LOOP, IP_MULTICAST_ALL, IP_LOCAL_PORT_RANGE.
const IP: (i32, &[i32]) =
    (0, &[1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 32, 33, 34, 49, 51]);
/// Those that a stream has from a packet that it received, and that cannot be set on one:
/// IP_MULTICAST_IF, IP_MULTICAST_TTL, IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS.
const OF_DATAGRAMS: [(i32, i32); 4] = [(0, 32), (0, 33), (41, 17), (41, 18)];
const LISTENS: (i32, i32) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
/// Those that mean nothing, or something else, where a connection was made: TCP_MAXSEG,
/// TCP_FASTOPEN.
const OF_LISTENERS: [(i32, i32); 2] = [(6, 2), (6, 23)];
/// TCP_MAXSEG, TCP_SYNCNT, TCP_LINGER2, TCP_DEFER_ACCEPT, TCP_CONGESTION, TCP_THIN_LINEAR_TIMEOUTS,
/// TCP_USER_TIMEOUT, TCP_FASTOPEN, TCP_NOTSENT_LOWAT, TCP_FASTOPEN_NO_COOKIE,
/// TCP_INQ, TCP_TX_DELAY.
const TCP: (i32, &[i32]) = (6, &[2, 7, 8, 9, 13, 16, 18, 23, 25, 34, 36, 37]);
/// UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX, UDP_SEGMENT, UDP_GRO.
const UDP: (i32, &[i32]) = (17, &[101, 102, 103, 104]);
/// IPV6_ADDRFORM apart: IPV6_CHECKSUM, IPV6_UNICAST_HOPS, IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS,
/// IPV6_MULTICAST_LOOP, IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_MULTICAST_ALL, IPV6_RECVERR_RFC4884,
/// IPV6_FLOWINFO_SEND, IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVHOPOPTS, IPV6_RECVRTHDR,
/// IPV6_RECVDSTOPTS, IPV6_RECVPATHMTU, IPV6_DONTFRAG, IPV6_RECVTCLASS, IPV6_TCLASS,
/// IPV6_AUTOFLOWLABEL, IPV6_ADDR_PREFERENCES, IPV6_MINHOPCOUNT, IPV6_RECVORIGDSTADDR,
/// IPV6_TRANSPARENT, IPV6_RECVFRAGSIZE, IPV6_FREEBIND.
const IPV6: (i32, &[i32]) = (
    41,
    &[
        7, 16, 17, 18, 19, 23, 25, 29, 31, 33, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 77,
        78, 8,
    ],
);
/// NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_EXT_ACK,
/// NETLINK_GET_STRICT_CHK.
const NETLINK: (i32, &[i32]) = (270, &[3, 4, 5, 10, 11, 12]);
