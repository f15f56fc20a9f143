//! [`Keep`]: the blobs and names that a collection keeps.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use super::{FsBlobStore, names::stamp_of};
use crate::{
    Digest256,
    store::pack::{Entry, Kind},
};

/// Blobs and names to keep, for one collection.
pub(super) struct Keep<'k> {
    digests: &'k HashSet<Digest256>,
    /// The newest stamps of names. A name may be in every frame, so it is looked up once. A name
    /// that is stored later has a higher stamp, and is kept.
    newest: Mutex<HashMap<Digest256, u64>>,
}

impl<'k> Keep<'k> {
    pub(super) fn new(digests: &'k HashSet<Digest256>) -> Keep<'k> {
        Keep { digests, newest: Mutex::default() }
    }

    pub(super) fn contains(&self, digest: &Digest256) -> bool {
        self.digests.contains(digest)
    }

    /// Returns true if an entry of a pack is needed. Only the newest entry of a name is.
    pub(super) fn needs(&self, store: &FsBlobStore, entry: &Entry) -> bool {
        if !self.contains(&entry.digest) {
            return false;
        }
        let Kind::Named { stamp, .. } = entry.kind else { return true };
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        stamp >= *newest.entry(entry.digest).or_insert_with(|| newest_stamp(store, &entry.digest))
    }
}

/// Returns the highest stamp of a name, in packs and as a file.
fn newest_stamp(store: &FsBlobStore, name: &Digest256) -> u64 {
    let hits = store.catalog.hits(name, true).unwrap_or_default();
    let packed = hits.iter().map(|hit| stamp_of(hit.frame.entries[hit.index].kind)).max().unwrap_or(0);
    let loose = store.read_named_loose(name).ok().flatten().map_or(0, |(stamp, _)| stamp);
    packed.max(loose)
}
