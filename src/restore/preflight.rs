//! [`ProcsRestore::preflight`]: finds problems that a restore would meet.

use super::{ProcsRestore, chunked, host, manifest};
use crate::{
    BlobStore, Digest256, Error, Foreseen, Foresight, ProcsBlob, Result, Until, Warning,
    archive::unpack_without_memory,
    manifest::{ChunkedBlob, parse},
    platform::{self, Reviver, ToRevive},
    stored::reachable_until,
    stream,
    took::Clock,
};

impl ProcsRestore {
    /// Has the [preflight](ProcsRestore::preflight) of a [chunked](crate::ProcsCapture::chunked)
    /// capture check that the store has all chunks of memory. For an
    /// [`FsBlobStore`](crate::FsBlobStore) that takes about as long as a restore. Restores are not
    /// affected: they notice a missing chunk when they read it.
    #[must_use]
    pub fn check_memory(mut self, on: bool) -> ProcsRestore {
        self.check_memory = on;
        self
    }

    /// Finds problems that this restore would meet, with its options. Nothing is revived, and no
    /// file of the tree is changed. Problems that the restore solves by itself are left out. Later
    /// changes are not seen.
    ///
    /// [Blocks](Foresight::blocks) have the [cause](Foreseen::cause) that the restore would fail
    /// with:
    ///
    /// - a damaged capture, images that the store lacks, a placeholder;
    /// - a criu that is missing, a machine that lacks instruction sets;
    /// - pids, groups and sessions that are taken, with the processes that hold them;
    /// - files that are missing, [replaced](ProcsRestore::replaced_files), or locked by another
    ///   process, and those that [grew](ProcsRestore::grown_files) and are refused for that;
    /// - a mount namespace without a root folder, external files for which none is
    ///   [lent](ProcsRestore::inherit), and state that no restore brings back.
    ///
    /// [Risks](Foresight::risks) are zombies that hold pids, which a restore waits for; files that
    /// the restore would cut back or write over; an older kernel or criu; and a capture that is
    /// marked for deletion.
    ///
    /// Not checked: criu's privileges, network addresses in use, control groups, external mounts,
    /// and the memory of a [chunked](crate::ProcsCapture::chunked) capture.
    ///
    /// The memory of a chunked capture is not read; [`check_memory`](ProcsRestore::check_memory)
    /// checks that it is there. An archive is read completely, and its memory is written nowhere.
    /// The images are in the [staging](ProcsRestore::staging) folder meanwhile. A file that the
    /// tree had locked as a whole (`flock`) is locked for a moment, to see whether another process
    /// has the lock.
    ///
    /// # Errors
    ///
    /// Errors that stop the search: the [deadline](ProcsRestore::deadline), a
    /// [cancelled](ProcsRestore::cancelled_by) token, errors of the store, a missing staging
    /// folder.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{Cause, Digest256, Foreseen, FsBlobStore, ProcsRestore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let digest: Digest256 = "".parse()?;
    /// let store = FsBlobStore::open("captures")?;
    /// let restore = ProcsRestore::new();
    /// let foresight = restore.preflight(&store, &digest)?;
    /// // The original tree still runs, so its pids are taken: that is expected.
    /// let unexpected = |finding: &&Foreseen| finding.cause != Some(Cause::PidInUse);
    /// for finding in foresight.blocks.iter().filter(unexpected) {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn preflight(&self, store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Foresight> {
        let until = self.revival.means.until();
        let mut foresight = Foresight::default();
        match self.look(&store, digest, &until, &mut foresight) {
            Ok(()) => {}
            Err(error) => foresight.block(error)?,
        }
        Ok(foresight)
    }

    fn look(
        &self,
        store: &dyn BlobStore,
        digest: &Digest256,
        until: &Until,
        foresight: &mut Foresight,
    ) -> Result<()> {
        let json = manifest(store, digest, until)?;
        if store.is_marked(digest)? {
            foresight.risk(Warning::Marked { capture: *digest });
        }
        let clock = Clock::start();
        let (chosen, _ends) = stream::open(&self.revival.streams)?;
        let reviver = || Reviver::new(&self.revival, &chosen, until, &clock);
        match parse(digest, &json)? {
            ProcsBlob::Unsupported { unsupported_on: on, note } => {
                foresight.blocks.push(Foreseen::new(Warning::Unsupported { on, note }));
                Ok(())
            }
            ProcsBlob::Chunked(blob) => {
                if self.check_memory {
                    missing(store, digest, until).or_else(|error| foresight.block(error))?;
                }
                self.look_at_chunked(store, &blob, &reviver()?, until, foresight)
            }
            ProcsBlob::Criu { criu_dump, .. } => {
                let reviver = reviver()?;
                let folders = self.unpack(store, &criu_dump, until, |bytes| {
                    unpack_without_memory(bytes, reviver.folder(), &self.limits())
                })?;
                let trees: Vec<_> = folders.iter().map(|folder| ToRevive { folder, pages: None }).collect();
                reviver.foresee(&trees, foresight)
            }
        }
    }

    fn look_at_chunked(
        &self,
        store: &dyn BlobStore,
        blob: &ChunkedBlob,
        reviver: &Reviver<'_>,
        until: &Until,
        foresight: &mut Foresight,
    ) -> Result<()> {
        let mut here = platform::host();
        if !self.any_host {
            host::check(&blob.host, &here).or_else(|error| foresight.block(error))?;
        }
        let staged = chunked::write_images(store, blob, reviver.folder(), self.limits().bytes, until)?;
        let trees: Vec<_> = staged.iter().map(chunked::StagedTree::to_revive).collect();
        reviver.foresee(&trees, foresight)?;
        here.criu = reviver.criu();
        host::warnings(&blob.host, &here).into_iter().for_each(|warning| foresight.risk(warning));
        Ok(())
    }
}

/// Fails if the store lacks a blob of the capture.
fn missing(store: &dyn BlobStore, capture: &Digest256, until: &Until) -> Result<()> {
    let blobs = reachable_until(store, &[*capture], until).map_err(|error| match error {
        Error::Capture { source, .. } => *source,
        error => error,
    })?;
    let blobs: Vec<_> = blobs.into_iter().collect();
    for some in blobs.chunks(AT_ONCE) {
        until.check(|| "look for the blobs of the capture".to_owned())?;
        for digest in store.missing(some)? {
            // A blob that is marked for deletion can still be read.
            if !store.is_marked(&digest)? {
                return Err(Error::Missing { digest });
            }
        }
    }
    Ok(())
}

/// The number of blobs that are checked at once.
const AT_ONCE: usize = 1 << 14;
