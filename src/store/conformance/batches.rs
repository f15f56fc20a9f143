//! Tests of batches: many blobs that become durable together.

use std::thread;

use super::{LARGE, MIDDLE, assert_missing, assert_same, assert_there, blob, must, write};
use crate::{BlobStore, BlobStoreExt, Digest256, store::BlobBatch};

pub(super) const PROMISES: [fn(&dyn BlobStore); 9] = [
    what_a_batch_committed_is_there,
    a_batch_takes_each_blob_once,
    a_batch_takes_nothing_that_is_there,
    an_empty_batch_is_nothing,
    a_batch_dropped_uncommitted_leaves_nothing_wrong,
    what_was_dropped_may_be_put_again,
    batches_do_not_mix,
    threads_may_put_into_a_batch_at_once,
    a_large_batch_comes_back_whole,
];

fn what_a_batch_committed_is_there(store: &dyn BlobStore) {
    let blobs: Vec<_> = [0, 1, 4096, MIDDLE, LARGE, 2 * LARGE].map(|length| blob(length, 30)).into();
    let batch = must(store.batch(), "open a batch");
    assert_eq!(put(&*batch, &blobs), total(&blobs), "the batch tells other than the bytes of new blobs");
    must(batch.commit(), "commit a batch");
    for bytes in &blobs {
        assert_there(store, bytes);
    }
    let digests: Vec<_> = blobs.iter().map(|bytes| Digest256::of(bytes)).collect();
    assert_eq!(
        must(store.missing(&digests), "ask what is missing"),
        [],
        "missing names what a batch committed"
    );
}

fn a_batch_takes_each_blob_once(store: &dyn BlobStore) {
    let (one, other) = (blob(MIDDLE, 31), blob(4096, 32));
    let batch = must(store.batch(), "open a batch");
    let twice = [one.clone(), other.clone(), one.clone(), other.clone()];
    assert_eq!(
        put(&*batch, &twice),
        total(&twice[..2]),
        "the batch counts a blob twice that came twice at once"
    );
    assert_eq!(put(&*batch, &twice), 0, "the batch counts a blob that it has");
    assert_eq!(put(&*batch, &[blob(1, 33), one.clone()]), 1, "the batch counts other than what is new to it");
    must(batch.commit(), "commit a batch");
    for bytes in [&one, &other, &blob(1, 33)] {
        assert_there(store, bytes);
    }
}

fn a_batch_takes_nothing_that_is_there(store: &dyn BlobStore) {
    let blobs = [blob(MIDDLE, 34), blob(4096, 35), blob(LARGE, 36), blob(LARGE + 1, 37)];
    must(store.put(&blobs[0]), "put a blob");
    write(store, &blobs[2], MIDDLE);
    let batch = must(store.batch(), "open a batch");
    assert_eq!(put(&*batch, &blobs), total(&[&blobs[1], &blobs[3]]), "the batch counts what the store has");
    must(batch.commit(), "commit a batch");
    let batch = must(store.batch(), "open a second batch");
    assert_eq!(put(&*batch, &blobs), 0, "a batch counts what the one before it committed");
    must(batch.commit(), "commit a batch of nothing new");
    for bytes in &blobs {
        assert_there(store, bytes);
    }
}

fn an_empty_batch_is_nothing(store: &dyn BlobStore) {
    must(must(store.batch(), "open a batch").commit(), "commit a batch that nothing was put into");
    let batch = must(store.batch(), "open a batch");
    assert_eq!(must(batch.put(&[]), "put no blobs"), 0, "no blobs have bytes");
    must(batch.commit(), "commit a batch that no blobs were put into");
    drop(must(store.batch(), "open a batch"));
    assert_missing(store, &Digest256::of(b""));
}

fn a_batch_dropped_uncommitted_leaves_nothing_wrong(store: &dyn BlobStore) {
    let (before, blobs) = (blob(MIDDLE, 38), [blob(1, 39), blob(4096, 40), blob(2 * LARGE, 41)]);
    must(store.put(&before), "put a blob");
    let batch = must(store.batch(), "open a batch");
    put(&*batch, std::slice::from_ref(&before));
    put(&*batch, &blobs);
    drop(batch);
    assert_there(store, &before);
    for bytes in &blobs {
        whole_or_missing(store, bytes);
    }
}

fn what_was_dropped_may_be_put_again(store: &dyn BlobStore) {
    let blobs = [blob(1, 42), blob(4096, 43), blob(2 * LARGE, 44), blob(MIDDLE, 45)];
    for _ in 0..2 {
        let batch = must(store.batch(), "open a batch");
        put(&*batch, &blobs);
        drop(batch);
    }
    must(store.put(&blobs[0]), "put a blob that was dropped with a batch");
    write(store, &blobs[1], 1000);
    let batch = must(store.batch(), "open a batch");
    put(&*batch, &blobs);
    must(batch.commit(), "commit a batch of what others dropped");
    for bytes in &blobs {
        assert_there(store, bytes);
    }
}

fn batches_do_not_mix(store: &dyn BlobStore) {
    let (shared, one, other) = (blob(MIDDLE, 46), blob(4096, 47), blob(4096, 48));
    let first = must(store.batch(), "open a batch");
    let second = must(store.batch(), "open a second batch");
    put(&*first, &[shared.clone(), one.clone()]);
    put(&*second, &[other.clone(), shared.clone()]);
    drop(first);
    must(second.commit(), "commit a batch beside which another was dropped");
    assert_there(store, &shared);
    assert_there(store, &other);
    whole_or_missing(store, &one);
}

fn threads_may_put_into_a_batch_at_once(store: &dyn BlobStore) {
    let shared = [blob(30_000, 49), blob(LARGE + 1, 50)];
    let own = |thread: u64, round: u64| blob(10_000, 5000 + thread * 100 + round);
    let batch = must(store.batch(), "open a batch");
    let told: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (batch, shared) = (&*batch, &shared);
                let work =
                    move || (0..8).map(|round| put(batch, &[own(thread, round)]) + put(batch, shared)).sum();
                scope.spawn(work)
            })
            .collect();
        let told = threads.into_iter().map(|thread| thread.join());
        told.map(|told: thread::Result<u64>| told.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum()
    });
    // Threads that put the same blob at the same moment may both count it as new.
    assert!(told >= 64 * 10_000 + total(&shared), "the batch tells fewer bytes than were new: {told}");
    must(batch.commit(), "commit a batch of many threads");
    for bytes in shared {
        assert_there(store, &bytes);
    }
    for (thread, round) in (0..8).flat_map(|thread| (0..8).map(move |round| (thread, round))) {
        assert_there(store, &own(thread, round));
    }
}

fn a_large_batch_comes_back_whole(store: &dyn BlobStore) {
    let blobs: Vec<_> = (0..2500).map(|n| blob(4096, 10_000 + n)).collect();
    let digests: Vec<_> = blobs.iter().map(|bytes| Digest256::of(bytes)).collect();
    let batch = must(store.batch(), "open a batch");
    let told: u64 = blobs.chunks(300).map(|blobs| put(&*batch, blobs)).sum();
    assert_eq!(told, total(&blobs), "the batch tells other than the bytes of new blobs");
    must(batch.commit(), "commit a large batch");
    assert_eq!(
        must(store.missing(&digests), "ask what is missing"),
        [],
        "some blobs of a large batch are missing"
    );
    let mut told = 0;
    let got = store.get_many(&digests, &mut |place, bytes| {
        assert_same(bytes, &blobs[place], "get_many");
        told += 1;
        Ok(())
    });
    must(got, "get the blobs of a large batch");
    assert_eq!(told, blobs.len(), "get_many does not give all blobs of a large batch");
}

#[track_caller]
fn put(batch: &dyn BlobBatch, blobs: &[Vec<u8>]) -> u64 {
    let blobs: Vec<_> = blobs.iter().map(|bytes| (Digest256::of(bytes), bytes.as_slice())).collect();
    must(batch.put(&blobs), "put blobs into a batch")
}

fn total(blobs: &[impl AsRef<[u8]>]) -> u64 {
    blobs.iter().map(|bytes| bytes.as_ref().len() as u64).sum()
}

/// Asserts that a dropped batch left the blob complete or missing.
#[track_caller]
fn whole_or_missing(store: &dyn BlobStore, bytes: &[u8]) {
    let digest = Digest256::of(bytes);
    match must(store.contains(&digest), "ask for a blob") {
        true => assert_there(store, bytes),
        false => assert_missing(store, &digest),
    }
}
