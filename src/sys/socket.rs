//! System calls about sockets of other processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::new_descriptor;

/// Reads the first unread bytes of a TCP socket in repair mode, without removing them.
pub(crate) fn peek_in_repair(socket: impl AsFd, count: usize) -> io::Result<Vec<u8>> {
    const NO_QUEUE: libc::c_int = 0;
    const RECEIVED: libc::c_int = 1;
    #[allow(clippy::cast_possible_truncation)] // it is 4
    const SIZE: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    let number = socket.as_fd().as_raw_fd();
    let select = |queue: libc::c_int| {
        let place = (&raw const queue).cast();
        // SAFETY: the kernel reads no more than `queue`, whose size it gets.
        match unsafe { libc::setsockopt(number, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, place, SIZE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    select(RECEIVED)?;
    let mut bytes = vec![0; count];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes no more than `count` bytes, which `bytes` has.
    let got = unsafe { libc::recv(number, bytes.as_mut_ptr().cast(), count, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error());
    select(NO_QUEUE)?;
    bytes.truncate(got?);
    Ok(bytes)
}

/// A packet that waits in a unix socket.
pub(crate) struct Peeked {
    pub(crate) length: usize,
    /// True if it has more control messages than there was room for.
    pub(crate) has_more: bool,
    /// True if its credentials came along.
    pub(crate) has_credentials: bool,
    /// The name of the sender's socket, as the kernel has it; empty without one.
    pub(crate) from: Vec<u8>,
}

/// Looks at the next packet of a unix socket, and leaves it there. With `credentials`, which the
/// socket must want (SO_PASSCRED), there is room for these and no more, so no descriptor is ever
/// received.
pub(crate) fn peek_packet(socket: impl AsFd, buffer: &mut [u8], credentials: bool) -> io::Result<Peeked> {
    let mut control = [0_u64; 4]; // a header and the credentials, aligned as they must be
    let mut address = [0_u8; 128];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: nothing in it minds being zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = 128;
    if credentials {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = 32;
    }
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: `message` names three buffers with their lengths, which live until it is done.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let name = usize::try_from(message.msg_namelen).unwrap_or(0);
    Ok(Peeked {
        length,
        has_more: message.msg_flags & libc::MSG_CTRUNC != 0,
        has_credentials: message.msg_controllen > 0,
        from: address.get(size_of::<libc::sa_family_t>()..name).unwrap_or_default().to_vec(),
    })
}

/// Returns the value of an option.
pub(crate) fn option(socket: impl AsFd, (level, name): (i32, i32)) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; 64];
    let mut size: libc::socklen_t = 64;
    let (number, place) = (socket.as_fd().as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: the kernel writes no more than the 64 bytes of `value`, and their number into `size`.
    match unsafe { libc::getsockopt(number, level, name, place, &raw mut size) } {
        0 => {
            value.truncate(usize::try_from(size).unwrap_or(0));
            Ok(value)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets an option to a value that [`option`] returned.
pub(crate) fn set_option(socket: impl AsFd, (level, name): (i32, i32), value: &[u8]) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let (number, place) = (socket.as_fd().as_raw_fd(), value.as_ptr().cast());
    // SAFETY: the kernel reads no more than `size` bytes, which `value` has.
    match unsafe { libc::setsockopt(number, level, name, place, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Opens the file that a unix socket is bound to, by its inode and not by its path.
pub(crate) fn file_of_socket(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: the request takes no argument.
    let opened = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE as _) };
    new_descriptor(opened.into())
}

/// Makes a socket.
pub(crate) fn new_socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three numbers and touches no memory of ours.
    let made = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    new_descriptor(made.into())
}
