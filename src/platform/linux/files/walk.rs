//! Walks along paths that follow no link.
//!
//! The kernel's own names of files, which are what criu writes down, have no links in them. So a
//! link on the way to a file was put there after the capture, and criu would follow it as root,
//! wherever it leads.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        stat::{FileStat, Mode, SFlag, fstat},
    },
};

use crate::sys::Statx;

/// The root that criu opens paths from.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// The result of a walk.
#[derive(Debug)]
pub(super) enum Walked {
    /// The file, whatever it is, opened for looking at it.
    File(Found),
    /// The file or a folder on the way does not exist.
    Missing,
    /// A link is in the way.
    Link(Link),
}

/// A file that was found.
#[derive(Debug)]
pub(super) struct Found {
    fd: OwnedFd,
    pub(super) stat: FileStat,
}

/// A link in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) at: PathBuf,
    pub(super) target: PathBuf,
}

/// Neither opens nor follows the last name of a path.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Found {
    /// Returns true if this is the file of a socket that a program has, in whatever network
    /// namespace.
    pub(super) fn is_bound(&self) -> bool {
        // A connection of another kind is refused by a stream socket, without a trace.
        let kind = SockType::Datagram;
        let Ok(probe) = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None) else { return false };
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let connected = UnixAddr::new(path.as_str()).and_then(|path| connect(probe.as_raw_fd(), &path));
        matches!(connected, Ok(()) | Err(Errno::EPROTOTYPE | Errno::EPERM))
    }

    /// Returns the time that it was made at, in nanoseconds since 1970, if that is known.
    pub(super) fn born(&self) -> Option<i64> {
        Statx::of_open(&self.fd).ok()?.born()
    }
}

impl Root {
    pub(super) fn open() -> io::Result<Root> {
        Ok(Root(File::open("/")?.into()))
    }

    /// Walks to a file. A link as its last name is a link in the way, unless a link is `wanted`.
    pub(super) fn walk(&self, path: &Path, wanted: bool) -> io::Result<Walked> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let how = OpenHow::new().flags(LOOK).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let fd = match openat2(&self.0, relative, how) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Walked::Missing),
            // A kernel before Linux 5.6, or a sandbox that does not know the call.
            Err(Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => return self.walk_by_steps(relative, wanted),
            Err(error) => return Err(error.into()),
        };
        found(fd, wanted, &Path::new("/").join(relative))
    }

    /// Opens a regular file or a folder for reading.
    pub(super) fn open_to_read(&self, path: &Path) -> io::Result<File> {
        self.open_by(path, File::options().read(true))
    }

    /// Opens a regular file for writing.
    pub(super) fn open_to_write(&self, path: &Path) -> io::Result<File> {
        self.open_by(path, File::options().write(true))
    }

    fn open_by(&self, path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
        match self.walk(path, false)? {
            // Opening another kind of file could do something, or wait.
            Walked::File(found) if matches!(kind(found.stat.st_mode), SFlag::S_IFREG | SFlag::S_IFDIR) => {
                let own = format!("/proc/self/fd/{}", found.fd.as_raw_fd());
                options.custom_flags(libc::O_NONBLOCK).open(own)
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Walks as [`walk`](Root::walk) does, name by name.
    fn walk_by_steps(&self, path: &Path, wanted: bool) -> io::Result<Walked> {
        let (mut here, mut at) = (self.0.try_clone()?, PathBuf::from("/"));
        let mut names = path.components().filter(|name| !matches!(name, Component::CurDir)).peekable();
        while let Some(name) = names.next() {
            at.push(name);
            here = match openat(&here, name.as_os_str(), LOOK, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Walked::Missing),
                Err(error) => return Err(error.into()),
            };
            if names.peek().is_some() && is_link(&fstat(&here)?) {
                return Ok(Walked::Link(Link { target: target(&here), at }));
            }
        }
        found(here, wanted, &at)
    }
}

fn found(fd: OwnedFd, wanted: bool, at: &Path) -> io::Result<Walked> {
    let stat = fstat(&fd)?;
    if is_link(&stat) && !wanted {
        return Ok(Walked::Link(Link { target: target(&fd), at: at.to_path_buf() }));
    }
    Ok(Walked::File(Found { fd, stat }))
}

fn is_link(stat: &FileStat) -> bool {
    kind(stat.st_mode) == SFlag::S_IFLNK
}

/// The type in a mode.
pub(super) fn kind(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// The target of an open link.
fn target(link: &OwnedFd) -> PathBuf {
    readlinkat(link.as_fd(), "").map(PathBuf::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// `plain/file`, `to-plain` and `plain/to-file`.
    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("criu-rpc-walk-{test}-{}", std::process::id()));
        let folder = folder.canonicalize().unwrap_or(folder);
        fs::create_dir_all(folder.join("plain")).unwrap();
        fs::write(folder.join("plain/file"), "text").unwrap();
        symlink("plain", folder.join("to-plain")).unwrap();
        symlink("file", folder.join("plain/to-file")).unwrap();
        folder.canonicalize().unwrap()
    }

    #[test]
    fn links_are_found_wherever_they_are_and_files_behind_none() {
        let folder = folder("links");
        let root = Root::open().unwrap();
        let walks = [Root::walk, |root: &Root, path: &Path, wanted| {
            root.walk_by_steps(path.strip_prefix("/").unwrap(), wanted)
        }];
        for walk in walks {
            let walk = |name: &str, wanted| walk(&root, &folder.join(name), wanted).unwrap();
            assert!(matches!(walk("plain/file", false), Walked::File(file) if file.stat.st_size == 4));
            assert!(
                matches!(walk("plain", false), Walked::File(file) if kind(file.stat.st_mode) == SFlag::S_IFDIR)
            );
            for missing in ["none", "none/file", "plain/none", "plain/file/none"] {
                assert!(matches!(walk(missing, false), Walked::Missing), "{missing}");
            }
            let link = |at: &str, target: &str| Link { at: folder.join(at), target: target.into() };
            for (path, expected) in [
                ("to-plain/file", link("to-plain", "plain")),
                ("to-plain", link("to-plain", "plain")),
                ("plain/to-file", link("plain/to-file", "file")),
                ("to-plain/none", link("to-plain", "plain")),
            ] {
                assert!(matches!(walk(path, false), Walked::Link(link) if link == expected), "{path}");
            }
            assert!(matches!(walk("plain/to-file", true), Walked::File(file) if is_link(&file.stat)));
            assert!(matches!(walk("to-plain/to-file", true), Walked::Link(_)));
        }
        assert!(matches!(root.walk(Path::new("/"), false).unwrap(), Walked::File(_)));
        fs::remove_dir_all(folder).unwrap();
    }
}
