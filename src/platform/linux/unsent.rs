//! Writes what the TCP connections within a tree had not sent, once both ends of each are there.

use std::{
    io,
    net::Shutdown,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{self, MsgFlags};

use super::{frozen::sockets::descriptor_of, settle::by_inner_number};
use crate::{
    BoxError, Error, Result,
    image::{Held, ImageDir},
    rpc::{Event, Hooks},
    sys,
};

/// Writes it when criu has restored all sockets. The restore fails if that fails.
pub(super) struct Unsent<'a, H> {
    pub(super) images: &'a ImageDir,
    pub(super) held: &'a [Held],
    /// Hears of the same events.
    pub(super) then: H,
}

impl<H: Hooks> Hooks for Unsent<'_, H> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        if let Event::PostRestore { pid } = event
            && !self.held.is_empty()
        {
            self.write_all(pid.as_raw())?;
        }
        self.then.on(event)
    }

    fn wanted(&self) -> bool {
        !self.held.is_empty() || self.then.wanted()
    }
}

impl<H> Unsent<'_, H> {
    fn write_all(&self, root: i32) -> Result<()> {
        let processes = by_inner_number(root);
        for held in self.held {
            let (pid, descriptor) = (held.pid, held.descriptor);
            let doing = format!("write what descriptor {descriptor} of process {pid} had not sent");
            let process = processes.get(&pid).copied().ok_or_else(|| io::ErrorKind::NotFound.into());
            let bytes = self.images.held(held)?;
            let written = process.and_then(|process| write(process, held, &bytes));
            written.map_err(Error::io(doing))?;
        }
        Ok(())
    }
}

/// Writes to a socket in repair mode, as if it were in none. criu ends that mode later.
fn write(process: i32, held: &Held, bytes: &[u8]) -> io::Result<()> {
    const REPAIR: (i32, i32) = (libc::IPPROTO_TCP, libc::TCP_REPAIR);
    const ON: i32 = 1;
    const OFF_WITHOUT_PROBE: i32 = -1;
    let descriptor = i32::try_from(held.descriptor).map_err(io::Error::other)?;
    let socket = descriptor_of(process, descriptor)?;
    if bytes.is_empty() && held.ends.is_none() {
        const ERROR: (i32, i32) = (libc::SOL_SOCKET, libc::SO_ERROR);
        return sys::option(&socket, ERROR).map(drop); // the kernel forgets it
    }
    sys::set_option(&socket, REPAIR, &OFF_WITHOUT_PROBE.to_ne_bytes())?;
    let written = send(&socket, bytes);
    let shut = written.and_then(|()| held.ends.map_or(Ok(()), |ends| shut(&socket, ends)));
    sys::set_option(&socket, REPAIR, &ON.to_ne_bytes())?;
    shut
}

/// Has the kernel take all the bytes, however large the buffer of the socket is.
fn send(socket: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    const SIZE: (i32, i32) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
    const SET_SIZE: (i32, i32) = (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);
    const LOCKED: (i32, i32) = (libc::SOL_SOCKET, 72); // SO_BUF_LOCK
    let size = sys::option(socket, SIZE)?.try_into().map(i32::from_ne_bytes);
    let size = size.map_err(|_| io::ErrorKind::InvalidData)?;
    let locked = sys::option(socket, LOCKED);
    sys::set_option(socket, SET_SIZE, &(i32::MAX / 2).to_ne_bytes())?;
    while !bytes.is_empty() {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::send(socket.as_raw_fd(), bytes, flags) {
            Ok(count) => bytes = &bytes[count..],
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    sys::set_option(socket, SET_SIZE, &(size / 2).to_ne_bytes())?; // the kernel takes it twice
    // Linux has it since 5.16. An older one keeps the size from growing by itself, as after any
    // restore.
    locked.map_or(Ok(()), |locked| sys::set_option(socket, LOCKED, &locked))
}

fn shut(socket: &OwnedFd, ends: Shutdown) -> io::Result<()> {
    let how = match ends {
        Shutdown::Read => socket::Shutdown::Read,
        Shutdown::Write => socket::Shutdown::Write,
        Shutdown::Both => socket::Shutdown::Both,
    };
    Ok(socket::shutdown(socket.as_raw_fd(), how)?)
}
