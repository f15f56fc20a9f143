//! The table of a store's blobs, with the claims of a batch: see `FsBatch::claim` in
//! `src/store/fs/batch.rs`.

#[path = "../../src/store/fs/table.rs"]
mod table;

use std::{collections::BTreeSet, sync::Arc};

use shuttle::thread;

use self::table::Table;
use crate::{lock::Mutex, store::name::Name};

const THREADS: u32 = 3;
const NAMES: u8 = 3;
/// Frames of a pack that another process removed. Many, so that slots are kept in the tree, too.
const REMOVED: std::ops::Range<u32> = 100..120;

/// Threads put the same blobs, each into a frame of its own, while frames without them are removed
/// from the table. Each blob ends up in one frame.
pub fn share_blobs() {
    let batch = Arc::new(Batch { table: Table::new(), frames: Default::default() });
    for frame in REMOVED {
        batch.table.insert(&name(0), frame);
    }
    let threads = (0..THREADS).map(|frame| {
        let batch = batch.clone();
        thread::spawn(move || {
            let first = u8::try_from(frame).unwrap();
            (0..NAMES).filter(|n| batch.put(&name((first + n) % NAMES), frame)).count()
        })
    });
    let mut threads: Vec<_> = threads.collect();
    threads.push({
        let batch = batch.clone();
        thread::spawn(move || {
            batch.table.retain(|frame| !REMOVED.contains(&frame));
            0
        })
    });
    let claimed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(claimed, usize::from(NAMES));
    for name in (0..NAMES).map(name) {
        let holders: Vec<_> = (0..THREADS).filter(|frame| batch.has(*frame, &name)).collect();
        assert_eq!(batch.table.some(&name, usize::MAX), holders);
        assert_eq!(holders.len(), 1);
    }
}

fn name(n: u8) -> Name {
    Name([n; 32])
}

/// A batch whose frames are never written.
struct Batch {
    table: Table,
    frames: [Mutex<Vec<Name>>; THREADS as usize],
}

impl Batch {
    /// Returns false if another frame has the blob.
    fn put(&self, name: &Name, frame: u32) -> bool {
        let mut checked = BTreeSet::new();
        loop {
            let claimed = || self.frames[frame as usize].lock().push(*name);
            let others = self.table.claim(name, &checked, frame, claimed);
            if others.is_empty() {
                return true;
            }
            for number in others {
                if self.has(number, name) {
                    return false;
                }
                checked.insert(number);
            }
        }
    }

    fn has(&self, frame: u32, name: &Name) -> bool {
        self.frames.get(frame as usize).is_some_and(|frame| frame.lock().contains(name))
    }
}
