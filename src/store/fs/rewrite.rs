//! Sweeps packs. Dead packs are deleted. Packs with many dead or duplicate blobs are rewritten
//! without them. Small packs are merged.
//!
//! A new pack and its list of condemned entries are on the disk before an old pack goes. A damaged
//! pack stays until its damage was removed; then its intact blobs are rewritten.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use super::{
    FsBlobStore,
    catalog::Hit,
    collect::{Keep, Round},
    condemned::{entries_of, remove_lists},
    gc::{Gc, Tally, When, each_frame},
    loose::entries,
    marks::Entries,
    read::Source,
    rewriter::Rewriter,
    room::is_full,
};
use crate::{
    Error, Result,
    store::pack::{Copied, Entry, Found, Frame, PackId, scan},
    wiped::Wiped,
};

/// The facts about a pack that decide what is done with it.
struct Candidate {
    id: PackId,
    dead: Entries,
    /// Condemned entries that are not due yet, by the folder of their round.
    waiting: BTreeMap<PathBuf, Entries>,
    removed: Tally,
    live: Tally,
    /// Those live entries that have another copy, which stays.
    spare: Tally,
    length: u64,
    /// True if anything in it is known to be damaged.
    lost: bool,
    /// True if all other headers are intact.
    whole: bool,
}

/// A callback for an entry: its frame, its index, its header entry, and its bytes if they are
/// intact.
type Each<'a> = dyn FnMut(&Frame, usize, &Entry, Option<&[u8]>) -> io::Result<()> + 'a;

impl Candidate {
    /// Returns true if a rewrite frees enough to be worth it.
    fn is_worth_it(&self, when: When) -> bool {
        let (all, freed) = (self.live.bytes + self.removed.bytes, self.removed.bytes + self.spare.bytes);
        let much = freed * 4 >= all && self.removed.blobs + self.spare.blobs > 0;
        self.whole && (self.lost || much || when == When::Now && self.removed.blobs > 0)
    }
}

impl FsBlobStore {
    /// Deletes packs without any needed entry, which needs no space.
    pub(super) fn discard_dead(
        &self,
        rounds: &[Round],
        keep: &Keep,
        when: When,
        gc: &mut Gc,
    ) -> io::Result<()> {
        for id in self.catalog.marked_packs() {
            let mut listed = false;
            for round in rounds.iter().filter(|round| round.due) {
                listed |= !entries_of(&round.path, &id)?.is_empty();
            }
            if listed {
                let candidate = self.weigh(id, rounds, keep)?;
                if candidate.live.blobs == 0 && candidate.whole {
                    self.discard(&candidate, when, gc)?;
                }
            }
        }
        Ok(())
    }

    /// Rewrites packs without their dead entries.
    pub(super) fn rewrite_packs(&self, rounds: &[Round], keep: &Keep, when: When, gc: &mut Gc) -> Result<()> {
        let doing = || Error::io(format!("rewrite packs in {}", self.catalog.folder().display()));
        let (mut chosen, mut small) = (Vec::new(), Vec::new());
        // Packs of the index that are needed as a whole are left alone.
        let mut packs: BTreeSet<_> = self.catalog.fresh().into_iter().collect();
        packs.extend(self.catalog.marked_packs());
        for id in packs {
            let candidate = self.weigh(id, rounds, keep).map_err(doing())?;
            if candidate.is_worth_it(when) {
                chosen.push(candidate);
            } else if candidate.whole && candidate.length < SMALL {
                small.push(candidate);
            } else if when == When::Now && candidate.removed.blobs > 0 {
                gc.postponed.add_all(candidate.removed);
            }
        }
        if small.len() >= MANY {
            chosen.append(&mut small);
        }
        let mut group = Vec::new();
        let mut length = 0;
        for candidate in chosen {
            length += candidate.length;
            group.push(candidate);
            if length > LARGE {
                self.rewrite_group(std::mem::take(&mut group), when, gc).map_err(doing())?;
                length = 0;
            }
        }
        self.rewrite_group(group, when, gc).map_err(doing())
    }

    /// Rewrites packs into one. If there is no space for that, rewrites them one by one, so that
    /// each frees some for the next.
    fn rewrite_group(&self, mut group: Vec<Candidate>, when: When, gc: &mut Gc) -> io::Result<()> {
        match self.rewrite(&group, when, gc) {
            Err(error) if is_full(&error) => {}
            rewritten => return rewritten,
        }
        group.sort_by_key(|candidate| candidate.live.bytes);
        for candidate in group {
            // The failed attempt may have deleted the pack already.
            if !self.catalog.files.has(&candidate.id)? {
                continue;
            }
            match self.rewrite(std::slice::from_ref(&candidate), when, gc) {
                Err(error) if is_full(&error) => gc.postponed.add_all(candidate.removed),
                rewritten => rewritten?,
            }
        }
        Ok(())
    }

    fn weigh(&self, id: PackId, rounds: &[Round], keep: &Keep) -> io::Result<Candidate> {
        let (mut due, mut dead) = (Vec::new(), Entries::default());
        let mut waiting = BTreeMap::new();
        for round in rounds {
            match entries_of(&round.path, &id)? {
                none if none.is_empty() => {}
                entries if round.due => due.push(entries),
                entries => drop(waiting.insert(round.path.clone(), entries)),
            }
        }
        let file = self.catalog.open(&id)?;
        let length = file.metadata()?.len();
        let (mut removed, mut live, mut whole) = (Tally::default(), Tally::default(), true);
        let (mut spare, mut lost) = (Tally::default(), false);
        scan(&file, |found| match found {
            Found::Frame(frame) => {
                whole &= frame.pack == id;
                for (index, entry) in frame.entries.iter().enumerate() {
                    if self.catalog.marked(&frame, index).1 {
                        lost = true;
                        continue;
                    }
                    // A list may contain entries that are needed again, if there was no space to
                    // shorten it.
                    let listed = due.iter().any(|list| list.has(frame.at, index));
                    if listed && !keep.contains(&entry.name) {
                        dead.add(frame.at, index);
                        removed.add(entry.length as u64);
                        continue;
                    }
                    whole &= frame.end_of(entry) <= length;
                    live.add(entry.length as u64);
                    if !self.earlier_copies(&frame, index).is_empty() {
                        spare.add(entry.length as u64);
                    }
                }
            }
            Found::Damaged(bytes) if self.catalog.is_lost(&id, &bytes) => lost = true,
            Found::Damaged(_) => whole = false,
        })?;
        Ok(Candidate { id, dead, waiting, removed, live, spare, length, lost, whole })
    }

    /// Returns the copies of a blob that stay if this copy goes. The copy in the first pack, by id,
    /// always stays. Copies come from simultaneous captures, and from rewrites that were cut short.
    fn earlier_copies(&self, frame: &Frame, index: usize) -> Vec<Hit> {
        let entry = &frame.entries[index];
        let fresh = self.catalog.table.some(&entry.name, 2).len();
        if fresh < 2 && fresh + self.catalog.indexed(&entry.name, 2).map_or(0, |places| places.len()) < 2 {
            return Vec::new();
        }
        let mut hits = self.catalog.some_hits(&entry.name, SOME).unwrap_or_default();
        let own = (frame.pack, frame.at, index);
        hits.retain(|hit| !hit.condemned && (hit.frame.pack, hit.frame.at, hit.index) < own);
        hits
    }

    /// Writes the living entries of some packs into one, and deletes the packs.
    fn rewrite(&self, group: &[Candidate], when: When, gc: &mut Gc) -> io::Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let mut writer = Rewriter::new(self)?;
        let mut moved = Vec::new();
        for candidate in group {
            // A damaged pack is left to `verify`.
            if self.check(candidate)? {
                self.copy(candidate, &mut writer)?;
                moved.push(candidate);
            } else if when == When::Now {
                gc.postponed.add_all(candidate.removed);
            }
        }
        writer.finish()?;
        moved.into_iter().try_for_each(|candidate| self.discard(candidate, when, gc))
    }

    /// Returns true if everything that must be copied is readable.
    fn check(&self, candidate: &Candidate) -> io::Result<bool> {
        let mut good = true;
        self.each_living(candidate, &mut |_, _, _, bytes| {
            good &= bytes.is_some();
            Ok(())
        })?;
        Ok(good)
    }

    fn copy(&self, candidate: &Candidate, writer: &mut Rewriter<'_>) -> io::Result<()> {
        self.each_living(candidate, &mut |frame, index, entry, bytes| {
            let bytes = bytes.ok_or_else(|| io::Error::other("a pack was damaged while it was rewritten"))?;
            if let Ok(Some(copy)) = self.first_good(self.earlier_copies(frame, index).iter(), Source::Disk) {
                drop(Wiped::from(copy));
                return Ok(());
            }
            let waits = candidate.waiting.iter().filter(|(_, list)| list.has(frame.at, index));
            writer.push(&entry.name, bytes, waits.map(|(round, _)| round.clone()).collect())
        })
    }

    /// Calls `each` for every entry that is neither dead nor damaged, with its bytes if they are
    /// intact.
    fn each_living(&self, candidate: &Candidate, each: &mut Each<'_>) -> io::Result<()> {
        let file = self.catalog.open(&candidate.id)?;
        each_frame(&file, |frame| {
            let opened = self.open_frame(&file, frame)?.ok();
            let opened = opened.as_ref().map(Copied::opened);
            for (index, entry) in frame.entries.iter().enumerate() {
                if candidate.dead.has(frame.at, index) || self.catalog.marked(frame, index).1 {
                    continue;
                }
                let verified = |opened| frame.verified(&self.codec, index, opened).ok();
                let bytes = opened.as_ref().and_then(verified);
                each(frame, index, entry, bytes)?;
            }
            Ok(())
        })
    }

    /// Deletes a pack and its lists; sets a damaged pack aside.
    fn discard(&self, candidate: &Candidate, when: When, gc: &mut Gc) -> io::Result<()> {
        if candidate.lost && when != When::Now {
            let folder = self.damaged().join("rewritten");
            self.with_room(|| {
                self.disk.make_folder(&folder)?;
                let to = folder.join(candidate.id.hex());
                self.catalog.files.at(&candidate.id, |path| self.disk.rename(path, &to))
            })?;
            self.disk.sync_folder(&folder)?;
        } else {
            self.catalog.files.at(&candidate.id, |path| self.disk.remove(path))?;
        }
        for folder in
            self.catalog.files.settled(&candidate.id).parent().into_iter().chain([self.catalog.folder()])
        {
            match self.disk.sync_folder(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                synced => synced?,
            }
        }
        self.catalog.delete(&[candidate.id]);
        for folder in entries(&self.condemned())?.into_iter().chain([self.damaged()]) {
            remove_lists(self, &folder, &candidate.id)?;
        }
        gc.packs += 1;
        gc.removed.add_all(candidate.removed);
        Ok(())
    }
}

/// The most copies of a blob that are compared.
const SOME: usize = 16;

/// A pack below this size is small.
const SMALL: u64 = 4 * 1024 * 1024;

/// The number of small packs that are merged.
const MANY: usize = 16;

/// A new pack of this size takes no further packs in.
const LARGE: u64 = 512 * 1024 * 1024;
