//! The calls to the kernel that nobody has a safe form of: the only home of `unsafe`.
//!
//! Not here: anything that decides. A function here does one thing and says why it is sound.

#![allow(unsafe_code)]

mod adopt;
mod buffer;
mod helper;
mod known;
mod lasting;
mod mount;
mod namespace;
mod reap;
mod socket;
mod spawn;
mod task;
mod trace;

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

pub(crate) use self::{
    adopt::{Adoption, NoAdoption},
    buffer::Buffer,
    helper::in_another_process,
    known::Known,
    mount::mount_fuse,
    namespace::{namespace_owner, parent_namespace},
    reap::{Child, forget_children, is_known_child, reap, reap_later, wait_readable},
    socket::{new_socket, option, peek_in_repair, set_option},
    spawn::{OF_A_TERMINAL, Place, Spawn, TO_END_PROGRAMS, spawn},
    task::{
        affinity, io_priority, is_same_file, online_processors, scheduling, set_affinity, set_io_priority,
        set_scheduling,
    },
    trace::{PollRegisters, Registers, Stand, Stop, Traced},
};

/// Begins to write what this part of a file has in memory to the disk. What comes of that, only a sync tells.
pub(crate) fn begin_write_back(file: &File, at: u64, length: u64) {
    let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) else { return };
    // SAFETY: the call takes numbers alone, and changes nothing that can be seen.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The size of a terminal, in rows and columns.
pub(crate) fn terminal_size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills in no more than `size`, and says so if this is no terminal.
    let told = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (told == 0).then_some((size.ws_row, size.ws_col))
}

/// Receives one packet into `buffer`, with the descriptors that came with it: close-on-exec from birth, and
/// each with an owner. Those for which this process has no room any more are lost, and the kernel closes them.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0_u64; CONTROL / 8]; // aligned as a control message must be
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: nothing in it minds being zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    // SAFETY: `message` names two buffers with their lengths, which live until it is done.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // The safe form of all this gives up where some descriptors were lost, and leaves the others open for ever.
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled the control buffer in, and said how far.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: what this and the last line of the loop give is null, or a header in the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: it counts, and follows no pointer.
            let empty = unsafe { libc::CMSG_LEN(0) };
            #[allow(clippy::unnecessary_cast)] // other C libraries have other types
            let count = (header.cmsg_len as usize).saturating_sub(empty as usize) / size_of::<RawFd>();
            // SAFETY: the data follow their header.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            // SAFETY: the kernel put that many numbers there, aligned as the header is.
            let numbers = unsafe { std::slice::from_raw_parts(first, count) };
            for number in numbers {
                // SAFETY: the kernel installed this descriptor for us with the message, and nobody else
                // knows its number.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(*number) });
            }
        }
        // SAFETY: `next` is a header in the control buffer of `message`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok((count, descriptors))
}

/// Room for the most descriptors that the kernel passes with one message, which are 253, and for credentials.
const CONTROL: usize = 2048;

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
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// The open file behind a descriptor of another process, named by a pidfd. Linux 5.6.
pub(crate) fn take_descriptor(pidfd: impl AsFd, number: i32) -> io::Result<OwnedFd> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes three numbers and touches no memory of ours.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) })
}

/// The number of bytes that wait to be read from a file.
pub(crate) fn waiting_bytes(file: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `count` is one.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FIONREAD, &mut count) } {
        0 => Ok(usize::try_from(count).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a system call came to that makes a descriptor.
fn new_descriptor(number: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows its number.
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

/// Gives free memory of the heap back to the kernel, so that nothing stays of what was in it; where
/// the allocator can.
pub(crate) fn trim_heap() {
    // SAFETY: it takes a number, and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Returns the size of the kernel's pages in bytes; 0 if it does not say.
pub(crate) fn page_size() -> usize {
    // SAFETY: it takes a number and returns one.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(0)
}
