//! Calls about the sockets of other processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::{new_descriptor, pidfd_open};

/// Returns a descriptor of our own for the open file behind the descriptor of a process.
pub(crate) fn descriptor_of(pid: i32, descriptor: i32) -> io::Result<OwnedFd> {
    let process = pidfd_open(pid)?;
    // SAFETY: the call takes three numbers and touches no memory of ours.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) })
}

/// Reads the first unread bytes of a TCP socket in repair mode, and leaves them there.
pub(crate) fn peek_in_repair(socket: impl AsFd, count: usize) -> io::Result<Vec<u8>> {
    const NO_QUEUE: libc::c_int = 0;
    const RECEIVED: libc::c_int = 1;
    #[allow(clippy::cast_possible_truncation)] // it is 4
    const SIZE: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    let number = socket.as_fd().as_raw_fd();
    let select = |queue: libc::c_int| {
        let place = (&raw const queue).cast();
        // SAFETY: the kernel reads no more than `queue`, whose size it is told.
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
