//! TCP data that arrived between criu's looks at the two ends of a connection within the tree.
//!
//! It is in the queue of the socket that received it, which has not been read since: the tree
//! stands still.

use std::{collections::HashSet, io, os::fd::OwnedFd, thread, time::Duration};

use super::{
    Frozen,
    sockets::{Kind, descriptor_of},
};
use crate::{
    DumpOptions, Result,
    image::{ImageDir, Missed},
    sys,
};

/// Makes the other ends acknowledge what the tree's sockets have sent. criu fails if a delayed
/// acknowledgement arrives while it reads the sending socket.
pub(super) fn acknowledge(tree: &Frozen, options: &DumpOptions) {
    // The kernel may deliver an acknowledgement a little later.
    const LOOKS: u32 = 10;
    const LITTLE: Duration = Duration::from_micros(200);
    if options.closes_tcp() {
        return; // then criu does not read the data
    }
    let mut seen = HashSet::new();
    let new =
        tree.files.iter().filter(|file| file.inode_of("socket").is_some_and(|inode| seen.insert(inode)));
    let sockets = new.filter_map(|file| descriptor_of(file.pid, file.fd).ok());
    let waiting: Vec<_> =
        sockets.filter(|socket| is_connection(socket) && unacknowledged(socket) > 0).collect();
    waiting.iter().for_each(probe);
    for _ in 0..LOOKS {
        if waiting.iter().all(|socket| unacknowledged(socket) == 0) {
            return;
        }
        thread::sleep(LITTLE);
    }
}

/// Makes the socket send a probe, by leaving the repair mode that it is not in. The other end
/// answers a probe at once, but only one in half a second. A failed probe is ignored: the dump may
/// then fail with `TcpMoved`.
fn probe(socket: &OwnedFd) {
    const REUSE: (i32, i32) = (libc::SOL_SOCKET, libc::SO_REUSEADDR); // TCP_REPAIR changes it
    let Ok(reuse) = sys::option(socket, REUSE) else { return };
    if sys::set_option(socket, REPAIR, &0_i32.to_ne_bytes()).is_ok() {
        let _ = sys::set_option(socket, REUSE, &reuse);
    }
}

const REPAIR: (i32, i32) = (libc::IPPROTO_TCP, libc::TCP_REPAIR);

fn is_connection(socket: &OwnedFd) -> bool {
    Kind::of(socket).is_ok_and(|kind| {
        matches!(kind.domain, libc::AF_INET | libc::AF_INET6)
            && (kind.kind, kind.protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP)
    })
}

/// The number of segments that the other end of an established connection has not acknowledged.
fn unacknowledged(socket: &OwnedFd) -> u32 {
    const INFO: (i32, i32) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    const ESTABLISHED: u8 = 1;
    const PLACE: usize = 24; // of tcpi_unacked in struct tcp_info
    let info = sys::option(socket, INFO).unwrap_or_default();
    if info.first() != Some(&ESTABLISHED) {
        return 0;
    }
    info.get(PLACE..PLACE + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Adds such data to the images. What cannot be had stays missed, which the look at the images
/// tells.
pub(super) fn complete(tree: &Frozen, images: &ImageDir) -> Result<()> {
    for missed in images.missed()? {
        if let Ok(bytes) = received(tree, &missed) {
            images.add_received(&missed, &bytes)?;
        }
    }
    Ok(())
}

/// Reads the missed data from the socket itself.
fn received(tree: &Frozen, missed: &Missed) -> io::Result<Vec<u8>> {
    let mut files = tree.files.iter();
    let socket = files.find(|file| file.inode_of("socket") == Some(missed.inode.into()));
    let socket = socket.ok_or(io::ErrorKind::NotFound)?;
    let socket = descriptor_of(socket.pid, socket.fd)?;
    let [known, count] =
        [missed.known, missed.count].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut bytes = sys::peek_in_repair(&socket, known.saturating_add(count))?;
    match bytes.len() == known + count {
        true => Ok(bytes.split_off(known)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;
    use crate::Pid;

    /// Makes a connection whose last acknowledgement the kernel delays by at least 40 ms. Returns
    /// true if it came earlier.
    fn is_acknowledged_early() -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nodelay(true).unwrap();
        let mut receiver = listener.accept().unwrap().0;
        for _ in 0..20 {
            sender.write_all(b"?").and_then(|()| receiver.read_exact(&mut [0])).unwrap();
            receiver.write_all(b"!").and_then(|()| sender.read_exact(&mut [0])).unwrap();
        }
        let ours = sender.try_clone().map(OwnedFd::from).unwrap();
        let reuse = || sys::option(&ours, (libc::SOL_SOCKET, libc::SO_REUSEADDR)).unwrap();
        let (before, began) = (reuse(), Instant::now());
        sender.write_all(b"?").unwrap();
        let was = unacknowledged(&ours) > 0;
        acknowledge(&Frozen::of(Pid::own()), &DumpOptions::default());
        let is = unacknowledged(&ours) > 0;
        let quickly = began.elapsed() < Duration::from_millis(30);
        assert_eq!(reuse(), before);
        was && !is && quickly
    }

    #[test]
    fn a_delayed_acknowledgement_is_given_at_once() {
        let socket = sys::new_socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        if sys::set_option(&socket, REPAIR, &0_i32.to_ne_bytes()).is_err() {
            eprintln!("skipped: without CAP_NET_ADMIN there is no repair mode");
            return;
        }
        assert!((0..100).any(|_| is_acknowledged_early()), "no acknowledgement came early");
    }
}
