//! File systems without a mount point.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use super::new_descriptor;

/// Mounts the FUSE file system that is served through `device`, an open `/dev/fuse`, and returns
/// its root folder. It is attached to no mount tree, and is gone when the descriptor and all files
/// in it are closed. Processes of other users may read it.
pub(crate) fn mount_fuse(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let device = CString::new(device.as_raw_fd().to_string())?;
    let options: [(&CStr, Option<&CStr>); 5] = [
        (c"fd", Some(&device)),
        (c"rootmode", Some(c"40000")),
        (c"user_id", Some(c"0")),
        (c"group_id", Some(c"0")),
        (c"allow_other", None),
    ];
    const RDONLY: u32 = 1;
    mount(c"fuse", &options, NOSUID_NODEV_NOEXEC | RDONLY)
}

/// Mounts an empty tmpfs that only root can open, and returns its root folder.
pub(super) fn mount_tmpfs() -> io::Result<OwnedFd> {
    mount(c"tmpfs", &[(c"mode", Some(c"0700")), (c"size", Some(c"1m"))], NOSUID_NODEV_NOEXEC)
}

/// Mounts what is mounted at this folder a second time, for another place.
pub(super) fn mount_again(folder: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const CLONE: libc::c_int = 1;
    let flags = CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    // SAFETY: the path is a C string.
    let mount = unsafe { libc::syscall(libc::SYS_open_tree, folder.as_raw_fd(), c"".as_ptr(), flags) };
    new_descriptor(mount)
}

/// Mounts a new file system, attached to no mount tree. It is gone when the descriptor and all
/// files in it are closed.
fn mount(kind: &CStr, options: &[(&CStr, Option<&CStr>)], attributes: u32) -> io::Result<OwnedFd> {
    const CLOEXEC: u32 = 1; // the same for both calls
    // SAFETY: the name is a C string.
    let context = new_descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    for (key, value) in options {
        configure(&context, if value.is_some() { SET_STRING } else { SET_FLAG }, Some(key), *value)?;
    }
    configure(&context, CREATE, None, None)?;
    let context = context.as_raw_fd();
    // SAFETY: the call takes only numbers.
    new_descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context, CLOEXEC, attributes) })
}

const NOSUID_NODEV_NOEXEC: u32 = 2 | 4 | 8;

const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CREATE: u32 = 6;

fn configure(context: &OwnedFd, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let key = key.map_or(ptr::null(), CStr::as_ptr);
    let value = value.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null, where the command takes no text, or a C string.
    match unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
