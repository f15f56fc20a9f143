//! Labels of a capture, and blobs that are attached to it: kept, copied and collected with it.

use std::{env, fs, process, time::Duration};

use criu_rpc::{
    BlobStore, Chunking, Digest256, Error, FsBlobStore, MemBlobStore, ProcsBlob, ProcsCapture, Result,
    stored::{copy_capture, reachable},
};

/// Stores a capture without files and memory, to which these blobs are attached.
fn capture(store: &impl BlobStore, attached: &[(&str, Digest256)]) -> Digest256 {
    let content = |bytes: &[u8]| {
        format!(r#"{{"bytes":{},"depth":0,"digest":"{}"}}"#, bytes.len(), store.put(bytes).unwrap())
    };
    let listing = format!(r#"{{"packed":{},"files":[],"memory":[]}}"#, content(b""));
    let tree =
        format!(r#"{{"root":7,"images":{},"image_bytes":0,"memory_bytes":0}}"#, content(listing.as_bytes()));
    let attached: Vec<_> = attached.iter().map(|(name, digest)| format!(r#""{name}":"{digest}""#)).collect();
    let json = format!(
        r#"{{"kind":"procs.criu.v2","pids":[7],"trees":[{tree}],"host":{{"criu":"","kernel":"","arch":"","cpu":[]}},"taken":1,"attached":{{{}}}}}"#,
        attached.join(",")
    );
    store.put(json.as_bytes()).unwrap()
}

/// Returns a blob that is no list or manifest, and is larger than a pack's frame.
fn snapshot() -> Vec<u8> {
    (0..5_000_000_u32).map(|number| u8::try_from(number % 249).unwrap()).collect()
}

#[test]
fn what_is_attached_is_reachable_and_copied() {
    let store = MemBlobStore::new();
    // A manifest is attached like any other blob: its own blobs are not read, and may be missing.
    let missing = Digest256::of(b"nothing has these bytes");
    let other = ProcsBlob::Criu { criu_dump: missing, pids: vec![7.into()] };
    let files = [store.put(&snapshot()).unwrap(), store.put(&other.to_json()).unwrap()];
    let digest = capture(&store, &[("files", files[0]), ("before", files[1])]);
    let found = reachable(&store, &[digest]).unwrap();
    assert!(files.iter().all(|file| found.contains(file)) && !found.contains(&missing));

    let there = MemBlobStore::new();
    let bytes = copy_capture(&store, &there, &digest).unwrap();
    assert!(bytes > 5_000_000, "{bytes}");
    assert!(found.iter().all(|digest| there.get(digest).unwrap() == store.get(digest).unwrap()));
    assert_eq!(copy_capture(&store, &there, &digest).unwrap(), 0);
}

#[test]
fn a_capture_without_what_is_attached_is_not_copied() {
    let store = MemBlobStore::new();
    let missing = Digest256::of(b"nothing has these bytes");
    let digest = capture(&store, &[("files", missing)]);
    assert!(reachable(&store, &[digest]).unwrap().contains(&missing));
    let there = MemBlobStore::new();
    let error = copy_capture(&store, &there, &digest).unwrap_err();
    assert!(matches!(error, Error::Missing { digest, .. } if digest == missing), "{error}");
    assert!(!there.contains(&digest).unwrap());
}

#[test]
fn a_collection_keeps_what_is_attached() {
    let folder = env::temp_dir().join(format!("criu-rpc-attached-{}", process::id()));
    let store = FsBlobStore::open(&folder).unwrap();
    let (files, other) = (store.put(&snapshot()).unwrap(), store.put(b"of nothing").unwrap());
    let digest = capture(&store, &[("files", files)]);
    for _ in 0..2 {
        store.gc(&[digest], Duration::ZERO).unwrap();
    }
    assert!(store.contains(&files).unwrap() && !store.contains(&other).unwrap());
    for _ in 0..2 {
        store.gc(&[], Duration::ZERO).unwrap();
    }
    assert!(!store.contains(&files).unwrap());
    fs::remove_dir_all(&folder).unwrap();
}

/// Captures a process that does not exist: an error of the additions comes first.
fn refused(prepare: impl FnOnce(ProcsCapture) -> ProcsCapture) -> Error {
    let result: Result<_> = prepare(ProcsCapture::new([i32::MAX])).run(&MemBlobStore::new());
    result.unwrap_err()
}

#[test]
fn additions_that_cannot_be_stored_are_refused_before_anything_else() {
    let chunked = |capture: ProcsCapture| capture.chunked(Chunking::default());
    let missing = Digest256::of(b"nothing has these bytes");
    let error = refused(|capture| capture.label("step", "17"));
    assert!(matches!(error, Error::Options { option: "label", .. }), "{error}");
    let error = refused(|capture| capture.attach("files", missing));
    assert!(matches!(error, Error::Options { option: "attach", .. }), "{error}");
    let error = refused(|capture| chunked(capture).label("", "17"));
    assert!(matches!(error, Error::Options { option: "label", .. }), "{error}");
    let error = refused(|capture| chunked(capture).label("step", "7".repeat(1 << 16)));
    assert!(matches!(error, Error::Options { option: "label", .. }), "{error}");
    let error = refused(|capture| chunked(capture).attach("files", missing));
    assert!(matches!(error, Error::Missing { digest, .. } if digest == missing), "{error}");
    let error = refused(|capture| chunked(capture).label("step", "17"));
    assert!(!matches!(error, Error::Options { .. } | Error::Missing { .. }), "{error}");
}
