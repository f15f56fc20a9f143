//! [`Lend`]: files lent to criu for one request.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::{
    socket::{SockType as Kind, getsockopt, sockopt::SockType},
    stat::{SFlag, fstat},
};

use crate::{
    Error, Result,
    proto::rpc::{CriuOpts, CriuPageServerInfo, InheritFd},
};

/// The files that criu may use for one request. They are borrowed: criu has closed them when the
/// call returns.
///
/// ```no_run
/// use std::fs::File;
/// use criu_rpc::rpc::Lend;
///
/// let images = File::open("images")?;
/// let log = File::create("log")?;
/// let lend = Lend::images(&images).inherit("pipe:[4711]", &log);
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
pub struct Lend<'a> {
    pub(super) images: BorrowedFd<'a>,
    pub(super) work: Option<BorrowedFd<'a>>,
    pub(super) terminal: Option<BorrowedFd<'a>>,
    inherit: Vec<(String, BorrowedFd<'a>)>,
    pub(super) page_server: Option<BorrowedFd<'a>>,
    pidfd_store: Option<BorrowedFd<'a>>,
}

impl<'a> Lend<'a> {
    /// Lends the folder for the images: an empty one for a dump, the one with the images for a
    /// restore. A dump does not remove images of an earlier dump, and a restore would read them.
    /// `criu --images-dir`.
    pub fn images(folder: &'a impl AsFd) -> Lend<'a> {
        Lend {
            images: folder.as_fd(),
            work: None,
            terminal: None,
            inherit: Vec::new(),
            page_server: None,
            pidfd_store: None,
        }
    }

    /// Lends the folder for other files: statistics, the log if it goes to a file, the socket of a
    /// lazy restore. The default is the folder for the images. `criu --work-dir`.
    #[must_use]
    pub fn work(mut self, folder: &'a impl AsFd) -> Lend<'a> {
        self.work = Some(folder.as_fd());
        self
    }

    /// Replaces the resource `key` by this file, in the whole tree. `criu --inherit-fd`.
    ///
    /// The key is a [`Key`](super::Key), or criu's text for it: `pipe:[inode]`, `socket:[inode]`,
    /// `file[mount:inode]` and `tty[rdev:dev]` (hexadecimal), a path without its leading slash
    /// ([`Key::Path`](super::Key) takes it off; criu does not find one that has it), or the label
    /// that the resource got as an [`external`](crate::DumpOptions::external) one. For a capture
    /// there is [`ProcsRestore::inherit`](crate::ProcsRestore::inherit).
    ///
    /// criu silently ignores a key that matches no resource of the images: then the resource is
    /// restored from the images, or is missing if it is external. Make the key with
    /// [`Key::of_process`](super::Key::of_process) before the dump, while the process lives. To
    /// check the result, see `/proc/<pid>/fd` of the restored process.
    #[must_use]
    pub fn inherit(mut self, key: impl Into<String>, file: &'a impl AsFd) -> Lend<'a> {
        self.inherit.push((key.into(), file.as_fd()));
        self
    }

    /// Lends criu's standard input, from which a restore with
    /// [`shell_job`](crate::RestoreOptions::shell_job) takes the terminal. By default it is empty.
    #[must_use]
    pub fn terminal(mut self, terminal: &'a impl AsFd) -> Lend<'a> {
        self.terminal = Some(terminal.as_fd());
        self
    }

    /// Lends a connected stream socket to a page server, or for a page server itself. Memory goes
    /// there instead of into the folder of images. `criu --ps-socket`.
    #[must_use]
    pub fn page_server(mut self, socket: &'a impl AsFd) -> Lend<'a> {
        self.page_server = Some(socket.as_fd());
        self
    }

    /// Lends an unconnected unix datagram socket, in which criu keeps pidfds between pre-dumps to
    /// detect reused pids. Use the same one for all dumps of a row. criu 3.16.
    #[must_use]
    pub fn pidfd_store(mut self, socket: &'a impl AsFd) -> Lend<'a> {
        self.pidfd_store = Some(socket.as_fd());
        self
    }

    /// Rejects values for which criu's own error would not name our option.
    pub(super) fn check(&self) -> Result<()> {
        let folders = [("Lend::images", Some(self.images)), ("Lend::work", self.work)];
        for (option, folder) in folders.into_iter().filter_map(|(option, folder)| Some((option, folder?))) {
            if !is_folder(folder) {
                return Err(refused(option, "this is no folder"));
            }
        }
        if self.inherit.iter().any(|(key, _)| key.contains('\0')) {
            return Err(refused("Lend::inherit", "the key contains a zero byte"));
        }
        if self.page_server.is_some_and(|socket| getsockopt(&socket, SockType) != Ok(Kind::Stream)) {
            return Err(refused("Lend::page_server", "this is no stream socket"));
        }
        Ok(())
    }

    /// Names the files in `opts`, and returns those that criu must inherit. The first of them gets
    /// the descriptor `first`.
    pub(super) fn describe(&self, opts: &mut CriuOpts, first: i32) -> Vec<BorrowedFd<'a>> {
        // criu opens these two through our entry in /proc, by our descriptor numbers.
        opts.images_dir_fd = self.images.as_raw_fd();
        opts.work_dir_fd = self.work.map(|folder| folder.as_raw_fd());
        for (fd, (key, _)) in (first..).zip(&self.inherit) {
            opts.inherit_fd.push(InheritFd { key: key.clone(), fd });
        }
        opts.pidfd_store_sk = self.pidfd_store.map(|socket| socket.as_raw_fd());
        let mut inherited: Vec<_> = self.inherit.iter().map(|(_, file)| *file).collect();
        if let Some(socket) = self.page_server {
            let fd = (first..).zip(&inherited).last().map_or(first, |(last, _)| last + 1);
            opts.ps = Some(CriuPageServerInfo { fd: Some(fd), ..CriuPageServerInfo::default() });
            inherited.push(socket);
        }
        inherited
    }

    /// Names the files and the folders in `opts`, by their numbers from `first` on. Returns them in
    /// that order. Used for a criu that inherits all its files from its init.
    pub(super) fn describe_within(&self, opts: &mut CriuOpts, first: i32) -> Vec<BorrowedFd<'a>> {
        let mut folders = vec![self.images];
        folders.extend(self.work);
        let after = (first..).zip(&folders).last().map_or(first, |(last, _)| last + 1);
        let inherited = self.describe(opts, after);
        opts.images_dir_fd = first;
        opts.work_dir_fd = self.work.map(|_| first + 1);
        folders.extend(inherited);
        folders
    }

    /// Names the files in `opts` for a criu in the namespaces of a copy, which sees none of our
    /// descriptors. Returns those that criu must inherit, from the number `first` on.
    pub(super) fn describe_inside(&self, opts: &mut CriuOpts, first: i32) -> Result<Vec<BorrowedFd<'a>>> {
        if self.work.is_some() {
            return Err(refused("Lend::work", "criu cannot use a lent work folder when it dumps a copy"));
        }
        if self.pidfd_store.is_some() {
            return Err(refused(
                "Lend::pidfd_store",
                "criu cannot use a store of pidfds when it dumps a copy",
            ));
        }
        let mut files = vec![self.images];
        files.extend(self.describe(opts, first + 1));
        opts.images_dir_fd = -1;
        opts.images_dir = Some(format!("/proc/self/fd/{first}"));
        Ok(files)
    }

    /// Returns true if criu must inherit any of the files.
    pub(super) fn needs_inheritance(&self) -> bool {
        !self.inherit.is_empty() || self.terminal.is_some() || self.page_server.is_some()
    }
}

fn is_folder(file: BorrowedFd<'_>) -> bool {
    let kind = fstat(file).map(|file| SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT);
    kind == Ok(SFlag::S_IFDIR)
}

fn refused(option: &'static str, problem: &str) -> Error {
    Error::Options { option, problem: problem.to_owned() }
}
