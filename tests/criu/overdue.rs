//! Deadlines and tokens cover the work of this crate itself: locks, stores that are slow or stuck,
//! and reading.

use std::{
    fs::File,
    io::{self, Write},
    sync::{Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, Cancel, Chunking, Digest256, Error, FsBlobStore, ProcsCapture, Result, store::BlobWriter};

use crate::{
    harness::tests,
    places::{Home, wait_until},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_capture_waits_for_a_lock_no_longer_than_its_deadline,
    a_capture_that_waits_for_a_lock_can_be_cancelled,
    a_store_that_is_late_keeps_nothing_and_the_tree_goes_on,
    a_store_that_is_stuck_keeps_no_tree_frozen_past_the_deadline,
    a_store_that_is_stuck_keeps_no_tree_frozen_when_it_is_cancelled,
    a_restore_reads_no_longer_than_its_deadline,
];

const SHORT: Duration = Duration::from_secs(1);

/// Each kind of capture of these processes, with a name.
fn kinds(home: &Home, pid: i32) -> [(&'static str, ProcsCapture); 4] {
    let capture = || home.capture([pid]);
    let chunked = || capture().chunked(Chunking::default());
    [
        ("an archive", capture()),
        ("chunks", chunked()),
        ("an archive at the end", capture().leave_running(false)),
        ("chunks at the end", chunked().leave_running(false)),
    ]
}

fn a_capture_waits_for_a_lock_no_longer_than_its_deadline() {
    let home = Home::new();
    let (store, mut victim) = (home.store(), Victim::start(&["memory=1"]));
    let path = home.path("store").join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
    lock.lock().unwrap();
    for (name, capture) in kinds(&home, victim.pid()).into_iter().filter(|(name, _)| name.contains("chunks")) {
        let error = capture.deadline(SHORT).capture(&store).expect_err(name);
        assert!(matches!(error, Error::Overdue { .. }), "{name}: {}", explain(&error));
        let words = error.to_string();
        assert!(words.contains(&path.display().to_string()), "{name}: {words}");
        assert!(words.contains(&format!("process {} (", std::process::id())), "{name}: {words}");
        assert!(victim.ask("tick").starts_with("count"));
        home.assert_staging_empty();
    }
    drop(lock);
    home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
}

fn a_capture_that_waits_for_a_lock_can_be_cancelled() {
    let home = Home::new();
    let (store, mut victim) = (home.store(), Victim::start(&[]));
    let lock = File::options().create(true).truncate(false).write(true).open(home.path("store").join("lock"));
    let lock = lock.unwrap();
    lock.lock().unwrap();
    let cancel = Cancel::new().unwrap();
    let capture = home.capture([victim.pid()]).chunked(Chunking::default()).cancelled_by(&cancel);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| capture.capture(&store));
        thread::sleep(SHORT / 4);
        assert!(!waiting.is_finished(), "it waits for the lock");
        cancel.cancel();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{}", explain(&error));
    });
    assert!(victim.ask("tick").starts_with("count"));
}

/// A store that takes nothing in while it is stuck.
#[derive(Debug)]
struct Stuck {
    inner: FsBlobStore,
    stuck: Mutex<bool>,
    entered: Mutex<bool>,
    released: Condvar,
}

impl Stuck {
    fn new(home: &Home) -> Stuck {
        let (stuck, entered) = (Mutex::new(true), Mutex::new(false));
        Stuck { inner: home.store(), stuck, entered, released: Condvar::new() }
    }

    fn wait(&self) {
        *self.entered.lock().unwrap() = true;
        let mut stuck = self.stuck.lock().unwrap();
        while *stuck {
            stuck = self.released.wait(stuck).unwrap();
        }
    }

    fn release(&self) {
        *self.stuck.lock().unwrap() = false;
        self.released.notify_all();
    }
}

impl BlobStore for Stuck {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        self.wait();
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.inner.contains(digest)
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        Ok(Box::new(StuckWriter { store: self, inner: self.inner.writer()? }))
    }
}

struct StuckWriter<'a> {
    store: &'a Stuck,
    inner: Box<dyn BlobWriter + 'a>,
}

impl Write for StuckWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.store.wait();
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobWriter for StuckWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        self.inner.commit(digest)
    }
}

fn a_store_that_is_late_keeps_nothing_and_the_tree_goes_on() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=4"]);
    for (name, capture) in kinds(&home, victim.pid()) {
        let store = Stuck::new(&home);
        thread::scope(|scope| {
            let capturing = scope.spawn(|| capture.deadline(SHORT).capture(&store));
            wait_until("the store to be asked", || *store.entered.lock().unwrap());
            thread::sleep(SHORT + SHORT / 4);
            assert!(!capturing.is_finished(), "{name}: it waits for the store");
            store.release();
            let error = capturing.join().unwrap().expect_err(name);
            assert!(error.is_timeout(), "{name}: {}", explain(&error));
        });
        assert!(victim.ask("tick").starts_with("count"));
        home.assert_staging_empty();
    }
    home.capture([victim.pid()]).leave_running(false).capture(&home.store()).or_explain();
}

fn stuck(cancelled: bool) {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=4"]);
    for (name, capture) in kinds(&home, victim.pid()).into_iter().filter(|(name, _)| name.contains("end")) {
        let store = Stuck::new(&home);
        let cancel = Cancel::new().unwrap();
        let capture = match cancelled {
            true => capture.cancelled_by(&cancel),
            false => capture.deadline(2 * SHORT),
        };
        thread::scope(|scope| {
            let capturing = scope.spawn(|| capture.capture(&store));
            wait_until("the store to be asked", || *store.entered.lock().unwrap());
            if cancelled {
                cancel.cancel();
            }
            let before = Instant::now();
            victim.ask("check"); // answers only when the tree goes on
            assert!(before.elapsed() < 20 * SHORT, "{name}");
            assert!(!capturing.is_finished(), "{name}: the store is stuck");
            store.release();
            let error = capturing.join().unwrap().expect_err(name);
            assert_eq!((error.is_cancelled(), error.is_timeout()), (cancelled, !cancelled), "{}", explain(&error));
        });
        assert!(victim.ask("tick").starts_with("count"));
        home.assert_staging_empty();
    }
}

fn a_store_that_is_stuck_keeps_no_tree_frozen_past_the_deadline() {
    stuck(false);
}

fn a_store_that_is_stuck_keeps_no_tree_frozen_when_it_is_cancelled() {
    stuck(true);
}

/// A store that gives everything out late.
#[derive(Debug)]
struct Late(FsBlobStore);

impl BlobStore for Late {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        self.0.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        thread::sleep(SHORT / 2);
        self.0.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.0.contains(digest)
    }
}

fn a_restore_reads_no_longer_than_its_deadline() {
    let home = Home::new();
    let store = home.store();
    for chunked in [false, true] {
        let victim = Victim::start(&["memory=4"]);
        let members = victim.members();
        let capture = home.capture([victim.pid()]);
        let capture = if chunked { capture.chunked(Chunking::default()) } else { capture };
        let digest = capture.leave_running(false).capture(&store).or_explain();
        victim.reap(&members);
        let late = Late(home.store());
        let error = home.restore().deadline(SHORT * 3 / 4).restore(&late, &digest).expect_err("it is late");
        assert!(matches!(error, Error::Overdue { .. }), "{chunked}: {}", explain(&error));
        home.assert_staging_empty();
        let cancel = Cancel::new().unwrap();
        cancel.cancel();
        let error = home.restore().cancelled_by(&cancel).restore(&store, &digest).expect_err("it is cancelled");
        assert!(matches!(error, Error::Stopped { .. }), "{chunked}: {}", explain(&error));
        home.assert_staging_empty();
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("check"), "memory ok 1024 pages");
    }
}
