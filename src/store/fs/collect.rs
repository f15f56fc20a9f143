//! [`FsBlobStore::collect`]: removes unneeded blobs, in two phases.
//!
//! Unneeded blobs are condemned first: writers treat them as missing and store them anew, readers
//! still find them. A later call, after the grace period, sweeps those that are still unneeded. A
//! batch relies on the blobs that it found, so nothing is condemned while a batch is open.
//!
//! The disk may be full. So the steps that free space without using any come first: they delete
//! files and dead packs. Condemning comes next, which needs little space. Packs are rewritten at
//! the end.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    FsBlobStore,
    clock::time_of,
    condemned::{entries_of, id_of_list, remove_lists, write_all, write_list},
    gc::{Gc, Tally, When, each_frame},
    loose::entries,
    marks::Entries,
    room::is_full,
};
use crate::{
    Error, Result, Until,
    file_lock::FileLock,
    private_files,
    store::{codec::locked, name::Name, pack::PackId},
};

/// The blobs to keep.
pub(super) type Keep = HashSet<Name>;

/// One collection: its folder, and whether its grace period is over.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) path: PathBuf,
    pub(super) due: bool,
}

/// The unneeded entries of a pack.
struct Unneeded {
    id: PackId,
    list: Entries,
    tally: Tally,
    /// True if these are all its entries.
    all: bool,
}

/// A file to condemn: its path, its place in a round, and its length.
struct Stray {
    path: PathBuf,
    place: PathBuf,
    bytes: u64,
}

impl FsBlobStore {
    pub(super) fn collect(&self, keep: &Keep, when: When, until: &Until) -> Result<Gc> {
        if self.codec.is_locked() {
            return Err(locked("collect unneeded blobs"));
        }
        let collecting = || format!("collect unneeded blobs in {}", self.root.display());
        let doing = || Error::io(collecting());
        let _alone = FileLock::exclusive(&self.root.join("gc.lock"), until, collecting)?;
        // No pack moves meanwhile.
        let _still = self.catalog.index.lock(until, collecting)?;
        self.look_again()?;
        self.remove_staged(when).map_err(doing())?;
        let mut gc = Gc::default();
        let now = self.store_time();
        let mut rounds = self.rounds(when, now).map_err(doing())?;
        self.sweep(&rounds, keep, when, &mut gc)?;
        until.check(collecting)?;
        let new = self.condemn(keep, now, until, &mut gc)?;
        until.check(collecting)?;
        self.load_marks()?;
        if when == When::Now {
            if gc.busy {
                return Err(Error::store("remove unneeded blobs now", "batches were open all the time"));
            }
            rounds = self.rounds(when, now).map_err(doing())?;
            self.sweep(&rounds, keep, when, &mut gc)?;
            self.remove_set_aside().map_err(doing())?;
        } else {
            rounds.extend(new.map(|path| Round { path, due: false }));
        }
        self.rewrite_packs(&rounds, keep, when, &mut gc)?;
        if when == When::Now {
            self.remove_set_aside().map_err(doing())?;
        }
        rounds.iter().for_each(|round| self.remove_empty(&round.path));
        self.load_marks()?;
        match self.catalog.index.renew() {
            // A later call does it.
            Err(error) if is_full(&error) => {}
            renewed => renewed.map_err(doing())?,
        }
        self.keep_room();
        Ok(gc)
    }

    /// Sweeps what is due, as far as that needs no space.
    fn sweep(&self, rounds: &[Round], keep: &Keep, when: When, gc: &mut Gc) -> Result<()> {
        let doing = || Error::io(format!("collect unneeded blobs in {}", self.root.display()));
        for round in rounds {
            self.review(round, keep, gc).map_err(doing())?;
        }
        self.load_marks()?;
        self.discard_dead(rounds, keep, when, gc).map_err(doing())
    }

    /// Returns the collections whose condemned blobs were not all removed yet.
    pub(super) fn rounds(&self, when: When, now: Duration) -> io::Result<Vec<Round>> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut rounds = Vec::new();
        for path in entries(&self.condemned())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let millis = name.split('-').next().and_then(|millis| millis.parse().ok());
            let Some(millis) = millis else { continue };
            let due = match (when, time_of(&path)) {
                (When::Now, _) => true,
                (When::After(grace), Some(time)) => now.saturating_sub(time) >= grace,
                // An earlier version made it, and measured by the wall clock.
                (When::After(grace), None) => {
                    let age = wall.checked_sub(Duration::from_millis(millis));
                    now >= grace && age.is_some_and(|age| age >= grace)
                }
            };
            rounds.push(Round { path, due });
        }
        Ok(rounds)
    }

    /// Returns blobs that are needed again, and deletes files whose grace period is over.
    fn review(&self, round: &Round, keep: &Keep, gc: &mut Gc) -> io::Result<()> {
        for path in entries(&round.path.join("blobs"))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(name) = Name::parse(name) else { continue };
            let bytes = fs::metadata(&path)?.len();
            if keep.contains(&name) {
                match self.with_room(|| self.take_back(&path, &name)) {
                    // The disk is full: a later call takes the blob back. The sweep spares it.
                    Err(error) if is_full(&error) => {}
                    taken => {
                        taken?;
                        gc.unmarked.add(bytes);
                    }
                }
            } else if round.due {
                self.disk.remove(&path)?;
                gc.removed.add(bytes);
            }
        }
        for path in entries(&round.path.join("packs"))? {
            if let Some(id) = id_of_list(&path) {
                self.review_pack(&round.path, &id, keep, gc)?;
            }
        }
        self.remove_empty(&round.path);
        Ok(())
    }

    fn take_back(&self, path: &Path, name: &Name) -> io::Result<()> {
        let (shard, place) = self.blobs.place(name);
        self.blobs.make(&shard)?;
        if self.is_whole(&place, name) {
            return self.disk.remove(path);
        }
        self.disk.rename(path, &place)?;
        self.disk.sync_folder(&shard)
    }

    /// Takes entries of a pack off the list of a round if they are needed again.
    fn review_pack(&self, round: &Path, id: &PackId, keep: &Keep, gc: &mut Gc) -> io::Result<()> {
        if !self.catalog.files.has(id)? {
            return remove_lists(self, round, id);
        }
        let list = entries_of(round, id)?;
        let (mut left, mut returned) = (Entries::default(), Tally::default());
        each_frame(&self.catalog.open(id)?, |frame| {
            for (index, entry) in
                frame.entries.iter().enumerate().filter(|(index, _)| list.has(frame.at, *index))
            {
                match keep.contains(&entry.name) {
                    true => returned.add(entry.length as u64),
                    false => left.add(frame.at, index),
                }
            }
            Ok(())
        })?;
        if left.is_empty() {
            remove_lists(self, round, id)?;
        } else if returned.blobs > 0 {
            let path = round.join("packs").join(id.hex());
            let written = self.with_room(|| write_list(self, &path, &left));
            // Without space they stay on the list, and are not removed.
            if written.as_ref().is_err_and(is_full) {
                return Ok(());
            }
            written?;
            write_list(self, &super::condemned::all_of(round, id), &Entries::default())?;
        }
        gc.unmarked.add_all(returned);
        Ok(())
    }

    /// Removes the folder of a round if it is empty.
    pub(super) fn remove_empty(&self, round: &Path) {
        for kind in ["blobs", "packs"] {
            let _ = fs::remove_dir(round.join(kind));
        }
        let _ = fs::remove_dir(round);
    }

    /// Finds entries and files that are neither needed nor condemned.
    fn unneeded(&self, keep: &Keep) -> io::Result<(Vec<Unneeded>, Vec<Stray>)> {
        let mut packs = Vec::new();
        for id in self.catalog.files.list()? {
            let mut unneeded = Unneeded { id, list: Entries::default(), tally: Tally::default(), all: true };
            each_frame(&self.catalog.open(&id)?, |frame| {
                for (index, entry) in frame.entries.iter().enumerate() {
                    let (marked, damaged) = self.catalog.marked(frame, index);
                    if damaged || keep.contains(&entry.name) {
                        unneeded.all = false;
                    } else if !marked {
                        unneeded.list.add(frame.at, index);
                        unneeded.tally.add(entry.length as u64);
                    } else {
                        // It is on the list of another round.
                        unneeded.all = false;
                    }
                }
                Ok(())
            })?;
            if !unneeded.list.is_empty() {
                packs.push(unneeded);
            }
        }
        let mut strays = Vec::new();
        for (name, path) in self.blobs.list()?.into_iter().filter(|(name, _)| !keep.contains(name)) {
            let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            strays.push(Stray { path, place: Path::new("blobs").join(name.hex()), bytes });
        }
        Ok((packs, strays))
    }

    /// Condemns unneeded blobs, and returns the folder of the new round.
    fn condemn(&self, keep: &Keep, now: Duration, until: &Until, gc: &mut Gc) -> Result<Option<PathBuf>> {
        let condemning = || format!("condemn what is unneeded in {}", self.root.display());
        let lock = || FileLock::exclusive_within(&self.lock_file(), PATIENCE, until, condemning);
        let round = self.condemn_with(keep, now, lock, gc);
        round.map_err(|error| error.downcast().unwrap_or_else(Error::io(condemning())))
    }

    fn condemn_with(
        &self,
        keep: &Keep,
        now: Duration,
        lock: impl FnOnce() -> Result<Option<FileLock>>,
        gc: &mut Gc,
    ) -> io::Result<Option<PathBuf>> {
        let (packs, strays) = self.unneeded(keep)?;
        if packs.is_empty() && strays.is_empty() {
            return Ok(None);
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = format!("{wall}-{}-{}", PackId::new().hex(), now.as_millis());
        // Prepared in a temporary folder, and published once no batch relies on its blobs.
        let staged = self.tmp.join(&name);
        let round = self.condemned().join(&name);
        let mut condemned = Tally::default();
        let ready = self.with_room(|| {
            self.disk.make_folder(&self.condemned())?;
            let kinds = strays.iter().filter_map(|stray| stray.place.parent());
            kinds.chain([Path::new("packs")]).try_for_each(|kind| self.disk.make_folder(&staged.join(kind)))
        });
        if ready.as_ref().is_err_and(is_full) {
            let _ = fs::remove_dir_all(&staged);
            packs.iter().for_each(|pack| gc.postponed.add_all(pack.tally));
            strays.iter().for_each(|stray| gc.postponed.add(stray.bytes));
            return Ok(None);
        }
        ready?;
        self.stage(packs, &staged, &mut condemned, gc)?;
        let lock = match lock() {
            Ok(Some(lock)) => lock,
            other => {
                fs::remove_dir_all(&staged)?;
                gc.busy = true;
                return other.map(|_| None).map_err(io::Error::other);
            }
        };
        self.with_room(|| self.disk.rename(&staged, &round))?;
        self.disk.sync_folder(&self.condemned())?;
        for stray in strays {
            match self.with_room(|| self.disk.rename(&stray.path, &round.join(&stray.place))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if is_full(&error) => gc.postponed.add(stray.bytes),
                renamed => {
                    renamed?;
                    condemned.add(stray.bytes);
                }
            }
        }
        drop(lock);
        gc.marked.add_all(condemned);
        Ok(Some(round))
    }

    /// Writes the lists of a round, as far as there is space: the smallest come first.
    fn stage(
        &self,
        mut packs: Vec<Unneeded>,
        staged: &Path,
        condemned: &mut Tally,
        gc: &mut Gc,
    ) -> io::Result<()> {
        packs.sort_by_key(|pack| (!pack.all, pack.tally.blobs));
        let mut full = false;
        for pack in packs {
            let path = staged.join("packs").join(pack.id.hex());
            let mut written = match pack.all && full {
                true => write_all(self, staged, &pack.id),
                false => write_list(self, &path, &pack.list),
            };
            if written.as_ref().is_err_and(is_full) {
                full = true;
                written = self.with_room(|| match pack.all {
                    true => write_all(self, staged, &pack.id),
                    false => write_list(self, &path, &pack.list),
                });
            }
            if written.as_ref().is_err_and(is_full) {
                gc.postponed.add_all(pack.tally);
                continue;
            }
            written?;
            condemned.add_all(pack.tally);
        }
        Ok(())
    }

    /// Removes rounds that died before they were published. With [`When::Now`], removes the files
    /// of dead writers too.
    fn remove_staged(&self, when: When) -> io::Result<()> {
        for path in entries(&self.tmp)? {
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if when == When::Now {
                let _ = private_files::remove_unless_held(&path, false);
            }
        }
        Ok(())
    }

    /// Removes damaged data that was set aside.
    fn remove_set_aside(&self) -> io::Result<()> {
        for kind in ["blobs", "rewritten", "index"] {
            for path in entries(&self.damaged().join(kind))? {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }
}

/// The time to wait for open batches.
const PATIENCE: Duration = Duration::from_secs(10);
