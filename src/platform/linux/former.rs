//! [`Former`]: ended TCP connections, which the kernel keeps for a minute (TIME_WAIT). Meanwhile
//! another socket can have their port only if its program sets SO_REUSEADDR.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    net::SocketAddrV6,
    time::Duration,
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

use crate::{
    Result, Until,
    image::ImageDir,
    procfs::{TcpLine, each_line},
};

/// The TCP sockets of a tree that is to be revived.
#[derive(Default)]
pub(super) struct Former {
    ports: HashSet<u16>,
    inner: Vec<[SocketAddrV6; 2]>,
    /// The time to wait for the kernel.
    pub(super) patience: Duration,
    pub(super) until: Until,
}

impl Former {
    pub(super) fn of(images: &ImageDir, patience: Duration, until: &Until) -> Result<Former> {
        let (ports, inner) = (images.tcp_ports()?, images.inner_connections()?);
        Ok(Former { ports, inner, patience, until: until.clone() })
    }

    /// Has the kernel forget the connections of which the tree has both ends: the restore makes the
    /// same anew.
    pub(super) fn forget(&self) {
        for [local, remote] in &self.inner {
            let _ = forget(local, remote); // older kernels cannot
        }
    }

    /// Returns true if ended connections hold one of the tree's ports, and no program listens
    /// there.
    pub(super) fn hold_ports(&self) -> bool {
        let (mut held, mut used) = (false, false);
        for table in ["tcp", "tcp6"] {
            each_line(format!("/proc/thread-self/net/{table}"), |line| {
                let Some(line) = TcpLine::parse(line) else { return };
                let is_ours = self.ports.contains(&line.local.1);
                held |= is_ours && line.state == TcpLine::TIME_WAIT;
                used |= is_ours && line.state == TcpLine::LISTENING;
            });
        }
        held && !used
    }
}

/// Asks the kernel to forget an ended connection: a `struct nlmsghdr`, and a `struct
/// inet_diag_req_v2` that names no other state.
fn forget(local: &SocketAddrV6, remote: &SocketAddrV6) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_WITH_ANSWER: u16 = 5;
    const IPV6: u8 = 10; // it finds connections of IPv4 by their addresses as IPv6 has them
    const TCP: u8 = 6;
    let mut request = Vec::new();
    request.extend(72_u32.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    request.extend([0; 8]); // sequence number and port: the kernel fills them in
    request.extend([IPV6, TCP, 0, 0]);
    request.extend((1_u32 << TcpLine::TIME_WAIT).to_ne_bytes());
    request.extend([local.port().to_be_bytes(), remote.port().to_be_bytes()].concat());
    request.extend([local.ip().octets(), remote.ip().octets()].concat());
    request.extend([0; 4]); // any device
    request.extend([0xff; 8]); // no cookie
    let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
    let mut socket = File::from(socket);
    socket.write_all(&request)?;
    socket.read(&mut [0; 512]).map(drop)
}
