//! Sweeping packs: those that are dead are deleted, those with much in them that is dead or elsewhere too written anew without,
//! small ones put together.
//!
//! A new pack is on the disk, and what is condemned in it listed, before an old one goes. A pack with damage stays as it is, until
//! that was taken out: then what is whole in it is written anew.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use super::{
    FsBlobStore,
    catalog::Hit,
    condemned::{read_list, write_list},
    disk::{DiskFile, Temporary},
    gc::{Gc, Round, Tally, each_frame},
    marks::Entries,
};
use crate::{
    Error, Result, private,
    store::pack::{self, Builder, Entry, Found, Frame, Kind, PackId, scan},
};

/// What is known of a pack when it is to be decided upon.
struct Candidate {
    id: PackId,
    path: Arc<std::path::Path>,
    dead: Entries,
    /// What is condemned and not due, by the folder of its round.
    waiting: BTreeMap<PathBuf, Entries>,
    swept: Tally,
    live: Tally,
    /// Of what lives, that of which there is a copy that stays.
    spare: Tally,
    length: u64,
    /// Whether anything in it is known to be damaged.
    lost: bool,
    /// Whether all else is whole, as far as headers tell.
    whole: bool,
}

/// Is given an entry: its frame, its index, what the header says, and its bytes if they are whole.
type Each<'a> = dyn FnMut(&Frame, usize, &Entry, Option<&[u8]>) -> io::Result<()> + 'a;

impl FsBlobStore {
    /// Deletes and rewrites packs.
    pub(super) fn sweep_packs(&self, grace: Duration, gc: &mut Gc) -> Result<()> {
        let doing = || Error::io(format!("sweep the packs in {}", self.catalog.folder().display()));
        let rounds = self.rounds(grace).map_err(doing())?;
        let mut rewritten = Vec::new();
        let mut small = Vec::new();
        for (id, path) in self.catalog.live() {
            let candidate = self.weigh(id, path, &rounds).map_err(doing())?;
            let all = candidate.live.bytes + candidate.swept.bytes;
            if candidate.live.blobs == 0 && candidate.whole {
                self.discard(&candidate, gc).map_err(doing())?;
            } else if candidate.whole
                && (candidate.lost
                    || (candidate.swept.bytes + candidate.spare.bytes) * 4 >= all
                        && candidate.swept.blobs + candidate.spare.blobs > 0)
            {
                rewritten.push(candidate);
            } else if candidate.whole && candidate.length < SMALL {
                small.push(candidate);
            }
        }
        if small.len() >= MANY {
            rewritten.append(&mut small);
        }
        let mut group = Vec::new();
        let mut length = 0;
        for candidate in rewritten {
            length += candidate.length;
            group.push(candidate);
            if length > LARGE {
                self.rewrite(&std::mem::take(&mut group), gc)?;
                length = 0;
            }
        }
        self.rewrite(&group, gc)?;
        rounds.iter().for_each(|round| self.remove_empty(&round.path));
        Ok(())
    }

    fn weigh(&self, id: PackId, path: Arc<std::path::Path>, rounds: &[Round]) -> io::Result<Candidate> {
        let mut dead = Entries::default();
        let mut waiting = BTreeMap::new();
        for round in rounds {
            let list = round.path.join("packs").join(id.hex());
            if round.due {
                read_list(&list, &mut dead)?;
            } else {
                let mut entries = Entries::default();
                read_list(&list, &mut entries)?;
                if !entries.is_empty() {
                    waiting.insert(round.path.clone(), entries);
                }
            }
        }
        let file = private::open_file(&path)?;
        let length = file.metadata()?.len();
        let (mut swept, mut live, mut whole) = (Tally::default(), Tally::default(), true);
        let (mut spare, mut lost) = (Tally::default(), false);
        scan(&file, |found| match found {
            Found::Frame(frame) => {
                whole &= frame.pack == id;
                for (index, entry) in frame.entries.iter().enumerate() {
                    if self.catalog.marked(&frame, index).1 {
                        lost = true;
                        continue;
                    }
                    whole &= frame.end_of(entry) <= length;
                    let into = if dead.has(frame.at, index) { &mut swept } else { &mut live };
                    into.add(entry.length as u64);
                    if !dead.has(frame.at, index) && !self.earlier_copies(&frame, index).is_empty() {
                        spare.add(entry.length as u64);
                    }
                }
            }
            Found::Damaged(bytes) if self.catalog.is_lost(&id, &bytes) => lost = true,
            Found::Damaged(_) => whole = false,
        })?;
        Ok(Candidate { id, path, dead, waiting, swept, live, spare, length, lost, whole })
    }

    /// The copies of a blob that stay where this one goes: of several, the first in the order of packs does. Two captures at the
    /// same time store the same blobs, and so does whoever rewrites a pack and dies.
    fn earlier_copies(&self, frame: &Frame, index: usize) -> Vec<Hit> {
        let entry = &frame.entries[index];
        let mut candidates = 0;
        let several = |_: &u32| {
            candidates += 1;
            candidates == 2
        };
        if entry.is_named() || self.catalog.table.first(&entry.digest, several).is_none() {
            return Vec::new();
        }
        let mut hits = self.catalog.hits(&entry.digest, false).unwrap_or_default();
        let own = (frame.pack, frame.at, index);
        hits.retain(|hit| !hit.condemned && (hit.frame.pack, hit.frame.at, hit.index) < own);
        hits
    }

    /// Writes what lives in some packs into one, and deletes them.
    fn rewrite(&self, group: &[Candidate], gc: &mut Gc) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let doing = || Error::io(format!("rewrite packs in {}", self.catalog.folder().display()));
        let mut writer = Rewriter::new(self).map_err(doing())?;
        let mut moved = Vec::new();
        for candidate in group {
            // A pack with damage in it is left to `verify`.
            if self.check(candidate).map_err(doing())? {
                self.copy(candidate, &mut writer).map_err(doing())?;
                moved.push(candidate);
            }
        }
        writer.finish().map_err(doing())?;
        for candidate in moved {
            self.discard(candidate, gc).map_err(doing())?;
        }
        Ok(())
    }

    /// Whether all that is to be copied can be.
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
            if let Ok(Some(_)) = self.first_good(self.earlier_copies(frame, index).iter()) {
                return Ok(());
            }
            let waits = candidate.waiting.iter().filter(|(_, list)| list.has(frame.at, index));
            writer.push(entry, bytes, waits.map(|(round, _)| round.clone()).collect())
        })
    }

    /// Every entry that is not dead, nor known to be damaged, with its bytes if they are whole.
    fn each_living(&self, candidate: &Candidate, each: &mut Each<'_>) -> io::Result<()> {
        let file = private::open_file(&candidate.path)?;
        each_frame(&candidate.path, |frame| {
            let raw = self.open_frame(&file, frame)?.ok();
            for (index, entry) in frame.entries.iter().enumerate() {
                if candidate.dead.has(frame.at, index) || self.catalog.marked(frame, index).1 {
                    continue;
                }
                let bytes = raw.as_ref().and_then(|raw| frame.verified(entry, raw).ok());
                each(frame, index, entry, bytes)?;
            }
            Ok(())
        })
    }

    /// Deletes a pack, and what was listed of it; one with damage is set aside.
    fn discard(&self, candidate: &Candidate, gc: &mut Gc) -> io::Result<()> {
        if let Some(pack) = self.catalog.number(&candidate.id) {
            self.catalog.forget(&[pack]);
        }
        if candidate.lost {
            let folder = self.damaged().join("rewritten");
            self.disk.make_folder(&folder)?;
            self.disk.rename(&candidate.path, &folder.join(candidate.id.hex()))?;
            self.disk.sync_folder(&folder)?;
        } else {
            self.disk.remove(&candidate.path)?;
        }
        self.disk.sync_folder(self.catalog.folder())?;
        let lists = self.rounds(Duration::ZERO)?.into_iter().map(|round| round.path).chain([self.damaged()]);
        for folder in lists {
            write_list(self, &folder.join("packs").join(candidate.id.hex()), &Entries::default())?;
        }
        gc.packs += 1;
        gc.swept.blobs += candidate.swept.blobs;
        gc.swept.bytes += candidate.swept.bytes;
        Ok(())
    }
}

/// A pack that takes the place of others.
struct Rewriter<'a> {
    store: &'a FsBlobStore,
    id: PackId,
    // Before `temporary`, so that it is closed when that is removed.
    file: DiskFile,
    temporary: Temporary,
    end: u64,
    builder: Builder,
    count: usize,
    /// What is condemned in the frame that is being filled, and in the pack.
    pending: Vec<(PathBuf, usize)>,
    lists: BTreeMap<PathBuf, Entries>,
}

impl<'a> Rewriter<'a> {
    fn new(store: &'a FsBlobStore) -> io::Result<Rewriter<'a>> {
        let id = PackId::new();
        let (temporary, file) = store.disk.temporary(&store.tmp)?;
        file.write_at(&pack::header(&id), 0)?;
        Ok(Rewriter {
            store,
            id,
            file,
            temporary,
            end: pack::HEADER as u64,
            builder: Builder::new(),
            count: 0,
            pending: Vec::new(),
            lists: BTreeMap::new(),
        })
    }

    fn push(&mut self, entry: &Entry, bytes: &[u8], waits: Vec<PathBuf>) -> io::Result<()> {
        if !self.builder.takes(bytes.len()) {
            self.write()?;
        }
        match entry.kind {
            Kind::Blob => self.builder.push(&entry.digest, bytes),
            Kind::Named { stamp, .. } => self.builder.push_named(&entry.digest, stamp, bytes),
        }
        self.pending.extend(waits.into_iter().map(|round| (round, self.count)));
        self.count += 1;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let frame = self.builder.seal().at(&self.id, self.end);
        let length = frame.len() as u64;
        self.file.write_at(frame, self.end)?;
        for (round, index) in self.pending.drain(..) {
            self.lists.entry(round).or_default().add(self.end, index);
        }
        self.end += length;
        self.count = 0;
        self.builder.clear();
        Ok(())
    }

    /// Shows the pack, if there is anything in it.
    fn finish(mut self) -> io::Result<()> {
        if !self.builder.is_empty() {
            self.write()?;
        }
        if self.end == pack::HEADER as u64 {
            return Ok(());
        }
        let Rewriter { store, id, file, temporary, lists, .. } = self;
        file.sync()?;
        drop(file);
        for (round, list) in lists {
            write_list(store, &round.join("packs").join(id.hex()), &list)?;
        }
        temporary.rename(&store.catalog.file(&id))?;
        store.disk.sync_folder(store.catalog.folder())?;
        store.look_again().map(drop).map_err(io::Error::other)
    }
}

/// A pack below this is small.
const SMALL: u64 = 4 * 1024 * 1024;

/// So many small ones are put together.
const MANY: usize = 16;

/// No further pack is put to a new one that has so much already.
const LARGE: u64 = 512 * 1024 * 1024;
