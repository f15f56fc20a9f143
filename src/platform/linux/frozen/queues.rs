//! Data that waits in files which come back empty, and terminals whose other side is outside the
//! tree.
//!
//! criu writes down what is in pipes, terminals and unix sockets. Datagrams of the network and
//! events of inotify are lost, and so are errors, and data of a stream from an urgent byte on.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{getegid, geteuid},
};

use super::{Frozen, OpenFile, quiet};
use crate::{
    Pid, Warning,
    procfs::{TcpLine, each_line, fdinfo_number, read_start},
    sys::{self, Statx},
};

/// Looks for what is lost, and gives one warning for each process and kind.
pub(super) fn look(tree: &Frozen) -> Vec<Warning> {
    let mut lost = BTreeSet::new();
    lost.extend(datagrams(tree).into_iter().map(|pid| (pid, "unread datagrams")));
    let sockets = tree.files.iter().filter(|file| file.inode_of("socket").is_some());
    for (pid, socket) in sockets.filter_map(|file| Some((file.pid, file.taken()?))) {
        lost.extend(waiting_events(&socket).into_iter().map(|what| (pid, what)));
        lost.extend(
            has_another_peer(&socket)
                .then_some((pid, "user of the other side of a unix socket (SO_PEERCRED)")),
        );
        lost.extend(is_encrypted(&socket).then_some((pid, "encryption of a connection by the kernel (TLS)")));
    }
    lost.extend(
        quiet::holders(tree)
            .into_iter()
            .map(|pid| (pid, "senders of messages that wait in a unix socket (SO_PASSCRED)")),
    );
    let watches = tree.files.iter().filter(|file| is_watch(file));
    lost.extend(
        watches.filter(|file| has_events(file)).map(|file| (file.pid, "unread events of watched files")),
    );
    lost.extend(
        masters(tree).into_iter().map(|pid| (pid, "other side of a terminal that it is the master of")),
    );
    lost.into_iter().map(|(pid, what)| Warning::Lost { pid: Pid::from(pid), what }).collect()
}

/// The processes with a datagram, raw or packet socket that has something to read.
fn datagrams(tree: &Frozen) -> BTreeSet<i32> {
    let sockets: BTreeMap<u64, i32> =
        tree.files.iter().filter_map(|file| Some((file.inode_of("socket")?, file.pid))).collect();
    let Some(root) = tree.pids.first().filter(|_| !sockets.is_empty()) else { return BTreeSet::new() };
    let mut found = BTreeSet::new();
    for table in ["udp", "udp6", "udplite", "udplite6", "raw", "raw6"] {
        each_line(format!("/proc/{root}/net/{table}"), |line| {
            let waiting = TcpLine::parse(line).filter(|line| line.waiting > 0);
            found.extend(waiting.and_then(|line| sockets.get(&line.inode)));
        });
    }
    each_line(format!("/proc/{root}/net/packet"), |line| {
        found.extend(waiting_packets(line).and_then(|inode| sockets.get(&inode)));
    });
    found
}

/// The inode of a packet socket in a line of `/proc/net/packet`, if packets wait in it.
fn waiting_packets(line: &str) -> Option<u64> {
    let mut words = line.split_ascii_whitespace().skip(6);
    let memory: u64 = words.next()?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    (memory > 0).then_some(inode)
}

/// The events that wait in a socket and are lost.
fn waiting_events(socket: &OwnedFd) -> Vec<&'static str> {
    const DOMAIN: (i32, i32) = (libc::SOL_SOCKET, libc::SO_DOMAIN);
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLPRI)];
    if !poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0) {
        return Vec::new();
    }
    let seen = asked[0].revents().unwrap_or(PollFlags::empty());
    let is_unix = sys::option(socket, DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX.to_ne_bytes());
    let urgent = match is_unix {
        true => "mark of unread urgent data (MSG_OOB)",
        false => "unread urgent data (MSG_OOB) and what follows it",
    };
    let events = [(PollFlags::POLLPRI, urgent), (PollFlags::POLLERR, "unread error of a socket")];
    events.into_iter().filter(|(event, _)| seen.contains(*event)).map(|(_, what)| what).collect()
}

/// Returns true if the other side of a unix socket belonged to another user or group than this
/// program. criu connects all such sockets itself.
fn has_another_peer(socket: &OwnedFd) -> bool {
    let Ok(peer) = getsockopt(socket, PeerCredentials) else { return false };
    let own = (geteuid().as_raw(), getegid().as_raw());
    peer.pid() > 0 && (peer.uid(), peer.gid()) != own
}

/// Returns true if the kernel encrypts a TCP connection. What criu restores would send plain text.
fn is_encrypted(socket: &OwnedFd) -> bool {
    const UPPER_LAYER: (i32, i32) = (libc::IPPROTO_TCP, 31); // TCP_ULP
    sys::option(socket, UPPER_LAYER).is_ok_and(|name| name.starts_with(b"tls"))
}

fn is_watch(file: &OpenFile) -> bool {
    file.target.to_str().is_some_and(|target| {
        matches!(target, "anon_inode:inotify" | "anon_inode:[fanotify]" | "anon_inode:[inotify]")
    })
}

fn has_events(file: &OpenFile) -> bool {
    file.taken().is_some_and(|file| sys::waiting_bytes(file).is_ok_and(|bytes| bytes > 0))
}

/// The processes that have the master of a terminal whose slave only processes outside have open.
fn masters(tree: &Frozen) -> BTreeSet<i32> {
    let (mut masters, mut slaves) = (Vec::new(), BTreeSet::new());
    for file in tree.files.iter().filter(|file| file.target.starts_with("/dev")) {
        let Ok(known) = Statx::of(file.path()) else { continue };
        if known.is_master() {
            masters.push(file);
        }
        slaves.extend(known.slave());
    }
    let index = |file: &OpenFile| {
        let info = read_start(format!("/proc/{}/fdinfo/{}", file.pid, file.fd))?;
        u64::try_from(fdinfo_number(&info, "tty-index")?).ok()
    };
    let without_slave = |file: &&&OpenFile| index(file).is_some_and(|index| !slaves.contains(&index));
    masters.iter().filter(without_slave).filter(|file| has_other_side(file)).map(|file| file.pid).collect()
}

/// Returns true if a process has the slave of this master open. The kernel says the same of a
/// slave that was never opened.
fn has_other_side(master: &OpenFile) -> bool {
    let hung_up = |file: OwnedFd| {
        let mut asked = [PollFd::new(file.as_fd(), PollFlags::empty())];
        poll(&mut asked, PollTimeout::ZERO).ok()?;
        asked[0].revents().map(|seen| seen.contains(PollFlags::POLLHUP))
    };
    master.taken().and_then(hung_up) == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_wait_are_read_from_the_table() {
        let line = |memory| format!("ffff8881 3 3 0003 1 1 {memory} 0 4711");
        assert_eq!(waiting_packets(&line(44)), Some(4711));
        for other in [&line(0), "sk RefCnt Type Proto Iface R Rmem User Inode", ""] {
            assert_eq!(waiting_packets(other), None);
        }
    }
}
