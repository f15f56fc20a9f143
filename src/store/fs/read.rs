//! Reads from packs: single blobs, and thousands in the order that they were put.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    sync::Arc,
};

use super::{
    FsBlobStore,
    catalog::{Hit, State},
    near::Near,
    place::Place,
};
use crate::{
    Error, Result,
    recent::Recent,
    store::{
        name::Name,
        pack::{self, Copied, Frame, PackId, Scratch},
        read_at::ReadAt as _,
    },
    wiped::Wiped,
};

impl FsBlobStore {
    /// Returns the first intact copy. Without an intact copy, returns the error of a damaged one.
    pub(super) fn first_good<'a>(
        &self,
        hits: impl Iterator<Item = &'a Hit>,
        source: Source,
    ) -> Result<Option<Vec<u8>>> {
        let mut damage = None;
        for hit in hits {
            match self.read_hit(hit, source) {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => damage = Some(error),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Reads and verifies a copy; `None` if the pack is gone.
    fn read_hit(&self, hit: &Hit, source: Source) -> Result<Option<Vec<u8>>> {
        let reading = || format!("read the pack {}", self.catalog.shown(&hit.pack));
        let file = match self.catalog.open(&hit.pack) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(reading())(error)),
        };
        let entry = &hit.frame.entries[hit.index];
        let Some(place) = self.place(hit) else {
            let opened = match source {
                Source::Disk => self.open_frame(&file, &hit.frame).map(|opened| opened.map(Arc::new)),
                Source::CacheOrDisk => self.open_frame_again(&file, hit),
            };
            let opened = opened.map_err(|error| Error::io(reading())(error))??;
            return Ok(Some(hit.frame.verified(&self.codec, hit.index, &opened.opened())?.to_vec()));
        };
        let mut bytes = Wiped::zeroed(entry.length);
        let read = file.read_full(&mut bytes, place).map_err(|error| Error::io(reading())(error))?;
        let what = || format!("{} in the pack {}", entry.name, self.catalog.shown(&hit.pack));
        if read < bytes.len() {
            return Err(Error::corrupt(what(), format!("the pack ends within its {} bytes", entry.length)));
        }
        self.codec.verify(&entry.name, &bytes, what)?;
        Ok(Some(std::mem::take(bytes.vec())))
    }

    /// Returns the position of a blob that can be read by itself.
    fn place(&self, hit: &Hit) -> Option<u64> {
        hit.frame.place(&hit.frame.entries[hit.index]).filter(|_| self.codec.is_plain())
    }

    /// Reads all raw bytes of a frame, unverified.
    pub(super) fn open_frame(&self, file: &File, frame: &Frame) -> io::Result<Result<Copied>> {
        Ok(frame.open_owned(&self.codec, read_stored(file, frame)?))
    }

    /// Reads a frame as [`open_frame`](FsBlobStore::open_frame) does, or takes it from the cache.
    fn open_frame_again(&self, file: &File, hit: &Hit) -> io::Result<Result<Arc<Copied>>> {
        let key = (hit.pack, hit.frame.at);
        if let Some(opened) = self.recent.get(&key) {
            return Ok(Ok(opened));
        }
        let opened = self.open_frame(file, &hit.frame)?.map(Arc::new);
        if let Ok(opened) = &opened
            && opened.length() <= RECENT_LENGTH
        {
            self.recent.keep(key, Arc::clone(opened));
        }
        Ok(opened)
    }

    /// Reads a part of a copy, unverified; `None` if the pack is gone, or the frame is compressed
    /// or encrypted.
    pub(super) fn read_part(&self, hit: &Hit, offset: usize, length: usize) -> io::Result<Option<Vec<u8>>> {
        let entry = &hit.frame.entries[hit.index];
        let Some(place) = self.place(hit) else { return Ok(None) };
        let file = match self.catalog.open(&hit.pack) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let offset = offset.min(entry.length);
        let mut part = vec![0; length.min(entry.length - offset)];
        let read = file.read_full(&mut part, place + offset as u64)?;
        part.truncate(read);
        Ok(Some(part))
    }

    /// Reads frame after frame, each of them once. Returns the blobs that were not found in place,
    /// for a closer look.
    pub(super) fn get_from_packs(
        &self,
        names: &[Name],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let mut rest = Vec::new();
        let mut wanted = Vec::with_capacity(names.len());
        let mut near = Near::default();
        for (index, name) in names.iter().enumerate() {
            match near.place(name).or_else(|| self.likely_place(name, &mut near)) {
                Some(place) => wanted.push(Wanted { place, index }),
                None => rest.push(index),
            }
        }
        wanted.sort_unstable_by_key(|wanted| (wanted.place.pack, wanted.place.at, wanted.index));
        let mut buffers = self.take_buffers();
        let mut all = wanted.as_slice();
        let mut file = None;
        while let Some(first) = all.first() {
            let (run, later) = all.split_at(pack::run_of(all, Wanted::place, 0, RUN as u64));
            all = later;
            let pack = first.place.pack;
            if file.as_ref().is_none_or(|(open, _)| *open != pack) {
                file = Some((pack, self.catalog.open(&pack).ok()));
            }
            let read = match &file {
                Some((_, Some(file))) => self.read_run(file, run, names, &mut buffers, &mut rest, each),
                _ => {
                    rest.extend(run.iter().map(|wanted| wanted.index));
                    Ok(())
                }
            };
            if let Err(error) = read {
                self.give_buffers(buffers);
                return Err(error);
            }
        }
        self.give_buffers(buffers);
        Ok(rest)
    }

    /// Returns the probable place of a blob: the table and the index have only a few bits of each
    /// name.
    fn likely_place(&self, name: &Name, near: &mut Near) -> Option<Place> {
        let mut found = None;
        let live = |number: &u32| match self.catalog.frame(*number) {
            Some((place, State::Live)) => {
                found = Some(place);
                true
            }
            _ => false,
        };
        self.catalog.table.first(name, live);
        // Blobs move to newer packs.
        found.or_else(|| {
            let records = self.catalog.indexed(name, SOME).ok()?.into_iter();
            let place = Place::from(records.max_by_key(|record| record.pack)?);
            near.note(place, || self.catalog.header_at(&place, None).ok()?);
            Some(place)
        })
    }

    fn read_run(
        &self,
        file: &File,
        mut run: &[Wanted],
        names: &[Name],
        buffers: &mut Buffers,
        rest: &mut Vec<usize>,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (start, end) = (run[0].place.at, run[run.len() - 1].place.end());
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        if buffers.read.len() < length {
            buffers.read.resize(length);
        }
        // A failed read is repeated for the single blob, which reports the error.
        let read = file.read_full(&mut buffers.read[..length], start).unwrap_or(0);
        while let Some(first) = run.first() {
            let place = first.place;
            let (here, later) = run.split_at(run.partition_point(|wanted| wanted.place.at == place.at));
            run = later;
            let from = usize::try_from(place.at - start).unwrap_or(usize::MAX);
            let bytes = buffers.read.get(from..read).unwrap_or_default();
            let frame = Frame::parse(bytes).filter(|frame| frame.at == place.at);
            let opened = frame.as_ref().and_then(|frame| {
                let stored = bytes.get(frame.head..(frame.head + frame.stored).min(bytes.len()))?;
                Some((frame, frame.open(&self.codec, stored, &mut buffers.raw).ok()?))
            });
            let Some((frame, opened)) = opened else {
                rest.extend(here.iter().map(|wanted| wanted.index));
                continue;
            };
            let damaged = self.catalog.damaged_in(frame);
            let mut hint = 0;
            for wanted in here {
                let found = frame.find(&names[wanted.index], hint);
                let usable = found.filter(|index| !damaged.has(frame.at, *index));
                match usable.and_then(|index| opened.entry(index)) {
                    Some(bytes) => each(wanted.index, bytes)?,
                    _ => rest.push(wanted.index),
                }
                hint = found.map_or(hint, |index| index + 1);
            }
        }
        Ok(())
    }

    /// Returns buffers from earlier reads. Fresh pages cost as much as reading.
    fn take_buffers(&self) -> Buffers {
        self.buffers.lock().pop().unwrap_or_default()
    }

    fn give_buffers(&self, mut buffers: Buffers) {
        buffers.read.fill(0);
        buffers.raw.wipe();
        let mut kept = self.buffers.lock();
        if kept.len() < KEPT && buffers.read.len() <= 2 * RUN {
            kept.push(buffers);
        }
    }
}

/// Reads the bytes after the header of a frame.
pub(super) fn read_stored(file: &File, frame: &Frame) -> io::Result<Wiped> {
    let mut stored = Wiped::zeroed(frame.stored);
    let read = file.read_full(&mut stored, frame.at + frame.head as u64)?;
    stored.truncate(read);
    Ok(stored)
}

/// Buffers for the stored bytes and for their decompressed form.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    read: Wiped,
    raw: Scratch,
}

/// Frames that were opened for single blobs, by their pack and position. Callers often read blobs
/// one after the other that were put together: a manifest and its lists, or chunks of memory.
pub(super) type Opened = Recent<(PackId, u64), Copied>;

/// The place from which a copy is read.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// The disk, for a caller that relies on what is stored there.
    Disk,
    /// The cache of frames, if it has the frame.
    CacheOrDisk,
}

/// A blob that was asked for.
struct Wanted {
    place: Place,
    /// Its index among the requested names.
    index: usize,
}

impl Wanted {
    fn place(&self) -> (PackId, Range<u64>) {
        (self.place.pack, self.place.at..self.place.end())
    }
}

/// The number of bytes read at once, small enough to be verified while in the processor's cache.
const RUN: usize = 1024 * 1024;

/// The number of frames in the cache for single reads, and their maximum length: 4 MiB at most, and
/// 2 MiB unless a blob has a frame of its own.
pub(super) const RECENT: usize = 8;
const RECENT_LENGTH: usize = 512 * 1024;

/// The number of copies among which the newest is read first.
const SOME: usize = 8;

/// The number of threads whose buffers are kept.
const KEPT: usize = 4;
