//! Blobs so large that they are stored in parts.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    sync::atomic::Ordering,
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error};

use super::{Glass, MIB, corrupt, missing, noise, open, whole_or_corrupt};

#[test]
fn parts_of_a_large_blob_that_change_places_are_told_of() {
    let bytes = noise(3 * MIB, 3);
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    let parts = &names[names.len() - 3..];
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        beneath.swap(&parts[one], &parts[other]);
        corrupt(store.get(&digest));
        assert!(whole_or_corrupt(&store, &bytes));
        // The part in its own place is still readable.
        let untouched = 3 - one - other;
        let read = store.read_range(&digest, (untouched * MIB) as u64, MIB).unwrap();
        assert!(read == bytes[untouched * MIB..][..MIB]);
        beneath.swap(&parts[one], &parts[other]);
    }
    // A part in the place where another writer of the same bytes had one.
    let old = beneath.records();
    store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    beneath.put_named(&names[names.len() - 2], &old[&parts[1]]).unwrap();
    corrupt(store.get(&digest));
}

#[test]
fn a_blob_of_which_a_part_is_gone_is_damaged_and_one_without_a_header_is_missing() {
    let bytes = noise(3 * MIB + 1, 4);
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    let whole = beneath.records();
    for part in &names[names.len() - 4..] {
        beneath.remove(part);
        corrupt(store.get(&digest));
        let error = store.reader(&digest).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        let error = error.downcast::<Error>().unwrap();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        beneath.put_named(part, &whole[part]).unwrap();
    }
    let header = names[names.len() - 5];
    beneath.remove(&header);
    missing(store.get(&digest), &digest);
    missing(store.reader(&digest).map(drop), &digest);
    missing(store.read_range(&digest, 0, 1), &digest);
    assert!(!store.contains(&digest).unwrap());
    store.put(&bytes).unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn a_range_reads_only_the_parts_that_it_needs() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let bytes = noise(5 * MIB, 7);
    let digest = store.put(&bytes).unwrap();
    let read = |offset: usize, length: usize| {
        beneath.read.store(0, Ordering::Relaxed);
        assert!(store.read_range(&digest, offset as u64, length).unwrap() == bytes[offset..][..length]);
        beneath.read.load(Ordering::Relaxed) / MIB
    };
    assert_eq!(read(MIB + 5, 100), 1);
    assert_eq!(read(2 * MIB - 1, 2), 2);
    assert_eq!(read(2 * MIB, MIB), 1);
    assert_eq!(read(7, 0), 0);
}

#[test]
fn a_writer_that_is_dropped_leaves_no_blob_and_names_of_tells_what_to_keep() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let (large, small) = (noise(3 * MIB + 9, 8), noise(10, 8));
    let digests = [store.put(&large).unwrap(), store.put(&small).unwrap()];
    let mut writer = store.writer().unwrap();
    writer.write_all(&noise(4 * MIB, 9)).unwrap();
    drop(writer);
    store.put(&large).unwrap();

    let keep: BTreeSet<_> = store.names_of(&digests).unwrap().into_iter().collect();
    let all = beneath.records();
    // The parts that the unfinished writer left, and the older parts of the blob that was put
    // again.
    assert_eq!(all.keys().filter(|name| !keep.contains(name)).count(), 3 + 4);
    all.keys().filter(|name| !keep.contains(name)).for_each(|name| beneath.remove(name));
    let store = open(&beneath);
    assert!(store.get(&digests[0]).unwrap() == large);
    assert!(store.get(&digests[1]).unwrap() == small);
}

#[test]
fn a_large_blob_in_a_batch_is_not_seen_before_its_parts_are_committed() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let bytes = noise(2 * MIB, 11);
    let digest = Digest256::of(&bytes);
    let batch = store.batch().unwrap();
    batch.put(&[(digest, &bytes)]).unwrap();
    assert!(!store.contains(&digest).unwrap());
    batch.commit().unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}
