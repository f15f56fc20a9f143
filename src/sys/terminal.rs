//! Calls to terminals.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// Returns the size of a terminal, in rows and columns.
pub(crate) fn terminal_size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes no more than `size`, and fails if this is not a terminal.
    let told = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (told == 0).then_some((size.ws_row, size.ws_col))
}

/// Returns the modes of a terminal. Unlike those of `nix`, they have all bits.
pub(crate) fn terminal_modes(terminal: impl AsFd) -> io::Result<libc::termios> {
    // SAFETY: all fields may be zero.
    let mut modes: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: the call writes no more than `modes`, and fails if this is not a terminal.
    result(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), &raw mut modes) }).map(|()| modes)
}

/// Sets the modes of a terminal at once.
pub(crate) fn set_terminal_modes(terminal: impl AsFd, modes: &libc::termios) -> io::Result<()> {
    // SAFETY: the call only reads `modes`.
    result(unsafe { libc::tcsetattr(terminal.as_fd().as_raw_fd(), libc::TCSANOW, modes) })
}

/// Opens the slave of a master, non-blocking. It does not become this program's terminal.
///
/// # Errors
///
/// Fails if the terminal is locked. The kernel would fail as well, but then no other open of the
/// slave can be read any more.
pub(crate) fn open_slave(master: impl AsFd) -> io::Result<OwnedFd> {
    if is_locked(&master)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let slave = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    super::new_descriptor(slave.into())
}

/// Returns true if a terminal cannot be opened (`TIOCSPTLCK`).
pub(crate) fn is_locked(master: impl AsFd) -> io::Result<bool> {
    let mut on: libc::c_int = 0;
    // SAFETY: TIOCGPTLCK writes one int, and `on` is one.
    result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTLCK, &raw mut on) })
        .map(|()| on != 0)
}

/// Returns true if some modes of a terminal cannot be changed (`TIOCSLCKTRMIOS`).
pub(crate) fn has_locked_modes(master: impl AsFd) -> io::Result<bool> {
    // SAFETY: all fields may be zero.
    let mut locked: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: the kernel's structure is the start of that of the library.
    result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGLCKTRMIOS, &raw mut locked) })?;
    let flags = locked.c_iflag | locked.c_oflag | locked.c_lflag;
    Ok(flags != 0 || locked.c_cc.iter().any(|key| *key != 0))
}

/// Returns true if each read of a master returns a byte about the terminal first.
pub(crate) fn has_packets(master: impl AsFd) -> io::Result<bool> {
    let mut on: libc::c_int = 0;
    // SAFETY: TIOCGPKT writes one int, and `on` is one.
    result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPKT, &raw mut on) }).map(|()| on != 0)
}

/// Turns the packets of a master on or off. To turn them on forgets what is to be told.
pub(crate) fn set_packets(master: impl AsFd, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: TIOCPKT reads one int, and `on` is one.
    result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCPKT, &raw const on) })
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
