//! A purge removes unneeded blobs now, in whatever pack they are.

use std::{fs, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore, MemBlobStore, ProcsRestore, Warning};

use crate::{
    stores::{Folder, files_below},
    stores_packs::{Blobs, assert_all, blobs, digests, open, packs, pairs, put},
};

/// Stores a secret in one pack with nine times as many needed blobs.
fn mostly_needed(store: &FsBlobStore) -> (Blobs, Blobs) {
    let (kept, secret) = (blobs(900, 1), blobs(60, 2));
    let batch = store.batch().unwrap();
    batch.put(&pairs(&kept)).unwrap();
    batch.put(&pairs(&secret)).unwrap();
    batch.commit().unwrap();
    (kept, secret)
}

/// Returns true if the files of a store have these bytes anywhere uncompressed.
fn is_on_the_disk(folder: &Folder, bytes: &[u8]) -> bool {
    let has = |file: &Vec<u8>| file.windows(bytes.len()).any(|window| window == bytes);
    files_below(folder).iter().any(|path| has(&fs::read(path).unwrap()))
}

#[test]
fn a_purge_removes_what_lies_in_a_pack_that_is_mostly_needed() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let (kept, secret) = mostly_needed(&store);
    assert_all(&other, &secret);
    let keep = kept.keys().copied().collect();
    // Three collections leave it in place.
    for _ in 0..3 {
        store.retain(&keep, Duration::ZERO).unwrap();
    }
    assert!(secret.keys().all(|digest| store.get(digest).is_ok()));
    let gc = store.purge_all_but(&keep).unwrap();
    assert_eq!((gc.removed.blobs, gc.postponed.blobs, gc.packs), (60, 0, 1));
    for store in [&store, &other, &open(&folder)] {
        assert_all(store, &kept);
        assert!(secret.keys().all(|digest| matches!(store.get(digest), Err(Error::Missing { .. }))));
        assert!(store.verify().unwrap().damage.is_empty());
    }
    assert!(secret.values().all(|bytes| !is_on_the_disk(&folder, &bytes[..8])));
    assert_eq!(store.usage().unwrap().marked.blobs, 0);
}

#[test]
fn a_purge_needs_no_call_before_and_takes_files_and_leftovers() {
    let folder = Folder::new();
    let store = open(&folder);
    let (kept, secret) = mostly_needed(&store);
    let loose = store.put(b"a loose secret").unwrap();
    fs::write(folder.join("tmp/1-2-3"), b"what a writer that died has left").unwrap();
    let gc = store.purge_all_but(&kept.keys().copied().collect()).unwrap();
    assert_eq!((gc.removed.blobs, gc.postponed.blobs), (61, 0));
    assert!(matches!(store.get(&loose), Err(Error::Missing { .. })));
    assert!(secret.keys().all(|digest| store.get(digest).is_err()));
    #[cfg(unix)] // elsewhere no lock tells that its writer has died
    assert_eq!(files_below(&folder), packs(&folder));
    assert_all(&open(&folder), &kept);
}

#[test]
fn a_purge_takes_what_was_set_aside_as_damaged() {
    let folder = Folder::new();
    let store = open(&folder);
    let (kept, _) = mostly_needed(&store);
    let pack = packs(&folder).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let keep = kept.keys().copied().collect();
    let verified = store.verify().unwrap();
    store.quarantine(&verified).unwrap();
    assert_eq!(store.purge_all_but(&keep).unwrap().postponed.blobs, 0);
    assert!(files_below(&folder).iter().all(|path| path.parent().unwrap().ends_with("packs")));
    assert_eq!(fs::read_dir(folder.join("damaged/packs")).unwrap().count(), 0);
}

#[test]
fn a_purge_says_what_it_could_not_remove() {
    let folder = Folder::new();
    let store = open(&folder);
    let all = blobs(900, 1);
    put(&store, &all);
    let pack = packs(&folder).remove(0);
    let bytes = fs::read(&pack).unwrap();
    fs::write(&pack, [&bytes[..], &[7; 100]].concat()).unwrap();
    let kept: Blobs = all.iter().skip(50).map(|(digest, bytes)| (*digest, bytes.clone())).collect();
    let keep = kept.keys().copied().collect();
    assert_eq!(store.purge_all_but(&keep).unwrap().postponed.blobs, 50);
    store.quarantine(&store.verify().unwrap()).unwrap();
    let gc = store.purge_all_but(&keep).unwrap();
    assert_eq!((gc.postponed.blobs, gc.removed.blobs), (0, 50));
    assert_all(&open(&folder), &kept);
}

#[test]
fn a_purge_does_nothing_while_a_batch_is_open() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let (kept, secret) = mostly_needed(&store);
    let batch = other.batch().unwrap();
    let error = store.purge_all_but(&kept.keys().copied().collect()).unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    assert!(store.missing(&digests(&secret)).unwrap().is_empty());
    batch.put(&pairs(&secret)).unwrap();
    batch.commit().unwrap();
    assert_all(&store, &secret);
}

#[test]
fn a_restore_of_what_is_marked_for_deletion_warns() {
    let placeholder = br#"{"kind":"procs.unsupported.v1","unsupported_on":"macos","note":"n"}"#;
    let warns = |store: &dyn BlobStore, digest: &Digest256| {
        let restored = ProcsRestore::new().restore(&store, digest).unwrap();
        let marked =
            |warning: &Warning| matches!(warning, Warning::Marked { capture, .. } if capture == digest);
        restored.warnings.iter().any(marked)
    };
    let folder = Folder::new();
    let store = open(&folder);
    for in_a_pack in [false, true] {
        let digest = Digest256::of(placeholder);
        if in_a_pack {
            let batch = store.batch().unwrap();
            batch.put(&[(digest, placeholder)]).unwrap();
            batch.commit().unwrap();
        } else {
            store.put(placeholder).unwrap();
        }
        assert!(!warns(&store, &digest) && !store.is_marked(&digest).unwrap());
        store.gc(&[], Duration::from_secs(3600)).unwrap();
        assert!(warns(&store, &digest) && warns(&open(&folder), &digest));
        store.gc(&[digest], Duration::from_secs(3600)).unwrap();
        assert!(!warns(&store, &digest));
        store.purge(&[]).unwrap();
        assert!(!store.is_marked(&digest).unwrap() && store.get(&digest).is_err());
    }
    let memory = MemBlobStore::new();
    let digest = memory.put(placeholder).unwrap();
    assert!(!warns(&memory, &digest) && !memory.is_marked(&Digest256::of(b"")).unwrap());
}

#[test]
fn the_grace_does_not_follow_names_that_a_clock_made_old() {
    let folder = Folder::new();
    let store = open(&folder);
    let digest = store.put(b"marked a moment ago").unwrap();
    store.retain(&Default::default(), Duration::from_secs(600)).unwrap();
    // Simulates a wall clock that was a day ahead: by its name, the round was condemned a day ago.
    let round = fs::read_dir(folder.join("condemned")).unwrap().next().unwrap().unwrap();
    let name = round.file_name().into_string().unwrap();
    let (millis, rest) = name.split_once('-').unwrap();
    let earlier = millis.parse::<u64>().unwrap() - 86_400_000;
    fs::rename(round.path(), folder.join(format!("condemned/{earlier}-{rest}"))).unwrap();
    assert_eq!(store.retain(&Default::default(), Duration::from_secs(600)).unwrap().removed.blobs, 0);
    assert_eq!(store.get(&digest).unwrap(), b"marked a moment ago");
    assert_eq!(store.retain(&Default::default(), Duration::ZERO).unwrap().removed.blobs, 1);
}

#[cfg(unix)]
#[test]
fn a_clock_that_jumps_takes_no_file_from_a_writer() {
    use std::io::Write as _;

    let folder = Folder::new();
    let store = open(&folder);
    let all = blobs(500, 3);
    let batch = store.batch().unwrap();
    batch.put(&pairs(&all)).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write_all(b"slowly").unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    for path in files_below(&folder.join("tmp")) {
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    open(&folder);
    assert!(!files_below(&folder.join("tmp")).is_empty());
    batch.commit().unwrap();
    writer.commit(&Digest256::of(b"slowly")).unwrap();
    assert_all(&open(&folder), &all);
    assert_eq!(store.get(&Digest256::of(b"slowly")).unwrap(), b"slowly");
}

/// Packs come and go continuously while another handle counts and verifies.
#[test]
fn usage_survives_collections_beside_it() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let kept = blobs(100, 1);
    put(&store, &kept);
    let keep = kept.keys().copied().collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = std::time::Instant::now() + Duration::from_secs(3);
            let mut seed = 10;
            while std::time::Instant::now() < end {
                seed += 1;
                put(&store, &blobs(60, seed));
                store.put(&seed.to_le_bytes()).unwrap();
                store.retain(&keep, Duration::ZERO).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut turns = 0;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let usage = other.usage().unwrap();
            assert!(usage.blobs.blobs >= 100, "{usage:?}");
            assert!(other.verify().unwrap().damage.is_empty());
            turns += 1;
        }
        assert!(turns > 3, "{turns}");
    });
}
