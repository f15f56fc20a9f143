//! [`Catalog`]: the packs of the folder, and the positions of blobs in them.
//!
//! New packs are in memory, the others in the [`Index`].

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, RwLockReadGuard, RwLockWriteGuard},
    time::SystemTime,
};

use super::{
    disk::Disk,
    headers::Headers,
    index::{Index, Record},
    marks::{Entries, Marks},
    near::Near,
    packs::{self, PackFolder, TICK},
    place::Place,
    table::Table,
};
use crate::{
    Error, Result,
    lock::{Mutex, RwLock},
    private_files,
    store::{
        name::Name,
        pack::{Found, Frame, PackId, glimpse, scan},
        read_at::ReadAt as _,
    },
};

/// The known packs of the folder.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) files: PackFolder,
    pub(super) index: Index,
    pub(super) table: Table,
    packs: RwLock<Packs>,
    /// Held while the folder is listed.
    seen: Mutex<Option<Seen>>,
    headers: Headers,
}

/// The new packs.
#[derive(Debug, Default)]
pub(super) struct Packs {
    list: Vec<Pack>,
    frames: Vec<Slot>,
    /// Numbers of removed packs and frames, to be reused: a long-lived program sees many.
    free_packs: Vec<u32>,
    free_frames: Vec<u32>,
    by_id: HashMap<PackId, u32>,
    /// The marks of all packs that have any.
    marks: HashMap<PackId, Marks>,
    /// Grows when marks are loaded, and when packs are deleted with theirs.
    version: u64,
    /// Grows when packs are added or removed.
    generation: u64,
}

#[derive(Debug)]
struct Pack {
    id: PackId,
    state: State,
    /// The file of a pack that is being written.
    temporary: Option<Arc<Path>>,
    /// Its length, and that of its headers, in bytes.
    length: u64,
    heads: u64,
}

/// The size of a new pack, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fresh {
    pub(super) id: PackId,
    pub(super) length: u64,
    /// The length of its headers.
    pub(super) heads: u64,
}

/// The visibility of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is still being written by a batch, or being loaded.
    Open,
    Live,
    Gone,
}

/// A frame of a new pack.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The number of its pack in this catalog.
    pack: u32,
    head: u32,
    at: u64,
    stored: u32,
}

/// The state of the folder when it was last listed.
#[derive(Debug)]
struct Seen {
    modified: SystemTime,
    /// True if a later change would show in the time of modification.
    settled: bool,
    /// True if there were packs that only the index has.
    indexed: bool,
}

/// A blob in a pack.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) frame: Arc<Frame>,
    pub(super) index: usize,
    pub(super) pack: PackId,
    pub(super) condemned: bool,
}

impl Catalog {
    pub(super) fn new(root: &Path, tmp: &Path, folder: PathBuf, disk: Disk) -> Catalog {
        let files = PackFolder::new(folder);
        Catalog {
            index: Index::new(root, tmp, files.clone(), disk),
            files,
            table: Table::new(),
            packs: RwLock::default(),
            seen: Mutex::default(),
            headers: Headers::new(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        self.files.path()
    }

    fn read(&self) -> RwLockReadGuard<'_, Packs> {
        self.packs.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Packs> {
        self.packs.write()
    }

    /// Rescans the folder if it changed; returns true if packs were added or removed. All changes
    /// before this call are seen.
    ///
    /// `marks` loads the marks of condemned entries before the new packs become visible.
    pub(super) fn refresh(&self, marks: impl FnOnce() -> Result<bool>) -> Result<bool> {
        let doing = || format!("list the packs in {}", self.folder().display());
        let mut seen = self.seen.lock();
        let modified = match fs::metadata(self.folder()).and_then(|metadata| metadata.modified()) {
            Ok(modified) => modified,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(doing())(error)),
        };
        if let Some(seen) = seen.as_ref().filter(|seen| seen.settled && seen.modified == modified) {
            return self.refresh_index(seen.indexed);
        }
        let settled = modified.elapsed().is_ok_and(|age| age > TICK);
        let (mut ids, mut indexed) = (HashMap::new(), false);
        for entry in fs::read_dir(self.folder()).map_err(Error::io(doing()))? {
            let path = entry.map_err(Error::io(doing()))?.path();
            indexed |= packs::is_folder(&path);
            if let Some(id) = packs::id_of(&path) {
                ids.insert(id, path);
            }
        }
        // After the listing: a pack that has moved since is in the index.
        let mut changed = self.refresh_index(indexed)?;
        changed |= self.drop_gone(&ids);
        ids.retain(|id, _| !self.read().by_id.contains_key(id));
        let (mut loaded, mut gone) = (Vec::new(), false);
        for (id, path) in ids {
            match self.load(id, &path)? {
                Some(pack) => loaded.push(pack),
                None => gone = true,
            }
        }
        if !loaded.is_empty() {
            changed = true;
            marks()?;
        }
        loaded.iter().for_each(|pack| self.publish(*pack));
        // A pack that has gone since the listing may be in the index now, or in a joined pack.
        *seen = (!gone).then_some(Seen { modified, settled, indexed });
        Ok(changed || gone)
    }

    fn refresh_index(&self, expected: bool) -> Result<bool> {
        let reading = || format!("read the index of the packs in {}", self.folder().display());
        let changed = self.index.refresh(expected).map_err(|error| Error::io(reading())(error))?;
        if changed {
            self.write().generation += 1;
        }
        Ok(changed)
    }

    /// Makes the next refresh list the folder.
    pub(super) fn doubt(&self) {
        *self.seen.lock() = None;
    }

    fn drop_gone(&self, there: &HashMap<PackId, PathBuf>) -> bool {
        let gone: Vec<_> = self.fresh().into_iter().filter(|id| !there.contains_key(id)).collect();
        self.forget(&gone);
        !gone.is_empty()
    }

    /// Reads the frames of a pack; `None` if it is gone.
    fn load(&self, id: PackId, path: &Path) -> Result<Option<u32>> {
        let doing = || format!("read the pack {}", path.display());
        let file = match private_files::open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(doing())(error)),
        };
        let pack = self.add(id);
        let each = |found| {
            if let Found::Frame(frame) = found {
                let number = self.add_frame(pack);
                let small = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
                self.place_at(number, frame.at, small(frame.head), small(frame.stored));
                frame.entries.iter().for_each(|entry| self.table.insert(&entry.name, number));
            }
        };
        if let Err(error) = scan(&file, each) {
            self.forget(&[id]);
            return Err(Error::io(doing())(error));
        }
        Ok(Some(pack))
    }

    /// Adds a pack that is not visible yet.
    pub(super) fn add(&self, id: PackId) -> u32 {
        let mut packs = self.write();
        let pack = Pack { id, state: State::Open, temporary: None, length: 0, heads: 0 };
        let number = match packs.free_packs.pop() {
            Some(number) => {
                packs.list[number as usize] = pack;
                number
            }
            None => {
                packs.list.push(pack);
                u32::try_from(packs.list.len() - 1).expect("because four billion packs need more memory")
            }
        };
        packs.by_id.insert(id, number);
        number
    }

    /// Adds a frame without a position.
    pub(super) fn add_frame(&self, pack: u32) -> u32 {
        let mut packs = self.write();
        let slot = Slot { pack, head: 0, at: 0, stored: 0 };
        match packs.free_frames.pop() {
            Some(number) => {
                packs.frames[number as usize] = slot;
                number
            }
            None => {
                packs.frames.push(slot);
                u32::try_from(packs.frames.len() - 1).expect("because four billion frames need more memory")
            }
        }
    }

    /// Releases frames that have no blobs.
    pub(super) fn drop_frames(&self, numbers: impl Iterator<Item = u32>) {
        let mut packs = self.write();
        for number in numbers {
            packs.free_frame(number);
        }
    }

    /// Sets the position of a frame.
    pub(super) fn place_at(&self, number: u32, at: u64, head: u32, stored: u32) {
        let mut packs = self.write();
        let slot = &mut packs.frames[number as usize];
        *slot = Slot { head, at, stored, ..*slot };
        let number = slot.pack;
        let pack = &mut packs.list[number as usize];
        pack.length = pack.length.max(at + u64::from(head) + u64::from(stored));
        pack.heads += u64::from(head);
    }

    /// Makes a pack visible to all threads.
    pub(super) fn publish(&self, pack: u32) {
        let mut packs = self.write();
        packs.generation += 1;
        let pack = &mut packs.list[pack as usize];
        (pack.temporary, pack.state) = (None, State::Live);
    }

    /// Sets the file of a pack that is being written.
    pub(super) fn write_to(&self, pack: u32, path: &Path) {
        self.write().list[pack as usize].temporary = Some(path.into());
    }

    /// Forgets packs that were removed, or moved to the index.
    pub(super) fn forget(&self, gone: &[PackId]) {
        let mut packs = self.write();
        let numbers: HashSet<u32> = gone.iter().filter_map(|id| packs.by_id.remove(id)).collect();
        if numbers.is_empty() {
            return;
        }
        packs.generation += 1;
        numbers.iter().for_each(|number| packs.list[*number as usize].state = State::Gone);
        // Collect the frames before touching the table: a lookup holds a part of the table and then
        // locks the packs.
        let of_gone = |(_, slot): &(u32, &Slot)| numbers.contains(&slot.pack);
        let frames: HashSet<_> = (0..).zip(&packs.frames).filter(of_gone).map(|(number, _)| number).collect();
        drop(packs);
        if !frames.is_empty() {
            self.table.retain(|frame| !frames.contains(&frame));
        }
        // Release the numbers only now that the table does not refer to them.
        let mut packs = self.write();
        frames.into_iter().for_each(|number| packs.free_frame(number));
        packs.free_packs.extend(numbers);
    }

    /// Forgets packs that were deleted, and their marks.
    pub(super) fn delete(&self, ids: &[PackId]) {
        self.forget(ids);
        let mut packs = self.write();
        packs.version += 1;
        for id in ids {
            packs.marks.remove(id);
        }
    }

    /// Replaces the marks of condemned and damaged entries.
    pub(super) fn mark(&self, marks: HashMap<PackId, Marks>) {
        let mut packs = self.write();
        (packs.marks, packs.version) = (marks, packs.version + 1);
    }

    /// Returns the position of the frame of this number, and the state of its pack.
    pub(super) fn frame(&self, number: u32) -> Option<(Place, State)> {
        self.locate(number).map(|(place, state, _)| (place, state))
    }

    /// Does the same as [`frame`](Catalog::frame) with the path of an unfinished pack. One lock
    /// covers all, since numbers are reused.
    fn locate(&self, number: u32) -> Option<(Place, State, Option<Arc<Path>>)> {
        let packs = self.read();
        let slot = packs.frames.get(number as usize).filter(|slot| slot.pack != NO_PACK)?;
        let Slot { pack, head, at, stored } = *slot;
        let pack = packs.pack(pack);
        Some((Place { pack: pack.id, head, at, stored }, pack.state, pack.temporary.clone()))
    }

    /// Returns the sizes of the tables of packs and frames.
    #[cfg(test)]
    pub(super) fn room(&self) -> (usize, usize) {
        (self.read().list.len(), self.read().frames.len())
    }

    /// Returns a number that changes when packs are added or removed.
    pub(super) fn generation(&self) -> u64 {
        self.read().generation
    }

    /// Returns the visible packs that are not in the index.
    pub(super) fn fresh(&self) -> Vec<PackId> {
        let packs = self.read();
        packs.list.iter().filter(|pack| pack.state == State::Live).map(|pack| pack.id).collect()
    }

    /// Returns the same packs with their sizes, and whether they have marks.
    pub(super) fn fresh_sizes(&self) -> Vec<(Fresh, bool)> {
        let packs = self.read();
        let live = packs.list.iter().filter(|pack| pack.state == State::Live);
        let size = |pack: &Pack| Fresh { id: pack.id, length: pack.length, heads: pack.heads };
        live.map(|pack| (size(pack), packs.marks.contains_key(&pack.id))).collect()
    }

    /// Reads the header of a frame of a new pack; `None` if it is gone or damaged.
    pub(super) fn header(&self, number: u32) -> io::Result<Option<Arc<Frame>>> {
        let Some((place, _, path)) = self.locate(number) else { return Ok(None) };
        self.header_at(&place, path.as_deref())
    }

    /// Reads the header of a frame, from this file or from the pack.
    pub(super) fn header_at(&self, place: &Place, path: Option<&Path>) -> io::Result<Option<Arc<Frame>>> {
        if let Some(frame) = self.headers.get(place) {
            return Ok(Some(frame));
        }
        let mut header = vec![0; place.head as usize];
        let file = match path.map_or_else(|| self.files.open(&place.pack), private_files::open_file) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.read_full(&mut header, place.at)?;
        let Some(frame) = Frame::parse(&header).filter(|frame| frame.at == place.at) else { return Ok(None) };
        let frame = Arc::new(frame);
        self.headers.keep(place, frame.clone());
        Ok(Some(frame))
    }

    /// Returns the visible copies of a blob. Those that are not condemned come
    /// first.
    pub(super) fn hits(&self, name: &Name) -> Result<Vec<Hit>> {
        self.some_hits(name, usize::MAX)
    }

    /// Returns a limited number of copies of a blob, since a foreign pack may contain any number.
    pub(super) fn some_hits(&self, name: &Name, most: usize) -> Result<Vec<Hit>> {
        let mut hits = Vec::new();
        for number in self.table.some(name, most) {
            hits.extend(self.hit(number, name)?);
        }
        for record in self.indexed(name, most)? {
            hits.extend(self.indexed_hit(&record, name)?);
        }
        hits.sort_by_key(|hit| hit.condemned);
        Ok(hits)
    }

    /// Returns true if a visible pack has the blob and will keep it.
    pub(super) fn has(&self, name: &Name, near: &mut Near) -> Result<bool> {
        for number in self.table.some(name, usize::MAX) {
            if self.hit(number, name)?.is_some_and(|hit| !hit.condemned) {
                return Ok(true);
            }
        }
        self.is_indexed(name, near)
    }

    /// Returns true if a pack of the index has the blob and will keep it.
    pub(super) fn is_indexed(&self, name: &Name, near: &mut Near) -> Result<bool> {
        {
            let packs = self.read();
            // Marks go with a pack that is deleted, so a condemned blob that is gone would look
            // like one that stays.
            near.keep_for(packs.version);
            if let Some((frame, index)) = near.find(name)
                && packs.marks_of(&frame.pack, frame.at, index) == (false, false)
            {
                return Ok(true);
            }
        }
        for record in self.indexed(name, usize::MAX)? {
            if self.keeps(&record, name, near)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn keeps(&self, record: &Record, name: &Name, near: &mut Near) -> Result<bool> {
        let place = Place::from(*record);
        if !self.headers.asked_before(&place) {
            let reading = || Error::io(format!("read the pack {}", self.shown(&place.pack)));
            let found = match self.files.open(&place.pack) {
                Ok(file) => glimpse(&file, place.at, record.name.into()).map_err(|error| reading()(error))?,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(reading()(error)),
            };
            if let Some((pack, index, there)) = found
                && there == *name
            {
                let is_kept = self.marks_of(&pack, place.at, index) == (false, false);
                let looking = || Error::io(format!("look for the pack {}", self.shown(&place.pack)));
                return Ok(is_kept && self.files.has(&place.pack).map_err(|error| looking()(error))?);
            }
        }
        let hit = self.indexed_hit(record, name)?.filter(|hit| !hit.condemned);
        if let Some(hit) = &hit {
            near.found(place, Arc::clone(&hit.frame), hit.index);
        }
        Ok(hit.is_some())
    }

    /// Returns the entry of this frame of a new pack for the blob, if it is not damaged.
    pub(super) fn hit(&self, number: u32, name: &Name) -> Result<Option<Hit>> {
        match self.locate(number) {
            Some((place, State::Live, _)) => self.hit_at(&place, name),
            _ => Ok(None),
        }
    }

    /// Returns up to `most` frames of older packs that may have the blob.
    pub(super) fn indexed(&self, name: &Name, most: usize) -> Result<Vec<Record>> {
        let searching = || Error::io(format!("search the index of the packs in {}", self.folder().display()));
        self.index.find(name, most).map_err(|error| searching()(error))
    }

    /// Returns the entry of this frame of an older pack for the blob, if it is not damaged. The
    /// index may still have a pack that was removed.
    fn indexed_hit(&self, record: &Record, name: &Name) -> Result<Option<Hit>> {
        let looking = || Error::io(format!("look for the pack {}", self.shown(&record.pack)));
        let hit = self.hit_at(&Place::from(*record), name)?;
        Ok(if hit.is_some() && self.files.has(&record.pack).map_err(|error| looking()(error))? {
            hit
        } else {
            None
        })
    }

    fn hit_at(&self, place: &Place, name: &Name) -> Result<Option<Hit>> {
        let reading = || Error::io(format!("read the pack {}", self.shown(&place.pack)));
        let Some(frame) = self.header_at(place, None).map_err(|error| reading()(error))? else {
            return Ok(None);
        };
        let Some(index) = frame.find(name, 0) else { return Ok(None) };
        let (condemned, damaged) = self.marked(&frame, index);
        Ok((!damaged).then_some(Hit { frame, index, pack: place.pack, condemned }))
    }

    /// Opens a pack.
    pub(super) fn open(&self, id: &PackId) -> io::Result<File> {
        self.files.open(id)
    }

    /// Returns the path of a pack, for texts.
    pub(super) fn shown(&self, id: &PackId) -> String {
        let settled = self.files.settled(id);
        let path = if settled.exists() { settled } else { self.files.fresh(id) };
        path.display().to_string()
    }

    /// Returns the packs that have condemned or damaged entries.
    pub(super) fn marked_packs(&self) -> Vec<PackId> {
        let marked: Vec<_> = self.read().marks.keys().copied().collect();
        marked.into_iter().filter(|id| self.files.has(id).unwrap_or(false)).collect()
    }

    /// Returns the entries of a frame that are known to be damaged.
    pub(super) fn damaged_in(&self, frame: &Frame) -> Entries {
        let packs = self.read();
        packs.marks.get(&frame.pack).map(|marks| marks.damaged.of_frame(frame.at)).unwrap_or_default()
    }

    /// Returns true if these bytes of a pack are known to have no frame.
    pub(super) fn is_lost(&self, pack: &PackId, bytes: &Range<u64>) -> bool {
        self.read().marks.get(pack).is_some_and(|marks| marks.damaged.has_region(bytes))
    }

    /// Returns whether an entry is condemned, and whether it is damaged.
    pub(super) fn marked(&self, frame: &Frame, index: usize) -> (bool, bool) {
        // Frames name the pack that they were written for; marks go by the same name.
        self.marks_of(&frame.pack, frame.at, index)
    }

    fn marks_of(&self, pack: &PackId, at: u64, index: usize) -> (bool, bool) {
        self.read().marks_of(pack, at, index)
    }
}

impl Packs {
    fn marks_of(&self, pack: &PackId, at: u64, index: usize) -> (bool, bool) {
        self.marks.get(pack).map_or((false, false), |marks| marks.of(at, index))
    }

    fn free_frame(&mut self, number: u32) {
        self.frames[number as usize].pack = NO_PACK;
        self.free_frames.push(number);
    }

    fn pack(&self, number: u32) -> &Pack {
        &self.list[number as usize]
    }
}

/// Stands for the number of a removed pack.
const NO_PACK: u32 = u32::MAX;
