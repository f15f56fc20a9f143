//! The contract, and this store's further promises, on each kind of backend that is available here.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ObjectBlobStore, store::conformance};
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, memory::InMemory, path::Path};

use crate::{
    noise,
    s3::{Folder, Server, files_below},
};

#[test]
fn a_store_in_memory_conforms() {
    conforms(|| ObjectBlobStore::new(Arc::new(InMemory::new()), "").unwrap());
    conforms(|| ObjectBlobStore::open("memory:///some/prefix").unwrap());
}

#[test]
fn a_store_in_a_folder_conforms() {
    let folder = Folder::new();
    let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&folder.0).unwrap());
    conforms(|| ObjectBlobStore::new(Arc::clone(&local), &fresh()).unwrap());
    let left = files_below(&folder.0).into_iter().filter(|path| path.parent().unwrap().ends_with("tmp"));
    assert_eq!(left.count(), 0, "the suite left temporary objects behind");
}

#[test]
fn a_store_on_an_s3_server_conforms() {
    let server = Server::start();
    conforms(|| server.open(&fresh()));
    assert_eq!(server.unfinished(), 0);
}

#[test]
fn a_certificate_that_nobody_trusts_is_refused_unless_it_is_allowed() {
    let server = Server::start_with_tls();
    let error = server.try_open("p", &[("patience", "2")]).unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    let store = server.try_open("p", &[("allow_invalid_certificates", "true")]).unwrap();
    let bytes = noise(20 * 1024 * 1024, 4);
    let digest = store.put(&bytes).unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}

fn conforms(make: impl Fn() -> ObjectBlobStore) {
    conformance::check(&make);
}

#[test]
fn large_blobs_go_in_parts_and_come_in_ranges() {
    each_kind(|store, files| {
        let bytes = noise(40 * 1024 * 1024 + 17, 1);
        let digest = Digest256::of(&bytes);
        let mut writer = store.writer().unwrap();
        bytes.chunks(1_000_003).for_each(|piece| writer.write_all(piece).unwrap());
        assert!(!store.contains(&digest).unwrap());
        writer.commit(&digest).unwrap();
        assert!(store.get(&digest).unwrap() == bytes);
        let mut read = Vec::new();
        store.reader(&digest).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        assert!(store.read_range(&digest, 16_777_000, 1000).unwrap() == bytes[16_777_000..16_778_000]);
        assert_eq!(store.read_range(&digest, 40 * 1024 * 1024 + 10, 1000).unwrap().len(), 7);
        assert_eq!(store.read_range(&digest, 1 << 40, 1000).unwrap(), b"");
        assert_eq!(files().len(), 1, "{:?}", files());
        let again = store.put(&bytes).unwrap();
        assert_eq!((again, files().len()), (digest, 1));
    });
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing() {
    each_kind(|store, files| {
        let mut writer = store.writer().unwrap();
        writer.write_all(&noise(40 * 1024 * 1024, 2)).unwrap();
        drop(writer);
        assert_eq!(files(), Vec::<String>::new());
    });
    let server = Server::start();
    let store = server.open("dropped");
    let mut writer = store.writer().unwrap();
    writer.write_all(&noise(40 * 1024 * 1024, 3)).unwrap();
    assert!(server.unfinished() > 0);
    drop(writer);
    assert_eq!(server.unfinished(), 0);
}

#[test]
fn a_blob_is_an_object_named_by_its_digest() {
    each_kind(|store, files| {
        let hex = store.put(b"hello").unwrap().hex();
        assert_eq!(files(), [format!("blobs/sha256/{}/{hex}", &hex[..2])]);
    });
}

#[test]
fn a_batch_makes_packs_that_others_find() {
    each_kind(|store, files| {
        let blobs: Vec<Vec<u8>> = (0..5000).map(|seed| noise(4096 - seed % 3, seed as u64)).collect();
        let pairs: Vec<(Digest256, &[u8])> =
            blobs.iter().map(|blob| (Digest256::of(blob), blob.as_slice())).collect();
        let large = noise(17 * 1024 * 1024, 9);
        let batch = store.batch().unwrap();
        std::thread::scope(|scope| {
            for half in pairs.chunks(2500) {
                let batch = &batch;
                scope.spawn(move || {
                    half.chunks(100).for_each(|some| assert!(batch.put(some).unwrap() > 100 * 4000))
                });
            }
        });
        assert_eq!(batch.put(&pairs).unwrap(), 0);
        assert_eq!(batch.put(&[(Digest256::of(&large), &large)]).unwrap(), large.len() as u64);
        batch.commit().unwrap();

        let packs = files().into_iter().filter(|file| file.starts_with("packs/")).count();
        assert_eq!((packs, files().len()), (2, 3));
        let digests: Vec<Digest256> = pairs.iter().map(|(digest, _)| *digest).collect();
        assert_eq!(store.missing(&digests).unwrap(), []);
        assert_eq!(store.batch().unwrap().put(&pairs).unwrap(), 0);
        let asked: Vec<Digest256> = digests.iter().chain(&digests[7..9]).rev().copied().collect();
        let mut came = vec![0; asked.len()];
        store
            .get_many(&asked, &mut |place, bytes| {
                came[place] += 1;
                assert_eq!(Digest256::of(bytes), asked[place]);
                Ok(())
            })
            .unwrap();
        assert!(came.iter().all(|times| *times == 1));
        assert!(store.get(&digests[77]).unwrap() == blobs[77]);
        assert!(store.read_range(&digests[78], 10, 20).unwrap() == blobs[78][10..30]);
        assert!(store.contains(&digests[79]).unwrap());
    });
}

#[test]
fn what_another_handle_packs_is_found_without_opening_again() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let [one, other] = [1, 2].map(|_| ObjectBlobStore::new(Arc::clone(&memory), "shared").unwrap());
    let blobs = [b"one".as_slice(), b"two", b"three", b"four", b"five"];
    let digests = blobs.map(Digest256::of);
    for (digest, blob) in digests.iter().zip(blobs) {
        assert!(!other.contains(digest).unwrap());
        let batch = one.batch().unwrap();
        batch.put(&[(*digest, blob)]).unwrap();
        batch.commit().unwrap();
    }
    assert_eq!(other.get(&digests[0]).unwrap(), b"one");
    let one_more = ObjectBlobStore::new(Arc::clone(&memory), "shared").unwrap();
    assert!(one_more.contains(&digests[1]).unwrap());
}

#[test]
fn packs_that_have_gone_are_forgotten() {
    let memory = Arc::new(InMemory::new());
    let store = ObjectBlobStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, "").unwrap();
    let digest = Digest256::of(b"gone");
    let put = || {
        let batch = store.batch().unwrap();
        let stored = batch.put(&[(digest, b"gone")]).unwrap();
        batch.commit().unwrap();
        stored
    };
    assert_eq!((put(), put()), (4, 0));
    block_on(async {
        let listed = memory.list_with_delimiter(Some(&Path::from("packs"))).await.unwrap();
        for object in listed.objects {
            memory.delete(&object.location).await.unwrap();
        }
    });
    assert_eq!(store.missing(&[digest]).unwrap(), [digest]);
    assert_eq!(put(), 4);
    assert_eq!(store.get(&digest).unwrap(), b"gone");
}

#[test]
fn many_single_blobs_are_asked_for_by_one_listing() {
    each_kind(|store, _| {
        let blobs: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; 10]).collect();
        let mut digests: Vec<Digest256> = (0..1000_u32).map(|n| Digest256::of(&n.to_le_bytes())).collect();
        for blob in &blobs {
            digests.insert(3, store.put(blob).unwrap());
        }
        assert_eq!(store.missing(&digests).unwrap().len(), 1000);
        assert_eq!(store.missing(&digests[..30]).unwrap().len(), 10);
    });
}

#[test]
fn the_store_works_inside_other_runtimes() {
    for mut builder in
        [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()]
    {
        builder.build().unwrap().block_on(async {
            let store = ObjectBlobStore::open("memory:///").unwrap();
            let digest = store.put(b"from within").unwrap();
            assert_eq!(store.get(&digest).unwrap(), b"from within");
            let batch = store.batch().unwrap();
            batch.put(&[(Digest256::of(b"batched"), b"batched")]).unwrap();
            batch.commit().unwrap();
            let mut writer = store.writer().unwrap();
            writer.write_all(&noise(33 * 1024 * 1024, 4)).unwrap();
            drop(writer);
            drop(store);
        });
    }
}

#[test]
fn an_error_of_who_takes_the_blobs_is_passed_on() {
    let store = ObjectBlobStore::open("memory:///").unwrap();
    let digests = [store.put(b"one").unwrap(), store.put(b"two").unwrap()];
    let mut calls = 0;
    let error = store.get_many(&digests, &mut |_, _| {
        calls += 1;
        Err(Error::store("take it", "there is no room"))
    });
    assert_eq!(error.unwrap_err().to_string(), "the store could not take it");
    assert_eq!(calls, 1);
    assert!(matches!(store.get_many(&[Digest256::of(b"?")], &mut |_, _| Ok(())), Err(Error::Missing { .. })));
}

#[test]
fn a_url_that_is_none_and_a_place_that_is_none_are_named() {
    for url in ["", "nowhere", "ftp://host/path", "s3://"] {
        let error = ObjectBlobStore::open_with(url, [("", ""); 0]).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error:?}");
    }
    let error = ObjectBlobStore::open_with("memory:///x", [("region", "there")]).unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert_eq!(
        text,
        "the store could not open memory:///x: there is no option region for this kind of store"
    );
}

/// Runs the check on a store of each kind, with a function that lists its objects.
fn each_kind(check: impl Fn(&ObjectBlobStore, &dyn Fn() -> Vec<String>)) {
    let relative = |root: &std::path::Path| -> Vec<String> {
        let name =
            |path: std::path::PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        files_below(root).into_iter().map(name).collect()
    };
    let memory = Arc::new(InMemory::new());
    check(&ObjectBlobStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, "").unwrap(), &|| {
        let listed: Vec<_> = block_on(futures_util::TryStreamExt::try_collect(memory.list(None))).unwrap();
        let mut names: Vec<String> = listed.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort();
        names
    });
    let folder = Folder::new();
    let local = Arc::new(LocalFileSystem::new_with_prefix(&folder.0).unwrap());
    check(&ObjectBlobStore::new(local, "").unwrap(), &|| relative(&folder.0));
    let (server, prefix) = (Server::start(), fresh());
    check(&server.open(&prefix), &|| relative(&server.files(&prefix)));
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Returns an unused prefix.
fn fresh() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("prefix-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
