//! Sockets: their protocols and their peers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::CString,
    thread,
    time::Duration,
};

use super::{
    Obstacle, Process, Severity, View, bound,
    descriptor::Descriptor,
    unix::{self, Peers},
};
use crate::{
    Version,
    procfs::{TcpLine, each_line},
    sys,
};

/// The tree's sockets, by inode, with their descriptors.
#[derive(Default)]
pub(super) struct Sockets {
    known: BTreeMap<u64, Vec<Descriptor>>,
}

impl Sockets {
    pub(super) fn add(&mut self, inode: u64, descriptor: Descriptor) {
        self.known.entry(inode).or_default().push(descriptor);
    }

    pub(super) fn look(self, view: &mut View<'_>) {
        if self.known.is_empty() {
            return;
        }
        let streams = Streams::of(view, &self.known);
        let corked = corked(view, &self.known);
        let unread = unread_messages(view);
        let peers = self.has_unix().then(|| Peers::ask(&self.known.keys().copied().collect()));
        for (inode, descriptors) in &self.known {
            let obstacle = streams.obstacle(view, *inode);
            let obstacle = obstacle.or_else(|| corked.contains(inode).then_some(Obstacle::CorkedSocket));
            let obstacle = obstacle.or_else(|| unread.contains(inode).then_some(Obstacle::NetlinkUnread));
            let obstacle = obstacle.map(|obstacle| (obstacle, Severity::Blocks));
            let obstacle = obstacle.or_else(|| unsupported(view, descriptors));
            let obstacle = obstacle.or_else(|| in_flight(peers.as_ref()?.as_ref()?, *inode));
            let obstacle = obstacle.or_else(|| Some((bound::obstacle(&descriptors[0])?, Severity::Blocks)));
            let obstacle = obstacle.or_else(|| outside(view, peers.as_ref()?.as_ref()?, *inode));
            let Some((obstacle, severity)) = obstacle else { continue };
            for descriptor in descriptors {
                view.found(descriptor.pid, descriptor.place(), obstacle.clone(), severity);
            }
        }
    }

    fn has_unix(&self) -> bool {
        self.known
            .values()
            .any(|descriptors| protocol(&descriptors[0]).is_none_or(|name| name.starts_with("UNIX")))
    }
}

/// Returns the kernel's name of a socket's protocol.
fn protocol(descriptor: &Descriptor) -> Option<String> {
    sys::socket_protocol(&CString::new(descriptor.path()).ok()?).ok()
}

fn unsupported(view: &View<'_>, descriptors: &[Descriptor]) -> Option<(Obstacle, Severity)> {
    const SUPPORTED: [&str; 13] = [
        "TCP",
        "TCPv6",
        "UDP",
        "UDPv6",
        "UDP-Lite",
        "UDPLITEv6",
        "UDPLite",
        "RAW",
        "RAWv6",
        "UNIX",
        "UNIX-STREAM",
        "NETLINK",
        "PACKET",
    ];
    let protocol = protocol(&descriptors[0]).filter(|name| !SUPPORTED.contains(&name.as_str()))?;
    let severity = match protocol.as_str() {
        "PING" | "PINGv6" => match (view.version)() {
            Some(version) if version >= Version::new(4, 2, 0) => return None,
            Some(_) => Severity::Blocks,
            None => Severity::Risk,
        },
        _ => Severity::Blocks,
    };
    Some((Obstacle::UnsupportedSocket { protocol }, severity))
}

/// Returns the obstacle of a unix socket, judged by its peer.
fn outside(view: &View<'_>, peers: &Peers, inode: u64) -> Option<(Obstacle, Severity)> {
    let severity = match peers.of(inode) {
        unix::Peer::None | unix::Peer::Inside => return None,
        unix::Peer::Outside => Severity::Blocks,
        // criu dumps a connection that was never accepted, but cannot restore one to an outside
        // process.
        unix::Peer::Waiting => Severity::Risk,
    };
    let is_allowed = view.is_external(&format!("unix[{inode}]"))
        || view.options.ext_unix_sk == Some(true) && peers.can_reconnect(inode);
    (!is_allowed).then_some((Obstacle::UnixOutside { inode }, severity))
}

/// Returns the obstacle of a unix socket with connections that were not accepted yet.
fn in_flight(peers: &Peers, inode: u64) -> Option<(Obstacle, Severity)> {
    let severity = if peers.in_flight(inode)? { Severity::Blocks } else { Severity::Risk };
    Some((Obstacle::UnixInFlight, severity))
}

/// Returns the netlink sockets with unread messages.
fn unread_messages(view: &View<'_>) -> HashSet<u64> {
    let (mut unread, mut seen) = (HashSet::new(), HashSet::new());
    for Process { pid, .. } in view.living().filter(|process| seen.insert(process.spaces.inode("net"))) {
        each_line(format!("/proc/{pid}/net/netlink"), |line| unread.extend(with_messages(line)));
    }
    unread
}

/// Returns the inode in a line of `/proc/net/netlink`, if messages wait in the socket.
fn with_messages(line: &str) -> Option<u64> {
    let mut words = line.split_ascii_whitespace().skip(4);
    let memory: u64 = words.next()?.parse().ok()?;
    let inode = words.last()?.parse().ok()?;
    (memory > 0).then_some(inode)
}

/// Returns the UDP sockets that hold a datagram back. A datagram that is being sent is soon gone.
fn corked(view: &View<'_>, known: &BTreeMap<u64, Vec<Descriptor>>) -> HashSet<u64> {
    const ON_ITS_WAY: Duration = Duration::from_millis(20);
    let first = unsent(view, known);
    if first.is_empty() {
        return first;
    }
    thread::sleep(ON_ITS_WAY);
    unsent(view, known).intersection(&first).copied().collect()
}

/// Returns the UDP sockets with an unsent datagram.
fn unsent(view: &View<'_>, known: &BTreeMap<u64, Vec<Descriptor>>) -> HashSet<u64> {
    let mut unsent = HashSet::new();
    each_socket(view, &["udp", "udp6", "udplite", "udplite6"], |line| {
        if line.unsent > 0 && known.contains_key(&line.inode) {
            unsent.insert(line.inode);
        }
    });
    unsent
}

/// Calls `look` for the lines of these tables, once for each network namespace.
fn each_socket(view: &View<'_>, tables: &[&str], mut look: impl FnMut(TcpLine)) {
    let mut seen = HashSet::new();
    for Process { pid, .. } in view.living().filter(|process| seen.insert(process.spaces.inode("net"))) {
        for table in tables {
            each_line(format!("/proc/{pid}/net/{table}"), |line| {
                TcpLine::parse(line).into_iter().for_each(&mut look);
            });
        }
    }
}

/// The states of the tree's TCP sockets.
struct Streams {
    lines: HashMap<u64, TcpLine>,
}

impl Streams {
    fn of(view: &View<'_>, known: &BTreeMap<u64, Vec<Descriptor>>) -> Streams {
        let mut lines = HashMap::new();
        each_socket(view, &["tcp", "tcp6"], |line| {
            if known.contains_key(&line.inode) {
                lines.insert(line.inode, line);
            }
        });
        Streams { lines }
    }

    fn obstacle(&self, view: &View<'_>, inode: u64) -> Option<Obstacle> {
        let options = view.options;
        let carried = options.tcp_established == Some(true) || options.tcp_close == Some(true);
        let line = self.lines.get(&inode)?;
        match line.state {
            TcpLine::LISTENING if line.waiting == 0 || options.tcp_skip_in_flight == Some(true) => None,
            TcpLine::LISTENING => Some(Obstacle::TcpInFlight),
            TcpLine::CLOSED => None,
            _ if carried => None,
            _ => Some(Obstacle::Tcp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_wait_are_read_from_the_table() {
        let line = |memory| format!("ffff8881 15  4711 00000001 {memory} 0 0 2 0 20557908");
        assert_eq!(with_messages(&line(768)), Some(20557908));
        for other in [&line(0), "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode", ""] {
            assert_eq!(with_messages(other), None);
        }
    }
}
