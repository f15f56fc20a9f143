//! A store under attack: it reports all damage, returns nothing wrong, and keeps undamaged blobs
//! readable.

use std::{fs, path::Path, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Error, FsBlobStore};

use crate::{
    stores::Folder,
    stores_packs::{Blobs, assert_all, blobs, digests, open, packs, put},
};

#[test]
fn a_flipped_bit_in_a_pack_costs_what_it_hits_and_is_healed() {
    let folder = Folder::new();
    let blobs = blobs(1200, 1);
    put(&open(&folder), &blobs);
    let pack = packs(&folder).remove(0);
    let good = fs::read(&pack).unwrap();
    for place in (0..150).step_by(5).chain((150..good.len()).step_by(good.len() / 40)) {
        let mut bytes = good.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&pack, &bytes).unwrap();
        let store = open(&folder);
        let lost = count_lost(&store, &blobs);
        let damage = store.verify().unwrap().damage;
        assert!(lost == 0 || !damage.is_empty(), "nobody names the damage at {place}");
        // A frame has 256 KiB, and most of these blobs are far smaller.
        assert!(lost <= 300, "{lost} blobs are lost by a bit at {place}");
    }
}

#[test]
fn what_is_quarantined_is_missing_until_it_is_put_again() {
    let folder = Folder::new();
    let blobs = blobs(600, 2);
    put(&open(&folder), &blobs);
    let pack = packs(&folder).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 5000].fill(0);
    fs::write(&pack, &bytes).unwrap();

    let store = open(&folder);
    let verified = store.verify().unwrap();
    let named: Vec<_> = verified.damage.iter().filter_map(|damage| damage.digest).collect();
    assert!(!named.is_empty());
    for digest in &named {
        let error = store.get(digest).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(&digest.hex()) || error.to_string().contains("frame"), "{error}");
    }
    store.quarantine(&verified).unwrap();
    for store in [&store, &open(&folder)] {
        assert_eq!(store.verify().unwrap().damage.len(), 0);
        let mut missing = store.missing(&digests(&blobs)).unwrap();
        missing.retain(|digest| !named.contains(digest));
        assert_eq!(missing, [], "blobs that were whole are missing");
        assert!(matches!(store.get(&named[0]), Err(Error::Missing { .. })));
    }
    put(&store, &blobs);
    assert_all(&store, &blobs);
    assert_all(&open(&folder), &blobs);
}

#[test]
fn a_collection_writes_a_pack_anew_without_what_was_quarantined() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 9] = [
        ("the header", |pack| pack[0] ^= 1),
        ("the id", |pack| pack[20] ^= 1),
        ("the header of a frame", |pack| pack[58] ^= 1),
        ("a body", |pack| pack[1 << 17] ^= 1),
        ("the end", |pack| pack.truncate(pack.len() - 1000)),
        ("the last byte", |pack| pack.truncate(pack.len() - 1)),
        ("the second half", |pack| pack.truncate(pack.len() / 2)),
        ("all but the header of a frame", |pack| pack.truncate(48 + 12_000)),
        ("beyond the end", |pack| pack.extend([7; 100])),
    ];
    for (what, damage) in damages {
        let folder = Folder::new();
        let blobs = blobs(600, 9);
        put(&open(&folder), &blobs);
        let keep = blobs.keys().copied().collect();
        let pack = packs(&folder).remove(0);
        let mut bytes = fs::read(&pack).unwrap();
        damage(&mut bytes);
        fs::write(&pack, &bytes).unwrap();

        let store = open(&folder);
        let verified = store.verify().unwrap();
        assert_ne!(verified.damage.len(), 0, "{what}");
        store.retain(&keep, Duration::ZERO).unwrap();
        assert_eq!(fs::read(&pack).unwrap(), bytes, "{what}: it was not taken out yet");
        store.quarantine(&verified).unwrap();
        for store in [&store, &open(&folder)] {
            assert_eq!(store.verify().unwrap().damage.len(), 0, "{what}");
        }

        assert_eq!(store.retain(&keep, Duration::ZERO).unwrap().packs, 1, "{what}");
        let aside = folder.join("damaged/rewritten").join(pack.file_stem().unwrap());
        assert_eq!(fs::read(aside).unwrap(), bytes, "{what}");
        assert!(!packs(&folder).contains(&pack), "{what}");
        assert_eq!(fs::read_dir(folder.join("damaged/packs")).unwrap().count(), 0, "{what}");
        for store in [&store, &open(&folder)] {
            let again = store.verify().unwrap();
            assert_eq!((again.damage.len(), again.blobs), (0, verified.blobs), "{what}");
        }
        put(&store, &blobs);
        assert_all(&store, &blobs);
        assert_all(&open(&folder), &blobs);
    }
}

#[test]
fn a_single_put_heals_a_blob_in_a_damaged_pack() {
    let folder = Folder::new();
    let blobs = blobs(100, 3);
    let store = open(&folder);
    put(&store, &blobs);
    let pack = packs(&folder).remove(0);
    let length = fs::metadata(&pack).unwrap().len();
    fs::File::options().write(true).open(&pack).unwrap().set_len(length / 2).unwrap();
    assert!(count_lost(&store, &blobs) > 0);
    for bytes in blobs.values() {
        store.put(bytes).unwrap();
    }
    assert_all(&store, &blobs);
    assert_all(&open(&folder), &blobs);
}

#[test]
fn a_pack_that_is_cut_short_gives_what_is_left() {
    let folder = Folder::new();
    let blobs = blobs(1200, 4);
    put(&open(&folder), &blobs);
    let pack = packs(&folder).remove(0);
    let good = fs::read(&pack).unwrap();
    let mut last = blobs.len();
    for length in (0..good.len()).rev().step_by(good.len() / 15) {
        fs::write(&pack, &good[..length]).unwrap();
        let store = open(&folder);
        let left = blobs.len() - count_lost(&store, &blobs);
        assert!(left <= last);
        last = left;
        let named = !store.verify().unwrap().damage.is_empty();
        assert!(named || left == 0 || left < blobs.len());
    }
}

#[test]
fn a_pack_that_is_deleted_takes_its_own_blobs_and_no_others() {
    let folder = Folder::new();
    let store = open(&folder);
    let (one, other) = (blobs(200, 5), blobs(200, 6));
    put(&store, &one);
    let first = packs(&folder).remove(0);
    put(&store, &other);
    assert_all(&store, &one);
    fs::remove_file(first).unwrap();
    for store in [&store, &open(&folder)] {
        assert_all(store, &other);
        for digest in one.keys() {
            assert!(matches!(store.get(digest), Err(Error::Missing { .. })));
        }
    }
    put(&store, &one);
    assert_all(&store, &one);
}

#[test]
fn packs_that_swap_their_names_give_what_they_have() {
    let folder = Folder::new();
    let store = open(&folder);
    let (one, other) = (blobs(200, 7), blobs(300, 8));
    put(&store, &one);
    put(&store, &other);
    swap(&packs(&folder)[0], &packs(&folder)[1]);
    assert_all(&open(&folder), &one);
    assert_all(&open(&folder), &other);
    // A handle with an older view returns nothing wrong.
    count_lost(&store, &one);
    count_lost(&store, &other);
}

#[test]
fn one_good_copy_is_enough() {
    let folder = Folder::new();
    let (store, other) = (open(&folder), open(&folder));
    let blobs = blobs(200, 9);
    let (first, second) = (store.batch().unwrap(), other.batch().unwrap());
    first.put(&crate::stores_packs::pairs(&blobs)).unwrap();
    second.put(&crate::stores_packs::pairs(&blobs)).unwrap();
    first.commit().unwrap();
    second.commit().unwrap();
    let pack = packs(&folder).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[20_000..].fill(0xaa);
    fs::write(&pack, bytes).unwrap();
    for store in [&store, &other, &open(&folder)] {
        assert_eq!(count_lost(store, &blobs), 0); // many at once are not verified by the store
    }
}

/// Returns the number of blobs that the store refuses. All others are right.
#[track_caller]
fn count_lost(store: &FsBlobStore, blobs: &Blobs) -> usize {
    let mut lost = 0;
    for (digest, bytes) in blobs {
        match store.get(digest) {
            Ok(found) => assert!(found == *bytes, "wrong bytes were given out"),
            Err(Error::Corrupt { .. } | Error::Missing { .. }) => lost += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    lost
}

fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(aside, other).unwrap();
}
