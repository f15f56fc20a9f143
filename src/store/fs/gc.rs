//! [`FsBlobStore::retain`]: takes out what nobody needs, in two phases.
//!
//! What is not needed is condemned: writers treat it as missing and store it anew, readers still find it. Only a later
//! call, after a time of grace, sweeps what is still not needed. A batch relies on what it found in the store, so nothing is condemned
//! while one is open.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    FsBlobStore,
    catalog::id_of,
    condemned::{read_list, write_list},
    lock::Lock,
    loose::{self, entries},
    marks::Entries,
    names::{self, stamp_of},
};
use crate::{
    Digest256, Error, Result, private,
    store::{
        pack::{Entry, Found, Frame, Kind, PackId, scan},
        reachable,
    },
};

/// What a call of [`FsBlobStore::retain`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gc {
    /// What was found unneeded now.
    pub condemned: Tally,
    /// What had been condemned before, and is needed after all.
    pub returned: Tally,
    /// What is gone for ever.
    pub swept: Tally,
    /// Packs that were deleted, some of them after what is needed in them was written to others.
    pub packs: u64,
    /// A batch was open all the time, so nothing could be condemned.
    pub busy: bool,
}

/// How many blobs and names, and how many bytes they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// How many. Copies count each.
    pub blobs: u64,
    /// The bytes as they were put.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes += bytes;
    }
}

/// A time that something was condemned at, and the folder of it.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) path: PathBuf,
    pub(super) due: bool,
}

impl FsBlobStore {
    /// Keeps these captures, named by their manifests, and gets rid of all else, as [`retain`](FsBlobStore::retain) does: in
    /// two calls, and of a pack of which most is needed not before more of it is needed no more. Until then a capture that is not kept
    /// may still be restored, and [`Usage::condemned`](crate::Usage::condemned) counts what is left of it.
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
    /// [`Error::Capture`] if the manifest or a list of one of the captures cannot be read: nothing is collected then, until that
    /// one is mended or no more in the list. Whether memory is there is not looked at; [`verify`](FsBlobStore::verify) does that.
    /// Else as [`retain`](FsBlobStore::retain).
    pub fn gc(&self, live: &[Digest256], grace: Duration) -> Result<Gc> {
        self.retain(&reachable(self, live)?, grace)
    }

    /// Keeps the blobs and names of `keep`, and gets rid of the others, safely while captures go on.
    ///
    /// Two phases: this call sweeps what an earlier one condemned at least `grace` ago and is still not in `keep`, and condemns
    /// what is not in `keep` now. Condemned blobs are missing for those who store ([`contains`](crate::BlobStore::contains),
    /// [`missing`](crate::BlobStore::missing), batches), and still given out to those who read. What comes into use
    /// again before it is swept returns by the next call whose `keep` has it.
    ///
    /// So `grace` is to be longer than a capture takes from its first blob to the manifest that `keep` is made from. A call
    /// waits some seconds for open batches to end, and then condemns nothing.
    ///
    /// What lies in a pack of which most is needed stays on the disk until more of the pack is needed no more: rewriting it would
    /// cost more than it frees. Until then it is counted as [condemned](crate::Usage::condemned).
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
    /// [`Error::Io`] or [`Error::Store`] if the store cannot. Nothing that is needed is lost then.
    pub fn retain(&self, keep: &HashSet<Digest256>, grace: Duration) -> Result<Gc> {
        let doing = || Error::io(format!("collect what is unneeded in {}", self.root.display()));
        let _alone = Lock::exclusive(&self.root.join("gc.lock")).map_err(doing())?;
        self.look_again()?;
        let mut gc = Gc::default();
        for round in self.rounds(grace).map_err(doing())? {
            self.review(&round, keep, &mut gc).map_err(doing())?;
        }
        self.load_marks()?;
        self.sweep_packs(grace, &mut gc)?;
        self.condemn(keep, &mut gc).map_err(doing())?;
        self.load_marks()?;
        Ok(gc)
    }

    /// The times that something was condemned at.
    pub(super) fn rounds(&self, grace: Duration) -> io::Result<Vec<Round>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut rounds = Vec::new();
        for path in entries(&self.condemned())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let millis = name.split('-').next().and_then(|millis| millis.parse().ok());
            let Some(millis) = millis else { continue };
            let due = now.checked_sub(Duration::from_millis(millis)).is_some_and(|age| age >= grace);
            rounds.push(Round { path, due });
        }
        Ok(rounds)
    }

    /// Takes back what is needed after all, and deletes the files whose time has come.
    fn review(&self, round: &Round, keep: &HashSet<Digest256>, gc: &mut Gc) -> io::Result<()> {
        for (kind, shards) in [("blobs", &self.blobs), ("names", &self.names)] {
            for path in entries(&round.path.join(kind))? {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(digest) = format!("sha256:{name}").parse::<Digest256>() else { continue };
                let bytes = fs::metadata(&path)?.len();
                if keep.contains(&digest) {
                    let (shard, place) = shards.place(&digest);
                    shards.make(&shard)?;
                    // What was put since is newer, unless it is damaged.
                    if place.exists() && (kind == "names" || loose::is_whole(&place, &digest)) {
                        self.disk.remove(&path)?;
                    } else {
                        self.disk.rename(&path, &place)?;
                        self.disk.sync_folder(&shard)?;
                    }
                    gc.returned.add(bytes);
                } else if round.due {
                    self.disk.remove(&path)?;
                    gc.swept.add(bytes);
                }
            }
        }
        for path in entries(&round.path.join("packs"))? {
            let mut list = Entries::default();
            read_list(&path, &mut list)?;
            let mut left = Entries::default();
            let mut returned = Tally::default();
            let id = path.file_name().and_then(|name| PackId::parse(name.to_str()?));
            if let Some(pack) = id.and_then(|id| self.catalog.number(&id)) {
                each_frame(&self.catalog.path(pack), |frame| {
                    for (index, entry) in frame.entries.iter().enumerate() {
                        if !list.has(frame.at, index) {
                            continue;
                        }
                        match self.is_needed(keep, entry) {
                            true => returned.add(entry.length as u64),
                            false => left.add(frame.at, index),
                        }
                    }
                    Ok(())
                })?;
            }
            if left != list {
                write_list(self, &path, &left)?;
            }
            gc.returned.blobs += returned.blobs;
            gc.returned.bytes += returned.bytes;
        }
        self.remove_empty(&round.path);
        Ok(())
    }

    /// Removes the folder of a round that has come to nothing.
    pub(super) fn remove_empty(&self, round: &Path) {
        for kind in ["blobs", "names", "packs"] {
            let _ = fs::remove_dir(round.join(kind));
        }
        let _ = fs::remove_dir(round);
    }

    /// Whether an entry is to be kept. Of what a name was given, only the newest is.
    fn is_needed(&self, keep: &HashSet<Digest256>, entry: &Entry) -> bool {
        if !keep.contains(&entry.digest) {
            return false;
        }
        let Kind::Named { stamp, .. } = entry.kind else { return true };
        let hits = self.catalog.hits(&entry.digest, true).unwrap_or_default();
        let packed = hits.iter().map(|hit| stamp_of(hit.frame.entries[hit.index].kind)).max().unwrap_or(0);
        let loose = self.read_named_loose(&entry.digest).ok().flatten().map_or(0, |(stamp, _)| stamp);
        stamp >= packed.max(loose)
    }

    /// Condemns what is not needed and not condemned yet.
    fn condemn(&self, keep: &HashSet<Digest256>, gc: &mut Gc) -> io::Result<()> {
        let mut condemned = Tally::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = format!("{now}-{}", PackId::new().hex());
        // Made aside, and shown as a whole once nobody relies on what is in it.
        let staged = self.tmp.join(&name);
        let round = self.condemned().join(&name);
        for (id, path) in self.catalog.live() {
            let mut list = Entries::default();
            each_frame(&path, |frame| {
                for (index, entry) in frame.entries.iter().enumerate() {
                    let (marked, damaged) = self.catalog.marked(frame, index);
                    if !marked && !damaged && !self.is_needed(keep, entry) {
                        list.add(frame.at, index);
                        condemned.add(entry.length as u64);
                    }
                }
                Ok(())
            })?;
            if !list.is_empty() {
                write_list(self, &staged.join("packs").join(id.hex()), &list)?;
            }
        }
        let mut files = Vec::new();
        for (kind, shards) in [("blobs", &self.blobs), ("names", &self.names)] {
            for (digest, path) in shards.list()?.into_iter().filter(|(digest, _)| !keep.contains(digest)) {
                condemned.add(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
                files.push((path, round.join(kind).join(digest.hex())));
            }
        }
        if condemned.blobs == 0 {
            return Ok(());
        }
        self.disk.make_folder(&staged)?;
        self.disk.make_folder(&self.condemned())?;
        let Some(lock) = Lock::exclusive_within(&self.lock_file(), PATIENCE)? else {
            fs::remove_dir_all(&staged)?;
            gc.busy = true;
            return Ok(());
        };
        self.disk.rename(&staged, &round)?;
        self.disk.sync_folder(&self.condemned())?;
        for (from, to) in files {
            self.disk.make_folder(to.parent().expect("because it is in a folder of the round"))?;
            match self.disk.rename(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        drop(lock);
        gc.condemned = condemned;
        Ok(())
    }
}

/// The frames of a pack, as far as they are whole, one after the other.
pub(super) fn each_frame(path: &Path, mut each: impl FnMut(&Frame) -> io::Result<()>) -> io::Result<()> {
    debug_assert!(id_of(path).is_some(), "a pack is called by its id");
    let mut result = Ok(());
    scan(&private::open_file(path)?, |found| {
        if let Found::Frame(frame) = found {
            if result.is_ok() {
                result = each(&frame);
            }
        }
    })?;
    result
}

/// What the file of a name holds without what comes before it.
pub(super) fn name_is_whole(path: &Path, name: &Digest256) -> io::Result<bool> {
    Ok(names::parse(name, private::patiently(|| fs::read(path))?).is_some())
}

/// How long a call waits for open batches.
const PATIENCE: Duration = Duration::from_secs(10);
