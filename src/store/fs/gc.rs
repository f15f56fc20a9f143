//! [`FsBlobStore::gc`], [`retain`](FsBlobStore::retain) and [`purge`](FsBlobStore::purge): removing what is not needed. How it goes
//! is in [`collect`](super::collect).

use std::{collections::HashSet, fs, io, path::Path, time::Duration};

use serde::Serialize;

use super::{FsBlobStore, catalog::id_of, names};
use crate::{
    Digest256, Result, Until, private,
    store::{
        pack::{Found, Frame, scan},
        reachable_until,
    },
};

/// What a call of [`FsBlobStore::retain`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gc {
    /// Blobs that this call found unneeded and marked.
    pub condemned: Tally,
    /// Blobs that an earlier call marked, and that are needed after all.
    pub returned: Tally,
    /// Blobs that were removed for ever.
    pub swept: Tally,
    /// Packs that were deleted; blobs still needed were moved to other packs first.
    pub packs: u64,
    /// A batch was open all the time, so nothing could be condemned.
    pub busy: bool,
    /// Unneeded blobs that stay for now: the disk has no room to mark them, or to rewrite their pack. With
    /// [`purge`](FsBlobStore::purge), also those in a damaged pack that was not
    /// [quarantined](FsBlobStore::quarantine). A later call tries again.
    pub postponed: Tally,
}

/// A number of blobs and names, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tally {
    /// The number of blobs and names. Each copy counts.
    pub blobs: u64,
    /// The bytes as they were put.
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
    /// Keeps these captures, named by their manifests, and gets rid of all else, as [`retain`](FsBlobStore::retain) does: in
    /// two calls, and of a pack of which most is needed not before more of it is needed no more. Until then a capture that is not kept
    /// may still be restored, with a [`Warning`](crate::Warning), and [`Usage::condemned`](crate::Usage::condemned) counts what is left of
    /// it. Where secrets must go, [`purge`](FsBlobStore::purge).
    ///
    /// A capture that is not in the list yet is condemned at most, and comes back when the list of a later call has it: `grace` must be
    /// longer than it takes from the end of a capture until its digest is in the list.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use criu_rpc::{Digest256, FsBlobStore};
    ///
    /// # fn captures() -> Vec<Digest256> { vec![] }
    /// let store = FsBlobStore::open("captures")?;
    /// // Now and then:
    /// let gc = store.gc(&captures(), Duration::from_secs(3600))?;
    /// println!("{} bytes are gone, {} will be", gc.swept.bytes, gc.condemned.bytes);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Capture`](crate::Error::Capture) if the manifest or a list of one of the captures cannot be read: nothing is collected then, until that
    /// one is mended or no more in the list. Whether memory is there is not looked at; [`verify`](FsBlobStore::verify) does that.
    /// Else as [`retain`](FsBlobStore::retain).
    pub fn gc(&self, live: &[Digest256], grace: Duration) -> Result<Gc> {
        self.gc_until(live, grace, &Until::forever())
    }

    /// Collects as [`gc`](FsBlobStore::gc) does, but gives up where `until` says so: while it waits for another process that
    /// has locked the store, and between the steps of its own work. What it has done by then is done.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use criu_rpc::{FsBlobStore, Until};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// match store.gc_until(&[], Duration::from_secs(3600), &Until::within(Duration::from_secs(60))) {
    ///     Err(error) if error.is_timeout() => eprintln!("not now: {error}"),
    ///     collected => println!("{} bytes are gone", collected?.swept.bytes),
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`gc`](FsBlobStore::gc); [`Error::Overdue`](crate::Error::Overdue) or [`Error::Stopped`](crate::Error::Stopped) where it
    /// gave up. They name the lock and its holder.
    pub fn gc_until(&self, live: &[Digest256], grace: Duration, until: &Until) -> Result<Gc> {
        self.retain_until(&reachable_until(self, live, until)?, grace, until)
    }

    /// Keeps the blobs and names of `keep`, and gets rid of the others, safely while captures go on.
    ///
    /// Two phases: this call sweeps what an earlier one condemned at least `grace` ago and is still not in `keep`, and condemns
    /// what is not in `keep` now. Condemned blobs are missing for those who store ([`contains`](crate::BlobStore::contains),
    /// [`missing`](crate::BlobStore::missing), batches), and still given out to those who read. What comes into use
    /// again before it is swept returns by the next call whose `keep` has it.
    ///
    /// Time is measured by clocks that do not jump. A wall clock that jumps, or a reboot, may delay a sweep and does not hasten it. On
    /// systems without `/proc` there is the wall clock alone.
    ///
    /// So `grace` is to be longer than a capture takes from its first blob to the manifest that `keep` is made from. A call
    /// waits some seconds for open batches to end, and then condemns nothing.
    ///
    /// What lies in a pack of which most is needed stays on the disk until more of the pack is needed no more: rewriting it would
    /// cost more than it frees. Until then it is counted as [condemned](crate::Usage::condemned). [`purge`](FsBlobStore::purge) does it
    /// all the same.
    ///
    /// On a full disk packs that are not needed at all go first, which takes no room. A rewrite that finds no room is
    /// [postponed](Gc::postponed). To note what is to go, the store keeps 256 KiB of room for itself (`gc.room`), as long as the disk has them.
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
    /// assert_eq!(store.retain(&keep, Duration::ZERO)?.condemned.blobs, 1);
    /// assert!(!store.contains(&lost)? && store.get(&lost).is_ok());
    /// assert_eq!(store.retain(&keep, Duration::ZERO)?.swept.blobs, 1);
    /// assert!(store.get(&lost).is_err() && store.get(&kept).is_ok());
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) or [`Error::Store`](crate::Error::Store) if the store cannot. Nothing that is needed is lost then.
    pub fn retain(&self, keep: &HashSet<Digest256>, grace: Duration) -> Result<Gc> {
        self.retain_until(keep, grace, &Until::forever())
    }

    /// Collects as [`retain`](FsBlobStore::retain) does, but gives up as [`gc_until`](FsBlobStore::gc_until).
    ///
    /// # Errors
    ///
    /// As [`retain`](FsBlobStore::retain) and [`gc_until`](FsBlobStore::gc_until).
    pub fn retain_until(&self, keep: &HashSet<Digest256>, grace: Duration, until: &Until) -> Result<Gc> {
        self.collect(keep, When::After(grace), until)
    }

    /// Keeps these captures, and removes all else before it returns: also what lies in packs of which most is needed, what was set
    /// aside as damaged, and what writers that died have left. For captures that hold secrets.
    ///
    /// There is no grace. A capture in progress, or one whose digest is not among `live`, is lost, even if its caller is told that
    /// it was stored: call this when no captures are made. While a batch is open it does nothing, and says so.
    ///
    /// Everything is gone if [`Gc::postponed`] is empty. Else the disk has no room to write anew what is needed of some packs, or a pack has
    /// damage: call [`verify`](FsBlobStore::verify) and [`quarantine`](FsBlobStore::quarantine), make room, and call this again. What a file
    /// system or a disk keeps of files that were removed is beyond the store: an `EncryptedBlobStore`
    /// whose key is destroyed leaves nothing.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, FsBlobStore};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-purge-{}", std::process::id()));
    /// let store = FsBlobStore::open(&folder)?;
    /// let secret = store.put(b"a secret")?;
    /// let gc = store.purge(&[])?;
    /// assert_eq!((gc.swept.blobs, gc.postponed.blobs), (1, 0));
    /// assert!(store.get(&secret).is_err());
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`gc`](FsBlobStore::gc); [`Error::Store`](crate::Error::Store) if a batch was open all the time.
    pub fn purge(&self, live: &[Digest256]) -> Result<Gc> {
        self.purge_until(live, &Until::forever())
    }

    /// Removes as [`purge`](FsBlobStore::purge) does, but gives up as [`gc_until`](FsBlobStore::gc_until). Not everything is gone then.
    ///
    /// # Errors
    ///
    /// As [`purge`](FsBlobStore::purge) and [`gc_until`](FsBlobStore::gc_until).
    pub fn purge_until(&self, live: &[Digest256], until: &Until) -> Result<Gc> {
        self.purge_all_but_until(&reachable_until(self, live, until)?, until)
    }

    /// As [`purge`](FsBlobStore::purge), with the blobs and names to keep, as [`retain`](FsBlobStore::retain) has them.
    ///
    /// # Errors
    ///
    /// As [`purge`](FsBlobStore::purge).
    pub fn purge_all_but(&self, keep: &HashSet<Digest256>) -> Result<Gc> {
        self.purge_all_but_until(keep, &Until::forever())
    }

    pub(in crate::store) fn purge_all_but_until(
        &self,
        keep: &HashSet<Digest256>,
        until: &Until,
    ) -> Result<Gc> {
        self.collect(keep, When::Now, until)
    }
}

/// The frames of a pack, as far as they are whole, one after the other.
pub(super) fn each_frame(path: &Path, mut each: impl FnMut(&Frame) -> io::Result<()>) -> io::Result<()> {
    debug_assert!(id_of(path).is_some(), "a pack is called by its id");
    let mut result = Ok(());
    scan(&private::open_file(path)?, |found| {
        if let Found::Frame(frame) = found
            && result.is_ok()
        {
            result = each(&frame);
        }
    })?;
    result
}

/// What the file of a name holds without what comes before it.
pub(super) fn name_is_whole(path: &Path, name: &Digest256) -> io::Result<bool> {
    Ok(names::parse(name, private::patiently(|| fs::read(path))?).is_some())
}
