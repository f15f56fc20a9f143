//! Unix sockets by themselves: the paths that they are bound to, and what waits in them.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{UnixAddr, getsockname};

use super::{Obstacle, descriptor::Descriptor};
use crate::sys::{self, Statx};

/// Returns the obstacle of a unix socket that comes from what it is bound to or what waits in it.
pub(super) fn obstacle(descriptor: &Descriptor) -> Option<Obstacle> {
    let socket = sys::take_descriptor(sys::pidfd_open(descriptor.pid).ok()?, descriptor.fd).ok()?;
    if holds_credentials(&socket).unwrap_or(false) {
        return Some(Obstacle::QueuedCredentials);
    }
    let Bound { name, path, .. } = Bound::of(&socket)?;
    (name.is_relative() && !ends_with(&path, &name)).then_some(Obstacle::SocketPath)
}

/// The options with which each received message tells more of its sender: SO_PASSCRED, SO_PASSSEC,
/// SO_PASSPIDFD.
pub(crate) const TELL_SENDERS: [(i32, i32); 3] = [(1, 16), (1, 34), (1, 76)];

/// Returns true if messages wait in a unix socket, and the socket tells who sent them.
pub(crate) fn holds_credentials(socket: &OwnedFd) -> io::Result<bool> {
    const DOMAIN: (i32, i32) = (libc::SOL_SOCKET, libc::SO_DOMAIN);
    const LISTENS: (i32, i32) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
    let is_set = |option| sys::option(socket, option).is_ok_and(|value| value.iter().any(|byte| *byte != 0));
    if sys::option(socket, DOMAIN)? != libc::AF_UNIX.to_ne_bytes() || is_set(LISTENS) {
        return Ok(false);
    }
    Ok(TELL_SENDERS.into_iter().any(is_set) && sys::waiting_bytes(socket)? > 0)
}

/// The path that a unix socket was bound to, and the present path of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) name: PathBuf,
    pub(crate) path: PathBuf,
    /// The device and the inode of the file.
    file: (u64, u64),
}

impl Bound {
    /// `None` of a socket without a file, and of one whose file was deleted.
    pub(crate) fn of(socket: &OwnedFd) -> Option<Bound> {
        let address: UnixAddr = getsockname(socket.as_raw_fd()).ok()?;
        let name = address.path()?.to_owned();
        let file = sys::file_of_socket(socket).ok()?;
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let is_there = path.is_absolute() && !path.as_os_str().as_bytes().ends_with(b" (deleted)");
        let file = Statx::of_open(file).ok()?;
        is_there.then_some(Bound { name, path, file: (file.dev(), file.ino()) })
    }

    /// Returns true if the path that it was bound to does not lead to its file any more, and the
    /// present one does.
    pub(crate) fn has_moved(&self) -> bool {
        let leads = |path: &Path| Statx::of(path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        self.name.is_absolute() && !leads(&self.name) && leads(&self.path)
    }
}

/// Compares as criu does, which takes no care of `..`, nor of `.` but at the beginning.
fn ends_with(path: &Path, name: &Path) -> bool {
    let (path, name) = (path.as_os_str().as_bytes(), name.as_os_str().as_bytes());
    let name = name.strip_prefix(b"./").unwrap_or(name);
    path.strip_suffix(name).is_some_and(|folder| folder.ends_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_end_of_a_path_or_not() {
        let ends = |path: &str, name: &str| ends_with(Path::new(path), Path::new(name));
        assert!(ends("/a/b/c", "c") && ends("/a/b/c", "b/c") && ends("/c", "c"));
        assert!(ends("/a/c", "./c"));
        assert!(!ends("/a/bc", "c") && !ends("/a/c", "b/../c") && !ends("/a/d", "c") && !ends("/a", "/a/b"));
    }
}
