//! Bytes under names that are not their digests.

use std::thread;

use super::{LARGE, MIDDLE, assert_missing, assert_same, assert_there, blob, is_missing, must, write};
use crate::{BlobStore, BlobStoreExt, Digest256};

pub(super) const PROMISES: [fn(&dyn BlobStore); 7] = [
    what_is_put_under_a_name_is_given_back,
    a_name_that_was_never_put_is_missing,
    putting_a_name_again_replaces_its_bytes,
    names_and_blobs_do_not_mix,
    names_in_a_batch_are_there_when_it_is_committed,
    names_of_a_batch_dropped_uncommitted_are_old_or_new,
    threads_may_replace_a_name_at_once,
];

fn what_is_put_under_a_name_is_given_back(store: &dyn BlobStore) {
    for (n, length) in [0, 1, MIDDLE, 2 * LARGE].into_iter().enumerate() {
        let bytes = blob(length, 60);
        must(store.put_named(&name(n as u64), &bytes), "put bytes under a name");
        assert_named(store, &name(n as u64), &bytes);
    }
    // Equal bytes under different names, including the lowest and the highest name.
    for name in [Digest256::from_bytes([0; 32]), Digest256::from_bytes([255; 32])] {
        must(store.put_named(&name, b"equal bytes"), "put bytes under a name");
        assert_named(store, &name, b"equal bytes");
    }
}

fn a_name_that_was_never_put_is_missing(store: &dyn BlobStore) {
    must(store.put_named(&name(10), b"bytes"), "put bytes under a name");
    assert_no_name(store, &name(11));
    assert_no_name(store, &Digest256::from_bytes([0; 32]));
}

fn putting_a_name_again_replaces_its_bytes(store: &dyn BlobStore) {
    for length in [5, MIDDLE, 1, 0, 2 * LARGE, 5, 5] {
        let bytes = blob(length, 61 + length as u64);
        must(store.put_named(&name(12), &bytes), "put bytes under a name that is there");
        assert_named(store, &name(12), &bytes);
    }
}

fn names_and_blobs_do_not_mix(store: &dyn BlobStore) {
    let (bytes, large) = (blob(4096, 62), blob(2 * LARGE, 63));
    for bytes in [&bytes, &large] {
        let digest = Digest256::of(bytes);
        must(store.put_named(&digest, b"not the blob"), "put bytes under a name that is a digest");
        assert_missing(store, &digest);
        assert_eq!(
            must(store.missing(&[digest]), "ask what is missing"),
            [digest],
            "missing takes a name for a blob"
        );
        must(store.put(bytes), "put a blob whose digest is a name");
        assert_there(store, bytes);
        assert_named(store, &digest, b"not the blob");
        must(store.put_named(&digest, b"something else"), "replace the bytes of a name that is a digest");
        assert_there(store, bytes);
        write(store, bytes, MIDDLE);
        assert_named(store, &digest, b"something else");
    }

    let blob_first = blob(4096, 64);
    let digest = must(store.put(&blob_first), "put a blob");
    assert_no_name(store, &digest);
    // Bytes under a name must not appear as a blob of their own digest.
    must(store.put_named(&digest, b"no blob of its own"), "put bytes under a name that is a digest");
    assert_missing(store, &Digest256::of(b"no blob of its own"));
    assert_there(store, &blob_first);
}

fn names_in_a_batch_are_there_when_it_is_committed(store: &dyn BlobStore) {
    let bytes = blob(4096, 65);
    let digest = Digest256::of(&bytes);
    must(store.put_named(&name(20), b"old"), "put bytes under a name");
    let batch = must(store.batch(), "open a batch");
    must(batch.put_named(&name(20), b"new"), "replace the bytes of a name in a batch");
    must(batch.put_named(&name(21), b"first"), "put bytes under a name in a batch");
    must(batch.put_named(&name(21), b""), "put bytes under a name of the batch");
    must(batch.put_named(&name(22), &blob(MIDDLE, 66)), "put bytes under a name in a batch");
    must(batch.put_named(&digest, b"not the blob"), "put bytes under a name that is a digest in a batch");
    let told = must(batch.put(&[(digest, &bytes)]), "put a blob into a batch");
    assert_eq!(told, 4096, "the batch takes a name for a blob");
    must(batch.commit(), "commit a batch with names");
    assert_named(store, &name(20), b"new");
    assert_named(store, &name(21), b"");
    assert_named(store, &name(22), &blob(MIDDLE, 66));
    assert_named(store, &digest, b"not the blob");
    assert_there(store, &bytes);
}

fn names_of_a_batch_dropped_uncommitted_are_old_or_new(store: &dyn BlobStore) {
    must(store.put_named(&name(23), b"old"), "put bytes under a name");
    let batch = must(store.batch(), "open a batch");
    must(batch.put_named(&name(23), b"the new one"), "replace the bytes of a name in a batch");
    must(batch.put_named(&name(24), b"the new one"), "put bytes under a name in a batch");
    drop(batch);
    let found = must(store.get_named(&name(23)), "get the bytes of a name");
    assert!(
        found == b"old" || found == b"the new one",
        "a batch that was dropped leaves neither old nor new"
    );
    match must(store.contains_named(&name(24)), "ask for a name") {
        true => assert_named(store, &name(24), b"the new one"),
        false => assert_no_name(store, &name(24)),
    }
}

fn threads_may_replace_a_name_at_once(store: &dyn BlobStore) {
    let versions: Vec<_> = (0..8).map(|thread| blob(20_000 + thread, 67)).collect();
    must(store.put_named(&name(30), &versions[0]), "put bytes under a name");
    thread::scope(|scope| {
        for bytes in &versions {
            let versions = &versions;
            scope.spawn(move || {
                for _ in 0..8 {
                    must(store.put_named(&name(30), bytes), "replace the bytes of a name");
                    let found =
                        must(store.get_named(&name(30)), "get the bytes of a name that is being replaced");
                    assert!(
                        versions.contains(&found),
                        "a name that is being replaced has bytes that nobody put"
                    );
                }
            });
        }
    });
}

/// Returns a name that is not the digest of any blob in this test.
fn name(n: u64) -> Digest256 {
    Digest256::of(&blob(32, 1 << 20 | n))
}

#[track_caller]
fn assert_named(store: &dyn BlobStore, name: &Digest256, bytes: &[u8]) {
    assert!(
        must(store.contains_named(name), "ask for a name"),
        "contains_named denies a name that was stored: {name}"
    );
    assert_same(&must(store.get_named(name), "get the bytes of a name"), bytes, "get_named");
}

#[track_caller]
fn assert_no_name(store: &dyn BlobStore, name: &Digest256) {
    assert!(
        !must(store.contains_named(name), "ask for a name"),
        "contains_named claims a name that is not stored"
    );
    match store.get_named(name) {
        Err(error) if is_missing(&error, name) => {}
        Err(error) => panic!("get_named answers {error:?} for a name that is not stored, not Error::Missing"),
        Ok(bytes) => panic!("get_named gives {} bytes for a name that is not stored", bytes.len()),
    }
}
