//! Unneeded blobs go in two phases, and nothing else goes.

use std::{
    collections::HashSet,
    env,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore};

use crate::{
    stores::{Folder, files_below},
    stores_packs::{Blobs, assert_all, blobs, digests, open, packs, pairs, put, total},
};

#[test]
fn what_is_unneeded_is_condemned_and_only_later_swept() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let (kept, lost) = (blobs(300, 1), blobs(200, 2));
    put(&store, &kept);
    put(&store, &lost);
    store.put(b"loose").unwrap();
    let gc = store.retain(&keep(&[&kept]), HOUR).unwrap();
    assert_eq!((gc.marked.blobs, gc.removed.blobs, gc.busy), (lost.len() as u64 + 1, 0, false));

    // The blob is present for readers and missing for writers.
    for store in [&store, &other, &open(&folder)] {
        assert_all(store, &lost);
        assert_all(store, &kept);
        assert_eq!(store.missing(&digests(&lost)).unwrap(), digests(&lost));
        assert_eq!(store.get(&Digest256::of(b"loose")).unwrap(), b"loose");
    }
    assert_eq!(store.retain(&keep(&[&kept]), HOUR).unwrap(), criu_rpc::store::Gc::default());

    let gc = store.retain(&keep(&[&kept]), Duration::ZERO).unwrap();
    assert_eq!((gc.marked.blobs, gc.removed.blobs, gc.packs), (0, lost.len() as u64 + 1, 1));
    for store in [&store, &other, &open(&folder)] {
        assert_all(store, &kept);
        for digest in lost.keys().chain([&Digest256::of(b"loose")]) {
            assert!(matches!(store.get(digest), Err(Error::Missing { .. })));
        }
    }
    assert_eq!(files_below(&folder), packs(&folder));
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs.bytes, usage.marked.blobs, usage.packs), (total(&kept), 0, 1));
}

#[test]
fn of_several_copies_one_stays() {
    let folder = Folder::new();
    let store = open(&folder);
    let kept = blobs(300, 9);
    // Simultaneous captures that do not see each other's blobs.
    let others: Vec<_> = (0..5).map(|_| open(&folder)).collect();
    let batches: Vec<_> = others.iter().map(|other| other.batch().unwrap()).collect();
    for batch in &batches {
        batch.put(&pairs(&kept)).unwrap();
    }
    batches.into_iter().for_each(|batch| batch.commit().unwrap());
    assert_eq!(store.usage().unwrap().blobs.bytes, 5 * total(&kept));
    // One copy is damaged, but it is not the only one.
    let first = &packs(&folder)[0];
    let mut bytes = std::fs::read(first).unwrap();
    let place = bytes.len() - 100;
    bytes[place] ^= 1;
    std::fs::write(first, bytes).unwrap();
    for _ in 0..3 {
        store.retain(&keep(&[&kept]), Duration::ZERO).unwrap();
        for (digest, bytes) in &kept {
            assert_eq!(store.get(digest).unwrap(), *bytes);
            assert_eq!(open(&folder).get(digest).unwrap(), *bytes);
        }
    }
    // Damaged blobs are left to `verify`.
    let left = store.usage().unwrap().blobs.bytes;
    assert!((total(&kept)..=2 * total(&kept)).contains(&left), "{left}");
    store.quarantine(&store.verify().unwrap()).unwrap();
    for _ in 0..3 {
        store.retain(&keep(&[&kept]), Duration::ZERO).unwrap();
    }
    let left = store.usage().unwrap().blobs.bytes;
    assert!(left * 3 <= total(&kept) * 4, "{left}");
    assert_all(&open(&folder), &kept);
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn what_is_needed_again_comes_back() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = blobs(300, 3);
    put(&store, &blobs);
    let loose = store.put(b"loose").unwrap();
    store.retain(&HashSet::new(), HOUR).unwrap();
    let mut all = keep(&[&blobs]);
    all.insert(loose);
    let gc = store.retain(&all, Duration::ZERO).unwrap();
    assert_eq!((gc.unmarked.blobs, gc.removed.blobs, gc.marked.blobs), (301, 0, 0));
    assert!(store.missing(&digests(&blobs)).unwrap().is_empty());
    assert!(store.contains(&loose).unwrap());
    store.retain(&all, Duration::ZERO).unwrap();
    assert_all(&open(&folder), &blobs);
}

#[test]
fn whoever_puts_what_is_condemned_has_a_copy_of_his_own() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let blobs = blobs(300, 4);
    put(&store, &blobs);
    // The handle knows the pack, but not what happens to it.
    assert_all(&other, &blobs);
    store.retain(&HashSet::new(), HOUR).unwrap();
    let batch = other.batch().unwrap();
    assert_eq!(batch.put(&pairs(&blobs)).unwrap(), total(&blobs));
    batch.commit().unwrap();
    // The old copies are removed; the new ones are only condemned now.
    store.retain(&keep(&[&blobs]), HOUR).unwrap();
    store.retain(&keep(&[&blobs]), Duration::ZERO).unwrap();
    assert_all(&store, &blobs);
    assert_all(&other, &blobs);
}

#[test]
fn a_pack_with_much_dead_in_it_is_written_anew() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let all = blobs(1000, 5);
    put(&store, &all);
    assert_all(&other, &all);
    let before = store.usage().unwrap().disk;
    let kept: Blobs = all.iter().step_by(2).map(|(digest, bytes)| (*digest, bytes.clone())).collect();
    let fewer: Blobs = kept.iter().step_by(2).map(|(digest, bytes)| (*digest, bytes.clone())).collect();
    store.retain(&keep(&[&kept]), HOUR).unwrap();
    thread::sleep(Duration::from_millis(1100));
    store.retain(&keep(&[&fewer]), HOUR).unwrap();
    // The first round is due, the second is not. Its marks go with the entries.
    let gc = store.retain(&keep(&[&fewer]), Duration::from_secs(1)).unwrap();
    assert_eq!((gc.packs, gc.removed.blobs), (1, 500));
    assert!(store.usage().unwrap().disk < before * 2 / 3);
    for store in [&store, &other, &open(&folder)] {
        assert_all(store, &kept);
        assert_eq!(store.missing(&digests(&kept)).unwrap().len(), kept.len() - fewer.len());
        assert!(store.verify().unwrap().damage.is_empty());
    }
    store.retain(&keep(&[&fewer]), Duration::ZERO).unwrap();
    assert_eq!(store.usage().unwrap().blobs.blobs, fewer.len() as u64);
    assert_all(&other, &fewer);
}

#[test]
fn many_small_packs_become_one() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let parts: Vec<_> = (0..16).map(|n| blobs(20, 100 + n)).collect();
    parts[..15].iter().for_each(|part| put(&store, part));
    parts[..15].iter().for_each(|part| assert_all(&other, part));
    assert_eq!(packs(&folder).len(), 15);
    // A commit does it.
    put(&store, &parts[15]);
    assert_eq!(packs(&folder).len(), 1);
    parts.iter().for_each(|part| assert_all(&other, part));
    let needed = keep(&parts.iter().collect::<Vec<_>>());
    store.retain(&needed, Duration::ZERO).unwrap();
    parts.iter().for_each(|part| assert_all(&other, part));
}

#[test]
fn nothing_is_condemned_while_a_batch_is_open() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let blobs = blobs(100, 6);
    put(&store, &blobs);
    let batch = other.batch().unwrap();
    assert_eq!(batch.put(&pairs(&blobs)).unwrap(), 0);
    let gc = store.retain(&HashSet::new(), Duration::ZERO).unwrap();
    assert!(gc.busy && gc.marked.blobs == 0);
    assert_eq!(store.missing(&digests(&blobs)).unwrap(), []);
    batch.commit().unwrap();
    assert!(!store.retain(&HashSet::new(), Duration::ZERO).unwrap().busy);
}

#[test]
fn a_damaged_pack_is_not_rewritten() {
    let folder = Folder::new();
    let store = open(&folder);
    let all = blobs(400, 7);
    put(&store, &all);
    let pack = packs(&folder).remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let kept: Blobs = all.iter().skip(200).map(|(digest, bytes)| (*digest, bytes.clone())).collect();
    store.retain(&keep(&[&kept]), Duration::ZERO).unwrap();
    let named = store.verify().unwrap().damage.len();
    store.retain(&keep(&[&kept]), Duration::ZERO).unwrap();
    assert_eq!(store.verify().unwrap().damage.len(), named);
    assert!(named > 0);
}

/// Threads and another process capture while the collector runs continuously. No blob of a
/// committed batch is lost during the grace period.
#[test]
fn captures_and_collections_race_and_nothing_is_lost() {
    if let Some(root) = env::var_os(CHILD) {
        let store = FsBlobStore::open(root).unwrap();
        capture_again_and_again(&store, 50, &|| false);
        return;
    }
    let folder = Folder::new();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "stores_gc::captures_and_collections_race_and_nothing_is_lost"])
        .env(CHILD, folder.as_os_str())
        .spawn();
    let (store, collector) = (open(&folder), open(&folder));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        let store = &store;
        let threads: Vec<_> =
            (0..2).map(|n| scope.spawn(move || capture_again_and_again(store, n * 10, &|| false))).collect();
        let rounds = scope.spawn(move || {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                // Nothing is needed for long: only the grace period protects what captures rely on.
                collector.retain(&HashSet::new(), GRACE).unwrap();
                rounds += 1;
            }
            rounds
        });
        let threads: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        let child = child.and_then(|mut child| child.wait());
        // Also after a failure, or the collector would go on for ever.
        done.store(true, Ordering::Relaxed);
        assert!(rounds.join().unwrap() > 3);
        threads.into_iter().for_each(|thread| thread.unwrap());
        assert!(child.unwrap().success(), "the other process lost something");
    });
    assert!(store.verify().unwrap().damage.is_empty());
}

/// Stores the same blobs repeatedly, so that most are present already, condemned or not.
fn capture_again_and_again(store: &FsBlobStore, seed: u64, stop: &dyn Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(3);
    let mut turn = 0;
    while Instant::now() < end && !stop() {
        turn += 1;
        let all = blobs(150, seed + turn % 4);
        let batch = store.batch().unwrap();
        let start = Instant::now();
        for call in pairs(&all).chunks(20) {
            batch.put(call).unwrap();
        }
        batch.commit().unwrap();
        let whole = all.iter().all(|(digest, bytes)| store.get(digest).is_ok_and(|found| found == *bytes));
        // On a slow machine the blob may be collected by now, correctly.
        assert!(whole || start.elapsed() >= GRACE, "something is lost");
    }
}

fn keep(blobs: &[&Blobs]) -> HashSet<Digest256> {
    blobs.iter().flat_map(|blobs| blobs.keys().copied()).collect()
}

const HOUR: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_secs(2);
const CHILD: &str = "CRIU_RPC_GC_CHILD";
