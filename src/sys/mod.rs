//! System calls that have no safe wrapper: the only home of `unsafe`.
//!
//! Code that decides is elsewhere. A function here does one thing, and says why it is sound.

#![allow(unsafe_code)]

mod adopt;
mod buffer;
mod helper;
mod init;
mod lasting;
mod mount;
mod namespace;
mod reap;
mod socket;
mod spawn;
mod statx;
mod task;
mod terminal;
mod trace;

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use crate::pages::PageSize;

pub(crate) use self::{
    adopt::{Adoption, NoAdoption},
    buffer::Buffer,
    helper::in_another_process,
    init::{FIRST_LENT, Init, InitCommand, Namespaces, Started},
    mount::mount_fuse,
    namespace::{namespace_owner, parent_namespace},
    reap::{Child, forget_children, is_known_child, reap, reap_later, wait_readable},
    socket::{file_of_socket, new_socket, option, peek_in_repair, peek_packet, set_option},
    spawn::{OF_A_TERMINAL, Place, Spawn, TO_END_PROGRAMS, spawn},
    statx::Statx,
    task::{
        affinity, compare_folders, compare_memory, io_priority, is_same_file, online_processors, scheduling,
        set_affinity, set_io_priority, set_scheduling, shares_files, shares_folders,
    },
    terminal::{
        has_locked_modes, has_packets, is_locked, open_slave, set_packets, set_terminal_modes,
        terminal_modes, terminal_size,
    },
    trace::{PollRegisters, Registers, Stand, Stop, Traced},
};

/// Starts writeback of a range of a file. Only a sync reports errors.
pub(crate) fn begin_write_back(file: &File, at: u64, length: u64) {
    let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) else { return };
    // SAFETY: the call takes only numbers, and has no visible effect.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Returns the names of a file's extended attributes, each with a zero behind it. Follows links.
pub(crate) fn attributes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    const LONGEST: usize = 64 << 10; // the kernel's limit
    let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
    let mut names = vec![0; LONGEST];
    // SAFETY: the path is a C string, and the kernel writes no more than `names`, whose size it
    // gets.
    let size = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), LONGEST) };
    names.truncate(usize::try_from(size).map_err(|_| io::Error::last_os_error())?);
    Ok(names)
}

/// Receives one packet into `buffer`, with its descriptors, which are close-on-exec from the start
/// and owned. If this process has too many open files, the kernel closes the others.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0_u64; CONTROL / 8]; // aligned as a control message must be
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all fields may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    // SAFETY: `message` names two buffers with their lengths, which live until the end of the call.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // The safe wrapper gives up if some descriptors were lost, and leaks the others.
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled the control buffer, and set its length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null, or a header in the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: it computes a number, and follows no pointer.
            let empty = unsafe { libc::CMSG_LEN(0) };
            #[allow(clippy::unnecessary_cast)] // other C libraries have other types
            let count = (header.cmsg_len as usize).saturating_sub(empty as usize) / size_of::<RawFd>();
            // SAFETY: the data follow their header.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            // SAFETY: the kernel put that many numbers there, aligned like the header.
            let numbers = unsafe { std::slice::from_raw_parts(first, count) };
            for number in numbers {
                // SAFETY: the kernel installed this descriptor for us with the message, so we are
                // its only owner.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(*number) });
            }
        }
        // SAFETY: `next` is a header in the control buffer of `message`.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok((count, descriptors))
}

/// Room for the 253 descriptors that the kernel passes with one message at most, and for
/// credentials.
const CONTROL: usize = 2048;

/// Returns the size of the next packet without removing it. Waits for a packet; returns 0 if the
/// peer hung up.
pub(crate) fn next_packet_size(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
    // SAFETY: with a length of 0 the kernel writes nothing, so the null pointer is never followed.
    let size = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}

/// Duplicates the descriptor to the first free number from `above` on, close-on-exec.
pub(crate) fn duplicate_above(descriptor: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    spawn::duplicate(descriptor, above)
}

/// Opens a pidfd of the process `pid`.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Duplicates a descriptor of another process, named by a pidfd. Linux 5.6.
pub(crate) fn take_descriptor(pidfd: impl AsFd, number: i32) -> io::Result<OwnedFd> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes three numbers and touches no memory of ours.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) })
}

/// Returns the number of unread bytes of a file.
pub(crate) fn waiting_bytes(file: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `count` is one.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FIONREAD, &mut count) } {
        0 => Ok(usize::try_from(count).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the descriptor that a system call made, or its error.
fn new_descriptor(number: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, so we are its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal to the process of a pidfd, which cannot mean another process.
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: nix::sys::signal::Signal) -> io::Result<()> {
    let (pidfd, none) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: with a null siginfo the kernel makes its own, and reads nothing from us.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal as libc::c_int, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the kernel's name for the protocol of the socket behind a path such as
/// `/proc/<pid>/fd/<n>`: `TCP`, `UNIX-STREAM`, …
pub(crate) fn socket_protocol(path: &CStr) -> io::Result<String> {
    let mut name = [0_u8; 64];
    let (attribute, place) = (c"system.sockprotoname", name.as_mut_ptr().cast());
    // SAFETY: both names are C strings, and the kernel writes no more than the length of `name`
    // into it.
    let length = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), place, name.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let name = name.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// Forbids the process `pid` to write into files. A criu in the middle of a dump then fails and
/// repairs the tree; it was started with SIGXFSZ ignored for that.
pub(crate) fn forbid_file_writes(pid: i32) -> io::Result<()> {
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
    let mut limit = nothing;
    // SAFETY: `limit` is a valid place for the old value, and no new value is passed.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = 0; // the hard limit stays, so no privilege is needed
    // SAFETY: `limit` is initialized, and the old value is not requested.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns free memory of the heap to the kernel, if the allocator can, so that its old contents
/// are gone.
pub(crate) fn trim_heap() {
    // SAFETY: it takes a number, and touches no memory that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Returns the size of the kernel's pages. All kernels that criu supports have a size that a
/// [`PageSize`] can have.
pub(crate) fn page_size() -> PageSize {
    // SAFETY: it takes a number and returns one.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().and_then(PageSize::new).unwrap_or(PageSize::SMALLEST)
}
