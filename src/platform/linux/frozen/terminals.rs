//! Terminals of which the tree has the master: their unread bytes.
//!
//! If the tree has both sides of a terminal, criu reads its unread bytes, and writes them back
//! through the other side. So the modes of the terminal would change them a second time, and bytes
//! that do not fit would be dropped, also in the tree that goes on. So they are taken out before
//! criu looks, and put back before the tree runs. If the slave was closed by all processes, criu
//! drops them, and the terminal comes back as one whose slave was never opened.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    super::still::while_still,
    Frozen, OpenFile,
    settings::inner_number,
    sockets::descriptor_of,
    unread::{Pair, Stopped, Unread},
};
use crate::{
    DumpOptions, Pid, Warning,
    procfs::{Stat, fdinfo_value, read_start},
    proto::images::{TerminalNotes, terminal_notes::Stop},
    sys::{self, Statx},
};

/// The terminals of a tree, without their unread bytes. Those are put back when this is dropped.
pub(super) struct Terminals {
    root: Pid,
    taken: Vec<Taken>,
    pub(super) warnings: Vec<Warning>,
}

/// A terminal, and its unread bytes.
struct Taken {
    pid: i32,
    unread: Unread,
    notes: TerminalNotes,
    /// The terminal, unless it has its bytes.
    lacking: Option<Pair>,
}

/// The most bytes that are taken out of all terminals together. They are kept in one image.
const MOST: usize = 4 << 20;

impl Terminals {
    /// Takes out the unread bytes of the terminals of a tree that stands still.
    pub(super) fn take(root: Pid, tree: &Frozen, options: &DumpOptions) -> Terminals {
        let mut terminals = Terminals { root, taken: Vec::new(), warnings: Vec::new() };
        let mut bytes = 0;
        for found in Found::all(tree, options) {
            let Some(inner) = found.open(&mut terminals.warnings) else { continue };
            terminals.warnings.extend(inner.news());
            let taken = if bytes > MOST { Err(io::ErrorKind::StorageFull.into()) } else { Taken::of(&inner) };
            match taken {
                Ok(taken) => {
                    bytes += taken.unread.output.len() + taken.unread.input.len();
                    terminals.taken.push(taken);
                }
                Err(_) => terminals.warnings.extend(inner.loss()),
            }
        }
        terminals
    }

    /// Finds the unread bytes of the terminals of a tree, and leaves them there.
    pub(super) fn look(root: Pid, tree: &Frozen, options: &DumpOptions) -> Terminals {
        let mut warnings = Vec::new();
        for found in Found::all(tree, options) {
            let Some(inner) = found.open(&mut warnings) else { continue };
            warnings.extend([inner.loss(), inner.news()].into_iter().flatten());
        }
        Terminals { root, taken: Vec::new(), warnings }
    }

    /// The notes of these bytes.
    pub(super) fn notes(&self) -> Vec<TerminalNotes> {
        let noted = self.taken.iter().filter(|taken| !taken.unread.is_empty() || taken.notes.ended());
        noted.map(|taken| taken.notes.clone()).collect()
    }

    /// Puts them back into a tree that stands still. Returns a warning if a terminal lacks room.
    pub(super) fn put_back(&mut self) -> Vec<Warning> {
        let left = self.taken.iter_mut().filter_map(|taken| taken.put_back().err().map(|_| taken.pid));
        let what = "whole unread input and output of a terminal, and so will the tree that goes on";
        left.map(|pid| Warning::Lost { pid: Pid::from(pid), what }).collect()
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        if self.taken.iter().all(|taken| taken.lacking.is_none()) {
            return;
        }
        // The dump has failed, and the tree goes on already.
        while_still(self.root, || {
            for taken in &self.taken {
                // There is no way to tell of a failure.
                let _ = taken.lacking.as_ref().map_or(Ok(()), |pair| taken.unread.put(pair));
            }
        });
    }
}

impl Taken {
    fn of(inner: &Inner) -> io::Result<Taken> {
        let number = inner_number(inner.pid).and_then(|pid| u32::try_from(pid).ok());
        let (Some(pid), Ok(descriptor)) = (number, u32::try_from(inner.fd)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let slave = sys::open_slave(&inner.master)?;
        // The kernel would stop this program for what it does to its own terminal.
        let own = Stat::of(std::process::id().cast_signed()).ok().and_then(|own| own.terminal());
        if own.is_some_and(|own| Statx::of_open(&slave).is_ok_and(|slave| slave.device() == own)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let pair = Pair { master: inner.master.try_clone()?, slave };
        let unread = Unread::take(&pair)?;
        let some = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.to_vec());
        let stopped = unread.stopped.map(|stopped| match stopped {
            Stopped::ByKey => Stop::ByKey.into(),
            Stopped::ByCall => Stop::ByCall.into(),
        });
        let (output, input) = (some(&unread.output), some(&unread.input));
        let ended = inner.has_ended.then_some(true);
        let notes = TerminalNotes { pid, descriptor, output, input, stopped, ended };
        let lacking = (!unread.is_empty()).then_some(pair);
        let mut taken = Taken { pid: inner.pid, unread, notes, lacking };
        // criu does not touch a terminal without a slave.
        if inner.has_ended {
            taken.put_back()?;
        }
        Ok(taken)
    }

    fn put_back(&mut self) -> io::Result<()> {
        self.lacking.take().map_or(Ok(()), |pair| self.unread.put(&pair))
    }
}

/// Puts the bytes of these notes into a terminal, in a process that has its master.
pub(in crate::platform) fn put(process: i32, notes: &TerminalNotes) -> io::Result<()> {
    let descriptor = i32::try_from(notes.descriptor).map_err(io::Error::other)?;
    if !Statx::of(format!("/proc/{process}/fd/{descriptor}"))?.is_master() {
        return Err(io::Error::other("another file has its place"));
    }
    let master = descriptor_of(process, descriptor)?;
    let pair = Pair { slave: sys::open_slave(&master)?, master };
    let mut unread = Unread::default();
    unread.output.extend(notes.output());
    unread.input.extend(notes.input());
    unread.stopped = notes.stopped.and_then(|_| match notes.stopped() {
        Stop::ByKey => Some(Stopped::ByKey),
        Stop::ByCall => Some(Stopped::ByCall),
        Stop::Unknown => None,
    });
    // The terminal has ended once this slave is closed, if it is the only one.
    unread.put(&pair)
}

/// Finds what a capture of this running tree could not take out of its terminals at this moment. A
/// capture takes nothing out of a tree that includes the `caller`.
pub(in crate::platform) fn foresee(root: Pid, options: &DumpOptions, with_caller: bool) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for found in Found::all(&Frozen::of(root), options) {
        let Some(inner) = found.open(&mut warnings) else { continue };
        let is_locked = [sys::is_locked(&inner.master), sys::has_locked_modes(&inner.master)];
        let stays = with_caller || is_locked.into_iter().any(|is_locked| is_locked.unwrap_or(false));
        warnings.extend(inner.loss().filter(|_| stays));
        warnings.extend(inner.news());
    }
    warnings
}

/// A terminal of which the tree has the master, and whose slave is not external to criu.
struct Found<'a> {
    master: &'a OpenFile,
    slave: Option<&'a OpenFile>,
}

impl Found<'_> {
    fn all<'a>(tree: &'a Frozen, options: &DumpOptions) -> Vec<Found<'a>> {
        let (mut slaves, mut masters, mut outside) = (Vec::new(), Vec::new(), HashSet::new());
        for file in tree.files.iter().filter(|file| file.target.is_absolute()) {
            let Ok(found) = Statx::of(file.path()) else { continue };
            match found.slave() {
                // The master leaked into the tree: the terminal is that of another process.
                Some(index) if options.is_external(&format!("tty[{:x}:{:x}]", found.rdev(), found.dev())) => {
                    outside.insert(index);
                }
                Some(index) => slaves.push((index, file)),
                None if found.is_master() => masters.extend(index(file).map(|index| (index, file))),
                None => {}
            }
        }
        let mut seen = outside;
        masters.retain(|(index, _)| seen.insert(*index));
        let found = |(index, master)| {
            let slave = slaves.iter().find(|(slave, _)| *slave == index).map(|(_, file)| *file);
            Found { master, slave }
        };
        masters.into_iter().map(found).collect()
    }

    /// Opens its sides, if the slave is open in the tree, or was open before. A failure is a
    /// warning.
    fn open(&self, warnings: &mut Vec<Warning>) -> Option<Inner> {
        let pid = self.master.pid;
        let open = || {
            let (master, slave) = (self.master.take()?, self.slave.map(OpenFile::take).transpose()?);
            let has_ended = slave.is_none() && has_hung_up(&master);
            Ok(Inner { pid, fd: self.master.fd, master, slave, has_ended })
        };
        match open() {
            // Otherwise the slave was never opened, or only processes outside have it.
            Ok(inner) => Some(inner).filter(|inner| inner.slave.is_some() || inner.has_ended),
            Err(error) if has_gone(&error) => None,
            Err(_) => {
                warnings.push(Warning::Lost { pid: Pid::from(pid), what: BYTES });
                None
            }
        }
    }
}

/// Returns true if a process or its file is gone. This happens in a tree that runs.
fn has_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ESRCH | Errno::EBADF | Errno::ENOENT))
}

fn index(master: &OpenFile) -> Option<u64> {
    fdinfo_value(&read_start(format!("/proc/{}/fdinfo/{}", master.pid, master.fd))?, "tty-index")
}

/// A terminal of which the tree has the master, and had or has the slave.
struct Inner {
    pid: i32,
    fd: i32,
    master: OwnedFd,
    /// A slave of the tree.
    slave: Option<OwnedFd>,
    /// True if no process has the slave any more.
    has_ended: bool,
}

const BYTES: &str = "exact input and output that waits in a terminal, and so will the tree that goes on";

impl Inner {
    /// Tells of what is lost if nothing is taken out.
    fn loss(&self) -> Option<Warning> {
        let what = if self.has_ended {
            "hang-up of a terminal whose program has ended, and its unread output: a reader waits for ever"
        } else if [&Some(&self.master), &self.slave.as_ref()].into_iter().flatten().any(|side| waits(side)) {
            BYTES
        } else {
            return None;
        };
        Some(Warning::Lost { pid: Pid::from(self.pid), what })
    }

    /// Tells of what a master in packet mode has not read about the terminal. It cannot be put
    /// back.
    fn news(&self) -> Option<Warning> {
        let what = "unread news of a terminal's state (TIOCPKT), and so will the tree that goes on";
        let is_there = asked(&self.master, PollFlags::POLLPRI).contains(PollFlags::POLLPRI);
        is_there.then_some(Warning::Lost { pid: Pid::from(self.pid), what })
    }
}

fn waits(side: &OwnedFd) -> bool {
    sys::waiting_bytes(side).is_ok_and(|bytes| bytes > 0)
}

/// Returns true if no process has the slave open any more.
fn has_hung_up(master: &OwnedFd) -> bool {
    asked(master, PollFlags::empty()).contains(PollFlags::POLLHUP)
}

fn asked(master: &OwnedFd, flags: PollFlags) -> PollFlags {
    let mut asked = [PollFd::new(master.as_fd(), flags)];
    let told = poll(&mut asked, PollTimeout::ZERO).ok().and_then(|_| asked[0].revents());
    told.unwrap_or(PollFlags::empty())
}
