//! [`FsBlobStore::retain`] and [`purge_all_but`](FsBlobStore::purge_all_but): remove unneeded
//! blobs. [`collect`](super::collect) does the work.

use std::{collections::HashSet, fs::File, io, time::Duration};

use serde::Serialize;

use super::FsBlobStore;
use crate::{
    Digest256, Result, Until,
    store::pack::{Found, Frame, scan},
};

/// The result of [`FsBlobStore::retain`], [`gc`](FsBlobStore::gc) or [`purge`](FsBlobStore::purge).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gc {
    /// Blobs that this call found unneeded and marked.
    pub marked: Tally,
    /// Blobs that an earlier call marked, and that are needed after all.
    pub unmarked: Tally,
    /// Blobs that were removed for ever.
    pub removed: Tally,
    /// Packs that were deleted; blobs still needed were moved to other packs first.
    pub packs: u64,
    /// True if a batch was open all the time, so nothing could be marked.
    pub busy: bool,
    /// Unneeded blobs that stay for now: the disk has no room to mark them, or to rewrite their
    /// pack. With [`purge`](FsBlobStore::purge), also those in a damaged pack that was not
    /// [quarantined](FsBlobStore::quarantine). A later call tries again.
    pub postponed: Tally,
}

/// A number of blobs, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tally {
    /// The number of blobs. Each copy counts.
    pub blobs: u64,
    /// The bytes as they were put. In an encrypted store, as they are stored: a blob in a pack
    /// counts with its share of the encrypted bytes.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.add_all(Tally { blobs: 1, bytes });
    }

    pub(super) fn add_all(&mut self, more: Tally) {
        self.blobs += more.blobs;
        self.bytes += more.bytes;
    }
}

/// The time at which unneeded blobs are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// This long after they were condemned, if that is worth the work.
    After(Duration),
    /// In this call, all of them.
    Now,
}

impl FsBlobStore {
    /// Keeps the blobs of `keep`, and removes all others. Safe while captures are in
    /// progress.
    ///
    /// A call has two phases. It removes blobs that an earlier call marked at least `grace` ago and
    /// that are still not in `keep`. Then it marks other blobs that are not in `keep`. Marked blobs
    /// are missing for writers ([`contains`](crate::BlobStore::contains),
    /// [`missing`](crate::BlobStore::missing), batches), and still readable. If a marked blob is
    /// needed again, the next call whose `keep` has it removes the mark.
    ///
    /// A wall clock that jumps, or a reboot, can delay a removal, but never hasten it. Systems
    /// without `/proc` use the wall clock alone.
    ///
    /// So `grace` must be longer than a capture takes from its first blob until its manifest is in
    /// `keep`. A call waits some seconds for open batches to end, and otherwise marks nothing.
    ///
    /// Unneeded blobs in a pack that is mostly needed stay on the disk until less of the pack is
    /// needed, because rewriting it would cost more than it frees. Until then they count as
    /// [marked](crate::store::Usage::marked). [`purge`](FsBlobStore::purge) rewrites such
    /// packs, too.
    ///
    /// On a full disk packs that are not needed at all are removed first, which needs no space. A
    /// rewrite without space is [postponed](Gc::postponed). The store reserves 256 KiB for its
    /// notes (`gc.room`), if the disk has them.
    ///
    /// ```
    /// use std::{collections::HashSet, time::Duration};
    ///
    /// use criu_rpc::{BlobStore, FsBlobStore};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-gc-{}", std::process::id()));
    /// let store = FsBlobStore::open(&folder)?;
    /// let kept = store.put(b"still needed")?;
    /// let lost = store.put(b"needed no more")?;
    /// let keep = HashSet::from([kept]);
    /// assert_eq!(store.retain(&keep, Duration::ZERO)?.marked.blobs, 1);
    /// assert!(!store.contains(&lost)? && store.get(&lost).is_ok());
    /// assert_eq!(store.retain(&keep, Duration::ZERO)?.removed.blobs, 1);
    /// assert!(store.get(&lost).is_err() && store.get(&kept).is_ok());
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) or [`Error::Store`](crate::Error::Store) if the store fails.
    /// No needed data is lost then.
    pub fn retain(&self, keep: &HashSet<Digest256>, grace: Duration) -> Result<Gc> {
        self.retain_until(keep, grace, &Until::forever())
    }

    /// Collects as [`retain`](FsBlobStore::retain) does, and stops as
    /// [`gc_until`](FsBlobStore::gc_until) does.
    ///
    /// # Errors
    ///
    /// As [`retain`](FsBlobStore::retain) and [`gc_until`](FsBlobStore::gc_until).
    pub fn retain_until(&self, keep: &HashSet<Digest256>, grace: Duration, until: &Until) -> Result<Gc> {
        self.collect(&self.codec.names(keep)?, When::After(grace), until)
    }

    /// Removes as [`purge`](FsBlobStore::purge) does, but takes the blobs to keep, as
    /// [`retain`](FsBlobStore::retain) does.
    ///
    /// # Errors
    ///
    /// As [`purge`](FsBlobStore::purge).
    pub fn purge_all_but(&self, keep: &HashSet<Digest256>) -> Result<Gc> {
        self.purge_all_but_until(keep, &Until::forever())
    }

    /// Removes as [`purge_all_but`](FsBlobStore::purge_all_but) does, within the limit of `until`.
    pub(crate) fn purge_all_but_until(&self, keep: &HashSet<Digest256>, until: &Until) -> Result<Gc> {
        let purged = self.collect(&self.codec.names(keep)?, When::Now, until);
        self.recent.clear();
        purged
    }
}

/// Calls `each` for every intact frame of a pack, in order.
pub(super) fn each_frame(pack: &File, mut each: impl FnMut(&Frame) -> io::Result<()>) -> io::Result<()> {
    let mut result = Ok(());
    scan(pack, |found| {
        if let Found::Frame(frame) = found
            && result.is_ok()
        {
            result = each(&frame);
        }
    })?;
    result
}
