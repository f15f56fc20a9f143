//! [`Place`]: the position of a frame in a pack.

use super::index::Record;
use crate::store::pack::PackId;

/// The position of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) pack: PackId,
    /// The length of its header.
    pub(super) head: u32,
    /// Its position in the pack; 0 until it is written.
    pub(super) at: u64,
    /// The number of bytes after the header.
    pub(super) stored: u32,
}

impl From<Record> for Place {
    fn from(Record { pack, at, head, stored, .. }: Record) -> Place {
        Place { pack, head: head.into(), at, stored }
    }
}

impl Place {
    /// Returns the position of the next frame.
    pub(super) fn end(&self) -> u64 {
        self.at + u64::from(self.head) + u64::from(self.stored)
    }
}
