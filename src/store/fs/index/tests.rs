//! The index against a model, with merges, damage and several handles.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use super::{
    Current, Index,
    segment::{RECORDS, Record, Segment},
    write::Writer,
};
use crate::{
    BlobStore, BlobStoreExt, Digest256, FsBlobStore, Until,
    store::{
        fs::{disk::Disk, packs::PackFolder, tend::Upkeep},
        name::Name,
        pack::PackId,
    },
    unique,
};

#[test]
fn a_segment_finds_what_it_has_and_nothing_else() {
    let folder = Folder::new();
    for count in [1, 25, 26, RECORDS - 1, RECORDS, RECORDS + 1, 7 * RECORDS + 333] {
        let segment = folder.segment((0..count as u64).map(|n| record(spread(n), n)));
        assert_eq!(segment.records, count as u64);
        for n in (0..count as u64).step_by(7) {
            assert_eq!(find(&segment, spread(n)), [record(spread(n), n)], "{n} of {count}");
            assert_eq!(find(&segment, spread(n) ^ 1), []);
        }
        for key in [0, 1, u64::MAX] {
            assert_eq!(find(&segment, key), []);
        }
        let mut records = segment.iter_from(0);
        let mut last = None;
        let mut seen = 0;
        while let Some(record) = records.next().unwrap() {
            assert!(last < Some(record));
            assert_eq!(segment.rank(record.key).unwrap(), seen);
            (last, seen) = (Some(record), seen + 1);
        }
        assert_eq!(seen, count as u64);
    }
}

#[test]
fn keys_that_are_equal_or_lie_together_are_found() {
    let folder = Folder::new();
    // Copies in thousands of packs, in several groups.
    let copies = (0..3500).map(|n| record(1 << 63, n));
    let others = (0..2000).map(|n| record(spread(n) >> 2, n));
    let close = (0..3000).map(|n| record((1 << 62) + 5 * n, n));
    let segment = folder.segment(copies.chain(others).chain(close));
    let mut found = Vec::new();
    segment.find(1 << 63, usize::MAX, &mut found).unwrap();
    assert_eq!(found, (0..3500).map(|n| record(1 << 63, n)).collect::<Vec<_>>());
    found.clear();
    segment.find(1 << 63, 1200, &mut found).unwrap();
    assert_eq!(found.len(), 1200);
    for n in 0..3000 {
        let key = (1 << 62) + 5 * n;
        assert_eq!(find(&segment, key), [record(key, n)]);
        assert_eq!(find(&segment, key + 1), []);
    }
    assert_eq!(find(&segment, (1 << 63) + 1), []);
    assert_eq!(find(&segment, (1 << 63) - 1), []);
}

#[test]
fn every_damaged_byte_of_a_segment_is_noticed() {
    let folder = Folder::new();
    let records: Vec<_> = (0..1100).map(|n| record(spread(n), n)).collect();
    let segment = folder.segment(records.iter().copied());
    let good = fs::read(segment.path()).unwrap();
    for at in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(segment.path(), &bad).unwrap();
        let Ok(segment) = Segment::open(segment.id, segment.path().to_owned()) else { continue };
        let mut records = segment.iter_from(0);
        let mut read = || -> std::io::Result<()> {
            while records.next()?.is_some() {}
            Ok(())
        };
        let by_order = read();
        let by_key: Result<Vec<_>, _> = (0..1100)
            .map(|n| {
                let mut found = Vec::new();
                segment.find(spread(n), 9, &mut found).map(|()| assert_eq!(found, [record(spread(n), n)]))
            })
            .collect();
        assert!(by_order.is_err() || by_key.is_err(), "byte {at}");
    }
    fs::write(segment.path(), &good[..good.len() - 1]).unwrap();
    assert!(Segment::open(segment.id, segment.path().to_owned()).is_err());
}

#[test]
fn merges_in_steps_lose_nothing_and_keep_segments_few() {
    let folder = Folder::new();
    let mut index = folder.index();
    index.least = 10;
    fs::create_dir(&index.folder).unwrap();
    let mut expected = BTreeMap::new();
    for round in 0..120_u64 {
        // Different sizes, and keys that others have, too.
        let records: Vec<_> = (0..round % 50 + 1).map(|n| record(spread(n + round * 40), round)).collect();
        records.iter().for_each(|record| {
            expected.insert((record.key, record.pack), *record);
        });
        let mut current = index.state().current.clone();
        current.segments.extend(index.write_sorted(records).unwrap());
        index.replace(current).unwrap();
        // Another process goes on each time.
        let mut other = folder.index();
        other.least = 10;
        other.refresh(true).unwrap();
        other.merge(300).unwrap();
        index.refresh(true).unwrap();
        assert!(index.segments() < 24, "{} segments", index.segments());
    }
    for record in expected.values() {
        let mut name = [7; 32];
        name[..8].copy_from_slice(&record.key.to_be_bytes());
        let found = index.find(&Name::from_bytes(name), usize::MAX).unwrap();
        assert!(found.contains(record), "{record:?}");
    }
    assert_eq!(index.records(), expected.len() as u64);
    let listed = fs::read_dir(&index.folder).unwrap().count();
    assert!(listed <= 1 + index.segments() + index.state().current.merges.len());
}

/// The last group has as many blocks as a whole one, and fewer records.
#[test]
fn a_segment_that_lacked_only_its_name_goes_on_with_all_records() {
    for count in [RECORDS - 25, RECORDS - 24, RECORDS - 1, RECORDS, 2 * RECORDS - 20] {
        let folder = Folder::new();
        let (id, path) = (PackId::new(), folder.path.join("segment.part"));
        let records: Vec<_> = (0..count as u64).map(|n| record(n + 1, n)).collect();
        let mut writer = Writer::new(&Disk::default(), id, &path).unwrap();
        records.iter().for_each(|record| writer.push(*record).unwrap());
        writer.finish(&Disk::default(), &folder.path.join("missing/segment")).unwrap_err();
        let mut writer = Writer::new(&Disk::default(), id, &path).unwrap();
        records[count / RECORDS * RECORDS..].iter().for_each(|record| writer.push(*record).unwrap());
        let done = folder.path.join("segment");
        assert_eq!(writer.finish(&Disk::default(), &done).unwrap(), count as u64);
        let segment = Segment::open(id, done).unwrap();
        for record in &records {
            assert_eq!(find(&segment, record.key), [*record]);
        }
    }
}

#[test]
fn a_merge_goes_on_wherever_it_was_cut_short() {
    let folder = Folder::new();
    let index = folder.index();
    fs::create_dir(&index.folder).unwrap();
    let mut current = Current::default();
    for source in 0..4 {
        let records = (0..2500).map(|n| record(spread(n / 3 * 4 + source % 2), n * 4 + source)).collect();
        current.segments.extend(index.write_sorted(records).unwrap());
    }
    index.replace(current).unwrap();
    let files: Vec<_> = fs::read_dir(&index.folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let begun: Vec<_> = files.iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let mut whole = Vec::new();
    for step in [20_000, 1, 999, 1000, 1001, 3500] {
        let folder = Folder::new();
        let index = folder.index();
        fs::create_dir(&index.folder).unwrap();
        for (path, bytes) in &begun {
            fs::write(index.folder.join(path.file_name().unwrap()), bytes).unwrap();
        }
        index.refresh(true).unwrap();
        while index.is_due() {
            index.merge(step).unwrap();
            // What is not a whole group was cut off.
            for path in fs::read_dir(&index.folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.extension().is_some_and(|kind| kind == "part") {
                    let file = fs::File::options().append(true).open(&path).unwrap();
                    file.set_len(file.metadata().unwrap().len() + 555).unwrap();
                }
            }
        }
        assert_eq!(index.segments(), 1);
        let mut merged = Vec::new();
        let state = index.state();
        let mut records = state.segments[0].iter_from(0);
        while let Some(record) = records.next().unwrap() {
            merged.push(record);
        }
        assert!(merged.is_sorted() && merged.len() == 10_000);
        assert!(whole.is_empty() || whole == merged, "steps of {step}");
        whole = merged;
    }
}

#[test]
fn a_store_with_many_commits_finds_all_blobs_and_old_handles_do_too() {
    let folder = Folder::new();
    let store = folder.store();
    let old = folder.store();
    assert!(!old.contains(&Digest256::of(b"nothing")).unwrap());
    let mut all = Vec::new();
    for turn in 0..60_u32 {
        all.extend(commit(&store, turn, 5));
        if turn % 9 == 0 {
            let digest = all[turn as usize].0;
            assert_eq!(old.get(&digest).unwrap(), all[turn as usize].1);
        }
    }
    assert!(store.catalog.fresh().len() < 10 && store.catalog.index.segments() > 0);
    let new = folder.store();
    for store in [&store, &old, &new] {
        for (digest, bytes) in &all {
            assert_eq!(store.get(digest).unwrap(), *bytes);
            assert!(!store.contains(&Digest256::of(digest.as_bytes())).unwrap());
        }
        let digests: Vec<_> = all.iter().map(|(digest, _)| *digest).collect();
        assert!(store.missing(&digests).unwrap().is_empty());
        assert_eq!(store.verify().unwrap().damage.len(), 0);
    }
    // What is there is not stored again.
    let before = store.usage().unwrap();
    commit(&new, 3, 5);
    assert_eq!(store.usage().unwrap().blobs, before.blobs);
}

#[test]
fn a_damaged_or_missing_index_is_built_again() {
    let folder = Folder::new();
    let store = folder.store();
    let mut all = Vec::new();
    for turn in 0..40 {
        all.extend(commit(&store, turn, 5));
    }
    let index = folder.path.join("index");
    let damage: [&dyn Fn(&Path); 4] = [
        &|path| fs::remove_dir_all(path).unwrap(),
        &|path| fs::write(path.join("current"), b"nothing").unwrap(),
        &|path| each_file(path, &|path| fs::write(path, b"nothing").unwrap()),
        &|path| {
            each_file(path, &|path| {
                let mut bytes = fs::read(path).unwrap();
                let middle = bytes.len() - 700;
                bytes[middle] ^= 1;
                fs::write(path, bytes).unwrap();
            });
        },
    ];
    for (number, damage) in damage.iter().enumerate() {
        let open = folder.store();
        open.contains(&all[0].0).unwrap();
        damage(&index);
        // A handle that knows the index, and one that does not.
        for store in [open, folder.store()] {
            for (digest, bytes) in &all {
                assert_eq!(store.get(digest).unwrap(), *bytes, "damage {number}");
            }
        }
        let before = store.usage().unwrap().blobs;
        commit(&folder.store(), 1, 5);
        assert_eq!(store.usage().unwrap().blobs, before);
    }
    assert!(fs::read_dir(folder.path.join("damaged/index")).unwrap().count() > 2);
    // A collection notices it while it holds the lock.
    damage[2](&index);
    let keep: HashSet<_> = all.iter().map(|(digest, _)| *digest).collect();
    let store = folder.store();
    assert_eq!(store.retain(&keep, Duration::ZERO).unwrap().marked.blobs, 0);
    assert!(store.missing(&keep.iter().copied().collect::<Vec<_>>()).unwrap().is_empty());
}

#[test]
fn collections_and_commits_agree_about_packs_of_the_index() {
    let folder = Folder::new();
    let (store, other) = (folder.store(), folder.store());
    let (mut kept, mut gone) = (HashSet::new(), Vec::new());
    for turn in 0..50 {
        let blobs = commit(&store, turn, 6);
        kept.extend(blobs[..3].iter().map(|(digest, _)| *digest));
        gone.extend(blobs[3..].iter().map(|(digest, _)| *digest));
        if turn % 10 == 0 {
            other.retain(&kept, Duration::ZERO).unwrap();
        }
    }
    other.purge_all_but(&kept).unwrap();
    for store in [&store, &other, &folder.store()] {
        for digest in &gone {
            assert!(store.get(digest).is_err() && !store.contains(digest).unwrap());
        }
        for digest in &kept {
            assert!(store.get(digest).is_ok() && store.contains(digest).unwrap());
        }
    }
    // What was removed is stored again.
    let again = commit(&store, 7, 6);
    for (digest, bytes) in &again {
        assert_eq!(other.get(digest).unwrap(), *bytes);
    }
    other.purge_all_but(&HashSet::new()).unwrap();
    assert_eq!(other.usage().unwrap().blobs.blobs, 0);
    assert_eq!(other.catalog.index.records(), 0);
}

#[test]
fn many_writers_and_readers_share_a_store() {
    let folder = Folder::new();
    let all: Vec<_> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u32)
            .map(|writer| {
                let store = folder.store();
                scope.spawn(move || {
                    let mut all = Vec::new();
                    for turn in 0..40 {
                        all.extend(commit(&store, 1000 * writer + turn, 4));
                        let (digest, bytes) = &all[(turn as usize * 7) % all.len()];
                        assert_eq!(store.get(digest).unwrap(), *bytes);
                    }
                    all
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    let store = folder.store();
    for (digest, bytes) in &all {
        assert_eq!(store.get(digest).unwrap(), *bytes);
    }
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn an_index_that_another_holds_makes_no_commit_wait() {
    let folder = Folder::new();
    let (store, other) = (folder.store(), folder.store());
    let held = other.catalog.index.lock(&Until::forever(), || "test".to_owned()).unwrap();
    let all: Vec<_> = (0..20).flat_map(|turn| commit(&store, turn, 3)).collect();
    assert_eq!(store.catalog.index.segments(), 0);
    drop(held);
    (90..110).for_each(|turn| drop(commit(&store, turn, 3)));
    assert!(store.catalog.index.segments() > 0);
    all.iter().for_each(|(digest, bytes)| assert_eq!(other.get(digest).unwrap(), *bytes));
}

/// A collection may rewrite packs while a batch is open. It forgets the marks of a pack with it.
#[test]
fn a_batch_finds_no_blob_that_a_collection_has_removed() {
    let folder = Folder::new();
    let store = folder.store();
    let turns: Vec<_> = (0..4).map(|turn| commit(&store, turn, 120)).collect();
    let dead = &turns[0][60..];
    let is_kept = |digest: &Digest256| !dead.iter().any(|(dead, _)| dead == digest);
    let keep = turns.iter().flatten().map(|(digest, _)| *digest).filter(is_kept).collect();
    store.retain(&keep, Duration::ZERO).unwrap();
    let batch = store.batch().unwrap();
    let put = |(digest, bytes): &(Digest256, Vec<u8>)| batch.put(&[(*digest, bytes)]).unwrap();
    assert_eq!(turns[0][..3].iter().map(put).sum::<u64>(), 0, "they are there");
    store.retain(&keep, Duration::ZERO).unwrap();
    let again: Vec<_> = dead.iter().map(|blob| put(blob) == blob.1.len() as u64).collect();
    assert!(again.iter().all(|stored| *stored), "they are stored again: {again:?}");
    batch.commit().unwrap();
    for (digest, bytes) in turns.iter().flatten() {
        assert_eq!(store.get(digest).unwrap(), *bytes);
    }
}

/// Commits that settle packs merge segments as well.
#[test]
fn commits_that_always_settle_leave_few_segments() {
    let folder = Folder::new();
    let mut store = folder.store();
    store.upkeep = Upkeep { many: 1, little: 0 };
    for turn in 0..60 {
        commit(&store, turn, 20);
    }
    assert!(store.catalog.index.segments() < 20, "{} segments", store.catalog.index.segments());
}

/// Stores some blobs in a batch.
pub(super) fn commit(store: &FsBlobStore, turn: u32, count: u32) -> Vec<(Digest256, Vec<u8>)> {
    let blobs = blobs(turn, count);
    let batch = store.batch().unwrap();
    let some: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
    batch.put(&some).unwrap();
    batch.commit().unwrap();
    blobs
}

/// Returns the blobs that a commit stores.
pub(super) fn blobs(turn: u32, count: u32) -> Vec<(Digest256, Vec<u8>)> {
    let blob = |n: u32| [turn, n].map(u32::to_le_bytes).concat().repeat(20 + n as usize);
    (0..count).map(blob).map(|bytes| (Digest256::of(&bytes), bytes)).collect()
}

fn each_file(folder: &Path, change: &dyn Fn(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "index") {
            change(&path);
        }
    }
}

/// Returns a key that looks random.
fn spread(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn record(key: u64, n: u64) -> Record {
    let mut pack = [9; 16];
    pack[..8].copy_from_slice(&n.to_be_bytes());
    Record { key, pack: PackId::from_bytes(pack), at: 48 + n, head: 7, name: 9, stored: 12 }
}

fn find(segment: &Segment, key: u64) -> Vec<Record> {
    let mut found = Vec::new();
    segment.find(key, usize::MAX, &mut found).unwrap();
    found
}

pub(super) struct Folder {
    pub(super) path: PathBuf,
}

impl Folder {
    pub(super) fn new() -> Folder {
        let path = env::temp_dir().join(format!("criu-rpc-index-{}-{}", process::id(), unique::name()));
        fs::create_dir(&path).unwrap();
        Folder { path }
    }

    fn index(&self) -> Index {
        let packs = PackFolder::new(self.path.join("packs"));
        Index::new(&self.path, &self.path, packs, Disk::default())
    }

    /// Opens a store that settles packs early.
    pub(super) fn store(&self) -> FsBlobStore {
        Folder::open(&self.path)
    }

    pub(super) fn open(path: &Path) -> FsBlobStore {
        let mut store = FsBlobStore::open(path).unwrap();
        store.upkeep = Upkeep { many: 4, little: 3000 };
        store.catalog.index.least = 10;
        store
    }

    fn segment(&self, records: impl Iterator<Item = Record>) -> Segment {
        let id = PackId::new();
        let path = self.path.join(id.hex());
        let mut records: Vec<_> = records.collect();
        records.sort_unstable();
        let mut writer = Writer::new(&Disk::default(), id, &path.with_extension("part")).unwrap();
        records.into_iter().for_each(|record| writer.push(record).unwrap());
        writer.finish(&Disk::default(), &path).unwrap();
        Segment::open(id, path).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
