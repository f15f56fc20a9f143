//! Small chunked captures that describe endless work. `reachable`, `copy_capture` and `gc` still
//! end.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use criu_rpc::{
    BlobStore, Digest256, Error, MemBlobStore, Result,
    stored::{copy_capture, reachable},
};

const PIECE: usize = 64 << 10;

/// Stores a list with the same digest `count` times.
fn list(store: &MemBlobStore, digest: Digest256, count: usize) -> Digest256 {
    let list: Vec<u8> = std::iter::repeat_n(*digest.as_bytes(), count).flatten().collect();
    store.put(&list).unwrap()
}

/// Stores so many levels of full lists above this blob.
fn tower(store: &MemBlobStore, bottom: &[u8], depth: u8) -> Digest256 {
    (0..depth).fold(store.put(bottom).unwrap(), |below, _| list(store, below, 2048))
}

fn content(bytes: u64, depth: u8, digest: Digest256) -> String {
    format!(r#"{{"bytes":{bytes},"depth":{depth},"digest":"{digest}"}}"#)
}

/// Stores these bytes as a content.
fn content_of(store: &MemBlobStore, bytes: &[u8]) -> String {
    let mut level: Vec<_> = bytes.chunks(PIECE).map(|piece| store.put(piece).unwrap()).collect();
    let mut depth = 0;
    while level.len() > 1 {
        let lists = level.chunks(2048).map(|part| {
            let list: Vec<u8> = part.iter().flat_map(|digest| *digest.as_bytes()).collect();
            store.put(&list).unwrap()
        });
        level = lists.collect();
        depth += 1;
    }
    content(bytes.len() as u64, depth, level[0])
}

fn tree(images: &str, image_bytes: u64, memory_bytes: u64) -> String {
    format!(r#"{{"root":7,"images":{images},"image_bytes":{image_bytes},"memory_bytes":{memory_bytes}}}"#)
}

fn manifest(store: &MemBlobStore, trees: &[String]) -> Digest256 {
    let host = r#"{"criu":"","kernel":"","arch":"","cpu":[]}"#;
    let json = format!(
        r#"{{"kind":"procs.criu.v2","pids":[7],"taken":1,"trees":[{}],"host":{host}}}"#,
        trees.join(",")
    );
    store.put(json.as_bytes()).unwrap()
}

/// Stores a capture with these files and maps.
fn capture(
    store: &MemBlobStore,
    files: &[String],
    maps: &[String],
    image_bytes: u64,
    memory_bytes: u64,
) -> Digest256 {
    let empty = content(0, 0, store.put(b"").unwrap());
    let listing =
        format!(r#"{{"packed":{empty},"files":[{}],"memory":[{}]}}"#, files.join(","), maps.join(","));
    let images = content_of(store, listing.as_bytes());
    manifest(store, &[tree(&images, image_bytes, memory_bytes)])
}

fn file(name: &str, bytes: u64, content: &str) -> String {
    format!(r#"{{"name":"{name}","bytes":{bytes},"content":{content}}}"#)
}

/// Stores a map of so many full windows, all zeros.
fn map(store: &MemBlobStore, windows: u32) -> String {
    let leaf = store.put(&u64::MAX.to_le_bytes()).unwrap();
    let mut map = b"CRIUMAP1".to_vec();
    map.extend([1_u32, 4096].iter().flat_map(|number| number.to_le_bytes()));
    map.extend(1_u64.to_le_bytes());
    map.extend(0_u64.to_le_bytes());
    map.extend([windows * 64, 4].iter().flat_map(|number| number.to_le_bytes()));
    (0..windows).for_each(|_| map.extend(leaf.as_bytes()));
    content_of(store, &map)
}

/// Returns the result of the work, or fails if it takes too long.
#[track_caller]
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    told.recv_timeout(Duration::from_secs(60)).expect("it goes on and on")
}

/// Returns the blobs that are reachable from the capture, and checks that a copy has them too.
#[track_caller]
fn walk(store: impl BlobStore + 'static, digest: Digest256) -> Result<usize> {
    in_time(move || {
        let there = MemBlobStore::new();
        let copied = copy_capture(&store, &there, &digest);
        let found = reachable(&store, &[digest]);
        assert_eq!(copied.is_ok(), found.is_ok(), "{copied:?}");
        let found = found?;
        assert!(found.iter().all(|digest| there.contains(digest).unwrap()));
        Ok(found.len())
    })
}

#[track_caller]
fn refused(store: impl BlobStore + 'static, digest: Digest256, words: &str) {
    let error = walk(store, digest).unwrap_err();
    let Error::Capture { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Corrupt { .. }), "{source}");
    assert!(source.to_string().contains(words), "{source}");
}

#[test]
fn lists_of_lists_of_nothing_are_refused() {
    for (bottom, bytes) in [(&b""[..], 0), (b"x", 1), (b"", 1 << 40), (b"", u64::MAX)] {
        for depth in 1..=5 {
            let store = MemBlobStore::new();
            let top = tower(&store, bottom, depth);
            let digest = manifest(&store, &[tree(&content(bytes, depth, top), 0, 0)]);
            refused(store, digest, "");
            let store = MemBlobStore::new();
            let top = tower(&store, bottom, depth);
            let files = [file("files.img", bytes, &content(bytes, depth, top))];
            let digest = capture(&store, &files, &[], bytes, 0);
            // The walk does not read pieces, so it finds no fault in lists of the right shape.
            match (bytes, depth) {
                (0x100_0000_0000, 3) | (u64::MAX, 5) => _ = walk(store, digest),
                _ => refused(store, digest, "levels of lists"),
            }
        }
    }
}

#[test]
fn shared_lists_are_walked_once_however_much_they_stand_for() {
    let store = MemBlobStore::new();
    let top = tower(&store, &[7; PIECE], 4);
    let bytes = (PIECE as u64) << 44;
    let files = [file("files.img", bytes, &content(bytes, 4, top))];
    let digest = capture(&store, &files, &[], bytes, 0);
    // The five of the tower, the empty piece, the listing, the manifest.
    assert_eq!(walk(store, digest).unwrap(), 8);
}

#[test]
fn a_list_has_as_many_entries_as_the_length_demands() {
    let piece = [7; PIECE];
    let bytes = 3 * PIECE as u64 + 5;
    for entries in [0, 1, 3, 5, 2048] {
        let store = MemBlobStore::new();
        let top = list(&store, store.put(&piece).unwrap(), entries);
        let files = [file("files.img", bytes, &content(bytes, 1, top))];
        let digest = capture(&store, &files, &[], bytes, 0);
        refused(store, digest, "the list");
    }
    // A truncated entry.
    let store = MemBlobStore::new();
    let top = store.put(&[7; 4 * 32 - 1]).unwrap();
    let files = [file("files.img", bytes, &content(bytes, 1, top))];
    let digest = capture(&store, &files, &[], bytes, 0);
    refused(store, digest, "127 bytes, and 128");
}

#[test]
fn maps_have_no_more_memory_than_the_manifest_announces() {
    let store = Arc::new(MemBlobStore::new());
    let map = map(&store, 100_000);
    let maps: Vec<_> =
        (1000..1200).map(|pid| format!(r#"{{"name":"pagemap-{pid}.img","map":{map}}}"#)).collect();
    let small = capture(&store, &[], &maps[..1], 0, 4096);
    refused(store.clone(), small, "it has 26214400000 bytes of memory");
    // If its size is announced, the map is read once.
    let large = capture(&store, &[], &maps, 0, u64::MAX);
    assert!(walk(store, large).unwrap() > 4);
}

#[test]
fn a_listing_that_many_trees_share_is_read_once() {
    let store = MemBlobStore::new();
    let empty = content(0, 0, store.put(b"").unwrap());
    let mut listing = format!(r#"{{"packed":{empty},"files":[],"memory":[]}}"#).into_bytes();
    listing.resize(20 << 20, b' ');
    let images = content_of(&store, &listing);
    let trees: Vec<_> = (0..4000).map(|_| tree(&images, 0, 0)).collect();
    let digest = manifest(&store, &trees);
    assert!(walk(store, digest).is_ok());
    // Listings that are all new share one ceiling.
    let store = MemBlobStore::new();
    store.put(b"").unwrap();
    let trees: Vec<_> = (0..20_u8)
        .map(|number| {
            let last = listing.len() - usize::from(number) - 1;
            listing[last] = b'\n';
            tree(&content_of(&store, &listing), 0, 0)
        })
        .collect();
    let digest = manifest(&store, &trees);
    refused(store, digest, "bytes of listings");
}

#[test]
fn a_blob_that_is_too_long_for_a_manifest_is_none() {
    let store = MemBlobStore::new();
    let digest = store.put(&vec![b' '; 9 << 20]).unwrap();
    refused(store, digest, "more than 1048576 bytes");
}
