//! [`Writer`]: writes a segment, group by group. A merge goes on where an earlier one stopped.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::segment::{
    RECORDS, Record, Records, Segment, encode_group, encode_header, is_whole, last_key_of, place_of,
    whole_groups,
};
use crate::store::{
    fs::disk::{Disk, DiskFile},
    pack::PackId,
};

/// A segment that is being written.
pub(super) struct Writer {
    id: PackId,
    file: DiskFile,
    path: PathBuf,
    /// The number of records in whole groups.
    written: u64,
    group: Vec<Record>,
}

impl Writer {
    /// Begins a file, or goes on after its last whole group.
    pub(super) fn new(disk: &Disk, id: PackId, path: &Path) -> io::Result<Writer> {
        let file = disk.append(path)?;
        let length = file.length()?;
        let mut groups = whole_groups(length);
        if let Some(last) = groups.checked_sub(1)
            && !is_whole(path, &id, last)?
        {
            groups = last;
        }
        if length > place_of(groups) {
            file.cut(place_of(groups))?;
        }
        let written = groups * RECORDS as u64;
        Ok(Writer { id, file, path: path.to_owned(), written, group: Vec::with_capacity(RECORDS) })
    }

    /// Appends a record. Records come in order.
    pub(super) fn push(&mut self, record: Record) -> io::Result<()> {
        self.group.push(record);
        if self.group.len() == RECORDS {
            self.flush()?;
        }
        Ok(())
    }

    /// Returns true if all records are in the file.
    pub(super) fn is_flushed(&self) -> bool {
        self.group.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        let number = self.written / RECORDS as u64;
        self.file.write_at(&encode_group(&self.id, number, &self.group), place_of(number))?;
        self.written += self.group.len() as u64;
        self.group.clear();
        Ok(())
    }

    /// Syncs what was written, so that a merge can go on after a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Completes the file and gives it its name; returns the number of records.
    pub(super) fn finish(mut self, disk: &Disk, to: &Path) -> io::Result<u64> {
        if !self.group.is_empty() {
            self.flush()?;
        }
        self.file.write_at(&encode_header(&self.id, self.written), 0)?;
        self.file.sync()?;
        drop(self.file);
        disk.rename(&self.path, to)?;
        Ok(self.written)
    }
}

/// The records of several segments, in order.
pub(super) struct Merged<'a> {
    sources: Vec<(Option<Record>, Records<'a>)>,
}

impl<'a> Merged<'a> {
    /// Begins after the records that `writer` has.
    pub(super) fn after(segments: &'a [Arc<Segment>], writer: &Writer) -> io::Result<Merged<'a>> {
        let mut starts = vec![0; segments.len()];
        let mut rest = writer.written;
        if let Some(last) = writer.written.checked_sub(1) {
            let key = last_key_of(&writer.path, &writer.id, last / RECORDS as u64)?;
            for (start, segment) in starts.iter_mut().zip(segments) {
                *start = segment.rank(key)?;
                rest = rest.checked_sub(*start).ok_or_else(|| io::Error::other("a merge lost its place"))?;
            }
        }
        let mut sources = Vec::new();
        for (segment, start) in segments.iter().zip(starts) {
            let mut records = segment.iter_from(start);
            sources.push((records.next()?, records));
        }
        let mut merged = Merged { sources };
        // Those of the same key that were written already.
        for _ in 0..rest {
            merged.next()?;
        }
        Ok(merged)
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let least = self.sources.iter_mut().filter(|(next, _)| next.is_some()).min_by_key(|(next, _)| *next);
        match least {
            Some((next, records)) => Ok(std::mem::replace(next, records.next()?)),
            None => Ok(None),
        }
    }
}
