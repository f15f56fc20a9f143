//! [`Given`]: the files that a tree gets in the place of those that led out of it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};

use crate::{
    Error, Result,
    image::{ImageDir, Lending, Lent, Offer, OfferedTerminal, detach_streams},
    platform::Revival,
    procfs::Stat,
    sys::{Known, terminal_size},
};

/// The standard streams to give to a tree.
pub(super) struct Given<'a> {
    revival: &'a Revival,
    /// Those that the caller chose, else its own, else nothing.
    streams: [File; 3],
}

impl<'a> Given<'a> {
    pub(super) fn new(revival: &'a Revival) -> Result<Given<'a>> {
        let own = [
            io::stdin().as_fd().try_clone_to_owned(),
            io::stdout().as_fd().try_clone_to_owned(),
            io::stderr().as_fd().try_clone_to_owned(),
        ];
        let mut given = Vec::new();
        for (chosen, own) in revival.streams.iter().zip(own) {
            let file = match (chosen, own) {
                (Some(chosen), _) => chosen.try_clone(),
                (None, Ok(own)) => Ok(File::from(own)),
                // A daemon has closed its own.
                (None, Err(_)) => File::options().read(true).write(true).open("/dev/null"),
            };
            given.push(file.map_err(Error::io("lend a standard stream"))?);
        }
        let streams = given.try_into().expect("because there were three");
        Ok(Given { revival, streams })
    }

    /// Makes room in the images, and gives what criu is to be lent, by its names.
    pub(super) fn lend(&self, images: &ImageDir) -> Result<Vec<(String, File)>> {
        let inherited: Vec<&str> = self.revival.inherit.iter().map(|(key, _)| key.as_str()).collect();
        let offer = Offer {
            chosen: self.revival.streams.each_ref().map(|file| file.is_some() || self.revival.own_streams),
            terminals: self.streams.each_ref().map(terminal),
            inherited: &inherited,
        };
        let lendings = detach_streams(images, &offer)?;
        let open = |lending: Lending| {
            let file = self.open(lending.what).map_err(Error::io(format!("lend {}", lending.key)))?;
            Ok((lending.key, file))
        };
        lendings.into_iter().map(open).collect()
    }

    fn open(&self, what: Lent) -> io::Result<File> {
        match what {
            Lent::Stream { stream, nonblocking: true } if is_pipe(&self.streams[stream]) => {
                nonblocking(&self.streams[stream])
            }
            Lent::Stream { stream, .. } => self.streams[stream].try_clone(),
            Lent::Terminal { stream, flags } => {
                // A file of its own: the caller's would get the flags that the tree sets.
                let flags = OFlag::from_bits_truncate(i32::try_from(flags).unwrap_or(libc::O_RDWR));
                let flags = flags & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK | OFlag::O_APPEND);
                open_anew(&self.streams[stream], flags | OFlag::O_NOCTTY)
            }
            Lent::HungUp => hung_up().or_else(|_| File::options().read(true).write(true).open("/dev/null")),
        }
    }
}

/// The terminal that a file is the slave of.
fn terminal(file: &File) -> Option<OfferedTerminal> {
    let known = Known::of(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    known.slave()?;
    let taken = is_taken(&known).then(|| {
        let (rows, columns) = terminal_size(file.as_fd()).unwrap_or_default();
        let owner = file.metadata().map_or((0, 0), |file| (file.uid(), file.gid()));
        [rows.into(), columns.into(), owner.0, owner.1]
    });
    Some(OfferedTerminal { device: known.rdev() ^ known.dev().rotate_left(32), taken })
}

/// Whether a session has the terminal as its controlling one already. criu would take it away.
fn is_taken(terminal: &Known) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let mut has_number =
        pids.filter(|pid| Stat::of(*pid).is_ok_and(|stat| stat.terminal() == Some(terminal.device())));
    has_number.any(|pid| {
        // In another container the number is another terminal's.
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let known = files.filter_map(|file| Known::of(file.path()).ok());
        let mut same_number = known.filter(|known| known.slave() == terminal.slave()).peekable();
        same_number.peek().is_none() || same_number.any(|known| known.dev() == terminal.dev())
    })
}

fn is_pipe(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.file_type().is_fifo())
}

/// The pipe, opened anew: what is set on the caller's file would be set for the caller, too.
fn nonblocking(pipe: &File) -> io::Result<File> {
    let mode = OFlag::from_bits_truncate(nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_GETFL)?);
    open_anew(pipe, (mode & OFlag::O_ACCMODE) | OFlag::O_NONBLOCK)
}

fn open_anew(file: &File, flags: OFlag) -> io::Result<File> {
    let access = flags & OFlag::O_ACCMODE;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options()
        .read(access != OFlag::O_WRONLY)
        .write(access != OFlag::O_RDONLY)
        .custom_flags((flags & !OFlag::O_ACCMODE).bits())
        .open(path)
}

/// A terminal whose other side is gone.
fn hung_up() -> io::Result<File> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name)
}
