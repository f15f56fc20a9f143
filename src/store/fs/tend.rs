//! [`FsBlobStore::tend`]: keeps the cost of the store from growing with its contents.
//!
//! A commit that finds many new packs does one of two steps: it puts little packs together, or it
//! adds larger ones to the [index](super::index), and moves them out of the folder of new packs.
//! Commits without such a step merge segments of the index.

use std::{
    collections::{BTreeSet, HashSet},
    io,
};

use super::{FsBlobStore, catalog::Fresh, rewriter::Rewriter};
use crate::store::{
    name::Name,
    pack::{Copied, Found, PackId, scan},
};

/// The limits at which a commit does a step.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// The number of packs that one step works on.
    pub(super) many: usize,
    /// The length in bytes below which packs are put together.
    pub(super) little: u64,
}

impl Default for Upkeep {
    fn default() -> Upkeep {
        Upkeep { many: MANY, little: LITTLE }
    }
}

/// A step that is due.
enum Step {
    /// Put these packs together.
    Join(Vec<PackId>),
    /// Add these packs to the index.
    Settle(Vec<PackId>),
}

impl FsBlobStore {
    /// Does a part of the upkeep, in proportion to the number of blobs of a commit. Nothing is lost
    /// if it fails or is cut short: a later commit does it.
    pub(super) fn tend(&self, blobs: u64) {
        if self.next_step().is_none() && !self.catalog.index.is_due() {
            return;
        }
        // Another process may be doing it already.
        if let Ok(Some(_lock)) = self.catalog.index.try_lock() {
            let _ = self.tend_alone(blobs);
        }
    }

    fn tend_alone(&self, blobs: u64) -> io::Result<()> {
        self.look_again().map_err(io::Error::other)?;
        match self.next_step() {
            Some(Step::Join(little)) => self.join(&little),
            Some(Step::Settle(packs)) => {
                self.settle(&packs)?;
                // Large commits always settle, and their segments must be merged, too.
                self.catalog.index.merge(blobs * RECORDS_OF_LARGE)
            }
            None => self.catalog.index.merge((blobs * RECORDS).max(LEAST)),
        }
    }

    fn next_step(&self) -> Option<Step> {
        let is_little = |(pack, marked): &(Fresh, bool)| pack.length < self.upkeep.little && !marked;
        let (mut little, mut ready): (Vec<_>, Vec<_>) =
            self.catalog.fresh_sizes().into_iter().partition(is_little);
        let heads: u64 = ready.iter().map(|(pack, _)| pack.heads).sum();
        if ready.len() >= self.upkeep.many || heads >= HEADS {
            // The oldest first, by their ids.
            ready.sort_unstable();
            let mut heads = 0;
            ready.truncate(self.upkeep.many);
            let some = ready.iter().take_while(|(pack, _)| {
                heads < HEADS && {
                    heads += pack.heads;
                    true
                }
            });
            return Some(Step::Settle(some.map(|(pack, _)| pack.id).collect()));
        }
        little.sort_unstable();
        little.truncate(self.upkeep.many);
        (little.len() >= self.upkeep.many)
            .then(|| Step::Join(little.iter().map(|(pack, _)| pack.id).collect()))
    }

    /// Rewrites little packs into one. Damaged ones stay; they are added to the index.
    fn join(&self, little: &[PackId]) -> io::Result<()> {
        let mut writer = Rewriter::new(self)?;
        let mut copied = HashSet::new();
        let (mut joined, mut damaged) = (Vec::new(), Vec::new());
        for id in little {
            match self.copy_pack(id, &mut writer, &mut copied)? {
                true => joined.push(*id),
                false => damaged.push(*id),
            }
        }
        writer.finish()?;
        // Packs that come back after a power cut only repeat blobs of the new one.
        joined.iter().try_for_each(|id| self.disk.remove(&self.catalog.files.fresh(id)))?;
        self.catalog.delete(&joined);
        if damaged.is_empty() { Ok(()) } else { self.settle(&damaged) }
    }

    /// Copies the blobs of a pack that were not copied yet; returns false if any is damaged.
    fn copy_pack(
        &self,
        id: &PackId,
        writer: &mut Rewriter<'_>,
        copied: &mut HashSet<Name>,
    ) -> io::Result<bool> {
        let file = self.catalog.open(id)?;
        let (mut frames, mut good) = (Vec::new(), true);
        scan(&file, |found| match found {
            Found::Frame(frame) if frame.pack == *id => frames.push(frame),
            _ => good = false,
        })?;
        for frame in &frames {
            let opened = self.open_frame(&file, frame)?.ok();
            let opened = opened.as_ref().map(Copied::opened);
            for (index, entry) in frame.entries.iter().enumerate() {
                match opened.as_ref().and_then(|opened| frame.verified(&self.codec, index, opened).ok()) {
                    Some(bytes) if copied.insert(entry.name) => {
                        writer.push(&entry.name, bytes, Vec::new())?
                    }
                    Some(_) => {}
                    None => good = false,
                }
            }
        }
        Ok(good)
    }

    /// Adds new packs to the index, and moves them to their folders.
    fn settle(&self, packs: &[PackId]) -> io::Result<()> {
        let catalog = &self.catalog;
        catalog.index.add(packs)?;
        let mut folders = BTreeSet::new();
        for id in packs {
            let to = catalog.files.settled(id);
            if let Some(folder) = to.parent() {
                self.disk.make_folder(folder)?;
                folders.insert(folder.to_owned());
            }
            self.disk.rename(&catalog.files.fresh(id), &to)?;
        }
        // The next commit syncs the folder that they have left.
        folders.iter().try_for_each(|folder| self.disk.sync_folder(folder))?;
        catalog.forget(packs);
        Ok(())
    }
}

/// The number of packs that one step works on.
const MANY: usize = 16;

/// The length in bytes below which packs are put together.
const LITTLE: u64 = 64 * 1024;

/// The length of the headers in the packs that one step adds to the index: some 16,000 blobs.
const HEADS: u64 = 576 * 1024;

/// The number of records that a commit merges for each of its blobs, and the least that it merges.
/// In a store of 10⁹ blobs, a record is merged eight times.
const RECORDS: u64 = 10;
const LEAST: u64 = 4096;

/// The same for a commit that settles packs, which may be large: ten would take a second for each
/// gigabyte of new chunks.
const RECORDS_OF_LARGE: u64 = 2;
