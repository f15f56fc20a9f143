//! Keys, the records that distinguish them, and stores that are opened with the wrong settings.

use std::{fs, path::Path, sync::Barrier, thread};

use criu_rpc::{
    BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore, Result,
    store::{Key, StoreOptions},
};

use super::{corrupt, data, key, noise, open, options, pack};
use crate::stores::Folder;

const RECORDS: [&str; 2] = ["store.key", "store.key.copy"];

#[test]
fn a_key_and_a_store_do_not_print_the_key() {
    let folder = Folder::new();
    let options = StoreOptions::new().encryption(Key::from_bytes([0xAB; 32]));
    let store = options.open(&folder).unwrap();
    let printed = format!("{options:?} {store:?}").to_lowercase();
    assert!(!printed.contains("171") && !printed.contains("abab"), "{printed}");
}

#[test]
fn keys_are_drawn_anew() {
    assert_ne!(Key::random().unwrap().as_bytes(), Key::random().unwrap().as_bytes());
}

#[test]
fn another_key_is_told_when_the_store_is_opened() {
    let folder = Folder::new();
    let digest = open(&folder).put(b"a secret").unwrap();
    wrong_key(with(2, &folder));
    assert_eq!(open(&folder).get(&digest).unwrap(), b"a secret");
}

#[test]
fn a_store_that_is_opened_with_the_wrong_settings_says_so() {
    let (encrypted, plain) = (Folder::new(), Folder::new());
    open(&encrypted);
    said(FsBlobStore::open(&encrypted), "it is encrypted: give its key");
    let ways: [fn(&FsBlobStore); 2] = [
        |store| {
            let _ = store.put(b"a blob").unwrap();
        },
        |store| {
            let _ = pack(store, b"a blob");
        },
    ];
    for put in ways {
        let folder = plain.join(data(&plain).len().to_string());
        put(&FsBlobStore::open(&folder).unwrap());
        said(options().open(&folder), "it has blobs already, and it is not encrypted");
        assert_eq!(FsBlobStore::open(&folder).unwrap().get(&Digest256::of(b"a blob")).unwrap(), b"a blob");
    }
    // A store without a blob may still become an encrypted one.
    let empty = Folder::new();
    FsBlobStore::open(&empty).unwrap();
    open(&empty).put(b"a secret").unwrap();
}

#[cfg(feature = "object-store")]
#[test]
fn an_object_store_that_is_opened_with_the_wrong_settings_says_so() {
    use criu_rpc::ObjectBlobStore;
    let folder = Folder::new();
    let url = |below: &str| format!("file://{}/{below}", folder.to_str().unwrap());
    let encrypted = options().open_url_with(&url("encrypted"), [("", ""); 0]).unwrap();
    let digest = encrypted.put(b"a secret").unwrap();
    let open = |options: &StoreOptions, below: &str| options.open_url_with(&url(below), [("", ""); 0]);
    assert_eq!(open(&options(), "encrypted").unwrap().get(&digest).unwrap(), b"a secret");
    wrong_key(open(&StoreOptions::new().encryption(key(2)), "encrypted"));
    said(open(&StoreOptions::new(), "encrypted"), "it is encrypted: give its key");
    let plain: ObjectBlobStore = open(&StoreOptions::new(), "plain").unwrap();
    plain.put(b"a blob").unwrap();
    said(open(&options(), "plain"), "it has blobs already, and it is not encrypted");
}

#[test]
fn equal_blobs_have_unequal_names_in_stores_of_other_keys() {
    let (one, other) = (Folder::new(), Folder::new());
    with(1, &one).unwrap().put(b"a secret").unwrap();
    with(2, &other).unwrap().put(b"a secret").unwrap();
    let name = |folder: &Folder| data(folder)[0].file_name().unwrap().to_owned();
    assert_ne!(name(&one), name(&other));
}

#[test]
fn programs_that_open_a_new_store_at_once_do_not_break_each_other() {
    for round in 0..30 {
        // One key for all, then two keys: a store that opened must find its blobs again.
        let keys = if round % 2 == 0 { [3, 3, 3, 3] } else { [3, 4, 3, 4] };
        let (folder, start) = (Folder::new(), Barrier::new(keys.len()));
        let stored: Vec<Result<Digest256>> = thread::scope(|scope| {
            let work = |n: u8| {
                start.wait();
                with(n, &folder)?.put(&[n; 100])
            };
            let threads: Vec<_> = keys.iter().map(|n| scope.spawn(move || work(*n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(stored.iter().any(Result::is_ok));
        for (n, stored) in keys.iter().zip(stored) {
            match stored {
                Ok(digest) => assert_eq!(with(*n, &folder).unwrap().get(&digest).unwrap(), [*n; 100]),
                Err(Error::WrongKey) => assert!(round % 2 == 1),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[test]
fn one_copy_of_the_key_record_is_enough_and_the_other_comes_back() {
    let folder = Folder::new();
    let digest = open(&folder).put(b"a secret").unwrap();
    let record = fs::read(folder.join(RECORDS[0])).unwrap();
    for name in RECORDS {
        let path = folder.join(name);
        let damages: [&dyn Fn(); 3] =
            [&|| fs::remove_file(&path).unwrap(), &|| fs::write(&path, "").unwrap(), &|| {
                fs::write(&path, [&record[..71], &[record[71] ^ 1]].concat()).unwrap()
            }];
        for damage in damages {
            damage();
            said(FsBlobStore::open(&folder), "it is encrypted");
            wrong_key(with(2, &folder));
            assert_eq!(open(&folder).get(&digest).unwrap(), b"a secret");
            assert!(RECORDS.iter().all(|name| fs::read(folder.join(name)).unwrap() == record));
        }
    }
}

#[test]
fn a_key_that_no_record_can_confirm_is_not_taken_for_the_right_or_a_wrong_one() {
    let folder = Folder::new();
    open(&folder).put(b"a secret").unwrap();
    let record = fs::read(folder.join(RECORDS[0])).unwrap();
    let write = |bytes: &[u8]| RECORDS.iter().for_each(|name| fs::write(folder.join(name), bytes).unwrap());
    for bit in 0..record.len() * 8 {
        let mut flipped = record.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        write(&flipped);
        corrupt(with(1, &folder).map(drop));
        corrupt(with(2, &folder).map(drop));
    }
    for length in 0..record.len() {
        write(&record[..length]);
        corrupt(with(1, &folder).map(drop));
    }
    // Both are gone: the blobs are not lost, but the store does not look like an encrypted one.
    RECORDS.iter().for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    said(with(1, &folder), "it has blobs already, and it is not encrypted");
    write(&record);
    wrong_key(with(2, &folder));
    assert_eq!(open(&folder).get(&Digest256::of(b"a secret")).unwrap(), b"a secret");
}

/// Verifying, setting aside and counting need no key; everything else does.
#[test]
fn a_store_without_its_key_is_maintained_and_tells_nothing() {
    let folder = Folder::new();
    let store = open(&folder);
    let (single, packed) = (store.put(&noise(5000, 1)).unwrap(), pack(&store, &noise(5000, 2)));
    let locked = StoreOptions::new().without_key().open(&folder).unwrap();
    assert_eq!(locked.usage().unwrap(), store.usage().unwrap());
    let verified = locked.verify().unwrap();
    assert_eq!((verified.blobs, verified.damage.len()), (2, 0));
    for digest in [&single, &packed] {
        needs_key(locked.get(digest));
        needs_key(locked.contains(digest));
        needs_key(locked.reader(digest).map(drop));
        needs_key(locked.read_range(digest, 0, 1));
        needs_key(locked.missing(&[*digest]));
        needs_key(locked.get_many(&[*digest], &mut |_, _| panic!("bytes without a key")));
    }
    needs_key(locked.put(b"bytes"));
    needs_key(locked.writer().map(drop));
    needs_key(locked.batch().unwrap().put(&[(single, b"bytes")]));
    needs_key(locked.purge(&[]));
    needs_key(locked.retain(&[single].into(), std::time::Duration::ZERO));
    needs_key(locked.retain(&[].into(), std::time::Duration::ZERO));

    for file in data(&folder) {
        let mut bytes = fs::read(&file).unwrap();
        let place = bytes.len() - 200;
        bytes[place] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let verified = locked.verify().unwrap();
    assert_eq!((verified.blobs, verified.damage.len()), (0, 2));
    locked.quarantine(&verified).unwrap();
    assert!(locked.verify().unwrap().damage.is_empty());
    assert_eq!(store.missing(&[single, packed]).unwrap(), [single, packed]);
    store.put(&noise(5000, 1)).unwrap();
    pack(&store, &noise(5000, 2));
    assert!(store.get(&single).is_ok() && store.get(&packed).is_ok());
}

fn with(n: u8, folder: &Path) -> Result<FsBlobStore> {
    StoreOptions::new().encryption(key(n)).open(folder)
}

#[track_caller]
fn wrong_key<S: std::fmt::Debug>(opened: Result<S>) {
    assert!(matches!(opened, Err(Error::WrongKey)), "{opened:?}");
}

#[track_caller]
fn said<S: std::fmt::Debug>(opened: Result<S>, what: &str) {
    let error = opened.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    assert!(error.report().to_string().contains(what), "{}", error.report());
}

#[track_caller]
fn needs_key<T: std::fmt::Debug>(result: Result<T>) {
    said(result, "opened without its key");
}
