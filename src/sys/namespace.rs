//! Relations between namespaces.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
};

/// Opens the parent of a user namespace. Fails for the caller's own namespace and those above it.
pub(crate) fn parent_namespace(namespace: &File) -> io::Result<File> {
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: the call takes no argument and touches no memory of ours.
    let number = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and no other code knows its number.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Returns the owner of a user namespace, as a uid of the caller's namespace.
pub(crate) fn namespace_owner(namespace: &File) -> io::Result<u32> {
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    let mut owner: libc::uid_t = 0;
    // SAFETY: the kernel writes one user id to the place that it gets.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut owner) } {
        0 => Ok(owner),
        _ => Err(io::Error::last_os_error()),
    }
}
