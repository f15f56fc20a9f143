//! Condemned and damaged blobs: files in folders of their own, and lists of pack entries.
//!
//! A list has a magic, the SHA-256 of the rest, and for each entry the position of its frame in the
//! pack and its index in the frame. A damaged list counts as empty. A pack that is condemned as a
//! whole on a full disk has an empty file called `<id>.all`, which takes no space.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    FsBlobStore,
    loose::{self, entries},
    marks::{Entries, Marks},
    packs::TICK,
};
use crate::{
    Digest256, Error, Result, private_files,
    store::{name::Name, pack::PackId},
};

/// The lists that were read last.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Their files with times and lengths.
    lists: Vec<(PathBuf, Option<SystemTime>, u64)>,
    /// If there were no lists, the times of the folders in which lists would appear.
    none: Option<[Option<SystemTime>; 2]>,
}

impl FsBlobStore {
    /// Returns the folder of condemned blobs, which has a folder for each round.
    pub(super) fn condemned(&self) -> PathBuf {
        self.root.join("condemned")
    }

    /// Returns the folder of damaged data.
    pub(super) fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Reads the marks of condemned and damaged entries; returns whether they have changed.
    pub(super) fn load_marks(&self) -> Result<bool> {
        let listing = || Error::io(format!("read the lists of condemned blobs in {}", self.root.display()));
        let mut loaded = self.loaded.lock();
        let folders = [self.condemned(), self.damaged().join("packs")];
        let times = folders.each_ref().map(|folder| fs::metadata(folder).and_then(|it| it.modified()).ok());
        if loaded.none == Some(times) {
            return Ok(false);
        }
        let mut lists = Vec::new();
        for folder in entries(&self.condemned()).map_err(listing())?.iter().chain([&self.damaged()]) {
            for path in entries(&folder.join("packs")).map_err(listing())? {
                let metadata = fs::metadata(&path);
                let written = metadata.as_ref().ok().and_then(|metadata| metadata.modified().ok());
                lists.push((path, written, metadata.map_or(0, |metadata| metadata.len())));
            }
        }
        // A change within the resolution of the times would not show.
        let settled = |time: &SystemTime| time.elapsed().is_ok_and(|age| age > TICK);
        let none = lists.is_empty() && entries(&folders[0]).map_err(listing())?.is_empty();
        loaded.none = (none && times.iter().flatten().all(settled)).then_some(times);
        if loaded.lists == lists {
            return Ok(false);
        }
        let mut marks: HashMap<PackId, Marks> = HashMap::new();
        for (path, ..) in &lists {
            let Some(id) = id_of_list(path) else { continue };
            let found = marks.entry(id).or_default();
            let damaged = path.starts_with(self.damaged());
            let into = if damaged { &mut found.damaged } else { &mut found.condemned };
            read_list(path, into).map_err(listing())?;
        }
        self.catalog.mark(marks);
        loaded.lists = lists;
        Ok(true)
    }

    /// Opens a condemned file.
    pub(super) fn open_condemned(&self, name: &Name) -> Result<Option<(PathBuf, File)>> {
        let listing = Error::io(format!("read the lists of condemned blobs in {}", self.root.display()));
        for round in entries(&self.condemned()).map_err(listing)? {
            let path = round.join("blobs").join(name.hex());
            if let Some(file) = loose::open(&path)? {
                return Ok(Some((path, file)));
            }
        }
        Ok(None)
    }
}

/// Parses the id of the pack from the name of its list.
pub(super) fn id_of_list(path: &Path) -> Option<PackId> {
    let name = path.file_name()?.to_str()?;
    PackId::parse(name.strip_suffix(ALL).unwrap_or(name))
}

/// Returns the path of the file that condemns a whole pack in a round.
pub(super) fn all_of(round: &Path, id: &PackId) -> PathBuf {
    round.join("packs").join(format!("{}{ALL}", id.hex()))
}

/// Reads the entries of a pack that a round condemns.
pub(super) fn entries_of(round: &Path, id: &PackId) -> io::Result<Entries> {
    let mut entries = Entries::default();
    read_list(&all_of(round, id), &mut entries)?;
    read_list(&round.join("packs").join(id.hex()), &mut entries)?;
    Ok(entries)
}

/// Condemns a whole pack.
pub(super) fn write_all(store: &FsBlobStore, round: &Path, id: &PackId) -> io::Result<()> {
    let path = all_of(round, id);
    let folder = path.parent().expect("because it is in a folder of the round");
    store.disk.make_folder(folder)?;
    let (temporary, file) = store.disk.temporary(&store.tmp)?;
    file.sync()?;
    temporary.rename(file, &path)?;
    store.disk.sync_folder(folder)
}

/// Removes the lists of a pack from a round.
pub(super) fn remove_lists(store: &FsBlobStore, round: &Path, id: &PackId) -> io::Result<()> {
    for path in [all_of(round, id), round.join("packs").join(id.hex())] {
        write_list(store, &path, &Entries::default())?;
    }
    Ok(())
}

/// Replaces a list; removes it if it is empty.
pub(super) fn write_list(store: &FsBlobStore, path: &Path, list: &Entries) -> io::Result<()> {
    let folder = path.parent().expect("because lists are in folders");
    if list.is_empty() {
        return match store.disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
    }
    let mut records = Vec::new();
    for (at, index) in list.iter() {
        records.extend_from_slice(&at.to_le_bytes());
        records.extend_from_slice(&u32::try_from(index).unwrap_or(u32::MAX).to_le_bytes());
    }
    let bytes = [MAGIC.as_slice(), Digest256::of(&records).as_bytes(), &records].concat();
    store.disk.make_folder(folder)?;
    let (temporary, file) = store.disk.temporary(&store.tmp)?;
    file.write_at(&bytes, 0)?;
    file.sync()?;
    temporary.rename(file, path)?;
    store.disk.sync_folder(folder)
}

/// Reads a list and adds its entries.
pub(super) fn read_list(path: &Path, into: &mut Entries) -> io::Result<()> {
    if path.extension().is_some() {
        if path.exists() {
            into.add_all();
        }
        return Ok(());
    }
    let list = match private_files::patiently(|| fs::read(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list?,
    };
    let Some((head, rest)) = list.split_at_checked(HEAD) else { return Ok(()) };
    if head[..8] != MAGIC || head[8..] != *Digest256::of(rest).as_bytes() {
        return Ok(());
    }
    for record in rest.chunks_exact(RECORD) {
        let (at, index) = record.split_at(8);
        let at = u64::from_le_bytes(at.try_into().unwrap_or_default());
        let index = u32::from_le_bytes(index.try_into().unwrap_or_default());
        into.add(at, index as usize);
    }
    Ok(())
}

/// The size of the magic and the digest of the records.
const HEAD: usize = 40;
const MAGIC: [u8; 8] = *b"\x89CRL\r\n\x1a\n";

/// The extension of a file that stands for a whole pack.
const ALL: &str = ".all";

/// The size of a position and an index.
const RECORD: usize = 12;
