//! Blobs so large that they are stored in parts.

use std::{
    fs,
    io::{Read, Write},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error};

use super::{MIB, corrupt, data, missing, noise, open, whole_or_corrupt};
use crate::stores::Folder;

/// The bytes before the parts, and of a part with its tag and its nonce.
const HEAD: usize = 32;
const SEALED: usize = MIB + 28;

#[test]
fn parts_of_a_large_blob_that_change_places_are_told_of() {
    let (folder, bytes) = (Folder::new(), noise(3 * MIB, 3));
    let store = open(&folder);
    let digest = store.put(&bytes).unwrap();
    let file = data(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    let part = |n: usize| HEAD + n * SEALED..HEAD + (n + 1) * SEALED;
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let mut swapped = whole.clone();
        swapped[part(one)].copy_from_slice(&whole[part(other)]);
        swapped[part(other)].copy_from_slice(&whole[part(one)]);
        fs::write(&file, swapped).unwrap();
        assert!(whole_or_corrupt(&store, &bytes));
        // The part in its own place is still readable.
        let untouched = 3 - one - other;
        let read = store.read_range(&digest, (untouched * MIB) as u64, MIB).unwrap();
        assert!(read == bytes[untouched * MIB..][..MIB]);
    }
    // A part, a head and an end of another writer of the same bytes.
    fs::remove_file(&file).unwrap();
    store.put(&bytes).unwrap();
    let other = fs::read(&file).unwrap();
    let end = whole.len() - 68..whole.len();
    for taken in [part(1), 0..HEAD, end.clone(), end.start..end.end - 32] {
        let mut mixed = whole.clone();
        mixed[taken.clone()].copy_from_slice(&other[taken]);
        fs::write(&file, mixed).unwrap();
        assert!(whole_or_corrupt(&store, &bytes));
    }
    // A part less: what remains is a multiple of whole parts.
    fs::write(&file, [&whole[..HEAD + 2 * SEALED], &whole[end]].concat()).unwrap();
    assert!(whole_or_corrupt(&store, &bytes));
    fs::write(&file, &whole).unwrap();
    assert!(!whole_or_corrupt(&store, &bytes));
    // An older file of the same blob is the same blob.
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn a_large_blob_that_is_gone_is_missing_and_one_cut_short_is_damaged() {
    let (folder, bytes) = (Folder::new(), noise(2 * MIB + 1, 4));
    let store = open(&folder);
    let digest = store.put(&bytes).unwrap();
    let file = data(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, 100, SEALED, HEAD + SEALED, whole.len() - 32, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(whole_or_corrupt(&store, &bytes), "{length}");
        corrupt(store.read_range(&digest, 0, 1));
        assert_eq!(store.verify().unwrap().damage.len(), 1);
    }
    fs::remove_file(&file).unwrap();
    missing(store.get(&digest), &digest);
    missing(store.reader(&digest).map(drop), &digest);
    missing(store.read_range(&digest, 0, 1), &digest);
    assert!(!store.contains(&digest).unwrap());
    store.put(&bytes).unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_damaged() {
    let (folder, bytes) = (Folder::new(), noise(3 * MIB, 5));
    let store = open(&folder);
    let digest = store.put(&bytes).unwrap();
    let mut reader = store.reader(&digest).unwrap();
    reader.read_exact(&mut [0; 10]).unwrap();
    let file = fs::File::options().write(true).open(data(&folder).remove(0)).unwrap();
    file.set_len((HEAD + SEALED + 7) as u64).unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err().downcast::<Error>().unwrap();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
}

/// Damage in one part does not show where other parts are read.
#[test]
fn a_range_reads_only_the_parts_that_it_needs() {
    let folder = Folder::new();
    let store = open(&folder);
    let bytes = noise(5 * MIB + 3, 7);
    let digest = store.put(&bytes).unwrap();
    let file = data(&folder).remove(0);
    let mut damaged = fs::read(&file).unwrap();
    damaged[HEAD + SEALED * 3 + 7] ^= 1;
    fs::write(&file, damaged).unwrap();
    let read = |offset: usize, length: usize| {
        let read = store.read_range(&digest, offset as u64, length);
        read.map(|read| assert!(read == bytes[offset..bytes.len().min(offset + length)]))
    };
    for (offset, length) in [(MIB + 5, 100), (2 * MIB - 1, 2), (2 * MIB, MIB), (4 * MIB, 10 * MIB), (7, 0)] {
        read(offset, length).unwrap();
    }
    for (offset, length) in [(3 * MIB, 1), (3 * MIB - 1, 2), (4 * MIB - 1, 5), (0, 6 * MIB)] {
        corrupt(read(offset, length));
    }
    assert_eq!(store.read_range(&digest, u64::MAX, 7).unwrap(), b"");
}

#[test]
fn blobs_of_all_lengths_around_a_part_come_back() {
    let folder = Folder::new();
    let store = open(&folder);
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1] {
        let bytes = noise(length, 8);
        let mut writer = store.writer().unwrap();
        bytes.chunks(100_003).for_each(|piece| writer.write_all(piece).unwrap());
        writer.commit(&Digest256::of(&bytes)).unwrap();
        assert!(!whole_or_corrupt(&store, &bytes), "{length}");
        assert_eq!(store.read_range(&Digest256::of(&bytes), length as u64, 9).unwrap(), b"");
    }
    assert_eq!(store.verify().unwrap().blobs, 7);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let folder = Folder::new();
    let store = open(&folder);
    let mut writer = store.writer().unwrap();
    writer.write_all(&noise(4 * MIB, 9)).unwrap();
    drop(writer);
    assert_eq!(crate::stores::files_below(&folder.join("tmp")), Vec::<std::path::PathBuf>::new());
    assert!(data(&folder).is_empty());
}

#[test]
fn a_blob_in_a_batch_that_is_too_long_for_a_pack_is_not_seen_before_the_commit() {
    let folder = Folder::new();
    let store = open(&folder);
    let bytes = noise(17 * MIB, 11);
    let digest = Digest256::of(&bytes);
    let batch = store.batch().unwrap();
    batch.put(&[(digest, &bytes)]).unwrap();
    assert!(!store.contains(&digest).unwrap());
    batch.commit().unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}
