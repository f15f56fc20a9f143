//! The client against a scripted criu: one test for each fault, and one for each promise without a
//! fault.

mod answers;
mod events;
mod outcomes;
mod questions;
mod requests;

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    process,
};

use criu_rpc::{
    Cancel, Criu, DumpOptions, Error, RestoreOptions, Result, Version,
    rpc::{Event, Hooks, Lend, NoHooks},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};

use crate::{
    peer::{self, Kind, Line, Peer, Req, Resp, hear, hear_ack, notify, say},
    stores::Folder,
};

#[test]
fn one_criu_serves_many_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Criu>();
    shared::<Cancel>();
}

/// Asks for the version. The peer hears that, and then goes on as told.
#[track_caller]
fn asked_for_its_version(then: impl IntoIterator<Item = Line>) -> Error {
    let (socket, peer) = Peer::play([hear(Kind::Version)].into_iter().chain(then));
    let error = Criu::over(socket).version().unwrap_err();
    peer.done();
    error
}

#[track_caller]
fn told_version(version: peer::Version) -> Version {
    let good = Resp { version: Some(version), ..Resp::good(Kind::Version) };
    let (socket, peer) = Peer::play([hear(Kind::Version), say(good)]);
    let told = Criu::over(socket).version().unwrap();
    assert_eq!(peer.done(), [request(Kind::Version)]);
    told
}

/// Dumps with a hook that agrees to everything. The peer hears the request, and then goes on as
/// told.
#[track_caller]
fn dumped(then: impl IntoIterator<Item = Line>) -> Result<()> {
    let (socket, peer) = Peer::play([hear(Kind::Dump)].into_iter().chain(then));
    let result = dump_by(&Criu::over(socket), &mut |_: Event<'_>| Ok(()));
    peer.done();
    result
}

/// A dump of this process in name only: the scripted criu does not touch it.
fn dump_by(criu: &Criu, hooks: &mut dyn Hooks) -> Result<()> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.dump(process::id(), &DumpOptions::default(), Lend::images(&images), hooks).map(drop)
}

/// A dump whose hooks refuse at `post-dump`.
#[track_caller]
fn refused(hooks: &mut dyn Hooks) -> Error {
    let bad = say(Resp::bad(Kind::Dump));
    let (socket, peer) = Peer::play([hear(Kind::Dump), notify("post-dump"), hear_ack(false), bad]);
    let error = dump_by(&Criu::over(socket), hooks).unwrap_err();
    peer.done();
    error
}

#[track_caller]
fn restored(then: impl IntoIterator<Item = Line>) -> Result<criu_rpc::Tree> {
    let (socket, peer) = Peer::play([hear(Kind::Restore)].into_iter().chain(then));
    let result = restore_by(&Criu::over(socket), &mut NoHooks);
    peer.done();
    result
}

fn restore_by(criu: &Criu, hooks: &mut dyn Hooks) -> Result<criu_rpc::Tree> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.restore(&RestoreOptions::default(), Lend::images(&images), hooks)
}

fn request(kind: Kind) -> Req {
    Req { kind: kind as i32, ..Req::default() }
}

fn version_answer() -> Resp {
    Resp { version: Some(numbers(4, 2)), ..Resp::good(Kind::Version) }
}

fn numbers(major: i32, minor: i32) -> peer::Version {
    peer::Version { major, minor, ..peer::Version::default() }
}

/// A pipe whose write end can be given away.
fn pipe() -> (ReadEnd, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (ReadEnd(read.into()), write)
}

struct ReadEnd(File);

impl ReadEnd {
    /// Reads to the end, which comes once every copy of the write end is closed.
    #[track_caller]
    fn ends(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::from(5000u16)).unwrap();
            assert_eq!(ready, 1, "somebody still holds the descriptor");
            let mut buffer = [0; 64];
            match self.0.read(&mut buffer).unwrap() {
                0 => return bytes,
                size => bytes.extend_from_slice(&buffer[..size]),
            }
        }
    }
}
