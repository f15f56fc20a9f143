//! [`Table`]: maps digests to the frames that may have the blob, in some twelve bytes a blob.
//!
//! A slot has 32 bits of a hash of the digest and the number of a frame. So it may point to a frame
//! that does not have the blob: callers look into the frame's header. A digest may have several
//! slots.
//!
//! The hash has a random key, because a foreign pack may have chosen digests. Similar digests would
//! otherwise form one long run of slots that slows each lookup. Copies of one digest collide in any
//! case, so many of them are kept in a tree.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::BuildHasher as _,
};

use crate::{
    lock::{Mutex, MutexGuard},
    store::name::Name,
};

/// A map from names to numbers of frames.
#[derive(Debug)]
pub(super) struct Table {
    shards: Vec<Mutex<Shard>>,
    key: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    /// The tag in the upper bits, the frame's number plus one in the lower. Zero is an empty slot.
    slots: Vec<u64>,
    used: usize,
    /// Further slots of tags that have many.
    many: BTreeSet<u64>,
}

impl Table {
    pub(super) fn new() -> Table {
        let mut shards = Vec::new();
        shards.resize_with(256, Mutex::default);
        Table { shards, key: RandomState::new() }
    }

    /// Returns the shard of a name, and its tag: the bits of the hash that do not choose the
    /// shard.
    fn shard(&self, name: &Name) -> (MutexGuard<'_, Shard>, u64) {
        let [shard, _, _, _, tag @ ..] = self.key.hash_one(name).to_le_bytes();
        let shard = self.shards[usize::from(shard)].lock();
        (shard, u64::from(u32::from_le_bytes(tag)))
    }

    /// Returns up to `most` frames that may have the blob.
    pub(super) fn some(&self, name: &Name, most: usize) -> Vec<u32> {
        let (shard, tag) = self.shard(name);
        shard.candidates(tag).take(most).collect()
    }

    /// Returns the first candidate that `is` accepts, without an allocation.
    pub(super) fn first(&self, name: &Name, is: impl FnMut(&u32) -> bool) -> Option<u32> {
        let (shard, tag) = self.shard(name);
        shard.candidates(tag).find(is)
    }

    /// Notes that this frame has the blob.
    pub(super) fn insert(&self, name: &Name, frame: u32) {
        let (mut shard, tag) = self.shard(name);
        shard.insert(tag, frame);
    }

    /// Notes that this frame is to have the blob, unless there are candidates beyond those in
    /// `checked`: then returns them. `claimed` is called before other threads see the note.
    pub(super) fn claim(
        &self,
        name: &Name,
        checked: &BTreeSet<u32>,
        frame: u32,
        claimed: impl FnOnce(),
    ) -> Vec<u32> {
        let (mut shard, tag) = self.shard(name);
        let others: Vec<_> = shard.candidates(tag).filter(|frame| !checked.contains(frame)).collect();
        if others.is_empty() {
            shard.insert(tag, frame);
            claimed();
        }
        others
    }

    /// Removes the frames that `keep` rejects.
    pub(super) fn retain(&self, keep: impl Fn(u32) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let kept = |slot: &&u64| **slot != 0 && keep(frame(**slot));
            shard.many.retain(|slot| keep(frame(*slot)));
            let used = shard.slots.iter().filter(kept).count();
            if used == shard.used {
                continue;
            }
            shard.rebuild(|slot| keep(frame(slot)));
        }
    }
}

impl Shard {
    fn candidates(&self, tag: u64) -> impl Iterator<Item = u32> + '_ {
        let start = self.start(tag);
        let length = self.slots.len();
        let run = (0..length).map(move |step| self.slots[(start + step) % length]);
        let few = run.take_while(|slot| *slot != 0).filter(move |slot| slot >> 32 == tag);
        few.chain(self.many.range(tag << 32..(tag + 1) << 32).copied()).map(frame)
    }

    /// Returns the position of a slot, which follows from its tag alone. So a table can be rebuilt
    /// from its slots.
    fn start(&self, tag: u64) -> usize {
        usize::try_from((tag * self.slots.len() as u64) >> 32).unwrap_or(0)
    }

    fn insert(&mut self, tag: u64, frame: u32) {
        // At most four fifths are full, and the table grows by a half. That is some twelve bytes a
        // blob, and never a large step.
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            let grown = self.slots.len() + self.slots.len() / 2 + 16;
            self.resize(grown, |_| true);
        }
        self.place(tag << 32 | (u64::from(frame) + 1));
    }

    fn place(&mut self, new: u64) {
        let length = self.slots.len();
        let mut at = self.start(new >> 32);
        let mut alike = 0;
        while self.slots[at] != 0 {
            if self.slots[at] == new {
                return;
            }
            alike += usize::from(self.slots[at] >> 32 == new >> 32);
            if alike == FEW {
                self.many.insert(new);
                return;
            }
            at = (at + 1) % length;
        }
        self.slots[at] = new;
        self.used += 1;
    }

    fn rebuild(&mut self, keep: impl Fn(u64) -> bool) {
        let kept = self.slots.iter().filter(|slot| **slot != 0 && keep(**slot)).count();
        self.resize(kept + kept / 2 + 16, keep);
    }

    fn resize(&mut self, length: usize, keep: impl Fn(u64) -> bool) {
        let old = std::mem::replace(&mut self.slots, vec![0; length]);
        self.used = 0;
        old.into_iter().filter(|slot| *slot != 0 && keep(*slot)).for_each(|slot| self.place(slot));
    }
}

fn frame(slot: u64) -> u32 {
    u32::try_from((slot & u64::from(u32::MAX)) - 1).unwrap_or(u32::MAX)
}

/// The number of slots of one tag that stay among the others.
const FEW: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Digest256;

    /// Would take seconds without the random key and the tree: digests with equal first bytes, and
    /// one digest in as many frames.
    #[test]
    fn digests_that_were_chosen_cost_no_more_than_others() {
        let time = |digest: &dyn Fn(u32) -> Name| {
            let (table, start) = (Table::new(), Instant::now());
            (0..60_000).for_each(|n| table.insert(&digest(n), n));
            (0..60_000).for_each(|n| assert!(table.some(&digest(n), 20).len() <= 20));
            assert!(table.some(&digest(59_999), usize::MAX).contains(&59_999));
            table.retain(|frame| frame >= 59_000);
            assert!(table.some(&digest(59_999), usize::MAX).contains(&59_999));
            assert!(!table.some(&digest(7), usize::MAX).contains(&7));
            start.elapsed()
        };
        let alike = |n: u32| {
            let mut bytes = [7; 32];
            bytes[28..].copy_from_slice(&n.to_le_bytes());
            Name::from_bytes(bytes)
        };
        let others = |n: u32| Name::plain(Digest256::of(&n.to_le_bytes()));
        let chosen: [(&str, &dyn Fn(u32) -> Name); 2] = [("alike", &alike), ("one", &|_| alike(0))];
        for (what, chosen) in chosen {
            // Another program may run in between, but hardly in each attempt.
            let costs_no_more = (0..5).any(|_| time(chosen) < time(&others) * 20);
            assert!(costs_no_more, "{what}");
        }
    }

    #[test]
    fn what_was_inserted_is_found_and_what_was_dropped_is_not() {
        let table = Table::new();
        let digest = |n: u32| Name::plain(Digest256::of(&n.to_le_bytes()));
        for n in 0..50_000 {
            table.insert(&digest(n), n / 64);
            table.insert(&digest(n), n / 64);
        }
        table.insert(&digest(7), 9999);
        assert_eq!(table.some(&digest(7), usize::MAX), [0, 9999]);
        table.retain(|frame| frame % 2 == 0);
        for n in 0..50_000 {
            assert_eq!(table.some(&digest(n), usize::MAX).contains(&(n / 64)), n / 64 % 2 == 0, "{n}");
        }
        assert_eq!(table.some(&digest(7), usize::MAX), [0]);
    }

    #[test]
    fn it_takes_some_twelve_bytes_each() {
        let table = Table::new();
        for n in 0..200_000_u32 {
            table.insert(&Name::plain(Digest256::of(&n.to_le_bytes())), n);
        }
        let slots: usize = table.shards.iter().map(|shard| shard.lock().slots.capacity()).sum();
        assert!(slots * 8 < 200_000 * 15, "{slots} slots");
    }

    #[test]
    fn one_of_many_claims_a_digest() {
        let table = Table::new();
        let digest = Name::plain(Digest256::of(b""));
        let mut claims = 0;
        assert!(table.claim(&digest, &BTreeSet::new(), 3, || claims += 1).is_empty());
        assert_eq!(table.claim(&digest, &BTreeSet::new(), 4, || claims += 1), [3]);
        assert!(table.claim(&digest, &BTreeSet::from([3]), 4, || claims += 1).is_empty());
        assert_eq!((claims, table.some(&digest, usize::MAX)), (2, vec![3, 4]));
    }
}
