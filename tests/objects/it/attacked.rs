//! Objects are damaged, swapped and removed behind the store's back. The store reports all damage,
//! returns nothing wrong, and the rest stays readable.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ObjectBlobStore};
use object_store::local::LocalFileSystem;

use crate::{
    noise,
    s3::{Folder, files_below},
};

#[test]
fn a_single_blob_that_is_damaged_is_named_and_put_again_repairs_it() {
    for damage in DAMAGES {
        let (folder, store) = place();
        let bytes = noise(300_000, 1);
        let digest = store.put(&bytes).unwrap();
        let file = files_below(&folder.0).remove(0);
        change(&file, damage);
        let error = store.get(&digest).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { .. }) && error.to_string().contains(&digest.hex()),
            "{error:?}"
        );
        assert!(!store.contains(&digest).unwrap());
        assert_eq!(store.missing(&[digest]).unwrap(), [digest]);
        store.put(&bytes).unwrap();
        assert!(store.get(&digest).unwrap() == bytes && store.contains(&digest).unwrap());
        // The same in a batch.
        change(&file, damage);
        store.get(&digest).unwrap_err();
        let batch = store.batch().unwrap();
        assert_eq!(batch.put(&[(digest, &bytes)]).unwrap(), 300_000);
        batch.commit().unwrap();
        assert!(store.get(&digest).unwrap() == bytes);
        assert!(open(&folder).get(&digest).unwrap() == bytes);
    }
}

#[test]
fn blobs_that_were_swapped_are_both_refused() {
    let (folder, store) = place();
    let digests = [store.put(b"one").unwrap(), store.put(b"two").unwrap()];
    let files = files_below(&folder.0);
    let contents: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    fs::write(&files[0], &contents[1]).unwrap();
    fs::write(&files[1], &contents[0]).unwrap();
    for digest in digests {
        assert!(matches!(store.get(&digest), Err(Error::Corrupt { .. })));
        assert!(matches!(store.get_many(&[digest], &mut |_, _| panic!()), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn damage_in_a_pack_costs_what_is_there_and_nothing_else() {
    let (folder, blobs) = packed();
    let [_, pack] = pack_files(&folder);
    let whole = fs::read(&pack).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 23) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&pack, &bytes).unwrap();
        let lost = lost(&open(&folder), &blobs);
        assert!(lost <= 70, "a bit at {at} costs {lost} blobs");
    }
    fs::write(&pack, &whole[..whole.len() / 2]).unwrap();
    let half = lost(&open(&folder), &blobs);
    assert!((blobs.len() / 2..blobs.len() / 2 + 100).contains(&half), "{half} of {}", blobs.len());
    // A handle that knew the complete pack finds the same.
    fs::write(&pack, &whole).unwrap();
    let store = open(&folder);
    fs::write(&pack, &whole[..whole.len() / 2]).unwrap();
    let half = lost(&store, &blobs);
    assert!((blobs.len() / 2..blobs.len() / 2 + 100).contains(&half), "{half} of {}", blobs.len());
}

#[test]
fn damage_in_a_pack_is_repaired_by_another_batch() {
    let (folder, blobs) = packed();
    let [_, pack] = pack_files(&folder);
    change(&pack, |bytes| bytes.iter_mut().skip(100_000).step_by(300_000).for_each(|byte| *byte ^= 1));
    let store = open(&folder);
    let damaged = lost(&store, &blobs);
    assert!(damaged > 0);
    let batch = store.batch().unwrap();
    let pairs: Vec<(Digest256, &[u8])> =
        blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
    assert_eq!(batch.put(&pairs).unwrap(), damaged as u64 * 4096);
    batch.commit().unwrap();
    assert_eq!(lost(&store, &blobs), 0);
    assert_eq!(lost(&open(&folder), &blobs), 0);
}

#[test]
fn an_index_that_is_damaged_is_made_up_for_by_its_pack() {
    for damage in DAMAGES {
        let (folder, blobs) = packed();
        let [index, _] = pack_files(&folder);
        change(&index, damage);
        assert_eq!(lost(&open(&folder), &blobs), 0);
    }
}

#[test]
fn an_index_of_another_pack_tells_nothing_wrong() {
    let (folder, blobs) = packed();
    let store = open(&folder);
    let (more, batch) = (noise(4096, 77), store.batch().unwrap());
    batch.put(&[(Digest256::of(&more), &more)]).unwrap();
    batch.commit().unwrap();
    let files: Vec<PathBuf> =
        files_below(&folder.0).into_iter().filter(|file| file.extension().unwrap() == "index").collect();
    let [one, other] = files.as_slice() else { panic!("{files:?}") };
    let contents = [one, other].map(|file| fs::read(file).unwrap());
    fs::write(one, &contents[1]).unwrap();
    fs::write(other, &contents[0]).unwrap();
    assert_eq!(lost(&open(&folder), &blobs), 0);
    assert!(open(&folder).get(&Digest256::of(&more)).unwrap() == more);
}

#[test]
fn a_pack_or_an_index_that_was_taken_away_is_missed() {
    for which in [0, 1] {
        let (folder, blobs) = packed();
        let store = open(&folder);
        fs::remove_file(&pack_files(&folder)[which]).unwrap();
        let digests: Vec<Digest256> = blobs.keys().copied().collect();
        assert_eq!(store.missing(&digests).unwrap().len(), digests.len());
        assert!(matches!(open(&folder).get(&digests[0]), Err(Error::Missing { .. })));
        let batch = store.batch().unwrap();
        let pairs: Vec<(Digest256, &[u8])> =
            blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
        assert_eq!(batch.put(&pairs).unwrap(), 2000 * 4096);
        batch.commit().unwrap();
        assert_eq!(lost(&open(&folder), &blobs), 0);
    }
}

#[test]
fn what_does_not_belong_into_the_store_is_left_alone() {
    let (folder, blobs) = packed();
    for stray in ["packs/README", "packs/0.index", "packs/zz.pack", "blobs/sha256/aa/stray", "names/x"] {
        let path = folder.0.join(stray);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "stray").unwrap();
    }
    let store = open(&folder);
    assert_eq!(lost(&store, &blobs), 0);
    store.batch().unwrap().commit().unwrap();
    assert!(folder.0.join("packs/README").exists());
}

type Damage = fn(&mut Vec<u8>);

const DAMAGES: [Damage; 5] = [
    |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    },
    |bytes| bytes.truncate(bytes.len() - 1),
    |bytes| bytes.clear(),
    |bytes| bytes.push(0),
    |bytes| bytes.fill(0),
];

fn change(file: &PathBuf, damage: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    damage(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// Returns the number of blobs that cannot be read. None that can is wrong, and a request for many
/// at once agrees.
fn lost(store: &ObjectBlobStore, blobs: &BTreeMap<Digest256, Vec<u8>>) -> usize {
    let mut lost = 0;
    for (digest, bytes) in blobs {
        match store.get(digest) {
            Ok(got) => assert!(got == *bytes),
            Err(Error::Corrupt { .. } | Error::Missing { .. }) => lost += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    let digests: Vec<Digest256> = blobs.keys().copied().collect();
    let all = store.get_many(&digests, &mut |place, bytes| {
        assert!(bytes == blobs[&digests[place]]);
        Ok(())
    });
    assert_eq!(all.is_ok(), lost == 0, "{all:?}");
    lost
}

/// A store with a batch of two thousand blobs in one pack.
fn packed() -> (Folder, BTreeMap<Digest256, Vec<u8>>) {
    let (folder, store) = place();
    let blobs: BTreeMap<Digest256, Vec<u8>> =
        noise(2000 * 4096, 5).chunks(4096).map(|blob| (Digest256::of(blob), blob.to_vec())).collect();
    let batch = store.batch().unwrap();
    for (digest, bytes) in &blobs {
        batch.put(&[(*digest, bytes)]).unwrap();
    }
    batch.commit().unwrap();
    (folder, blobs)
}

fn pack_files(folder: &Folder) -> [PathBuf; 2] {
    files_below(&folder.0).try_into().unwrap()
}

fn place() -> (Folder, ObjectBlobStore) {
    let folder = Folder::new();
    let store = open(&folder);
    (folder, store)
}

fn open(folder: &Folder) -> ObjectBlobStore {
    ObjectBlobStore::new(Arc::new(LocalFileSystem::new_with_prefix(&folder.0).unwrap()), "").unwrap()
}
