//! Removes captures from a store: [`FsBlobStore::gc`], [`FsBlobStore::purge`] and
//! `ObjectBlobStore::collect`. They find what the other captures need; the stores do the rest.

use std::time::Duration;

use super::reachable_until;
use crate::{Digest256, FsBlobStore, Result, Until, store::Gc};
#[cfg(feature = "object-store")]
use crate::{ObjectBlobStore, store::NobodyWrites};

impl FsBlobStore {
    /// Keeps these captures, named by their manifests, and removes all others in two phases, as
    /// [`retain`](FsBlobStore::retain) does. Unneeded blobs in a pack that is mostly needed stay
    /// until less of it is needed. Until then a removed capture can still be restored, with a
    /// [`Warning`](crate::Warning), and [`Usage::marked`](crate::store::Usage::marked) counts
    /// its blobs. To remove secrets, use [`purge`](FsBlobStore::purge).
    ///
    /// A new capture that is not in the list yet is only marked, and a later call whose list has it
    /// removes the mark. So `grace` must be longer than the time from the end of a capture until
    /// its digest is in the list.
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
    /// println!("{} bytes are gone, {} will be", gc.removed.bytes, gc.marked.bytes);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Capture`](crate::Error::Capture) if the manifest or a list of one of the captures
    /// cannot be read. Then nothing is collected until that capture is repaired or left out. The
    /// memory is not checked; [`verify`](FsBlobStore::verify) does that. Other errors as
    /// [`retain`](FsBlobStore::retain).
    pub fn gc(&self, live: &[Digest256], grace: Duration) -> Result<Gc> {
        self.gc_until(live, grace, &Until::forever())
    }

    /// Collects as [`gc`](FsBlobStore::gc) does, within the limit of `until`. It stops while it
    /// waits for another process that has locked the store, or between its own steps. Finished
    /// steps stay done.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use criu_rpc::{FsBlobStore, Until};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// match store.gc_until(&[], Duration::from_secs(3600), &Until::within(Duration::from_secs(60))) {
    ///     Err(error) if error.is_timeout() => eprintln!("not now: {error}"),
    ///     collected => println!("{} bytes are gone", collected?.removed.bytes),
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`gc`](FsBlobStore::gc); [`Error::Overdue`](crate::Error::Overdue) or
    /// [`Error::Stopped`](crate::Error::Stopped) if it stopped. They name the lock and its holder.
    pub fn gc_until(&self, live: &[Digest256], grace: Duration, until: &Until) -> Result<Gc> {
        self.retain_until(&reachable_until(self, live, until)?, grace, until)
    }

    /// Keeps these captures, and removes all other data before it returns: also from packs that are
    /// mostly needed, damaged data that was set aside, and leftovers of writers that died. For
    /// captures with secrets.
    ///
    /// There is no grace period. A capture in progress, or one whose digest is not in `live`, is
    /// lost, even if its caller is told that it was stored. So call this when no captures are made.
    /// While a batch is open it removes nothing, and fails.
    ///
    /// All of it is gone if [`Gc::postponed`] is empty. Otherwise the disk has no space to rewrite
    /// some packs, or a pack is damaged: call [`verify`](FsBlobStore::verify) and
    /// [`quarantine`](FsBlobStore::quarantine), free space, and call this again. A file system or a
    /// disk may keep contents of removed files. Only an encrypted store whose key is destroyed
    /// leaves nothing readable.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, FsBlobStore};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-purge-{}", std::process::id()));
    /// let store = FsBlobStore::open(&folder)?;
    /// let secret = store.put(b"a secret")?;
    /// let gc = store.purge(&[])?;
    /// assert_eq!((gc.removed.blobs, gc.postponed.blobs), (1, 0));
    /// assert!(store.get(&secret).is_err());
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`gc`](FsBlobStore::gc); [`Error::Store`](crate::Error::Store) if a batch was open all
    /// the time.
    pub fn purge(&self, live: &[Digest256]) -> Result<Gc> {
        self.purge_until(live, &Until::forever())
    }

    /// Removes as [`purge`](FsBlobStore::purge) does, and stops as
    /// [`gc_until`](FsBlobStore::gc_until) does. Some of the data is left then.
    ///
    /// # Errors
    ///
    /// As [`purge`](FsBlobStore::purge) and [`gc_until`](FsBlobStore::gc_until).
    pub fn purge_until(&self, live: &[Digest256], until: &Until) -> Result<Gc> {
        self.purge_all_but_until(&reachable_until(self, live, until)?, until)
    }
}

#[cfg(feature = "object-store")]
impl ObjectBlobStore {
    /// Keeps these captures, named by their manifests, and removes everything else below the prefix
    /// before it returns.
    ///
    /// There is no grace period: a capture in progress, or one whose digest is not in `live`, is
    /// lost. The caller promises that no program writes below the prefix meanwhile. Programs that
    /// use this version and write all the same get an error, because their blobs may be gone.
    /// Readers are not disturbed.
    ///
    /// A collection that dies, or loses the connection to the store, has removed nothing that is
    /// needed. It stays under way, and writers are refused, until a later call [takes it
    /// over](NobodyWrites::and_the_last_one_died).
    ///
    /// The store must support conditional creation of objects: S3, Google Cloud Storage, Azure,
    /// folders and memory do, WebDAV servers don't. The call tests that first.
    ///
    /// ```
    /// use criu_rpc::{BlobStore, BlobStoreExt, ObjectBlobStore, store::NobodyWrites};
    ///
    /// let store = ObjectBlobStore::open("memory:///captures")?;
    /// let lost = store.put(b"needed no more")?;
    /// let gc = store.collect(&[], NobodyWrites::until_it_ends())?;
    /// assert_eq!(gc.removed.blobs, 1);
    /// assert!(store.get(&lost).is_err());
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Capture`](crate::Error::Capture) if a capture of `live` cannot be read;
    /// [`Error::Store`](crate::Error::Store) if another collection is under way, if the store has
    /// no conditional creation, or if it fails. Nothing that is needed is lost then.
    pub fn collect(&self, live: &[Digest256], promise: NobodyWrites) -> Result<Gc> {
        self.collect_all_but(&reachable_until(self, live, &Until::forever())?, promise)
    }
}
