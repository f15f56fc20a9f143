//! Sends and receives messages: each is one packet, maybe with files.
//!
//! criu's socket keeps packets apart, so a message needs no frame. Every packet is measured before
//! it is read, and read with room for descriptors. So no data is truncated and no descriptor is
//! lost.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send as send_packet},
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use crate::{proto::rpc::CriuReq, sys};

/// The result of reading from the socket.
#[derive(Debug)]
pub(super) enum Packet {
    /// A message, and the descriptors that came with it.
    Message(Vec<u8>, Vec<OwnedFd>),
    /// The other side is gone. criu takes an empty packet for the same.
    HungUp,
    /// A packet larger than any answer of criu's. It was dropped.
    TooLarge(usize),
}

/// The largest answer that is read, in bytes. criu's answers have at most a little over a kibibyte,
/// and its default socket buffer allows 200 KiB.
const CEILING: usize = 256 << 10;

/// Encodes a message, and appends encoded fields to its options.
pub(super) fn encode(mut message: CriuReq, more_options: &[u8]) -> Vec<u8> {
    const OPTS: u32 = 2;
    let Some(opts) = message.opts.take_if(|_| !more_options.is_empty()) else {
        return message.encode_to_vec();
    };
    let mut packet = message.encode_to_vec();
    encode_key(OPTS, WireType::LengthDelimited, &mut packet);
    encode_varint((opts.encoded_len() + more_options.len()) as u64, &mut packet);
    packet.extend(opts.encode_to_vec());
    packet.extend(more_options);
    packet
}

/// Sends one packet without blocking: [`io::ErrorKind::WouldBlock`] if there is no room for it,
/// [`io::ErrorKind::BrokenPipe`] if criu is gone.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    loop {
        match send_packet(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one packet, and waits for it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rpc::{CriuOpts, CriuReqType};

    #[test]
    fn more_options_are_read_as_a_part_of_the_options() {
        let opts = CriuOpts { images_dir_fd: -1, leave_running: Some(true), ..CriuOpts::default() };
        let message = CriuReq { r#type: CriuReqType::Dump.into(), opts: Some(opts), ..CriuReq::default() };
        let timeout = CriuOpts { timeout: Some(9), images_dir_fd: -1, ..CriuOpts::default() }.encode_to_vec();
        let decoded = CriuReq::decode(encode(message.clone(), &timeout).as_slice()).unwrap();
        let opts = decoded.opts.unwrap();
        assert_eq!((opts.leave_running, opts.timeout), (Some(true), Some(9)));
        assert_eq!(CriuReq::decode(encode(message.clone(), &[]).as_slice()).unwrap(), message);
    }
}
