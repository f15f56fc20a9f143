//! Merges segments in small steps.
//!
//! When there are [`RATIO`] segments of about one size, they become one. A merge may be long, so
//! each commit does a part of it, in proportion to the number of its own blobs. The written part
//! stays in a file, and any process can go on with it.

use std::{fs, io, path::PathBuf};

use super::{
    Current, Id, Index, Merge,
    write::{Merged, Writer},
};
use crate::store::{fs::loose::entries, pack::PackId};

impl Index {
    /// Returns true if there is something to merge.
    pub(in crate::store::fs) fn is_due(&self) -> bool {
        let state = self.state();
        !state.current.merges.is_empty() || self.next(&state.current).is_some()
    }

    /// Merges about this many records; stops at the end of a segment. Needs the lock.
    pub(in crate::store::fs) fn merge(&self, mut records: u64) -> io::Result<()> {
        while records > 0 {
            let mut current = self.state().current.clone();
            if let Some(merge) = self.next(&current) {
                current.merges.push(merge);
                self.replace(current.clone())?;
            }
            // The shortest first: otherwise small segments would pile up during a long merge.
            let Some(merge) = current.merges.iter().min_by_key(|merge| self.length(merge)).cloned() else {
                return Ok(());
            };
            if merge.boot != boot(self) {
                current.merges.retain(|other| other.into != merge.into);
                current.merges.push(Merge { into: Id(PackId::new()), boot: boot(self), ..merge });
                self.replace(current)?;
                self.tidy()?;
            } else if self.advance(&merge, &mut records)? {
                current.segments.retain(|id| !merge.from.contains(id));
                current.segments.push(merge.into);
                current.merges.retain(|other| other.into != merge.into);
                self.replace(current)?;
                return self.tidy();
            }
        }
        Ok(())
    }

    /// Returns a merge that should begin.
    fn next(&self, current: &Current) -> Option<Merge> {
        let state = self.state();
        let busy = |id: &Id| current.merges.iter().any(|merge| merge.from.contains(id));
        let mut sizes: Vec<Vec<Id>> = Vec::new();
        for segment in state.segments.iter().filter(|segment| !busy(&Id(segment.id))) {
            let size = size(segment.records, self.least);
            sizes.resize(sizes.len().max(size + 1), Vec::new());
            sizes[size].push(Id(segment.id));
        }
        let mut from = sizes.into_iter().find(|alike| alike.len() >= RATIO)?;
        from.truncate(MOST);
        Some(Merge { into: Id(PackId::new()), from, boot: boot(self) })
    }

    fn length(&self, merge: &Merge) -> u64 {
        let state = self.state();
        let those = state.segments.iter().filter(|segment| merge.from.contains(&Id(segment.id)));
        those.map(|segment| segment.records).sum()
    }

    /// Goes on with a merge; returns true if it is complete.
    fn advance(&self, merge: &Merge, records: &mut u64) -> io::Result<bool> {
        let state = self.state();
        let those = state.segments.iter().filter(|segment| merge.from.contains(&Id(segment.id)));
        let sources: Vec<_> = those.cloned().collect();
        let mut writer = Writer::new(&self.disk, merge.into.0, &self.part(merge.into))?;
        let mut merged = Merged::after(&sources, &writer)?;
        while *records > 0 || !writer.is_flushed() {
            let Some(record) = merged.next()? else {
                writer.finish(&self.disk, &self.segment(merge.into))?;
                return Ok(true);
            };
            writer.push(record)?;
            *records = records.saturating_sub(1);
        }
        if merge.boot.is_none() {
            writer.sync()?;
            self.disk.sync_folder(&self.folder)?;
        }
        Ok(false)
    }

    /// Removes files that are not in use. Needs the lock.
    pub(super) fn tidy(&self) -> io::Result<()> {
        let state = self.state();
        let mut used = vec![self.current()];
        used.extend(state.current.segments.iter().map(|id| self.segment(*id)));
        used.extend(state.current.merges.iter().map(|merge| self.part(merge.into)));
        for path in entries(&self.folder)? {
            if !used.contains(&path) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn part(&self, id: Id) -> PathBuf {
        self.folder.join(format!("{}.part", id.0.hex()))
    }
}

/// Returns the class of a size.
fn size(records: u64, least: u64) -> usize {
    let mut times = records / least.max(1);
    let mut size = 0;
    while times >= RATIO as u64 {
        times /= RATIO as u64;
        size += 1;
    }
    size
}

/// Returns the boot id of the system, if it has one. Data that was written without a sync is there
/// for all processes until the next boot.
fn boot(index: &Index) -> Option<String> {
    if index.disk.is_watched() {
        return None;
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned())
}

/// The number of segments of a size that become one.
const RATIO: usize = 4;

/// The most segments that one merge reads: each is an open file.
const MOST: usize = 64;
