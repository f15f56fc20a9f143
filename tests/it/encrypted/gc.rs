//! Collections, counts and repairs of a folder in which everything is encrypted.

use std::{fs, io::Write, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ProcsBlob, stored::reachable};

use super::{MIB, corrupt, data, open, options};
use crate::{
    stores::Folder,
    stores_packs::{assert_all, blobs, digests, put},
};

#[test]
fn a_collection_keeps_what_captures_need_and_nothing_else() {
    let folder = Folder::new();
    let store = open(&folder);
    let capture = |byte: u8| {
        let archive = vec![byte; 2 * MIB]; // in several parts
        let criu_dump = Digest256::of(&archive);
        let mut writer = store.writer().unwrap();
        writer.write_all(&archive).unwrap();
        writer.commit(&criu_dump).unwrap();
        let manifest = ProcsBlob::Criu { criu_dump, pids: vec![i32::from(byte).into()] };
        (store.put(&manifest.to_json()).unwrap(), criu_dump, archive)
    };
    let (kept, its, archive) = capture(1);
    let (lost, also_lost, _) = capture(2);
    assert_eq!(store.gc(&[kept, lost], Duration::ZERO).unwrap(), criu_rpc::store::Gc::default());

    let condemned = store.gc(&[kept], Duration::ZERO).unwrap().marked;
    assert!(condemned.blobs == 2 && condemned.bytes > 2 << 20, "{condemned:?}");
    assert!(store.get(&also_lost).is_ok(), "it is given out until it is removed");
    assert!(store.is_marked(&also_lost).unwrap() && !store.is_marked(&its).unwrap());
    assert_eq!(store.gc(&[kept], Duration::ZERO).unwrap().removed.blobs, 2);
    assert!(matches!(store.get(&lost), Err(Error::Missing { .. })));
    assert!(matches!(store.get(&also_lost), Err(Error::Missing { .. })));
    assert_eq!(store.get(&its).unwrap(), archive);
    assert_eq!(reachable(&store, &[kept]).unwrap(), [kept, its].into());

    // The key stays known. A capture that is missing is reported before anything is collected.
    let unknown = Digest256::of(b"a manifest");
    let error = store.gc(&[kept, unknown], Duration::ZERO).unwrap_err();
    let Error::Capture { capture, source, .. } = error else { panic!("{error:?}") };
    assert!(
        capture == unknown && matches!(*source, Error::Missing { digest, .. } if digest == unknown),
        "{source:?}"
    );
    assert!(open(&folder).get(&its).is_ok());
}

#[test]
fn a_purge_rewrites_packs_and_leaves_nothing_of_what_was_in_them() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let (kept, lost) = (blobs(200, 1), blobs(20, 2));
    let both = kept.iter().chain(&lost).map(|(digest, bytes)| (*digest, bytes.clone())).collect();
    put(&store, &both);
    let keep = kept.keys().copied().collect();
    for _ in 0..3 {
        store.retain(&keep, Duration::ZERO).unwrap();
    }
    assert_all(&other, &lost);
    let returned = store.retain(&both.keys().copied().collect(), Duration::ZERO).unwrap().unmarked;
    assert_eq!(returned.blobs, 20);
    let gc = store.purge_all_but(&keep).unwrap();
    assert_eq!((gc.removed.blobs, gc.postponed.blobs, gc.packs), (20, 0, 1));
    for store in [&store, &other, &open(&folder)] {
        assert_all(store, &kept);
        assert_eq!(store.missing(&digests(&lost)).unwrap(), digests(&lost));
        let verified = store.verify().unwrap();
        assert_eq!((verified.blobs, verified.damage.len()), (200, 0));
    }
    assert_eq!(store.usage().unwrap().blobs.blobs, 200);
}

/// The bytes that are counted are those that are stored.
#[test]
fn usage_counts_what_is_on_the_disk() {
    let folder = Folder::new();
    let store = open(&folder);
    put(&store, &blobs(200, 3));
    store.put(&[7; 10_000]).unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs.blobs, usage.packs, usage.loose), (201, 1, 1));
    let files: u64 = data(&folder).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let heads = 48 + 200 * 32;
    assert!(usage.blobs.bytes < files && files < usage.blobs.bytes + heads + 64 * 20, "{usage:?}");
}

#[test]
fn damage_is_set_aside_and_captures_repair_it() {
    for options in all_options() {
        let folder = Folder::new();
        let store = options.open(&folder).unwrap();
        let blobs = blobs(600, 4);
        put(&store, &blobs);
        let single = store.put(b"a single blob").unwrap();
        for file in data(&folder) {
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
        }
        let store = options.open(&folder).unwrap();
        corrupt(store.get(&single));
        let verified = store.verify().unwrap();
        let lost = verified.damage.len() - 1;
        assert!(lost > 0 && lost < 600, "{lost}");
        store.quarantine(&verified).unwrap();
        assert!(store.verify().unwrap().damage.is_empty());
        let missing = store.missing(&digests(&blobs)).unwrap();
        assert_eq!(missing.len(), lost);
        assert!(matches!(store.get(&single), Err(Error::Missing { .. })));
        put(&store, &blobs);
        store.put(b"a single blob").unwrap();
        assert_all(&store, &blobs);
        // The damaged pack goes, and its intact blobs stay.
        let keep = digests(&blobs).into_iter().chain([single]).collect();
        assert_eq!(store.retain(&keep, Duration::ZERO).unwrap().packs, 1);
        assert_all(&options.open(&folder).unwrap(), &blobs);
    }
}

fn all_options() -> Vec<criu_rpc::store::StoreOptions> {
    #[allow(unused_mut, reason = "some builds do not compress")]
    let mut all = vec![options()];
    #[cfg(feature = "compression")]
    all.push(options().compression(true));
    all
}

#[test]
fn an_encrypted_store_waits_for_a_lock_as_long_as_it_may() {
    use criu_rpc::Until;
    let folder = Folder::new();
    let store = open(&folder);
    let lock = fs::File::options().read(true).write(true).open(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let error = store.batch_until(&Until::within(Duration::from_millis(100))).map(drop).unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    lock.unlock().unwrap();
    store.batch().unwrap().commit().unwrap();
}
