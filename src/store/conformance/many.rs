//! Many blobs at once, and parts of blobs.

use super::{LARGE, MIDDLE, assert_same, blob, is_missing, must};
use crate::{BlobStore, Digest256, Error};

pub(super) const PROMISES: [fn(&dyn BlobStore); 8] = [
    what_is_missing_is_told_in_the_order_asked,
    a_part_is_what_lies_there,
    a_part_of_a_large_blob_may_lie_anywhere,
    a_part_of_what_is_missing_is_an_error,
    many_come_each_place_once,
    many_of_which_one_is_missing_are_an_error,
    many_stop_where_the_caller_says,
    many_of_none_are_nothing,
];

fn what_is_missing_is_told_in_the_order_asked(store: &dyn BlobStore) {
    let there = must(store.put(b"there"), "put a blob");
    let empty = must(store.put(b""), "put the empty blob");
    let (one, other) = (Digest256::of(b"never put"), Digest256::of(b"neither"));
    let missing = |asked: &[Digest256]| must(store.missing(asked), "ask what is missing");
    assert_eq!(missing(&[]), [], "missing names blobs that nobody asked for");
    assert_eq!(missing(&[there, empty, there]), [], "missing names blobs that were stored");
    assert_eq!(
        missing(&[one, there, other, empty, one, other]),
        [one, other, one, other],
        "missing does not name what is not stored in the order asked, as often as asked"
    );

    let asked: Vec<_> = (0_u32..3000).map(|n| Digest256::of(&n.to_le_bytes())).collect();
    for n in (0_u32..3000).step_by(200) {
        must(store.put(&n.to_le_bytes()), "put a blob");
    }
    let expected: Vec<_> = (0..3000).filter(|n| n % 200 != 0).map(|n| asked[n]).collect();
    assert!(missing(&asked) == expected, "missing is wrong about some of three thousand blobs");
}

fn a_part_is_what_lies_there(store: &dyn BlobStore) {
    for length in [0, 1, MIDDLE] {
        let bytes = blob(length, 20);
        let digest = must(store.put(&bytes), "put a blob");
        let end = length as u64;
        for (offset, wanted) in [
            (0, 0),
            (0, 1),
            (0, length),
            (0, length + 1),
            (0, usize::MAX),
            (1, 7),
            (end / 2, length / 3),
            (end / 2, length),
            (end / 2, usize::MAX),
            (end.saturating_sub(1), 1),
            (end.saturating_sub(1), 10),
            (end, 0),
            (end, 1),
            (end, usize::MAX),
            (end + 1, 0),
            (end + 1, 1),
            (u64::MAX - 1, 1),
            (u64::MAX, 0),
            (u64::MAX, 1),
            (u64::MAX, usize::MAX),
        ] {
            assert_part(store, &digest, &bytes, offset, wanted);
        }
    }
}

fn a_part_of_a_large_blob_may_lie_anywhere(store: &dyn BlobStore) {
    let bytes = blob(3 * LARGE, 21);
    let digest = must(store.put(&bytes), "put a blob");
    for boundary in [4096, 1 << 16, 1 << 20, 2 << 20, 3 << 20] {
        for offset in [boundary - 1, boundary, boundary + 1] {
            for wanted in [1, 2, 5000] {
                assert_part(store, &digest, &bytes, offset, wanted);
            }
        }
        for wanted in [0, 1 << 20, (1 << 20) + 1, 2 << 20] {
            assert_part(store, &digest, &bytes, boundary - 1, wanted);
        }
    }
}

#[track_caller]
fn assert_part(store: &dyn BlobStore, digest: &Digest256, bytes: &[u8], offset: u64, wanted: usize) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let expected = &bytes[start..start.saturating_add(wanted).min(bytes.len())];
    let part = must(store.read_range(digest, offset, wanted), "read a part of a blob");
    assert_same(&part, expected, &format!("the part of {wanted} bytes from {offset} of {}", bytes.len()));
}

fn a_part_of_what_is_missing_is_an_error(store: &dyn BlobStore) {
    must(store.put(b"another blob"), "put a blob");
    let digest = Digest256::of(b"never put");
    for (offset, wanted) in [(0, 0), (0, 1), (7, 7), (u64::MAX, usize::MAX)] {
        match store.read_range(&digest, offset, wanted) {
            Err(error) if is_missing(&error, &digest) => {}
            other => panic!("read_range answers {other:?} for a blob that is not stored, not Error::Missing"),
        }
    }
}

fn many_come_each_place_once(store: &dyn BlobStore) {
    let blobs: Vec<_> = (0..40).map(|n| blob([0, 1, 4096, 70_000][n % 4], 2000 + n as u64)).collect();
    let mut asked: Vec<_> = blobs.iter().map(|bytes| must(store.put(bytes), "put a blob")).collect();
    // Ask for each a second time in reverse order, and for one of them many times.
    asked.extend_from_within(..);
    asked[blobs.len()..].reverse();
    asked.extend([asked[3]; 5]);
    let of = |digest: &Digest256| blobs.iter().find(|bytes| Digest256::of(bytes) == *digest);

    let mut told = vec![0; asked.len()];
    let got = store.get_many(&asked, &mut |place, bytes| {
        let expected = of(&asked[place]).expect("because only these were asked for");
        assert_same(bytes, expected, "get_many");
        told[place] += 1;
        Ok(())
    });
    must(got, "get many blobs");
    assert!(told.iter().all(|times| *times == 1), "get_many does not tell every place once: {told:?}");
}

fn many_of_which_one_is_missing_are_an_error(store: &dyn BlobStore) {
    let missing = Digest256::of(b"never put");
    let mut asked: Vec<_> = (0..30).map(|n| must(store.put(&blob(1000, 3000 + n)), "put a blob")).collect();
    for place in [0, 15, 31] {
        asked.insert(place, missing);
        let mut told = vec![0; asked.len()];
        let got = store.get_many(&asked, &mut |told_place, bytes| {
            assert_eq!(Digest256::of(bytes), asked[told_place], "get_many gives the bytes of another blob");
            told[told_place] += 1;
            Ok(())
        });
        match got {
            Err(error) if is_missing(&error, &missing) => {}
            other => panic!("get_many answers {other:?} where a blob is not stored, not Error::Missing"),
        }
        assert!(told.iter().all(|times| *times < 2), "get_many tells a place twice: {told:?}");
        assert_eq!(told[place], 0, "get_many gives bytes for a blob that is not stored");
        asked.retain(|digest| *digest != missing);
        asked.push(must(store.put(&blob(1000, 3030)), "put a blob"));
    }
}

fn many_stop_where_the_caller_says(store: &dyn BlobStore) {
    let asked: Vec<_> = (0..30).map(|n| must(store.put(&blob(1000, 4000 + n)), "put a blob")).collect();
    for last in [1, 2, 20] {
        let mut told = 0;
        let got = store.get_many(&asked, &mut |_, _| {
            told += 1;
            if told < last { Ok(()) } else { Err(Error::store(ENOUGH, "the caller has enough")) }
        });
        match got {
            Err(Error::Store { doing, .. }) if doing == ENOUGH => {}
            other => {
                panic!("get_many answers {other:?} where its caller said to stop, not what the caller said")
            }
        }
        assert_eq!(told, last, "get_many goes on after its caller said to stop");
    }
}

const ENOUGH: &str = "go on";

fn many_of_none_are_nothing(store: &dyn BlobStore) {
    must(store.put(b"another blob"), "put a blob");
    let got = store.get_many(&[], &mut |_, _| panic!("get_many gives what nobody asked for"));
    must(got, "get no blobs");
}
