//! [`Links`]: pipes and sockets between the trees of one capture, made anew with what was in them.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair},
    unistd::{pipe2, write},
};
use std::os::fd::AsRawFd;

use crate::{
    Error, Result,
    image::{Channels, ImageDir, InPipe, shared_pipes, shared_sockets},
};

/// The files to lend to each tree, by criu's names. They stay open until all trees are restored,
/// because the first may write before the second can read.
pub(super) struct Links {
    of_trees: Vec<Vec<(String, File)>>,
    _others: Vec<OwnedFd>,
}

impl Links {
    pub(super) fn between(trees: &[ImageDir]) -> Result<Links> {
        let mut links = Links { of_trees: trees.iter().map(|_| Vec::new()).collect(), _others: Vec::new() };
        if trees.len() > 1 {
            let channels = trees.iter().map(ImageDir::channels).collect::<Result<Vec<_>>>()?;
            links.pipes(trees, &channels)?;
            links.sockets(trees, &channels)?;
        }
        Ok(links)
    }

    pub(super) fn of(&self, tree: usize) -> &[(String, File)] {
        &self.of_trees[tree]
    }

    fn pipes(&mut self, trees: &[ImageDir], channels: &[Channels]) -> Result<()> {
        let shared = shared_pipes(channels);
        let contents = trees.iter().map(|tree| tree.in_pipes(&shared)).collect::<Result<Vec<_>>>()?;
        for pipe in shared {
            let inside = contents.iter().find_map(|tree| tree.get(&pipe));
            let making = Error::io(format!("make the pipe {pipe} between two trees"));
            let (reader, writer) = full_pipe(inside).map_err(making)?;
            for (tree, channels) in channels.iter().enumerate() {
                if channels.pipes.contains(&pipe) {
                    // criu opens it anew, as the end that it is to be.
                    let end = reader.try_clone().map_err(Error::io("lend a pipe"))?;
                    self.of_trees[tree].push((format!("pipe:[{pipe}]"), end.into()));
                }
            }
            self._others.push(writer);
        }
        Ok(())
    }

    fn sockets(&mut self, trees: &[ImageDir], channels: &[Channels]) -> Result<()> {
        for pair in shared_sockets(channels) {
            let making = || Error::io(format!("make the sockets {} and {}", pair[0].1, pair[1].1));
            let known = pair.map(|(tree, inode)| channels[tree].sockets[&inode]);
            let kind = match known[0].kind {
                1 => SockType::Stream,
                2 => SockType::Datagram,
                _ => SockType::SeqPacket,
            };
            let ends = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC);
            let ends: [OwnedFd; 2] = ends.map_err(io::Error::from).map_err(making())?.into();
            for (own, (tree, _)) in pair.into_iter().enumerate() {
                let file = known[own].file;
                let queues = trees[tree].in_sockets(&HashSet::from([file]))?;
                for packet in queues.get(&file).into_iter().flatten() {
                    let sent = send(ends[1 - own].as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT);
                    let whole = sent.map_err(io::Error::from).map_err(making())? == packet.len();
                    if !whole {
                        return Err(making()(io::ErrorKind::WriteZero.into()));
                    }
                }
            }
            for ((tree, inode), (end, known)) in pair.into_iter().zip(ends.into_iter().zip(known)) {
                for (bit, how) in [(1, Shutdown::Read), (2, Shutdown::Write)] {
                    if known.shut & bit != 0 {
                        shutdown(end.as_raw_fd(), how).map_err(io::Error::from).map_err(making())?;
                    }
                }
                self.of_trees[tree].push((format!("socket:[{inode}]"), end.into()));
            }
        }
        Ok(())
    }
}

/// A new pipe with these contents.
pub(super) fn full_pipe(inside: Option<&InPipe>) -> io::Result<(OwnedFd, OwnedFd)> {
    // Nonblocking: no process reads yet, so a write that does not fit would block for ever.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    if let Some(inside) = inside {
        if let Ok(room) = i32::try_from(inside.room) {
            // An error is ignored: the pipe keeps the usual room, which is below the limit anyway.
            let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(room));
        }
        let mut rest = inside.bytes.as_slice();
        while !rest.is_empty() {
            rest = &rest[write(writer.as_fd(), rest)?..];
        }
    }
    Ok((reader, writer))
}
