//! [`Given`]: the files that a tree gets in the place of those that led out of it.

use std::{
    collections::BTreeMap,
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

use super::links::full_pipe;
use crate::{
    Error, Result,
    image::{ImageDir, InPipe, Lending, Lent, Offer, OfferedTerminal, Was, detach_streams},
    platform::Revival,
    procfs::Stat,
    stream::Chosen,
    sys::{Statx, terminal_size},
};

/// The standard streams to give to a tree.
pub(super) struct Given<'a> {
    revival: &'a Revival,
    chosen: &'a [Option<Chosen>; 3],
    /// The files shared with other trees, by criu's names.
    links: &'a [(String, File)],
    /// Those that the caller chose, else its own, else nothing.
    streams: [File; 3],
}

/// The files that criu is lent, by its names, and the bytes that were in those that they replace,
/// by descriptor.
pub(super) struct ToLend {
    pub(super) files: Vec<(String, File)>,
    pub(super) unread: Vec<(u32, Vec<u8>)>,
    /// The caller gives a standard input, and the tree's has ended and stays so.
    pub(super) input_unused: bool,
    /// The standard streams that the caller gives and that the tree gets.
    pub(super) used: [bool; 3],
}

impl<'a> Given<'a> {
    pub(super) fn new(
        revival: &'a Revival,
        chosen: &'a [Option<Chosen>; 3],
        links: &'a [(String, File)],
    ) -> Result<Given<'a>> {
        let own = [
            io::stdin().as_fd().try_clone_to_owned(),
            io::stdout().as_fd().try_clone_to_owned(),
            io::stderr().as_fd().try_clone_to_owned(),
        ];
        let mut given = Vec::new();
        for (chosen, own) in chosen.iter().zip(own) {
            let file = match (chosen.as_ref().and_then(Chosen::file), own) {
                (Some(chosen), _) => chosen.try_clone(),
                (None, Ok(own)) => Ok(File::from(own)),
                // A daemon has closed its own.
                (None, Err(_)) => File::options().read(true).write(true).open("/dev/null"),
            };
            given.push(file.map_err(Error::io("lend a standard stream"))?);
        }
        let streams = given.try_into().expect("because there were three");
        Ok(Given { revival, chosen, links, streams })
    }

    /// Makes room in the images, and gives what criu is to be lent, by its names.
    pub(super) fn lend(&self, images: &ImageDir) -> Result<ToLend> {
        let callers = || self.revival.inherit.iter().map(|(key, _)| key.as_str());
        let links = self.links.iter().filter(|(key, _)| !callers().any(|other| other == key));
        let links: Vec<_> = links.map(|(key, file)| (key, file.try_clone())).collect();
        let inherited: Vec<&str> = callers().chain(links.iter().map(|(key, _)| key.as_str())).collect();
        let offer = Offer {
            chosen: self.chosen.each_ref().map(Option::is_some),
            terminals: self.streams.each_ref().map(terminal),
            inherited: &inherited,
        };
        images.join_inner_terminals()?;
        images.part_leaked_masters()?;
        images.cut_terminal_data()?;
        let detached = detach_streams(images, &offer)?;
        let used = self.used(&detached.lendings);
        let open = |lending: Lending| {
            let file = self
                .open(lending.what, &detached.rest)
                .map_err(Error::io(format!("lend {}", lending.key)))?;
            Ok((lending.key, file))
        };
        let mut files = detached.lendings.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        for (key, file) in links {
            files.push((key.clone(), file.map_err(Error::io(format!("lend {key}")))?));
        }
        let input_unused = detached.input_ended && self.is_news(0);
        Ok(ToLend { files, unread: detached.unread, input_unused, used })
    }

    /// The file that the caller gave for a stream.
    fn file(&self, stream: usize) -> Option<&File> {
        self.chosen[stream].as_ref().and_then(Chosen::file)
    }

    /// Returns true if the caller gave this stream, and something to read or to write with it.
    fn is_news(&self, stream: usize) -> bool {
        self.file(stream).is_some_and(|file| !file.metadata().is_ok_and(|kind| is_null(&kind)))
    }

    /// The standard streams that the tree gets, or that are no news to it. A file that is several
    /// streams is used as all of them.
    fn used(&self, lendings: &[Lending]) -> [bool; 3] {
        let identity =
            |stream: usize| self.streams[stream].metadata().map(|file| (file.dev(), file.ino())).ok();
        let lent = lendings.iter().filter_map(|lending| match lending.what {
            Lent::Stream { stream, .. } | Lent::Terminal { stream, .. } => Some(stream),
            // It is told by a warning of its own.
            Lent::Ended => Some(0),
            Lent::HungUp => None,
        });
        let lent: Vec<usize> = lent.collect();
        let is_lent = |stream| {
            lent.iter().any(|other| {
                *other == stream || identity(*other).is_some_and(|one| Some(one) == identity(stream))
            })
        };
        [0, 1, 2].map(|stream| !self.is_news(stream) || is_lent(stream))
    }

    fn stream(&self, stream: usize, was: Was) -> io::Result<File> {
        let file = &self.streams[stream];
        let kind = file.metadata()?;
        if was == Was::Nonblocking && kind.file_type().is_fifo() {
            return nonblocking(file);
        }
        // An event loop that waits for its input cannot wait for a file, nor for nothing. That of a
        // daemon has ended.
        let is_own = self.file(stream).is_none();
        let has_ended = is_null(&kind) || (is_own && kind.is_file());
        if stream == 0 && was != Was::Other && has_ended { ended(&[]) } else { file.try_clone() }
    }

    fn open(&self, what: Lent, rest: &[u8]) -> io::Result<File> {
        match what {
            Lent::Stream { stream, was } => self.stream(stream, was),
            Lent::Terminal { stream, flags } => {
                // A file of its own: the caller's would get the flags that the tree sets.
                let flags = OFlag::from_bits_truncate(i32::try_from(flags).unwrap_or(libc::O_RDWR));
                let flags = flags & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK | OFlag::O_APPEND);
                open_anew(&self.streams[stream], flags | OFlag::O_NOCTTY)
            }
            Lent::Ended => ended(rest),
            Lent::HungUp => hung_up().or_else(|_| File::options().read(true).write(true).open("/dev/null")),
        }
    }
}

/// Gives the tree's own terminals other numbers where theirs are taken, or beyond what criu tries.
pub(super) fn renumber(images: &ImageDir) -> Result<()> {
    /// Half of the terminals that criu opens until it has the number that it wants: others come and
    /// go meanwhile.
    const TRIES: u32 = 16;
    let own = images.own_terminals()?;
    if own.is_empty() {
        return Ok(());
    }
    // The kernel gives the lowest number that is free. Those far above are the least likely to be
    // gone when criu asks.
    let masters: Vec<_> = (0..TRIES).map_while(|_| free_terminal()).collect();
    let free: Vec<u32> = masters.iter().map(|(_, number)| *number).collect();
    let Some(end) = free.first().map(|lowest| lowest + TRIES) else { return Ok(()) };
    let mut left = free.iter().copied().filter(|number| *number < end && !own.contains(number)).rev();
    let mut numbers = BTreeMap::new();
    for number in own.iter().filter(|number| !free.contains(number)) {
        numbers.extend(left.next().map(|new| (*number, new)));
    }
    drop(masters);
    if numbers.is_empty() { Ok(()) } else { images.renumber_terminals(&numbers) }
}

/// A new terminal's master, and its number.
fn free_terminal() -> Option<(nix::pty::PtyMaster, u32)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).ok()?;
    let number = ptsname_r(&master).ok()?.rsplit('/').next()?.parse().ok()?;
    Some((master, number))
}

/// A pipe without a writer, with these bytes in it.
fn ended(rest: &[u8]) -> io::Result<File> {
    let room = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let (reader, _) = full_pipe(Some(&InPipe { bytes: rest.to_vec(), room }))?;
    open_anew(&File::from(reader), OFlag::O_RDONLY)
}

fn is_null(file: &fs::Metadata) -> bool {
    file.file_type().is_char_device() && file.rdev() == nix::sys::stat::makedev(1, 3)
}

/// The terminal that a file is the slave of.
fn terminal(file: &File) -> Option<OfferedTerminal> {
    let known = Statx::of(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    known.slave()?;
    let taken = is_taken(&known).then(|| {
        let (rows, columns) = terminal_size(file.as_fd()).unwrap_or_default();
        let owner = file.metadata().map_or((0, 0), |file| (file.uid(), file.gid()));
        [rows.into(), columns.into(), owner.0, owner.1]
    });
    Some(OfferedTerminal { device: known.rdev() ^ known.dev().rotate_left(32), taken })
}

/// Returns true if the terminal controls a session already. criu would take it away from that
/// session.
fn is_taken(terminal: &Statx) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let mut has_number =
        pids.filter(|pid| Stat::of(*pid).is_ok_and(|stat| stat.terminal() == Some(terminal.device())));
    has_number.any(|pid| {
        // In another container the number is another terminal's.
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let known = files.filter_map(|file| Statx::of(file.path()).ok());
        let mut same_number = known.filter(|known| known.slave() == terminal.slave()).peekable();
        same_number.peek().is_none() || same_number.any(|known| known.dev() == terminal.dev())
    })
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
