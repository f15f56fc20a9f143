//! Blobs one by one: put, got, written and read piece by piece.

use std::{
    io::{Read, Write},
    thread,
};

use super::{LARGE, MIDDLE, assert_missing, assert_same, assert_there, blob, must, write};
use crate::{BlobStore, Digest256};

pub(super) const PROMISES: [fn(&dyn BlobStore); 13] = [
    what_is_put_is_given_back,
    what_was_never_put_is_missing,
    putting_twice_changes_nothing,
    a_reader_gives_what_get_gives,
    a_reader_goes_on_when_its_blob_is_put_again,
    what_is_written_and_committed_is_given_back,
    a_large_blob_may_be_written_in_odd_pieces,
    committing_what_is_there_already_succeeds,
    nothing_is_visible_before_the_commit,
    a_writer_dropped_uncommitted_leaves_nothing,
    a_writer_dropped_uncommitted_leaves_what_was_there,
    writers_do_not_mix,
    threads_may_put_at_once,
];

fn what_is_put_is_given_back(store: &dyn BlobStore) {
    for length in [0, 1, LARGE] {
        let bytes = blob(length, 1);
        let digest = must(store.put(&bytes), "put a blob");
        assert_eq!(digest, Digest256::of(&bytes), "put answers with another digest than that of the bytes");
        assert_there(store, &bytes);
    }
}

fn what_was_never_put_is_missing(store: &dyn BlobStore) {
    must(store.put(b"another blob"), "put a blob");
    assert_missing(store, &Digest256::of(b"never put"));
    assert_missing(store, &Digest256::from_bytes([0; 32]));
}

fn putting_twice_changes_nothing(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 2);
        let first = must(store.put(&bytes), "put a blob");
        let again = must(store.put(&bytes), "put a blob that is there already");
        assert_eq!(first, again, "the second put of equal bytes answers with another digest");
        assert_there(store, &bytes);
    }
}

fn a_reader_gives_what_get_gives(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 3);
        let digest = must(store.put(&bytes), "put a blob");
        let mut reader = must(store.reader(&digest), "open a reader");
        let mut read = Vec::new();
        must(reader.by_ref().take(7).read_to_end(&mut read), "read the first bytes");
        must(reader.read_to_end(&mut read), "read the rest");
        assert_same(&read, &bytes, "the reader");
        assert_eq!(
            must(reader.read(&mut [0; 1]), "read at the end"),
            0,
            "the reader has bytes after its end"
        );
    }
}

fn a_reader_goes_on_when_its_blob_is_put_again(store: &dyn BlobStore) {
    let bytes = blob(MIDDLE, 4);
    let digest = must(store.put(&bytes), "put a blob");
    let mut reader = must(store.reader(&digest), "open a reader");
    let mut read = Vec::new();
    must(reader.by_ref().take(1000).read_to_end(&mut read), "read the first bytes");
    must(store.put(&bytes), "put a blob that is being read");
    write(store, &bytes, MIDDLE);
    must(reader.read_to_end(&mut read), "read on");
    assert_same(&read, &bytes, "a reader whose blob was put again");
}

fn what_is_written_and_committed_is_given_back(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 5);
        write(store, &bytes, 4096);
        assert_there(store, &bytes);
    }
    // A writer without any bytes makes the empty blob, and the store then contains it.
    let writer = must(store.writer(), "open a writer");
    must(writer.commit(&Digest256::of(b"")), "commit an empty writer");
    assert_there(store, b"");
}

fn a_large_blob_may_be_written_in_odd_pieces(store: &dyn BlobStore) {
    let bytes = blob(4 * LARGE, 6);
    write(store, &bytes, 65_537);
    assert_there(store, &bytes);
    let bytes = blob(MIDDLE, 7);
    write(store, &bytes, 1);
    assert_there(store, &bytes);
}

fn committing_what_is_there_already_succeeds(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 8);
        must(store.put(&bytes), "put a blob");
        write(store, &bytes, MIDDLE);
        write(store, &bytes, MIDDLE);
        assert_there(store, &bytes);
    }
}

fn nothing_is_visible_before_the_commit(store: &dyn BlobStore) {
    let bytes = blob(MIDDLE, 9);
    let digest = Digest256::of(&bytes);
    let mut writer = must(store.writer(), "open a writer");
    must(writer.write_all(&bytes), "write");
    must(writer.flush(), "flush");
    assert_missing(store, &digest);
    must(writer.commit(&digest), "commit");
    assert_there(store, &bytes);
}

fn a_writer_dropped_uncommitted_leaves_nothing(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 10);
        let mut writer = must(store.writer(), "open a writer");
        must(writer.write_all(&bytes), "write");
        drop(writer);
        assert_missing(store, &Digest256::of(&bytes));
    }
}

fn a_writer_dropped_uncommitted_leaves_what_was_there(store: &dyn BlobStore) {
    let bytes = blob(MIDDLE, 11);
    must(store.put(&bytes), "put a blob");
    let mut writer = must(store.writer(), "open a writer");
    must(writer.write_all(&bytes[..MIDDLE / 2]), "write the half of a blob that is there");
    drop(writer);
    assert_there(store, &bytes);
}

fn writers_do_not_mix(store: &dyn BlobStore) {
    let (one, other) = (blob(MIDDLE, 12), blob(MIDDLE, 13));
    let mut first = must(store.writer(), "open a writer");
    let mut second = must(store.writer(), "open a second writer");
    for (one, other) in one.chunks(10_007).zip(other.chunks(10_007)) {
        must(first.write_all(one), "write to the first writer");
        must(second.write_all(other), "write to the second writer");
    }
    must(second.commit(&Digest256::of(&other)), "commit the second writer");
    must(first.commit(&Digest256::of(&one)), "commit the first writer");
    assert_there(store, &one);
    assert_there(store, &other);
}

fn threads_may_put_at_once(store: &dyn BlobStore) {
    let shared = blob(30_000, 14);
    thread::scope(|scope| {
        for thread in 0..8 {
            let shared = &shared;
            scope.spawn(move || {
                for round in 0..8 {
                    must(store.put(shared), "put a blob that other threads put too");
                    assert_there(store, shared);
                    write(store, shared, 10_000);
                    let own = blob(10_000, 1000 + thread * 100 + round);
                    must(store.put(&own), "put a blob while other threads do");
                    assert_there(store, &own);
                }
            });
        }
    });
    for thread in 0..8 {
        for round in 0..8 {
            assert_there(store, &blob(10_000, 1000 + thread * 100 + round));
        }
    }
}
