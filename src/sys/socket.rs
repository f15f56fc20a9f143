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

/// Makes a socket.
pub(crate) fn new_socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three numbers and touches no memory of ours.
    let made = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    new_descriptor(made.into())
}
