//! Test suite that every store must pass, for authors of stores (feature `conformance`).
//!
//! ```
//! use criu_rpc::{MemBlobStore, store::conformance};
//!
//! // In a test of your crate, with your store:
//! conformance::check(MemBlobStore::new);
//! ```

mod batches;
mod blobs;
mod many;

use std::io::{Read, Write};

use crate::{BlobStore, Digest256, Error};

/// Tests a store against the contract of [`BlobStore`], and its batches against that of
/// [`BlobBatch`](crate::store::BlobBatch).
///
/// `make` returns a store that has none of the suite's blobs; it is called once for each promise.
/// The suite stores some forty megabytes in all.
///
/// # Panics
///
/// When a promise is broken: the message says which, and how.
///
/// # Examples
///
/// A shared pointer to a store is a store too:
///
/// ```
/// use std::sync::Arc;
///
/// use criu_rpc::{BlobStore, MemBlobStore, store::conformance};
///
/// conformance::check(|| Arc::new(MemBlobStore::new()) as Arc<dyn BlobStore>);
/// ```
pub fn check<S: BlobStore>(make: impl Fn() -> S) {
    for promise in blobs::PROMISES.iter().chain(&many::PROMISES).chain(&batches::PROMISES) {
        promise(&make());
    }
}

#[track_caller]
fn write(store: &dyn BlobStore, bytes: &[u8], piece: usize) {
    let mut writer = must(store.writer(), "open a writer");
    for piece in bytes.chunks(piece) {
        must(writer.write_all(piece), "write");
    }
    must(writer.commit(&Digest256::of(bytes)), "commit");
}

#[track_caller]
fn assert_there(store: &dyn BlobStore, bytes: &[u8]) {
    let digest = Digest256::of(bytes);
    assert!(
        must(store.contains(&digest), "ask for a blob"),
        "contains denies a blob that was stored: {digest}"
    );
    assert_same(&must(store.get(&digest), "get a blob"), bytes, "get");
    let mut read = Vec::new();
    must(must(store.reader(&digest), "open a reader").read_to_end(&mut read), "read a blob");
    assert_same(&read, bytes, "the reader");
}

#[track_caller]
fn assert_missing(store: &dyn BlobStore, digest: &Digest256) {
    assert!(!must(store.contains(digest), "ask for a blob"), "contains claims a blob that is not stored");
    let missing = |error: &Error| is_missing(error, digest);
    match store.get(digest) {
        Err(error) if missing(&error) => {}
        Err(error) => panic!("get answers {error:?} for a blob that is not stored, not Error::Missing"),
        Ok(bytes) => panic!("get gives {} bytes for a blob that is not stored", bytes.len()),
    }
    match store.reader(digest) {
        Err(error) if missing(&error) => {}
        Err(error) => panic!("reader answers {error:?} for a blob that is not stored, not Error::Missing"),
        Ok(_) => panic!("reader opens a blob that is not stored"),
    }
}

/// Returns true if the error reports exactly this digest as missing.
fn is_missing(error: &Error, asked: &Digest256) -> bool {
    matches!(error, Error::Missing { digest } if digest == asked)
}

/// Compares without printing a megabyte.
#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], who: &str) {
    if found != expected {
        let same = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
        panic!(
            "{who} gives {} bytes for {} that were stored; they differ from byte {same} on",
            found.len(),
            expected.len()
        );
    }
}

#[track_caller]
fn must<T, E: std::error::Error>(result: Result<T, E>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("could not {what}: {error}: {error:?}"),
    }
}

/// Returns bytes that are unique for the length and the seed.
fn blob(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed << 32 | length as u64 | 1 << 63;
    let next = || {
        // xorshift64 makes no pattern that a store could repeat by accident.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

const LARGE: usize = 1024 * 1024 + 3;
const MIDDLE: usize = 200_003;
