//! Batches of `FsBlobStore`: packs become visible completely or not at all.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    thread,
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore, store::StoreOptions};

use crate::stores::{Folder, files_below, unpack};

#[test]
fn a_batch_is_one_pack_that_appears_at_the_commit() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let blobs = blobs(500, 1);
    let batch = store.batch().unwrap();
    assert_eq!(batch.put(&pairs(&blobs)).unwrap(), total(&blobs));
    for store in [&store, &other] {
        assert_eq!(store.missing(&digests(&blobs)).unwrap(), digests(&blobs));
        assert!(matches!(store.get(&digests(&blobs)[0]), Err(Error::Missing { .. })));
    }
    batch.commit().unwrap();
    for store in [&store, &other, &open(&folder)] {
        assert!(store.missing(&digests(&blobs)).unwrap().is_empty());
        assert_all(store, &blobs);
    }
    assert_eq!(packs(&folder).len(), 1);
    assert_eq!(files_below(&folder), packs(&folder));
}

#[test]
fn a_batch_that_is_dropped_leaves_nothing() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = blobs(500, 2);
    let batch = store.batch().unwrap();
    batch.put(&pairs(&blobs)).unwrap();
    batch.put(&[(Digest256::of(&[7; LONG]), &[7; LONG])]).unwrap();
    drop(batch);
    assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
    assert_eq!(store.missing(&digests(&blobs)).unwrap(), digests(&blobs));
    // It takes nothing from the next batch either.
    put(&store, &blobs);
    assert_all(&store, &blobs);
}

/// A store of a build before stores could be encrypted. The second pack is compressed.
#[test]
fn a_store_of_old_is_read() {
    let folder = Folder::new();
    unpack(include_str!("../data/store-v1.txt"), &folder);
    let store = FsBlobStore::open(&folder).unwrap();
    for bytes in [b"one".as_slice(), b"", b"loose"] {
        assert_eq!(store.get(&Digest256::of(bytes)).unwrap(), bytes);
    }
    let words = b"a word, ".repeat(100);
    let read = store.get(&Digest256::of(&words));
    if cfg!(feature = "compression") {
        assert!(read.unwrap() == words);
        let verified = store.verify().unwrap();
        assert_eq!((verified.blobs, verified.damage.len()), (6, 0));
    } else {
        let said = read.unwrap_err().report().to_string();
        assert!(said.contains("built without the feature `compression`"), "{said}");
    }
}

#[test]
fn an_empty_batch_makes_no_pack() {
    let folder = Folder::new();
    let store = open(&folder);
    store.batch().unwrap().commit().unwrap();
    assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
}

#[test]
fn threads_store_what_they_share_once() {
    let folder = Folder::new();
    let store = open(&folder);
    let shared = blobs(2000, 3);
    let batch = store.batch().unwrap();
    let stored: u64 = thread::scope(|scope| {
        let put = |own| {
            let (batch, shared) = (&batch, &shared);
            move || {
                let own = blobs(300, own);
                let stored = pairs(&own).chunks(64).map(|call| batch.put(call).unwrap()).sum::<u64>();
                stored + pairs(shared).chunks(64).map(|call| batch.put(call).unwrap()).sum::<u64>()
            }
        };
        let threads: Vec<_> = (10..14).map(|own| scope.spawn(put(own))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    batch.commit().unwrap();
    let mut all = shared;
    (10..14).for_each(|own| all.extend(blobs(300, own)));
    assert_eq!(stored, total(&all));
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs.blobs, usage.blobs.bytes), (all.len() as u64, total(&all)));
    assert_eq!((usage.packs, usage.loose), (1, 0));
    assert_all(&open(&folder), &all);
}

#[test]
fn what_is_there_already_is_not_taken_in_again() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = blobs(300, 4);
    put(&store, &blobs);
    let loose = store.put(b"a file by itself").unwrap();
    for store in [&store, &open(&folder)] {
        let batch = store.batch().unwrap();
        assert_eq!(batch.put(&pairs(&blobs)).unwrap(), 0);
        assert_eq!(batch.put(&[(loose, b"a file by itself")]).unwrap(), 0);
        batch.commit().unwrap();
    }
    assert_eq!(packs(&folder).len(), 1);
    // No file has it either.
    store.put(blobs.values().next().unwrap()).unwrap();
    assert_eq!(files_below(&folder).len(), 2);
}

#[test]
fn two_batches_at_once_do_not_lean_on_each_other() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = blobs(300, 5);
    let (one, other) = (store.batch().unwrap(), store.batch().unwrap());
    one.put(&pairs(&blobs)).unwrap();
    assert_eq!(other.put(&pairs(&blobs)).unwrap(), total(&blobs));
    drop(one);
    other.commit().unwrap();
    assert_all(&store, &blobs);
}

#[test]
fn blobs_of_any_length_go_into_a_batch() {
    let folder = Folder::new();
    let store = open(&folder);
    let lengths = [0, 1, 255 * 1024, 256 * 1024, 256 * 1024 + 1, 3_000_000, LONG - 1, LONG];
    let blobs: Blobs = lengths
        .iter()
        .map(|length| vec![length.to_le_bytes()[2] ^ length.to_le_bytes()[0]; *length])
        .map(entry)
        .collect();
    let batch = store.batch().unwrap();
    assert_eq!(batch.put(&pairs(&blobs)).unwrap(), total(&blobs));
    assert_eq!(batch.put(&pairs(&blobs)).unwrap(), 0);
    batch.commit().unwrap();
    assert_all(&open(&folder), &blobs);
}

#[test]
fn a_part_of_a_blob_in_a_pack_is_read_by_itself() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = blobs(100, 6);
    put(&store, &blobs);
    let (digest, bytes) = blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let end = bytes.len();
    for (offset, length) in [(0, end), (0, 0), (5, 7), (end - 1, 5), (end, 1), (end + 5, 1), (3, usize::MAX)]
    {
        let part = store.read_range(digest, offset as u64, length).unwrap();
        let start = offset.min(end);
        assert_eq!(part, bytes[start..start + length.min(end - start)]);
    }
    let mut read = Vec::new();
    store.reader(digest).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, *bytes);
}

#[test]
fn many_are_given_out_in_any_order_and_as_often_as_asked() {
    let folder = Folder::new();
    let store = open(&folder);
    let mut blobs = blobs(3000, 7);
    put(&store, &blobs);
    let loose = b"a file by itself".to_vec();
    blobs.insert(store.put(&loose).unwrap(), loose);
    let mut asked = digests(&blobs);
    asked.extend_from_within(..500);
    asked.sort_by_key(|digest| digest.as_bytes()[7]);
    let mut came = vec![0; asked.len()];
    let check = &mut |place: usize, bytes: &[u8]| {
        assert_eq!(bytes, blobs[&asked[place]]);
        came[place] += 1;
        Ok(())
    };
    open(&folder).get_many(&asked, check).unwrap();
    assert_eq!(came, vec![1; asked.len()]);

    asked.push(Digest256::of(b"never put"));
    let error = store.get_many(&asked, &mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error:?}");
    let refuse = &mut |_, _: &[u8]| Err(Error::store("take it", "it is tired"));
    assert!(matches!(store.get_many(&asked, refuse), Err(Error::Store { .. })));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_fails_the_batch_and_hurts_nothing_else() {
    let folder = Folder::new();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "none"])
        .arg(&*folder)
        .output()
        .is_ok_and(|mount| mount.status.success());
    if !mounted {
        println!("skipped: no small file system can be mounted here");
        return;
    }
    let tried = std::panic::catch_unwind(|| {
        let store = open(&folder);
        let (small, large) = (blobs(50, 8), blobs(3000, 9));
        put(&store, &small);
        let batch = store.batch().unwrap();
        let failed = pairs(&large).chunks(64).any(|call| batch.put(call).is_err());
        assert!(failed, "nothing filled the disk");
        // Even if there is room again: the batch lacks a blob.
        assert!(batch.commit().is_err());
        assert_all(&store, &small);
        assert_eq!(packs(&folder).len(), 1);
        assert_eq!(files_below(&folder).len(), 1);
        put(&store, &blobs(20, 10));
        assert_all(&open(&folder), &blobs(20, 10));
    });
    std::process::Command::new("umount").arg(&*folder).status().unwrap();
    tried.unwrap();
}

pub(crate) type Blobs = BTreeMap<Digest256, Vec<u8>>;

/// Returns blobs of many lengths, some of which compress.
pub(crate) fn blobs(count: usize, seed: u64) -> Blobs {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let blob = |n: usize| {
        let length = if n.is_multiple_of(3) { 4096 } else { n * 7 % 2048 };
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length + 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = if (n / 64).is_multiple_of(2) { state } else { state & 0xff };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&(seed << 32 | n as u64).to_le_bytes());
        entry(bytes)
    };
    (0..count).map(blob).collect()
}

fn entry(bytes: Vec<u8>) -> (Digest256, Vec<u8>) {
    (Digest256::of(&bytes), bytes)
}

pub(crate) fn pairs(blobs: &Blobs) -> Vec<(Digest256, &[u8])> {
    blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect()
}

pub(crate) fn digests(blobs: &Blobs) -> Vec<Digest256> {
    blobs.keys().copied().collect()
}

pub(crate) fn total(blobs: &Blobs) -> u64 {
    blobs.values().map(|bytes| bytes.len() as u64).sum()
}

#[track_caller]
pub(crate) fn put(store: &FsBlobStore, blobs: &Blobs) {
    let batch = store.batch().unwrap();
    batch.put(&pairs(blobs)).unwrap();
    batch.commit().unwrap();
}

/// Reads with `get` and with `get_many`.
#[track_caller]
pub(crate) fn assert_all(store: &FsBlobStore, blobs: &Blobs) {
    for (digest, bytes) in blobs {
        assert!(store.get(digest).unwrap() == *bytes);
    }
    let digests = digests(blobs);
    let mut count = 0;
    let each = &mut |place: usize, bytes: &[u8]| {
        assert!(blobs[&digests[place]] == bytes);
        count += 1;
        Ok(())
    };
    store.get_many(&digests, each).unwrap();
    assert_eq!(count, blobs.len());
}

/// Opens a store that compresses, if this build can.
#[track_caller]
pub(crate) fn open(folder: &Path) -> FsBlobStore {
    let options = StoreOptions::new();
    #[cfg(feature = "compression")]
    let options = options.compression(true);
    options.open(folder).unwrap()
}

pub(crate) fn packs(folder: &Path) -> Vec<PathBuf> {
    let mut packs: Vec<_> =
        fs::read_dir(folder.join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

/// Larger than a frame can be.
const LONG: usize = 16 * 1024 * 1024 + 1;
