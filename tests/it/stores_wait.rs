//! Stores that wait for a lock: they give up at the deadline or when cancelled, and name the lock.

use std::{
    collections::HashSet,
    fs::File,
    path::PathBuf,
    process,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    BlobStore, Cancel, Digest256, Error, FsBlobStore, MemBlobStore, Result, Until,
    stored::{copy_capture_until, reachable_until},
};

/// A folder that is removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        Folder(std::env::temp_dir().join(format!("criu-rpc-wait-{name}-{}", process::id())))
    }

    /// Locks a file of the store, as another process would.
    fn lock(&self, name: &str) -> File {
        let file = File::options().create(true).truncate(false).write(true).open(self.0.join(name)).unwrap();
        file.lock().unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SHORT: Duration = Duration::from_millis(100);

fn soon() -> Until {
    Until::within(SHORT)
}

#[track_caller]
fn assert_late<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("it was not kept waiting") };
    assert!(matches!(error, Error::Overdue { .. }), "{error}");
    words.iter().for_each(|word| assert!(error.to_string().contains(word), "{word}: {error}"));
    assert!(error.advice().is_some());
}

#[test]
fn a_batch_waits_for_a_lock_no_longer_than_it_may() {
    let folder = Folder::new("batch");
    let store = FsBlobStore::open(&folder.0).unwrap();
    let held = folder.lock("lock");
    let path = folder.0.join("lock").display().to_string();
    assert_late(store.batch_until(&soon()), &[&path, "begin a batch"]);
    // A reference to a store waits as the store does.
    assert_late(<&FsBlobStore as BlobStore>::batch_until(&&store, &soon()), &[&path]);
    let boxed: Box<dyn BlobStore> = Box::new(FsBlobStore::open(&folder.0).unwrap());
    assert_late(boxed.batch_until(&soon()), &[&path]);
    assert_late(std::sync::Arc::new(boxed).batch_until(&soon()), &[&path]);

    let cancel = Cancel::new().unwrap();
    let token = cancel.clone();
    let cancelled = Until::forever().or_when(move || token.is_cancelled());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.batch_until(&cancelled).map(drop));
        thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        cancel.cancel();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.is_cancelled() && error.to_string().contains(&path), "{error}");
    });
    drop(held);
    store.batch_until(&soon()).unwrap().commit().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn the_holder_of_a_lock_is_named() {
    let folder = Folder::new("holder");
    let store = FsBlobStore::open(&folder.0).unwrap();
    let _held = folder.lock("lock");
    assert_late(store.batch_until(&soon()), &[&format!("process {} (", process::id())]);
}

#[test]
fn a_lock_that_is_let_go_in_time_is_taken() {
    let folder = Folder::new("released");
    let store = FsBlobStore::open(&folder.0).unwrap();
    let held = folder.lock("lock");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.batch_until(&Until::within(Duration::from_secs(60))).map(drop));
        thread::sleep(SHORT);
        drop(held);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_collection_waits_for_others_no_longer_than_it_may() {
    let folder = Folder::new("gc");
    let store = FsBlobStore::open(&folder.0).unwrap();
    let lost = store.put(b"lost").unwrap();
    let keep = HashSet::new();
    for (name, began) in [("gc.lock", "collect"), ("lock", "condemn")] {
        let _held = folder.lock(name);
        let path = folder.0.join(name).display().to_string();
        let before = Instant::now();
        assert_late(store.retain_until(&keep, Duration::ZERO, &soon()), &[&path, began]);
        assert_late(store.gc_until(&[], Duration::ZERO, &soon()), &[&path, began]);
        assert!(before.elapsed() < Duration::from_secs(8), "it has patience of its own");
        assert!(store.contains(&lost).unwrap(), "nothing was condemned");
    }
    assert_eq!(store.gc_until(&[], Duration::ZERO, &soon()).unwrap().marked.blobs, 1);
}

/// A slow store.
#[derive(Debug, Default)]
struct Slow(MemBlobStore);

impl BlobStore for Slow {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        self.0.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        thread::sleep(SHORT);
        self.0.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.0.contains(digest)
    }
}

#[test]
fn walking_the_lists_of_a_capture_ends_with_the_time_for_it() {
    let store = Slow::default();
    let empty = store.put(b"").unwrap();
    let content = format!(r#"{{"bytes":0,"depth":0,"digest":"{empty}"}}"#);
    let listing = store.put(format!(r#"{{"packed":{content},"files":[],"memory":[]}}"#).as_bytes()).unwrap();
    let bytes = store.get(&listing).unwrap().len();
    let tree = format!(
        r#"{{"root":7,"images":{{"bytes":{bytes},"depth":0,"digest":"{listing}"}},"image_bytes":0,"memory_bytes":0}}"#
    );
    let manifest = format!(
        r#"{{"kind":"procs.criu.v2","pids":[7],"taken":1,"trees":[{tree}],"host":{{"criu":"","kernel":"","arch":"","cpu":[]}}}}"#
    );
    let digest = store.put(manifest.as_bytes()).unwrap();
    let many = vec![digest; 1000];
    assert_late(reachable_until(&store, &many, &soon()), &["read the lists"]);
    assert_late(copy_capture_until(&store, &MemBlobStore::new(), &digest, &Until::within(SHORT / 2)), &[]);
    assert_eq!(reachable_until(&store, &[digest], &Until::within(Duration::from_secs(60))).unwrap().len(), 3);
}

/// A store of the three methods that every store has. The token is cancelled by the first blob.
#[derive(Debug)]
struct Three {
    blobs: MemBlobStore,
    puts: AtomicUsize,
    cancel: Cancel,
}

impl BlobStore for Three {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.cancel.cancel();
        self.blobs.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.blobs.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.blobs.contains(digest)
    }
}

#[test]
fn a_batch_of_a_store_of_three_methods_ends_between_two_blobs() {
    let cancel = Cancel::new().unwrap();
    let store = Three { blobs: MemBlobStore::new(), puts: AtomicUsize::new(0), cancel: cancel.clone() };
    let blobs = [&b"one"[..], b"two", b"three"].map(|bytes| (Digest256::of(bytes), bytes));
    let token = cancel.clone();
    let batch = store.batch_until(&Until::forever().or_when(move || token.is_cancelled())).unwrap();
    let error = batch.put(&blobs).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_eq!(store.puts.load(Ordering::Relaxed), 1);
    drop(batch);
    let batch = store.batch_until(&soon()).unwrap();
    let rest = [(Digest256::of(b"four"), &b"four"[..])];
    while batch.put(&rest).is_ok() {}
    assert_late(batch.put(&rest), &["store the blobs"]);
    store.batch_until(&Until::forever()).unwrap().put(&blobs).unwrap();
    assert_eq!(store.puts.load(Ordering::Relaxed), 4);
}
