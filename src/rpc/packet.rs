//! One message, one packet, maybe a file.
//!
//! criu's socket keeps packets apart, so a message needs no frame. Every packet is measured before it is
//! read, and read with room for descriptors, so that nothing is cut off and no descriptor is lost.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send as send_packet},
};
use prost::Message;

use crate::{proto::rpc::CriuReq, sys};

/// What was read from the socket.
#[derive(Debug)]
pub(super) enum Packet {
    /// A message, and the descriptors that came with it.
    Message(Vec<u8>, Vec<OwnedFd>),
    /// The other side is gone. An empty packet means the same to criu, and so it does here.
    HungUp,
    /// A packet of more bytes than any answer of criu's has. It was thrown away.
    TooLarge(usize),
}

/// The largest answer we read, in bytes. criu's own are a little over a kibibyte at most, and with the socket buffer
/// that it gets by default it could send 200 KiB.
const CEILING: usize = 256 << 10;

/// Sends one message. [`io::ErrorKind::BrokenPipe`] when criu is gone.
pub(super) fn send(socket: BorrowedFd<'_>, message: &CriuReq) -> io::Result<()> {
    let packet = message.encode_to_vec();
    loop {
        match send_packet(socket.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one packet, waiting for it.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Packet> {
    let size = match retry(|| sys::next_packet_size(socket)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
        size => size?,
    };
    let too_large = size > CEILING;
    let mut bytes = vec![0; if too_large { 1 } else { size.max(1) }];
    let (received, descriptors) = match retry(|| sys::receive(socket, &mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
        received => received?,
    };
    if too_large {
        return Ok(Packet::TooLarge(size));
    }
    if received == 0 {
        return Ok(Packet::HungUp);
    }
    bytes.truncate(received);
    Ok(Packet::Message(bytes, descriptors))
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
