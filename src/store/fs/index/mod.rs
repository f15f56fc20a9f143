//! [`Index`]: finds blobs in packs that are not new, on the disk.
//!
//! ```text
//! <root>/index/current      the segments that are in force, and the merges that have begun
//! <root>/index/<id>.index   a segment: a sorted file with the positions of blobs
//! <root>/index/<id>.part    what a merge has written
//! ```
//!
//! The index repeats what the packs say, so it can be built again. `current` is replaced as a
//! whole, and segments never change. Writers hold `index.lock`; readers hold nothing, and read
//! `current` again if a segment is gone. [`merge`] keeps the number of segments small.

mod merge;
mod rebuild;
mod segment;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trials;
mod write;

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    mem,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub(super) use self::segment::Record;
use self::{
    segment::{Segment, damaged, key_of},
    write::Writer,
};
use super::{disk::Disk, packs::PackFolder};
use crate::{
    Digest256, Result, Until,
    file_lock::FileLock,
    lock::{Mutex, RwLock},
    store::{
        name::Name,
        pack::{Found, PackId, scan},
    },
};

/// The index of a store.
#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
    tmp: PathBuf,
    lock: PathBuf,
    /// The folder for a damaged index.
    aside: PathBuf,
    packs: PackFolder,
    disk: Disk,
    state: RwLock<Arc<State>>,
    /// The thread that holds the lock for more than one operation.
    holder: Mutex<Option<ThreadId>>,
    /// The number of records below which all segments count as one size.
    pub(super) least: u64,
}

/// The segments of one version of `current`.
#[derive(Debug, Default)]
struct State {
    /// The bytes of the file.
    text: Vec<u8>,
    current: Current,
    segments: Vec<Arc<Segment>>,
}

/// The contents of the file `current`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Current {
    /// The number of packs that were added, those included that were removed since.
    packs: usize,
    segments: Vec<Id>,
    merges: Vec<Merge>,
}

/// A merge that has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Merge {
    into: Id,
    from: Vec<Id>,
    /// Identifies the run of the system: what another run has written may be lost.
    boot: Option<String>,
}

/// The id of a segment, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Id(PackId);

impl Index {
    pub(super) fn new(root: &Path, tmp: &Path, packs: PackFolder, disk: Disk) -> Index {
        Index {
            folder: root.join("index"),
            tmp: tmp.to_owned(),
            lock: root.join("index.lock"),
            aside: root.join("damaged").join("index"),
            packs,
            disk,
            state: RwLock::default(),
            holder: Mutex::default(),
            least: LEAST,
        }
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.lock.clone()
    }

    /// Locks the index: no other process changes it until the guard is dropped.
    pub(super) fn lock(&self, until: &Until, doing: impl Fn() -> String) -> Result<Held<'_>> {
        let lock = FileLock::exclusive(&self.lock, until, doing)?;
        Ok(self.held(lock))
    }

    /// Locks the index; `None` if another process holds the lock.
    pub(super) fn try_lock(&self) -> Result<Option<Held<'_>>> {
        let doing = || format!("tend the index in {}", self.folder.display());
        let lock = FileLock::exclusive_within(&self.lock, Duration::ZERO, &Until::forever(), doing)?;
        Ok(lock.map(|lock| self.held(lock)))
    }

    fn held(&self, lock: FileLock) -> Held<'_> {
        *self.holder.lock() = Some(thread::current().id());
        Held { index: self, _lock: lock }
    }

    /// Reads `current` if it has changed; returns true if it has. `expected` is true if there must
    /// be an index, because some packs are only in it. Builds a damaged or missing index again.
    pub(super) fn refresh(&self, expected: bool) -> io::Result<bool> {
        let mut changed = false;
        for _ in 0..TRIES {
            let text = self.read()?;
            let state = self.state();
            if text.as_deref().unwrap_or_default() == state.text && (text.is_some() || !expected) {
                return Ok(changed);
            }
            match self.load(text.clone(), &state) {
                Ok(new) if text.is_some() || !expected => {
                    *self.state.write() = Arc::new(new);
                    return Ok(true);
                }
                // A merge may have removed a segment since the text was read.
                Err(error) if is_damage(&error) && self.read()? != text => continue,
                Err(error) if !is_damage(&error) => return Err(error),
                _ => self.repair(text.as_deref())?,
            }
            changed = true;
        }
        Err(damaged("the index of the packs was damaged again and again"))
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    fn current(&self) -> PathBuf {
        self.folder.join("current")
    }

    fn segment(&self, id: Id) -> PathBuf {
        self.folder.join(format!("{}.index", id.0.hex()))
    }

    /// Reads the file `current`; `None` if it is missing.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match crate::private_files::patiently(|| fs::read(self.current())) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the segments that this text lists, unless `known` has them.
    fn load(&self, text: Option<Vec<u8>>, known: &State) -> io::Result<State> {
        let Some(text) = text else { return Ok(State::default()) };
        let current = Current::parse(&text)?;
        let mut segments = Vec::new();
        for id in &current.segments {
            let known = known.segments.iter().find(|segment| segment.id == id.0);
            segments.push(match known {
                Some(segment) => Arc::clone(segment),
                None => Arc::new(Segment::open(id.0, self.segment(*id))?),
            });
        }
        Ok(State { text, current, segments })
    }

    /// Makes this list of segments the one in force. Needs the lock.
    fn replace(&self, current: Current) -> io::Result<()> {
        let text = current.encode();
        let (temporary, file) = self.disk.temporary(&self.tmp)?;
        file.write_at(&text, 0)?;
        file.sync()?;
        temporary.rename(file, &self.current())?;
        self.disk.sync_folder(&self.folder)?;
        let state = self.load(Some(text), &self.state())?;
        *self.state.write() = Arc::new(state);
        Ok(())
    }

    /// Returns up to `most` records of frames that may have the blob.
    pub(super) fn find(&self, name: &Name, most: usize) -> io::Result<Vec<Record>> {
        let key = key_of(name);
        for _ in 0..TRIES {
            let state = self.state();
            let mut found = Vec::new();
            let mut segments = state.segments.iter();
            let searched = segments.try_for_each(|segment| match segment.find(key, most, &mut found) {
                Ok(()) if found.len() >= most => ControlFlow::Break(Ok(())),
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(Err(error)),
            });
            match searched {
                ControlFlow::Continue(()) | ControlFlow::Break(Ok(())) => return Ok(found),
                // A merge has removed a segment, or the index is damaged.
                ControlFlow::Break(Err(error)) if is_damage(&error) => {
                    if !self.refresh(false)? && self.state().text == state.text {
                        self.repair(Some(&state.text))?;
                    }
                }
                ControlFlow::Break(Err(error)) => return Err(error),
            }
        }
        Err(damaged("the index of the packs was damaged again and again"))
    }

    /// Opens all segments, and keeps them open as long as the result exists.
    pub(super) fn hold(&self) -> Vec<Arc<File>> {
        self.state().segments.iter().filter_map(|segment| segment.file().ok()).collect()
    }

    /// Returns the number of records in the index.
    #[cfg(test)]
    pub(super) fn records(&self) -> u64 {
        self.state().segments.iter().map(|segment| segment.records).sum()
    }

    /// Returns the number of segments.
    #[cfg(test)]
    pub(super) fn segments(&self) -> usize {
        self.state().segments.len()
    }

    /// Adds the contents of packs as a segment. Needs the lock.
    pub(super) fn add(&self, packs: &[PackId]) -> io::Result<()> {
        self.disk.make_folder(&self.folder)?;
        let mut current = self.state().current.clone();
        current.packs += packs.len();
        let mut records = Vec::new();
        for id in packs {
            self.read_pack(id, &mut records, &mut current.segments)?;
        }
        current.segments.extend(self.write_sorted(records)?);
        self.replace(current)
    }

    /// Builds the index again if most of it is of packs that were removed. Needs the lock.
    pub(super) fn renew(&self) -> io::Result<()> {
        let current = self.state().current.packs;
        if current / 2 > self.packs.list_settled()?.len() {
            self.rebuild()?;
        }
        Ok(())
    }

    /// Appends the records of a pack; writes a segment whenever there are many.
    fn read_pack(&self, id: &PackId, records: &mut Vec<Record>, segments: &mut Vec<Id>) -> io::Result<()> {
        let mut written = Ok(());
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        scan(&self.packs.open(id)?, |found| {
            if let Found::Frame(frame) = found {
                records.extend(frame.entries.iter().enumerate().map(|(index, entry)| Record {
                    key: key_of(&entry.name),
                    pack: *id,
                    at: frame.at,
                    head: short(frame.head),
                    name: short(frame.place_of_name(index)),
                    stored: u32::try_from(frame.stored).unwrap_or(u32::MAX),
                }));
                if records.len() >= AT_ONCE && written.is_ok() {
                    written = self.write_sorted(mem::take(records)).map(|id| segments.extend(id));
                }
            }
        })?;
        written
    }

    /// Writes a segment; `None` if there are no records. The caller syncs the folder when it adds
    /// the segment to the list.
    fn write_sorted(&self, mut records: Vec<Record>) -> io::Result<Option<Id>> {
        if records.is_empty() {
            return Ok(None);
        }
        records.sort_unstable();
        records.dedup();
        let id = Id(PackId::new());
        let part = self.part(id);
        let mut writer = Writer::new(&self.disk, id.0, &part)?;
        let mut write = || {
            for record in &records {
                writer.push(*record)?;
            }
            Ok(())
        };
        if let Err(error) = write() {
            drop(writer);
            let _ = self.disk.remove(&part);
            return Err(error);
        }
        writer.finish(&self.disk, &self.segment(id))?;
        Ok(Some(id))
    }
}

/// The lock of an index.
pub(super) struct Held<'a> {
    index: &'a Index,
    _lock: FileLock,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.index.holder.lock() = None;
    }
}

impl Current {
    /// Parses the file: a line with the digest of the rest, and the rest.
    fn parse(text: &[u8]) -> io::Result<Current> {
        let wrong = || damaged("the list of the index's segments is damaged");
        let (digest, rest) = text.split_at_checked(65).ok_or_else(wrong)?;
        if digest != line(rest).as_bytes() {
            return Err(wrong());
        }
        serde_json::from_slice(rest).map_err(|_| wrong())
    }

    fn encode(&self) -> Vec<u8> {
        let rest = serde_json::to_string(self).expect("because all keys are strings") + "\n";
        (line(rest.as_bytes()) + &rest).into_bytes()
    }
}

fn line(rest: &[u8]) -> String {
    Digest256::of(rest).hex() + "\n"
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(hex: String) -> std::result::Result<Id, String> {
        PackId::parse(&hex).map(Id).ok_or_else(|| format!("{hex:?} is not the id of a segment"))
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0.hex()
    }
}

/// Returns true if the index must be read again, or built again.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound)
}

/// The number of attempts at a search. Between them, another process may merge.
const TRIES: usize = 8;

/// The number of records that are sorted in memory: 5 MiB.
const AT_ONCE: usize = 128 * 1024;

/// The number of records below which all segments count as one size.
const LEAST: u64 = 4096;
