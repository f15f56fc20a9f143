//! [`Unread`]: the bytes that wait in a terminal, taken out and put back as they were.
//!
//! They are put back while the modes of the terminal change nothing. Then it gets its modes back. A
//! terminal that works line by line tells lines, ends of file and the start of a line apart. So its
//! input is kept as it would be typed.
//!
//! [`Unread::put`] does not allocate, so that a process that shares the memory of this one can do
//! it.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{FlowArg, tcflow},
    unistd::{read, write},
};

use crate::sys;

/// Both sides of a terminal, whose processes stand still.
pub(super) struct Pair {
    pub(super) master: OwnedFd,
    /// An open of our own, which does not wait.
    pub(super) slave: OwnedFd,
}

/// The unread bytes of a terminal.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// The bytes that the master reads.
    pub(super) output: Vec<u8>,
    /// The bytes that the slave reads. In a terminal that works line by line, the keys that end a
    /// file or quote a byte are among them: [`END_OF_FILE`] and [`QUOTE`].
    pub(super) input: Vec<u8>,
    /// The way in which the output was stopped.
    pub(super) stopped: Option<Stopped>,
    /// Room for one read.
    part: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stopped {
    /// By a key at the master, `^S`.
    ByKey,
    /// By a call (`TCOOFF`).
    ByCall,
}

impl Unread {
    pub(super) fn is_empty(&self) -> bool {
        self.output.is_empty() && self.input.is_empty() && self.stopped.is_none()
    }

    /// Takes the bytes out of a terminal. If there are any, nothing can be written into it until
    /// they are back, so that nothing comes before them.
    ///
    /// # Errors
    ///
    /// Nothing is taken out if the terminal would not take them back.
    pub(super) fn take(pair: &Pair) -> io::Result<Unread> {
        let _master = Prepared::of(pair)?;
        drop(Literal::set(pair, 0)?); // it can be done
        let mut unread = Unread::default();
        let taken = unread.take_all(pair);
        match taken.and_then(|()| if unread.is_empty() { Ok(()) } else { hold(pair) }) {
            Ok(()) => Ok(unread),
            Err(error) => unread.put(pair).and(Err(error)),
        }
    }

    fn take_all(&mut self, pair: &Pair) -> io::Result<()> {
        self.part = vec![0; PART];
        self.take_input(pair)?;
        self.take_output(pair)?;
        self.part = Vec::new();
        self.stopped = stopped(pair)?;
        Ok(())
    }

    fn take_input(&mut self, pair: &Pair) -> io::Result<()> {
        let modes = sys::terminal_modes(&pair.slave)?;
        if !works_by_line(&modes) {
            return self.take_rest(pair, false);
        }
        while let Some(count) = self.read(&pair.slave)? {
            let line = &self.part[..count];
            let (text, end) = line.strip_suffix(b"\n").map_or((line, END_OF_FILE), |text| (text, b'\n'));
            quote(text, &mut self.input);
            self.input.push(end);
        }
        // The kernel shows the start of a line only in the other mode.
        let mut without_lines = modes;
        without_lines.c_lflag &= !libc::ICANON;
        let _modes = Changed::set(pair, &without_lines)?;
        self.take_rest(pair, true)
    }

    fn take_rest(&mut self, pair: &Pair, by_line: bool) -> io::Result<()> {
        while let Some(count) = self.read(&pair.slave)?.filter(|count| *count > 0) {
            let bytes = &self.part[..count];
            if by_line { quote(bytes, &mut self.input) } else { self.input.extend_from_slice(bytes) }
        }
        Ok(())
    }

    fn take_output(&mut self, pair: &Pair) -> io::Result<()> {
        for _ in 0..2 {
            while let Some(count) = self.read(&pair.master)? {
                self.output.extend_from_slice(&self.part[..count]);
            }
            // The kernel keeps an echo for which there was no room until something is written.
            let _ = write(&pair.slave, b""); // if it writes nothing, there was no echo
        }
        Ok(())
    }

    /// Reads once.
    fn read(&mut self, side: &OwnedFd) -> io::Result<Option<usize>> {
        if self.output.len().max(self.input.len()) > MOST {
            return Err(ErrorKind::StorageFull.into()); // another process writes all the time
        }
        loop {
            match read(side, &mut self.part) {
                Ok(count) => return Ok(Some(count)),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN | nix::Error::EIO) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts the bytes into a terminal, behind those that wait there.
    ///
    /// # Errors
    ///
    /// Fails if there is no room for all of them.
    pub(super) fn put(&self, pair: &Pair) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let _master = Prepared::of(pair)?;
        let literal = Literal::set(pair, self.stop_key())?;
        tcflow(&pair.master, FlowArg::TCOON)?;
        start(pair)?;
        literal.put(&self.input)?;
        start(pair)?;
        write_all(&pair.slave, &self.output)?;
        match self.stopped {
            None => Ok(()),
            Some(Stopped::ByCall) => Ok(tcflow(&pair.slave, FlowArg::TCOOFF)?),
            Some(Stopped::ByKey) => literal.stop(),
        }
    }

    /// A byte that is not among the input, if there is one; otherwise 0.
    fn stop_key(&self) -> u8 {
        let is_key = |byte: &u8| ![b'\n', END_OF_FILE, QUOTE].contains(byte);
        (1..=u8::MAX).filter(is_key).find(|byte| !self.input.contains(byte)).unwrap_or(0)
    }
}

/// The most bytes that are read by one call: more than a line has.
const PART: usize = 8 << 10;
/// The most bytes of a side of a terminal. The kernel takes some 25 000.
const MOST: usize = 64 << 10;
/// The bytes that are written by one call. With any other number, the kernel takes fewer in all.
const AT_ONCE: usize = 255;
/// The most bytes that the kernel has ready for the reader of a side. It keeps the others back.
const READY: usize = 4095;
/// The time after which the kernel is asked again, and how often it is.
const PAUSE: Duration = Duration::from_micros(200);
const TIMES: u32 = 1000;

/// The keys of a terminal that works line by line, while bytes are put in: the end of a file, and
/// the key that makes the next byte no key. Their numbers are part of the notes.
pub(super) const END_OF_FILE: u8 = 4;
pub(super) const QUOTE: u8 = 22;

fn quote(bytes: &[u8], quoted: &mut Vec<u8>) {
    for byte in bytes {
        if matches!(*byte, b'\n' | END_OF_FILE | QUOTE) {
            quoted.push(QUOTE);
        }
        quoted.push(*byte);
    }
}

fn write_all(side: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    let mut idle = 0;
    while !bytes.is_empty() {
        match write(side, &bytes[..bytes.len().min(AT_ONCE)]) {
            Ok(0) | Err(nix::Error::EAGAIN | nix::Error::EINTR) if idle < TIMES / 10 => {
                // The kernel makes room while it moves bytes to the other side.
                thread::sleep(PAUSE);
                idle += 1;
            }
            Ok(0) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Err(ErrorKind::StorageFull.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                idle = 0;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_writable(side: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(side.as_fd(), PollFlags::POLLOUT)];
    let told = poll(&mut asked, PollTimeout::ZERO).ok().and_then(|_| asked[0].revents());
    told.is_some_and(|told| told.contains(PollFlags::POLLOUT))
}

/// Tells how the output of a terminal without output is stopped.
fn stopped(pair: &Pair) -> io::Result<Option<Stopped>> {
    if is_writable(&pair.slave) {
        return Ok(None);
    }
    tcflow(&pair.slave, FlowArg::TCOON)?; // it does nothing if a key has stopped it
    if !is_writable(&pair.slave) {
        return Ok(Some(Stopped::ByKey));
    }
    tcflow(&pair.slave, FlowArg::TCOOFF)?;
    Ok(Some(Stopped::ByCall))
}

/// Lets no process write into a terminal.
fn hold(pair: &Pair) -> io::Result<()> {
    tcflow(&pair.slave, FlowArg::TCOOFF)?;
    Ok(tcflow(&pair.master, FlowArg::TCOOFF)?)
}

/// Starts the output, whatever has stopped it.
fn start(pair: &Pair) -> io::Result<()> {
    tcflow(&pair.slave, FlowArg::TCOOFF)?;
    Ok(tcflow(&pair.slave, FlowArg::TCOON)?)
}

fn works_by_line(modes: &libc::termios) -> bool {
    /// Some C libraries lack it.
    const EXTPROC: libc::tcflag_t = 0o200_000;
    modes.c_lflag & libc::ICANON != 0 && modes.c_lflag & EXTPROC == 0
}

/// A master that does not wait, and reads without packets, until this is dropped.
struct Prepared<'a> {
    pair: &'a Pair,
    flags: OFlag,
    packets: bool,
}

impl Prepared<'_> {
    fn of(pair: &Pair) -> io::Result<Prepared<'_>> {
        let flags = OFlag::from_bits_retain(fcntl(&pair.master, FcntlArg::F_GETFL)?);
        let packets = sys::has_packets(&pair.master)?;
        let prepared = Prepared { pair, flags, packets };
        fcntl(&pair.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        if packets {
            sys::set_packets(&pair.master, false)?;
        }
        Ok(prepared)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        let Prepared { pair, flags, packets } = self;
        // It was so before.
        let _ = if *packets { sys::set_packets(&pair.master, true) } else { Ok(()) };
        let _ = fcntl(&pair.master, FcntlArg::F_SETFL(*flags));
    }
}

/// A terminal with other modes, until this is dropped.
struct Changed<'a> {
    pair: &'a Pair,
    before: libc::termios,
}

impl Changed<'_> {
    fn set<'a>(pair: &'a Pair, modes: &libc::termios) -> io::Result<Changed<'a>> {
        let before = sys::terminal_modes(&pair.slave)?;
        sys::set_terminal_modes(&pair.slave, modes)?;
        let changed = Changed { pair, before };
        // Some modes may be locked.
        let now = sys::terminal_modes(&pair.slave)?;
        let flags = |modes: &libc::termios| (modes.c_iflag, modes.c_oflag, modes.c_lflag, modes.c_cc);
        if flags(&now) == flags(modes) { Ok(changed) } else { Err(ErrorKind::PermissionDenied.into()) }
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let _ = sys::set_terminal_modes(&self.pair.slave, &self.before); // they were so before
    }
}

/// A terminal that changes no byte, until this is dropped.
struct Literal<'a> {
    changed: Changed<'a>,
    stop_key: u8,
}

impl Literal<'_> {
    /// The key is one that is not put in, or 0.
    fn set(pair: &Pair, stop_key: u8) -> io::Result<Literal<'_>> {
        let mut modes = sys::terminal_modes(&pair.slave)?;
        modes.c_iflag &= libc::IXOFF | libc::IUTF8;
        modes.c_iflag |= libc::IXON;
        modes.c_oflag &= !libc::OPOST;
        let echo = libc::ECHO | libc::ECHOE | libc::ECHOK | libc::ECHONL | libc::ECHOCTL | libc::ECHOKE;
        modes.c_lflag &= !(libc::ISIG | echo);
        modes.c_lflag |= libc::IEXTEN;
        let keys = modes.c_cc;
        modes.c_cc.fill(0);
        modes.c_cc[libc::VMIN] = keys[libc::VMIN];
        modes.c_cc[libc::VTIME] = keys[libc::VTIME];
        modes.c_cc[libc::VEOF] = END_OF_FILE;
        modes.c_cc[libc::VLNEXT] = QUOTE;
        modes.c_cc[libc::VSTOP] = stop_key;
        Ok(Literal { changed: Changed::set(pair, &modes)?, stop_key })
    }

    fn put(&self, input: &[u8]) -> io::Result<()> {
        if input.is_empty() {
            return Ok(());
        }
        write_all(&self.changed.pair.master, input)?;
        // All before the key is where the slave reads once the key has stopped the output.
        if input.len() <= READY && self.stop_key != 0 { self.stop() } else { self.settle() }
    }

    /// Stops the output by a key, and waits until the kernel has taken it.
    fn stop(&self) -> io::Result<()> {
        let pair = self.changed.pair;
        write_all(&pair.master, &[self.stop_key])?;
        for _ in 0..TIMES {
            if !is_writable(&pair.slave) {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
        Err(ErrorKind::TimedOut.into())
    }

    /// Waits until the kernel has moved as many bytes as it has room for to where the slave reads.
    fn settle(&self) -> io::Result<()> {
        let (mut before, mut idle) = (0, 0);
        for _ in 0..TIMES {
            let now = sys::waiting_bytes(&self.changed.pair.slave)?;
            idle = if now == before { idle + 1 } else { 0 };
            if idle > TIMES / 20 {
                break;
            }
            before = now;
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}
