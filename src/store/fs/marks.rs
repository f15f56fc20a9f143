//! [`Marks`]: entries of a pack that are condemned, or known to be damaged.

use std::{collections::BTreeMap, ops::Range};

/// The condemned and the damaged entries of one pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) condemned: Entries,
    pub(super) damaged: Entries,
}

impl Marks {
    /// Returns whether an entry is condemned, and whether it is damaged.
    pub(super) fn of(&self, at: u64, index: usize) -> (bool, bool) {
        (self.condemned.has(at, index), self.damaged.has(at, index))
    }
}

/// Entries of a pack, by the place of their frame and their index in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries {
    frames: BTreeMap<u64, Vec<u64>>,
    /// True if all entries are marked.
    all: bool,
}

impl Entries {
    pub(super) fn add(&mut self, at: u64, index: usize) {
        let bits = self.frames.entry(at).or_default();
        if bits.len() <= index / 64 {
            bits.resize(index / 64 + 1, 0);
        }
        bits[index / 64] |= 1 << (index % 64);
    }

    pub(super) fn has(&self, at: u64, index: usize) -> bool {
        let set = |bits: &Vec<u64>| bits.get(index / 64).is_some_and(|bits| bits >> (index % 64) & 1 == 1);
        self.all || self.frames.get(&at).is_some_and(set)
    }

    /// Marks all entries of the pack.
    pub(super) fn add_all(&mut self) {
        self.all = true;
    }

    /// Returns the entries of one frame.
    pub(super) fn of_frame(&self, at: u64) -> Entries {
        let frames = self.frames.get(&at).map(|bits| (at, bits.clone())).into_iter().collect();
        Entries { frames, all: self.all }
    }

    /// Marks a range of bytes without a frame.
    pub(super) fn add_region(&mut self, bytes: &Range<u64>) {
        self.add(bytes.start, BEGIN);
        self.add(bytes.end, END);
    }

    pub(super) fn has_region(&self, bytes: &Range<u64>) -> bool {
        self.has(bytes.start, BEGIN) && self.has(bytes.end, END)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && !self.all
    }

    /// Returns the entries that were marked one by one, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let set = |bits: &Vec<u64>| -> Vec<usize> {
            (0..bits.len() * 64).filter(|index| bits[index / 64] >> (index % 64) & 1 == 1).collect()
        };
        self.frames.iter().flat_map(move |(at, bits)| set(bits).into_iter().map(move |index| (*at, index)))
    }
}

/// Stands for an entry's index at the begin or end of a range without frames. No frame has so many
/// entries.
const BEGIN: usize = 4096;
const END: usize = BEGIN + 1;
