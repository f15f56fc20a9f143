//! [`OwnerMap`]: the memory map of an owner, while its memory is being received.

use crate::{Digest256, lock::Mutex, pages::PageRun};

/// An incomplete map of an owner.
#[derive(Debug, Default)]
pub(super) struct OwnerMap {
    /// True if runs may refer to pages of the previous round.
    pub(super) tracked: bool,
    pub(super) runs: Mutex<Vec<PageRun>>,
    leaves: Mutex<Vec<Digest256>>,
    /// The chunks of each window, if the next round needs them.
    chunks: Mutex<Vec<Chunks>>,
}

/// The digest of each chunk, or `None` for a chunk of zeros.
pub(super) type Chunks = Vec<Option<Digest256>>;

impl OwnerMap {
    pub(super) fn new(tracked: bool) -> OwnerMap {
        OwnerMap { tracked, ..OwnerMap::default() }
    }

    pub(super) fn set_chunks(&self, place: usize, found: Chunks) {
        let mut chunks = self.chunks.lock();
        if chunks.len() <= place {
            chunks.resize(place + 1, Chunks::new());
        }
        chunks[place] = found;
    }

    pub(super) fn chunks(&self) -> Vec<Chunks> {
        std::mem::take(&mut *self.chunks.lock())
    }

    pub(super) fn set_leaf(&self, place: usize, digest: Digest256) {
        let mut leaves = self.leaves.lock();
        if leaves.len() <= place {
            leaves.resize(place + 1, Digest256::from_bytes([0; 32]));
        }
        leaves[place] = digest;
    }

    pub(super) fn runs(&self) -> Vec<PageRun> {
        std::mem::take(&mut *self.runs.lock())
    }

    pub(super) fn leaves(&self) -> Vec<Digest256> {
        std::mem::take(&mut *self.leaves.lock())
    }
}
