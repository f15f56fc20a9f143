//! Collections on a real server: what they keep and remove, and which calls fail while one runs or
//! after one died.

use std::{
    collections::HashSet,
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ObjectBlobStore, Result, store::NobodyWrites};

use crate::{
    hostile, noise,
    s3::{Server, files_below},
};

type Blobs = Vec<(Digest256, Vec<u8>)>;

fn blobs(count: usize, seed: u64) -> Blobs {
    noise(count * 4096, seed).chunks(4096).map(|blob| (Digest256::of(blob), blob.to_vec())).collect()
}

/// Stores each set in a pack of its own.
fn put(store: &ObjectBlobStore, blobs: &[&Blobs]) {
    for set in blobs {
        let batch = store.batch().unwrap();
        let pairs: Vec<_> = set.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
        batch.put(&pairs).unwrap();
        batch.commit().unwrap();
    }
}

fn digests(sets: &[&Blobs]) -> HashSet<Digest256> {
    sets.iter().flat_map(|set| set.iter().map(|(digest, _)| *digest)).collect()
}

fn assert_there(store: &ObjectBlobStore, blobs: &Blobs) {
    assert!(blobs.iter().all(|(digest, bytes)| store.get(digest).unwrap() == *bytes));
}

fn assert_gone(store: &ObjectBlobStore, blobs: &Blobs) {
    assert!(blobs.iter().all(|(digest, _)| matches!(store.get(digest), Err(Error::Missing { .. }))));
}

#[track_caller]
fn said<T>(result: Result<T>) -> String {
    result.err().expect("because it must be refused").report().to_string()
}

fn promise() -> NobodyWrites {
    NobodyWrites::until_it_ends()
}

#[test]
fn a_collection_on_a_server_keeps_what_it_must_and_removes_the_rest() {
    let server = Server::start();
    let (store, other) = (server.open("p"), server.open("p"));
    let (kept, mixed, lost) = (blobs(300, 1), blobs(300, 2), blobs(300, 3));
    put(&store, &[&kept, &lost, &mixed.iter().chain(&blobs(300, 4)).cloned().collect()]);
    let large = noise(40 * 1024 * 1024, 5);
    let (large, single) = (store.put(&large).unwrap(), store.put(b"single").unwrap());
    let gone = [store.put(&noise(40 * 1024 * 1024, 6)).unwrap(), store.put(b"gone").unwrap()];
    assert_there(&other, &lost);
    let mut keep = digests(&[&kept, &mixed]);
    keep.extend([large, single]);
    let gc = store.collect_all_but(&keep, promise()).unwrap();
    assert_eq!((gc.removed.blobs, gc.postponed.blobs), (300 + 300 + 2, 0), "{gc:?}");
    for store in [&store, &other, &server.open("p")] {
        assert_eq!(store.missing(&[lost[0].0, gone[0], gone[1]]).unwrap().len(), 3);
        assert_there(store, &kept);
        assert_there(store, &mixed);
        assert_gone(store, &lost);
        assert!(gone.iter().all(|digest| matches!(store.get(digest), Err(Error::Missing { .. }))));
        assert_eq!(Digest256::of(&store.get(&large).unwrap()), large);
        assert_eq!(store.get(&single).unwrap(), b"single");
    }
    let left: Vec<_> = files_below(&server.files("p"));
    assert!(!left.iter().any(|path| path.parent().unwrap().ends_with("tmp")), "{left:?}");
    assert!(other.collect_all_but(&keep, promise()).unwrap().removed.blobs == 0);
    // With nothing to keep, nothing stays.
    store.collect(&[], promise()).unwrap();
    let left = files_below(&server.files("p"));
    assert!(left.iter().all(|path| path.parent().unwrap().ends_with("collections")), "{left:?}");
    put(&other, &[&lost]);
    assert_there(&store, &lost);
}

#[test]
fn what_began_before_a_collection_is_refused_at_its_commit() {
    let server = Server::start();
    let (store, writer_store) = (server.open("p"), server.open("p"));
    let lost = blobs(50, 1);
    put(&store, &[&lost]);
    let relies = writer_store.batch().unwrap();
    assert_eq!(relies.put(&[(lost[0].0, &lost[0].1)]).unwrap(), 0);
    let (fresh, large) = (blobs(1, 2).remove(0), noise(40 * 1024 * 1024, 3));
    let stores = writer_store.batch().unwrap();
    stores.put(&[(fresh.0, &fresh.1)]).unwrap();
    let mut writer = writer_store.writer().unwrap();
    writer.write_all(&large).unwrap();
    store.collect(&[], promise()).unwrap();
    let refused = [relies.commit(), stores.commit(), writer.commit(&Digest256::of(&large))];
    for refused in refused {
        let said = said(refused);
        assert!(said.contains("a collection has removed objects meanwhile"), "{said}");
    }
    // Repeating it succeeds, and removed blobs are stored anew.
    put(&writer_store, &[&lost]);
    assert_there(&server.open("p"), &lost);
}

#[test]
fn of_two_collectors_one_is_refused_and_told_of_the_other() {
    let server = Server::start();
    let (kept, lost) = (blobs(50, 1), blobs(50, 2));
    put(&server.open("p"), &[&kept, &lost]);
    let (gate, other) = (Gate::before(&server, 0), server.open("p"));
    thread::scope(|scope| {
        let collector = gate.open();
        let first = scope.spawn(move || collector.collect_all_but(&digests(&[&blobs(50, 1)]), promise()));
        gate.wait();
        let this = format!("collection 1 (by process {} of ", std::process::id());
        let refused = said(other.collect_all_but(&HashSet::new(), promise()));
        assert!(refused.contains(&this) && refused.contains("take it over"), "{refused}");
        let writers = [
            said(other.put(b"new")),
            said(other.put(&kept[0].1)),
            said(other.batch().map(drop)),
            said(other.writer().map(drop)),
        ];
        assert!(writers.iter().all(|said| said.contains(&this)), "{writers:?}");
        assert_there(&other, &kept);
        gate.release();
        // The remains of the refused put go, too.
        assert_eq!(first.join().unwrap().unwrap().removed.blobs, 51);
    });
    assert_there(&other, &kept);
    assert_gone(&server.open("p"), &lost);
    assert_eq!(other.put(b"new").unwrap(), Digest256::of(b"new"));
    assert_eq!(other.collect_all_but(&digests(&[&kept]), promise()).unwrap().removed.blobs, 1);
}

const CHILD: &str = "CRIU_RPC_OBJECT_COLLECTOR";

#[test]
fn a_collector_that_was_killed_is_taken_over() {
    if let Ok(endpoint) = env::var(CHILD) {
        let store = crate::s3::open_at(&endpoint, "p", &[]).unwrap();
        store.collect_all_but(&digests(&[&blobs(200, 1)]), promise()).unwrap();
        return;
    }
    // Before anything is removed, with some indexes removed, and with all of them removed.
    for removed in [0, 2, 7] {
        let server = Server::start();
        let (store, kept) = (server.open("p"), blobs(200, 1));
        let sets: Vec<Blobs> = (10..16).map(|seed| blobs(20, seed)).collect();
        sets.iter().for_each(|lost| put(&store, &[lost]));
        put(&store, &[&kept.iter().chain(&blobs(100, 20)).cloned().collect()]);
        let gate = Gate::before(&server, removed);
        let mut child = collect_in_a_child(&gate);
        gate.wait();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(gate);

        let this = format!("collection 1 (by process {} of ", child.id());
        assert_there(&server.open("p"), &kept);
        let refused = said(store.put(b"new"));
        assert!(refused.contains(&this) && refused.contains("is under way"), "{refused}");
        let refused = said(store.collect_all_but(&digests(&[&kept]), promise()));
        assert!(refused.contains(&this) && refused.contains("take it over"), "{refused}");
        let taken_over = promise().and_the_last_one_died();
        store.collect_all_but(&digests(&[&kept]), taken_over.clone()).unwrap();
        for store in [&store, &server.open("p")] {
            assert_there(store, &kept);
            sets.iter().for_each(|lost| assert_gone(store, lost));
            assert_gone(store, &blobs(100, 20));
        }
        // Only packs with kept blobs stay, and the marks of the collection. One pack may be a copy
        // that the first attempt made.
        let left = files_below(&server.files("p"));
        let packs = left.iter().filter(|path| path.parent().unwrap().ends_with("packs")).count();
        assert!([2, 4].contains(&packs) && left.len() == packs + 2, "{left:?}");
        put(&store, &[&sets[0]]);
        // Taking over a collection that has ended is a new collection.
        assert_eq!(store.collect_all_but(&digests(&[&kept]), taken_over).unwrap().removed.blobs, 20);
    }
}

fn collect_in_a_child(gate: &Gate) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "collected::a_collector_that_was_killed_is_taken_over", "--nocapture"])
        .env(CHILD, gate.endpoint())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_server_that_heeds_no_conditions_is_refused_with_the_reason() {
    let server = Server::start();
    let store = server.try_open("p", &[("conditional_put", "disabled")]).unwrap();
    let blob = store.put(b"a blob").unwrap();
    let refused = said(store.collect(&[], promise()));
    assert!(refused.contains("on the condition that there is none"), "{refused}");
    assert_eq!(store.get(&blob).unwrap(), b"a blob");
    let left = files_below(&server.files("p"));
    assert_eq!(left.len(), 1, "{left:?}");

    // The server writes regardless of the condition, because it does not know the header.
    let answers =
        [("200 OK", "the store does not heed conditions"), ("501 Not Implemented", "on the condition that")];
    for (answer, reason) in answers {
        let (removed, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (removing, creating) = (Arc::clone(&removed), Arc::clone(&seen));
        let port = hostile::serve(move |stream, request| {
            let (status, body) = match request {
                list if list.contains("list-type") => ("200 OK", "<ListBucketResult></ListBucketResult>"),
                put if put.contains("if-none-match") => {
                    assert!(put.contains("/p/tmp/"), "{put}");
                    creating.fetch_add(1, Ordering::SeqCst);
                    (answer, "")
                }
                _ => {
                    removing.fetch_add(1, Ordering::SeqCst);
                    ("200 OK", "<DeleteResult></DeleteResult>")
                }
            };
            let length = body.len();
            let _ =
                write!(stream, "HTTP/1.1 {status}\r\netag: \"x\"\r\ncontent-length: {length}\r\n\r\n{body}");
        });
        let refused = said(hostile::open(port, "5").unwrap().collect(&[], promise()));
        assert!(refused.contains(reason), "{refused}");
        // Only the probe was removed.
        assert!(seen.load(Ordering::SeqCst) > 0 && removed.load(Ordering::SeqCst) <= 1);
    }
}

/// A gate in front of the server. It lets so many requests pass that remove packs or indexes, and
/// holds the next one until it is released.
struct Gate {
    port: u16,
    held: Arc<AtomicUsize>,
    released: Arc<AtomicBool>,
}

impl Gate {
    fn before(server: &Server, removals: usize) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            held: Arc::default(),
            released: Arc::default(),
        };
        let (held, released, port) = (Arc::clone(&gate.held), Arc::clone(&gate.released), server.port());
        let passed = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut to_server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (mut from_server, mut to_client) =
                    (to_server.try_clone().unwrap(), client.try_clone().unwrap());
                let (held, released, passed) =
                    (Arc::clone(&held), Arc::clone(&released), Arc::clone(&passed));
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from_server, &mut to_client);
                });
                thread::spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(read @ 1..) = client.read(&mut buffer) {
                        let text = String::from_utf8_lossy(&buffer[..read]);
                        let removes = text.contains("<Key>p/packs/")
                            || text.lines().any(|line| line.starts_with("DELETE /bucket/p/packs/"));
                        if removes && passed.fetch_add(1, Ordering::SeqCst) >= removals {
                            held.fetch_add(1, Ordering::SeqCst);
                            while !released.load(Ordering::SeqCst) {
                                thread::sleep(Duration::from_millis(5));
                            }
                        }
                        if to_server.write_all(&buffer[..read]).is_err() {
                            return;
                        }
                    }
                    let _ = to_server.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        gate
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Opens the store behind the gate.
    fn open(&self) -> ObjectBlobStore {
        crate::s3::open_at(&self.endpoint(), "p", &[]).unwrap()
    }

    /// Waits until a request is held.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.held.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "nothing was removed");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}
