//! Encrypted stores of objects, on a server and in a folder.

use std::{
    fs,
    io::{Read, Write},
    sync::{Arc, Barrier},
    thread,
};

use criu_rpc::{
    BlobStore, BlobStoreExt, Digest256, Error, ObjectBlobStore, Result,
    store::{Key, NobodyWrites, Padding, StoreOptions, conformance},
};
use object_store::{ObjectStore, local::LocalFileSystem};

use crate::{
    noise,
    s3::{Folder, Server, files_below, open_with},
};

const MIB: usize = 1 << 20;

#[test]
fn an_encrypted_store_on_a_server_conforms() {
    let server = Server::start();
    let mut prefixes = 0..;
    let next = std::cell::RefCell::new(|| format!("prefix-{}", prefixes.next().unwrap()));
    let options = options(1).compression(true).padding(Padding::Padme);
    conformance::check(|| open_with(&options, &server.endpoint(), &(next.borrow_mut())(), &[]).unwrap());
    assert_eq!(server.unfinished(), 0);
}

#[test]
fn wrong_settings_are_told_when_the_store_is_opened() {
    let server = Server::start();
    let open = |options: &StoreOptions, prefix: &str| open_with(options, &server.endpoint(), prefix, &[]);
    let digest = open(&options(1), "sealed").unwrap().put(b"a secret").unwrap();
    assert_eq!(open(&options(1), "sealed").unwrap().get(&digest).unwrap(), b"a secret");
    assert!(matches!(open(&options(2), "sealed"), Err(Error::WrongKey)));
    let said = |opened: Result<ObjectBlobStore>| opened.unwrap_err().report().to_string();
    assert!(said(open(&StoreOptions::new(), "sealed")).contains("it is encrypted: give its key"));
    server.open("plain").put(b"a blob").unwrap();
    assert!(said(open(&options(1), "plain")).contains("it has blobs already, and it is not encrypted"));
    // One copy of the key record is enough, and the other comes back.
    let record = server.files("sealed").join("key/store.key");
    let bytes = fs::read(&record).unwrap();
    for damage in ["", "damaged"] {
        fs::write(&record, damage).unwrap();
        assert!(matches!(open(&options(2), "sealed"), Err(Error::WrongKey)));
        assert_eq!(open(&options(1), "sealed").unwrap().get(&digest).unwrap(), b"a secret");
        assert!(fs::read(&record).unwrap() == bytes);
    }
}

#[test]
fn of_two_keys_for_a_new_store_one_wins() {
    for round in 0..5 {
        let (server, start) = (Server::start(), Barrier::new(4));
        let opened: Vec<_> = thread::scope(|scope| {
            let open = |n: u8| {
                start.wait();
                open_with(&options(n % 2), &server.endpoint(), "p", &[]).map(drop)
            };
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || open(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winner = opened.iter().position(Result::is_ok).expect("because one was first") as u8 % 2;
        for (n, opened) in (0..4).zip(opened) {
            match opened {
                Ok(()) => assert_eq!(n % 2, winner, "round {round}"),
                Err(error) => assert!(matches!(error, Error::WrongKey) && n % 2 != winner, "{error:?}"),
            }
        }
    }
}

#[test]
fn large_blobs_come_in_ranges_and_damage_shows_in_its_part_only() {
    let (folder, store) = place();
    let bytes = noise(20 * MIB + 17, 1);
    let digest = Digest256::of(&bytes);
    let mut writer = store.writer().unwrap();
    bytes.chunks(1_000_003).for_each(|piece| writer.write_all(piece).unwrap());
    writer.commit(&digest).unwrap();
    let read = |store: &ObjectBlobStore| {
        let mut read = Vec::new();
        store.reader(&digest).unwrap().read_to_end(&mut read).map(|_| read)
    };
    assert!(store.get(&digest).unwrap() == bytes && read(&store).unwrap() == bytes);
    assert!(store.read_range(&digest, 16_777_000, 1000).unwrap() == bytes[16_777_000..16_778_000]);
    assert_eq!(store.read_range(&digest, (20 * MIB) as u64 + 10, 1000).unwrap().len(), 7);
    assert_eq!(store.read_range(&digest, 1 << 40, 1000).unwrap(), b"");
    // A second writer of the same blob leaves the object as it is.
    let file = blob_files(&folder).remove(0);
    let before = fs::read(&file).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write_all(&bytes).unwrap();
    writer.commit(&digest).unwrap();
    assert!(fs::read(&file).unwrap() == before);
    assert_eq!(store.put(&bytes).unwrap(), digest);
    assert!(fs::read(&file).unwrap() == before);

    let mut damaged = before;
    damaged[5 * MIB] ^= 1;
    fs::write(&file, damaged).unwrap();
    assert!(store.read_range(&digest, 16_777_000, 1000).unwrap() == bytes[16_777_000..16_778_000]);
    assert!(matches!(store.read_range(&digest, (4 * MIB) as u64, MIB), Err(Error::Corrupt { .. })));
    assert!(read(&store).unwrap_err().downcast::<Error>().is_ok());
    assert!(matches!(store.get(&digest), Err(Error::Corrupt { .. })));
    // It counts as missing from here on, so that it is stored again.
    assert!(!store.contains(&digest).unwrap());
    store.put(&bytes).unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn what_is_changed_swapped_or_cut_is_told_of() {
    let (folder, store) = place();
    let blobs = [noise(5000, 1), noise(6000, 2)];
    let digests = blobs.each_ref().map(|bytes| store.put(bytes).unwrap());
    let files = blob_files(&folder);
    let whole: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let refused = || {
        let store = open(&folder);
        for digest in &digests {
            assert!(matches!(store.read_range(digest, 0, 9), Err(Error::Corrupt { .. })));
            assert!(
                matches!(store.reader(digest).map(drop), Err(Error::Corrupt { .. })) || {
                    let read = store.reader(digest).unwrap().read_to_end(&mut Vec::new());
                    matches!(read.unwrap_err().downcast::<Error>(), Ok(Error::Corrupt { .. }))
                }
            );
            assert!(matches!(store.get(digest), Err(Error::Corrupt { .. })));
        }
    };
    let write = |one: &[u8], other: &[u8]| {
        fs::write(&files[0], one).unwrap();
        fs::write(&files[1], other).unwrap();
        refused();
    };
    write(&whole[1], &whole[0]);
    write(&whole[0][..100], &whole[1][..whole[1].len() - 33]);
    write(&[&whole[0][..32], &whole[1][32..]].concat(), &[&whole[1][..32], &whole[0][32..]].concat());
    write(b"", b"plain");
    let changed = whole.iter().map(|bytes| {
        let mut bytes = bytes.clone();
        bytes[1000] ^= 1;
        bytes
    });
    let changed: Vec<_> = changed.collect();
    write(&changed[0], &changed[1]);
}

#[test]
fn a_frame_of_a_pack_that_was_changed_or_moved_is_told_of() {
    let (folder, store) = place();
    let put = |bytes: &[u8]| {
        let batch = store.batch().unwrap();
        batch.put(&[(Digest256::of(bytes), bytes)]).unwrap();
        batch.commit().unwrap();
        Digest256::of(bytes)
    };
    let digests = [put(b"one secret"), put(b"two secret")];
    let files: Vec<_> = files_below(&folder.0.join("packs"));
    let packs: Vec<_> = files.iter().filter(|file| file.extension().unwrap() == "pack").collect();
    let whole: Vec<_> = packs.iter().map(|pack| fs::read(pack).unwrap()).collect();
    assert!(whole.iter().all(|bytes| !bytes.windows(6).any(|window| window == b"secret")));
    let refused = |digest: &Digest256| {
        let read = open(&folder).get(digest);
        assert!(matches!(read, Err(Error::Corrupt { .. } | Error::Missing { .. })), "{read:?}");
    };
    for behind in [48, 48 + 64 + 32] {
        fs::write(packs[0], [&whole[0][..behind], &whole[1][behind..]].concat()).unwrap();
        fs::write(packs[1], [&whole[1][..behind], &whole[0][behind..]].concat()).unwrap();
        digests.iter().for_each(refused);
    }
    for (pack, bytes) in packs.iter().zip(&whole) {
        let mut bytes = bytes.clone();
        let place = bytes.len() - 50;
        bytes[place] ^= 1;
        fs::write(pack, bytes).unwrap();
    }
    digests.iter().for_each(refused);
}

#[test]
fn a_collection_keeps_what_it_must_and_the_key() {
    let (folder, store) = place();
    let blobs: Vec<_> = (0..200).map(|n| noise(5000, n)).collect();
    let pairs: Vec<_> = blobs.iter().map(|bytes| (Digest256::of(bytes), bytes.as_slice())).collect();
    let batch = store.batch().unwrap();
    batch.put(&pairs).unwrap();
    batch.commit().unwrap();
    let (single, gone) = (store.put(b"single").unwrap(), store.put(b"gone").unwrap());
    let keep = pairs[..50].iter().map(|(digest, _)| *digest).chain([single]).collect();
    let gc = store.collect_all_but(&keep, NobodyWrites::until_it_ends()).unwrap();
    assert_eq!((gc.removed.blobs, gc.postponed.blobs, gc.packs), (151, 0, 1), "{gc:?}");
    let again = open(&folder);
    for store in [&store, &again] {
        assert!(pairs[..50].iter().all(|(digest, bytes)| store.get(digest).unwrap() == *bytes));
        assert_eq!(store.get(&single).unwrap(), b"single");
        assert_eq!(store.missing(&[pairs[50].0, gone]).unwrap(), [pairs[50].0, gone]);
    }
    store.collect(&[], NobodyWrites::until_it_ends()).unwrap();
    assert!(blob_files(&folder).is_empty());
    assert!(matches!(try_open(&options(2), &folder), Err(Error::WrongKey)));
}

fn options(key: u8) -> StoreOptions {
    StoreOptions::new().encryption(Key::from_bytes([key; 32]))
}

fn place() -> (Folder, ObjectBlobStore) {
    let folder = Folder::new();
    let store = open(&folder);
    (folder, store)
}

fn open(folder: &Folder) -> ObjectBlobStore {
    try_open(&options(1), folder).unwrap()
}

fn try_open(options: &StoreOptions, folder: &Folder) -> Result<ObjectBlobStore> {
    let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&folder.0).unwrap());
    options.open_objects(local, "")
}

/// Returns the objects of single blobs, sorted.
fn blob_files(folder: &Folder) -> Vec<std::path::PathBuf> {
    let blobs = folder.0.join("blobs/keyed");
    if blobs.exists() { files_below(&blobs) } else { Vec::new() }
}
