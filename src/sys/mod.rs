//! The calls to the kernel that nobody has a safe form of: the only home of `unsafe`.
//!
//! Not here: anything that decides. A function here does one thing and says why it is sound.

#![allow(unsafe_code)]

mod buffer;
mod reap;
mod spawn;

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{self, ControlMessageOwned, MsgFlags};

pub(crate) use self::{
    buffer::Buffer,
    reap::{Child, is_known_child, reap_later, wait_readable},
    spawn::{Spawn, spawn},
};

/// Receives one packet into `buffer`, with the descriptors that came with it: close-on-exec from birth, and
/// each with an owner.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut buffers = [io::IoSliceMut::new(buffer)];
    let message = socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for number in received {
                // SAFETY: the kernel installed this descriptor for us with the message, and nobody else
                // knows its number.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok((message.bytes, descriptors))
}

/// The most descriptors that the kernel passes with one message.
const SCM_MAX_FD: usize = 253;

/// The size of the next packet, which stays where it is. Waits for one; 0 when the peer hung up.
pub(crate) fn next_packet_size(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
    // SAFETY: with a length of 0 the kernel writes nothing, so the null pointer is never followed.
    let size = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// A copy of the descriptor at the first free number from `above` on, close-on-exec.
pub(crate) fn duplicate_above(descriptor: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    spawn::duplicate(descriptor, above)
}

/// A pidfd of the process `pid`.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal to the process of a pidfd, which cannot be another one by now.
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: nix::sys::signal::Signal) -> io::Result<()> {
    let (pidfd, none) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a null siginfo asks the kernel to fill in its own; nothing is read from us.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal as libc::c_int, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel calls the protocol of the socket behind a path such as `/proc/<pid>/fd/<n>`: `TCP`, `UNIX-STREAM`, …
pub(crate) fn socket_protocol(path: &CStr) -> io::Result<String> {
    let mut name = [0_u8; 64];
    let (attribute, place) = (c"system.sockprotoname", name.as_mut_ptr().cast());
    // SAFETY: both names are C strings, and the kernel writes no more than the length of `name` into it.
    let length = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), place, name.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let name = name.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// Forbids the process `pid` to write any more into files. A criu that is told so in the middle of a dump
/// fails by itself and puts the tree right; it was started with SIGXFSZ ignored for that.
pub(crate) fn forbid_file_writes(pid: i32) -> io::Result<()> {
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
    let mut limit = nothing;
    // SAFETY: `limit` is a valid place for the old value, and no new one is given.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = 0; // the hard limit stays, so no privilege is needed
    // SAFETY: `limit` is initialized, and the old value is not asked for.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
