//! TCP data that arrived between criu's looks at the two ends of a connection within the tree.
//!
//! It is in the queue of the socket that received it, which has not been read since: the tree
//! stands still.

use std::io;

use super::{Frozen, sockets::descriptor_of};
use crate::{
    Result,
    image::{ImageDir, Missed},
    sys,
};

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
