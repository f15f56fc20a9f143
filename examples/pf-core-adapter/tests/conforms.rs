//! pf-core's stores keep the contract through the adapter.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::{env, fs, process};

use criu_rpc::{BlobStore, Digest256, Error, store::conformance};
use pf_core::cas::{FsBlobStore, MemBlobStore};
use pf_core_adapter::PfStore;

#[test]
fn the_store_in_memory_conforms() {
    conformance::check(|| PfStore(MemBlobStore::new()));
}

/// The whole suite takes minutes there; `pf-core-adapter --conformance FOLDER` runs it.
#[test]
fn the_store_in_a_folder_gives_back_what_it_was_given_and_misses_the_rest() {
    let folder = env::temp_dir().join(format!("pf-core-adapter-basics-{}", process::id()));
    let store = PfStore(FsBlobStore::open(&folder).unwrap());
    let large = vec![7; 1 << 20];
    let digests = [store.put(b"").unwrap(), store.put(&large).unwrap()];
    assert_eq!(store.put(&large).unwrap(), digests[1]);
    let mut came = Vec::new();
    store
        .get_many(&digests, &mut |place, bytes| {
            came.push((place, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
    assert!(came == [(0, vec![]), (1, large)]);
    let missing = Digest256::of(b"missing");
    assert_eq!(store.missing(&[digests[0], missing]).unwrap(), [missing]);
    assert!(matches!(store.get(&missing), Err(Error::Missing { digest, .. }) if digest == missing));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_blob_that_is_damaged_is_told_of() {
    let folder = env::temp_dir().join(format!("pf-core-adapter-damaged-{}", process::id()));
    let store = PfStore(FsBlobStore::open(&folder).unwrap());
    let (one, other) = (store.put(b"one").unwrap(), store.put(b"other").unwrap());
    let file = |hex: String| folder.join("blobs/sha256").join(&hex[..2]).join(format!("{hex}.zst"));
    fs::copy(file(one.hex()), file(other.hex())).unwrap();
    assert!(matches!(store.get(&other), Err(Error::Corrupt { .. })));
    assert_eq!(store.get(&one).unwrap(), b"one");
    fs::remove_dir_all(&folder).unwrap();
}
