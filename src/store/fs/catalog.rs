//! [`Catalog`]: the packs of the folder, and the positions of blobs in them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime},
};

use super::{
    marks::{Entries, Marks},
    table::Table,
};
use crate::{
    Error, Result,
    lock::{Mutex, RwLock},
    private_files,
    store::{
        name::Name,
        pack::{Found, Frame, PackId, scan},
        read_at::ReadAt as _,
    },
};

/// The known packs of the folder.
#[derive(Debug)]
pub(super) struct Catalog {
    folder: PathBuf,
    pub(super) table: Table,
    packs: RwLock<Packs>,
    /// Held while the folder is listed.
    seen: Mutex<Option<Seen>>,
    /// Recently read headers. Blobs are mostly looked up in the order that they were put.
    headers: Vec<Mutex<Header>>,
}

/// A header by the serial of its frame.
type Header = Option<(u64, Arc<Frame>)>;

#[derive(Debug, Default)]
pub(super) struct Packs {
    list: Vec<Pack>,
    frames: Vec<Place>,
    /// Numbers of removed packs and frames, to be reused: a long-lived program sees many.
    free_packs: Vec<u32>,
    free_frames: Vec<u32>,
    /// Grows with each frame.
    serial: u64,
    by_id: HashMap<PackId, u32>,
    marks: HashMap<PackId, Marks>,
    /// Grows when packs are added or removed.
    generation: u64,
}

#[derive(Debug)]
struct Pack {
    path: Arc<Path>,
    id: PackId,
    state: State,
}

/// The visibility of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is still being written by a batch, or being loaded.
    Open,
    Live,
    Gone,
}

/// The position of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The number of its pack in this catalog.
    pub(super) pack: u32,
    /// The length of its header.
    pub(super) head: u32,
    /// Its position in the pack; 0 until it is written.
    pub(super) at: u64,
    /// The number of bytes after the header.
    pub(super) stored: u32,
    /// Distinguishes frames that reuse a number.
    serial: u64,
}

/// The state of the folder when it was last listed.
#[derive(Debug)]
struct Seen {
    modified: SystemTime,
    /// True if a later change would show in the time of modification.
    settled: bool,
}

/// A blob in a pack.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) frame: Arc<Frame>,
    pub(super) index: usize,
    pub(super) path: Arc<Path>,
    pub(super) condemned: bool,
}

impl Catalog {
    pub(super) fn new(folder: PathBuf) -> Catalog {
        let mut headers = Vec::new();
        headers.resize_with(HEADERS, Mutex::default);
        Catalog { folder, table: Table::new(), packs: RwLock::default(), seen: Mutex::default(), headers }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of a published pack.
    pub(super) fn file(&self, id: &PackId) -> PathBuf {
        self.folder.join(format!("{}.pack", id.hex()))
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
        let doing = || format!("list the packs in {}", self.folder.display());
        let mut seen = self.seen.lock();
        let modified = match fs::metadata(&self.folder).and_then(|metadata| metadata.modified()) {
            Ok(modified) => modified,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(doing())(error)),
        };
        if seen.as_ref().is_some_and(|seen| seen.settled && seen.modified == modified) {
            return Ok(false);
        }
        let settled = modified.elapsed().is_ok_and(|age| age > TICK);
        let mut ids = HashMap::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(doing()))? {
            let path = entry.map_err(Error::io(doing()))?.path();
            if let Some(id) = id_of(&path) {
                ids.insert(id, path);
            }
        }
        let mut changed = self.drop_gone(&ids);
        ids.retain(|id, _| !self.read().by_id.contains_key(id));
        let mut loaded = Vec::new();
        for (id, path) in ids {
            if let Some(pack) = self.load(id, &path)? {
                loaded.push((pack, path));
            }
        }
        if !loaded.is_empty() {
            changed = true;
            marks()?;
        }
        loaded.iter().for_each(|(pack, path)| self.publish(*pack, path));
        *seen = Some(Seen { modified, settled });
        Ok(changed)
    }

    fn drop_gone(&self, there: &HashMap<PackId, PathBuf>) -> bool {
        let gone: Vec<_> = {
            let packs = self.read();
            let live = packs.by_id.iter().filter(|(_, pack)| packs.pack(**pack).state == State::Live);
            live.filter(|(id, _)| !there.contains_key(id)).map(|(id, _)| *id).collect()
        };
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
        let pack = self.add(id, path);
        let each = |found| {
            if let Found::Frame(frame) = found {
                let number = self.add_frame(pack);
                self.place(number, &frame);
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
    pub(super) fn add(&self, id: PackId, path: &Path) -> u32 {
        let mut packs = self.write();
        let pack = Pack { path: path.into(), id, state: State::Open };
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
        packs.serial += 1;
        let place = Place { pack, head: 0, at: 0, stored: 0, serial: packs.serial };
        match packs.free_frames.pop() {
            Some(number) => {
                packs.frames[number as usize] = place;
                number
            }
            None => {
                packs.frames.push(place);
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
    pub(super) fn place(&self, number: u32, frame: &Frame) {
        let small = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        self.place_at(number, frame.at, small(frame.head), small(frame.stored));
    }

    pub(super) fn place_at(&self, number: u32, at: u64, head: u32, stored: u32) {
        let mut packs = self.write();
        let place = &mut packs.frames[number as usize];
        *place = Place { head, at, stored, ..*place };
    }

    /// Makes a pack visible to all threads, at this path.
    pub(super) fn publish(&self, pack: u32, path: &Path) {
        let mut packs = self.write();
        packs.generation += 1;
        let pack = &mut packs.list[pack as usize];
        (pack.path, pack.state) = (path.into(), State::Live);
    }

    /// Updates the path of a pack that is still being written.
    pub(super) fn moved(&self, pack: u32, path: &Path) {
        self.write().list[pack as usize].path = path.into();
    }

    /// Forgets packs that were removed.
    pub(super) fn forget(&self, gone: &[PackId]) {
        let mut packs = self.write();
        let numbers: HashSet<u32> = gone.iter().filter_map(|id| packs.by_id.remove(id)).collect();
        if numbers.is_empty() {
            return;
        }
        packs.generation += 1;
        gone.iter().for_each(|id| drop(packs.marks.remove(id)));
        numbers.iter().for_each(|number| packs.list[*number as usize].state = State::Gone);
        // Collect the frames before touching the table: a lookup holds a part of the table and then
        // locks the packs.
        let of_gone = |(_, place): &(u32, &Place)| numbers.contains(&place.pack);
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

    /// Replaces the marks of condemned and damaged entries.
    pub(super) fn mark(&self, marks: HashMap<PackId, Marks>) {
        self.write().marks = marks;
    }

    /// Returns the frame of this number, and the state of its pack.
    pub(super) fn frame(&self, number: u32) -> Option<(Place, State)> {
        self.locate(number).map(|(place, state, _)| (place, state))
    }

    /// Does the same as [`frame`](Catalog::frame) with the path of the pack. One lock covers all,
    /// since numbers are reused.
    fn locate(&self, number: u32) -> Option<(Place, State, Arc<Path>)> {
        let packs = self.read();
        let place = packs.frames.get(number as usize).filter(|place| place.pack != NO_PACK).copied()?;
        let pack = packs.pack(place.pack);
        Some((place, pack.state, pack.path.clone()))
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

    /// Returns the number of a visible pack.
    pub(super) fn number(&self, id: &PackId) -> Option<u32> {
        self.read().by_id.get(id).copied()
    }

    /// Returns the path of a pack.
    pub(super) fn path(&self, pack: u32) -> Arc<Path> {
        self.read().pack(pack).path.clone()
    }

    /// Returns all visible packs.
    pub(super) fn live(&self) -> Vec<(PackId, Arc<Path>)> {
        let packs = self.read();
        let live = packs.list.iter().filter(|pack| pack.state == State::Live);
        live.map(|pack| (pack.id, pack.path.clone())).collect()
    }

    /// Reads the header of a frame; `None` if it is gone or damaged.
    pub(super) fn header(&self, number: u32) -> io::Result<Option<Arc<Frame>>> {
        let Some((place, _, path)) = self.locate(number) else { return Ok(None) };
        self.header_at(number, place, &path)
    }

    fn header_at(&self, number: u32, place: Place, path: &Path) -> io::Result<Option<Arc<Frame>>> {
        let slot = &self.headers[number as usize % HEADERS];
        let slot = || -> MutexGuard<'_, _> { slot.lock() };
        if let Some((cached, frame)) = &*slot()
            && *cached == place.serial
        {
            return Ok(Some(frame.clone()));
        }
        let mut header = vec![0; place.head as usize];
        let file = match private_files::open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.read_full(&mut header, place.at)?;
        let Some(frame) = Frame::parse(&header).filter(|frame| frame.at == place.at) else { return Ok(None) };
        let frame = Arc::new(frame);
        *slot() = Some((place.serial, frame.clone()));
        Ok(Some(frame))
    }

    /// Returns the visible copies of a blob. Those that are not condemned come
    /// first.
    pub(super) fn hits(&self, name: &Name) -> Result<Vec<Hit>> {
        let mut hits = Vec::new();
        for number in self.table.candidates(name) {
            hits.extend(self.hit(number, name)?);
        }
        hits.sort_by_key(|hit| hit.condemned);
        Ok(hits)
    }

    /// Returns a limited number of copies of a blob, since a foreign pack may contain any number.
    pub(super) fn some_hits(&self, name: &Name) -> Result<Vec<Hit>> {
        let numbers = self.table.some(name, SOME).into_iter();
        numbers.filter_map(|number| self.hit(number, name).transpose()).collect()
    }

    /// Returns the entry of this frame for the blob, if it is not damaged.
    pub(super) fn hit(&self, number: u32, name: &Name) -> Result<Option<Hit>> {
        let Some((place, State::Live, path)) = self.locate(number) else { return Ok(None) };
        let reading = |error| Error::io(format!("read the pack {}", path.display()))(error);
        let Some(frame) = self.header_at(number, place, &path).map_err(reading)? else { return Ok(None) };
        let Some(index) = frame.find(name, 0) else { return Ok(None) };
        let (condemned, damaged) = self.marked(&frame, index);
        Ok((!damaged).then_some(Hit { frame, index, path, condemned }))
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
        let packs = self.read();
        // Frames name the pack that they were written for; marks go by the same name.
        packs.marks.get(&frame.pack).map_or((false, false), |marks| marks.of(frame.at, index))
    }
}

impl Packs {
    fn free_frame(&mut self, number: u32) {
        self.frames[number as usize].pack = NO_PACK;
        self.free_frames.push(number);
    }

    fn pack(&self, number: u32) -> &Pack {
        &self.list[number as usize]
    }
}

/// Parses the id in a file's name.
pub(super) fn id_of(path: &Path) -> Option<PackId> {
    PackId::parse(path.file_name()?.to_str()?.strip_suffix(".pack")?)
}

/// Stands for the number of a removed pack.
const NO_PACK: u32 = u32::MAX;

/// The most copies of a blob that are tried where one is enough.
const SOME: usize = 16;

/// The number of headers in the cache.
const HEADERS: usize = 64;

/// The coarsest resolution of file times, two seconds on FAT, and a margin.
const TICK: Duration = Duration::from_secs(3);
