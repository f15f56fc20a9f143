//! Reading from packs: one blob, and thousands in the order that they were put.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    sync::PoisonError,
};

use super::{
    FsBlobStore,
    catalog::{Hit, Place, State},
};
use crate::{
    Digest256, Error, Result, private,
    store::pack::{self, Frame, ReadAt as _, Scratch},
    wiped::Wiped,
};

impl FsBlobStore {
    /// The first of these copies that is whole; why not, if none is.
    pub(super) fn first_good<'a>(&self, hits: impl Iterator<Item = &'a Hit>) -> Result<Option<Vec<u8>>> {
        let mut damage = None;
        for hit in hits {
            match self.read_hit(hit) {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => damage = Some(error),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The verified bytes of a copy; nothing if the pack has gone.
    fn read_hit(&self, hit: &Hit) -> Result<Option<Vec<u8>>> {
        let reading = || format!("read the pack {}", hit.path.display());
        let file = match private::open_file(&hit.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(reading())(error)),
        };
        let entry = &hit.frame.entries[hit.index];
        let Some(place) = hit.frame.place(entry) else {
            let raw = self.open_frame(&file, &hit.frame).map_err(Error::io(reading()))??;
            return Ok(Some(hit.frame.verified(entry, &raw)?.to_vec()));
        };
        let mut bytes = Wiped::zeroed(entry.length);
        let read = file.read_full(&mut bytes, place).map_err(Error::io(reading()))?;
        let what = || format!("{} in the pack {}", entry.digest, hit.path.display());
        if read < bytes.len() {
            return Err(Error::corrupt(what(), format!("the pack ends within its {} bytes", entry.length)));
        }
        crate::store::verify(entry.content(), &bytes, what)?;
        Ok(Some(std::mem::take(bytes.vec())))
    }

    /// All raw bytes of a frame, unverified.
    pub(super) fn open_frame(&self, file: &File, frame: &Frame) -> io::Result<Result<Wiped>> {
        let mut stored = Wiped::zeroed(frame.stored);
        let read = file.read_full(&mut stored, frame.at + frame.head as u64)?;
        stored.truncate(read);
        let mut scratch = Scratch::default();
        Ok(frame.open(&stored, &mut scratch).map(|raw| raw.to_vec().into()))
    }

    /// A part of a copy, unverified; nothing if the pack has gone, or would have to be decompressed.
    pub(super) fn read_part(&self, hit: &Hit, offset: usize, length: usize) -> io::Result<Option<Vec<u8>>> {
        let entry = &hit.frame.entries[hit.index];
        let Some(place) = hit.frame.place(entry) else { return Ok(None) };
        let file = match private::open_file(&hit.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let offset = offset.min(entry.length);
        let mut part = vec![0; length.min(entry.length - offset)];
        let read = file.read_full(&mut part, place + offset as u64)?;
        part.truncate(read);
        Ok(Some(part))
    }

    /// Reads frame after frame, and each of them once. What is not where it should be is told in the end, for a
    /// closer look.
    pub(super) fn get_from_packs(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let mut rest = Vec::new();
        let mut wanted = Vec::with_capacity(digests.len());
        for (index, digest) in digests.iter().enumerate() {
            match self.likely_place(digest) {
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
                file = Some((pack, private::open_file(&self.catalog.path(pack)).ok()));
            }
            let read = match &file {
                Some((_, Some(file))) => self.read_run(file, run, digests, &mut buffers, &mut rest, each),
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

    /// Where a blob is, if its digest's few bits in the table tell the truth.
    fn likely_place(&self, digest: &Digest256) -> Option<Place> {
        let mut found = None;
        let live = |number: &u32| match self.catalog.frame(*number) {
            Some((place, State::Live)) => {
                found = Some(place);
                true
            }
            _ => false,
        };
        self.catalog.table.first(digest, live);
        found
    }

    fn read_run(
        &self,
        file: &File,
        mut run: &[Wanted],
        digests: &[Digest256],
        buffers: &mut Buffers,
        rest: &mut Vec<usize>,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (start, end) = (run[0].place.at, run[run.len() - 1].place.end());
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        if buffers.read.len() < length {
            buffers.read.resize(length);
        }
        // What cannot be read here is read by itself, and the error told there.
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
                Some((frame, frame.open(stored, &mut buffers.raw).ok()?))
            });
            let Some((frame, raw)) = opened else {
                rest.extend(here.iter().map(|wanted| wanted.index));
                continue;
            };
            let damaged = self.catalog.damaged_in(frame);
            let mut hint = 0;
            for wanted in here {
                let found = frame.find(&digests[wanted.index], false, hint);
                let usable = found.filter(|index| !damaged.has(frame.at, *index));
                match usable.and_then(|index| frame.entries[index].among(raw)) {
                    Some(bytes) => each(wanted.index, bytes)?,
                    _ => rest.push(wanted.index),
                }
                hint = found.map_or(hint, |index| index + 1);
            }
        }
        Ok(())
    }

    /// Memory to read into. Fresh pages cost as much as the reading, so it is kept.
    fn take_buffers(&self) -> Buffers {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_buffers(&self, mut buffers: Buffers) {
        buffers.read.fill(0);
        buffers.raw.wipe();
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && buffers.read.len() <= 2 * RUN {
            kept.push(buffers);
        }
    }
}

/// What is read, and what it is decompressed to.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    read: Wiped,
    raw: Scratch,
}

/// A blob that was asked for.
struct Wanted {
    place: Place,
    /// Its place among what was asked for.
    index: usize,
}

impl Wanted {
    fn place(&self) -> (u32, Range<u64>) {
        (self.place.pack, self.place.at..self.place.end())
    }
}

impl Place {
    /// Where the next frame begins.
    fn end(&self) -> u64 {
        self.at + u64::from(self.head) + u64::from(self.stored)
    }
}

/// How much is read at once: little enough that it is still in the processor's cache when it is verified.
const RUN: usize = 1024 * 1024;

/// How many threads' buffers are kept.
const KEPT: usize = 4;
