//! Captures in chunks: what changed is what they cost, and what they are made of is what was there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use criu_rpc::{BlobStore, BufferPool, Chunking, Digest256, Error, MemBlobStore, ProcsBlob, RestoreOptions, Warning, stored::{copy_capture, reachable}};

use serde_json::{Value, json};

use crate::{
    capture::a_rich_tree,
    harness::tests,
    places::{Home, children, wait_until},
    stores::{Burst, burst},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, wait_gone},
};

tests![
    a_rich_tree_goes_on_and_is_revived_from_chunks,
    chunks_of_every_size_are_revived,
    a_tree_ends_when_its_chunks_are_stored,
    several_trees_are_captured_in_chunks,
    what_did_not_change_costs_nothing,
    a_small_buffer_holds_the_stream_back_and_loses_nothing,
    captures_that_live_survive_a_collection,
    a_store_that_lies_revives_nothing,
    a_blob_that_is_missing_is_named,
    a_store_that_becomes_full_leaves_the_tree_as_it_was,
    a_store_that_panics_leaves_the_tree_as_it_was,
    a_capture_of_another_processor_is_refused_unless_asked_for,
    options_that_need_real_files_have_them,
    a_store_that_hangs_does_not_keep_criu_past_its_deadline,
    a_store_that_panics_leaves_nothing_waiting,
    all_trees_of_a_capture_are_within_the_limit,
    labels_and_attached_blobs_are_part_of_a_capture,
    a_capture_of_a_kernel_with_other_pages_is_refused,
];

fn a_rich_tree_goes_on_and_is_revived_from_chunks() {
    a_rich_tree(|capture| capture.chunked(Chunking::default()));
}

fn chunks_of_every_size_are_revived() {
    for kib in [8, 16, 32, 64, 128, 256] {
        let home = Home::new();
        let store = home.store();
        let mut victim = Victim::start(&["memory=8", "children=1"]);
        let chunking = Chunking::default().chunk(kib << 10);
        let digest = home.capture([victim.pid()]).chunked(chunking).capture(&store).or_explain();
        assert_eq!(victim.ask("check"), "memory ok 2048 pages");
        victim.end();
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("check"), "memory ok 2048 pages");
    }
}

fn a_tree_ends_when_its_chunks_are_stored() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["memory=8", "children=1"]);
    let members = victim.members();
    let capture = home.capture([victim.pid()]).chunked(Chunking::default()).leave_running(false);
    let digest = capture.capture(&store).or_explain();
    victim.reap(&members);
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 2048 pages");
}

fn several_trees_are_captured_in_chunks() {
    let home = Home::new();
    let store = home.store();
    let mut victims = [Victim::start(&["memory=4"]), Victim::start(&["memory=8"])];
    let pids = victims.each_ref().map(Victim::pid);
    let stored = home.capture(pids).chunked(Chunking::default()).run(&store).or_explain();
    let ProcsBlob::Chunked(blob) = &stored.manifest else { panic!("{:?}", stored.manifest) };
    assert_eq!(blob.trees.iter().map(|tree| tree.root).collect::<std::collections::BTreeSet<_>>(), pids.map(criu_rpc::Pid::from).into());
    assert!(blob.trees.iter().all(|tree| tree.memory_bytes > 4 << 20));
    for victim in &mut victims {
        victim.assert_counts_on(0);
    }
    victims.into_iter().for_each(Victim::end);
    // Without input the trees would end at once, in the middle of the restore.
    let (_open, input, _) = Talk::through_pipes();
    let restored = home.restore().stdin(input).restore(&store, &stored.digest).or_explain();
    assert_eq!(restored.trees.len(), 2);
    for mut tree in restored.trees {
        tree.kill().unwrap();
        tree.wait().unwrap();
    }
}

fn what_did_not_change_costs_nothing() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["memory=64"]);
    let run = || home.capture([victim.pid()]).chunked(Chunking::default()).run(&store).or_explain();
    let first = run();
    let ProcsBlob::Chunked(blob) = &first.manifest else { panic!("{:?}", first.manifest) };
    assert!(blob.trees[0].memory_bytes >= 64 << 20, "{blob:?}");
    assert!(!blob.host.criu.is_empty() && !blob.host.kernel.is_empty() && blob.frozen_us.is_some(), "{blob:?}");
    // It slept in between.
    let second = run();
    assert!(second.bytes < 1 << 20, "{} bytes after {}", second.bytes, first.bytes);
    victim.end();
}

fn a_small_buffer_holds_the_stream_back_and_loses_nothing() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let mut victim = Victim::start(&["memory=64"]);
    let capture = home.capture([victim.pid()]).chunked(Chunking::default()).buffers(&BufferPool::new(0));
    let digest = capture.capture(&store).or_explain();
    assert!(store.contains(&digest).unwrap());
    victim.assert_counts_on(0);
    victim.end();
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 16384 pages");
}

fn captures_that_live_survive_a_collection() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["memory=8", "children=1"]);
    let captures: Vec<_> = (0..6)
        .map(|count| {
            victim.assert_counts_on(count);
            home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain()
        })
        .collect();
    victim.end();
    let live = [captures[1], captures[4]];
    let gc = store.gc(&live, Duration::ZERO).or_explain();
    assert!(gc.marked.blobs > 0 && gc.removed.blobs == 0, "{gc:?}");
    let gc = store.gc(&live, Duration::ZERO).or_explain();
    assert!(gc.removed.blobs > 0, "{gc:?}");
    assert!(store.verify().unwrap().damage.is_empty());
    // A pack with little that is dead in it is left as it is, but what is dead there counts as
    // missing.
    assert!([0, 2, 3, 5].iter().all(|lost| !store.contains(&captures[*lost]).unwrap()));
    for (digest, count) in live.iter().zip([2, 5]) {
        let mut revived = Revived::from(home.restore(), &store, digest);
        assert_eq!(revived.ask("check"), "memory ok 2048 pages");
        revived.assert_counts_on(count);
        drop(revived);
    }
}

/// A store that gives out something else for one blob, counted from the first that it is asked for.
#[derive(Debug)]
struct Lying<'a> {
    truth: &'a MemBlobStore,
    victim: usize,
    how: fn(&mut Vec<u8>),
    asked: AtomicUsize,
}

impl BlobStore for Lying<'_> {
    fn put(&self, bytes: &[u8]) -> criu_rpc::Result<Digest256> {
        self.truth.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        let mut bytes = self.truth.get(digest)?;
        if self.asked.fetch_add(1, Ordering::Relaxed) >= self.victim {
            (self.how)(&mut bytes);
        }
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.truth.contains(digest)
    }
}

fn a_store_that_lies_revives_nothing() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let count = store.len();
    let hows: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.push(0),
        |bytes| bytes.clear(),
    ];
    for (round, victim) in (0..count).step_by(count / 25 + 1).enumerate() {
        let asked = AtomicUsize::new(0);
        let lying = Lying { truth: &store, victim, how: hows[round % hows.len()], asked };
        let error = home.restore().restore(&lying, &digest).expect_err("it was damaged");
        assert!(matches!(error, Error::Corrupt { .. }), "blob {victim} of {count}: {error:?}");
        home.assert_staging_empty();
    }
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn a_blob_that_is_missing_is_named() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let blobs: Vec<_> = reachable(&store, &[digest]).unwrap().into_iter().collect();
    let whole = MemBlobStore::new();
    assert!(copy_capture(&store, &whole, &digest).unwrap() > 0);
    assert_eq!(copy_capture(&store, &whole, &digest).unwrap(), 0);
    assert_eq!(whole.len(), blobs.len());
    for missing in blobs.iter().step_by(blobs.len() / 20 + 1) {
        let partial = MemBlobStore::new();
        for blob in blobs.iter().filter(|blob| *blob != missing) {
            partial.put(&store.get(blob).unwrap()).unwrap();
        }
        let error = home.restore().restore(&partial, &digest).expect_err("something is missing");
        assert!(matches!(&error, Error::Missing { digest, .. } if digest == missing), "{error:?}");
        assert!(copy_capture(&partial, &MemBlobStore::new(), &digest).is_err());
    }
    Revived::from(home.restore(), &whole, &digest).assert_counts_on(0);
}

/// A store that takes so many blobs and no more.
#[derive(Debug)]
struct Full {
    inner: MemBlobStore,
    room: AtomicUsize,
}

impl BlobStore for Full {
    fn put(&self, bytes: &[u8]) -> criu_rpc::Result<Digest256> {
        let left = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1));
        match left {
            Ok(_) => self.inner.put(bytes),
            Err(_) => Err(Error::store("store a blob", "it is full")),
        }
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.inner.contains(digest)
    }
}

fn a_store_that_becomes_full_leaves_the_tree_as_it_was() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=16", "children=1"]);
    let mut counted = 0;
    for room in [0, 1, 100, 3000, 4300] {
        for leave_running in [true, false] {
            // A small buffer, so that it is full while criu still sends; and a large one, so that
            // it is not.
            for buffer in [0, 1 << 30] {
                let store = Full { inner: MemBlobStore::new(), room: AtomicUsize::new(room) };
                let (chunking, pool) = (Chunking::default(), BufferPool::new(buffer));
                let capture = home.capture([victim.pid()]).chunked(chunking).buffers(&pool);
                let capture = capture.leave_running(leave_running);
                let error = capture.capture(&store).expect_err("the store is full");
                assert!(matches!(&error, Error::Store { source, .. } if source.to_string() == "it is full"), "{error:?}");
                victim.assert_counts_on(counted);
                counted += 1;
                home.assert_staging_empty();
            }
        }
    }
    assert_eq!(victim.ask("check"), "memory ok 4096 pages");
    victim.end();
}

/// A store that panics after so many blobs.
#[derive(Debug)]
struct Bursting(Full);

impl BlobStore for Bursting {
    fn put(&self, bytes: &[u8]) -> criu_rpc::Result<Digest256> {
        Ok(self.0.put(bytes).unwrap_or_else(|_| burst()))
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        self.0.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.0.contains(digest)
    }
}

fn a_store_that_panics_leaves_the_tree_as_it_was() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=16", "children=1"]);
    let mut counted = 0;
    for room in [0, 100, 3000, 4300] {
        for leave_running in [true, false] {
            for buffer in [0, 1 << 30] {
                let store = Bursting(Full { inner: MemBlobStore::new(), room: AtomicUsize::new(room) });
                let (chunking, pool) = (Chunking::default(), BufferPool::new(buffer));
                let capture = home.capture([victim.pid()]).chunked(chunking).buffers(&pool);
                let capture = capture.leave_running(leave_running);
                let captured = catch_unwind(AssertUnwindSafe(|| capture.capture(&store)));
                assert_eq!(captured.unwrap_err().downcast_ref(), Some(&Burst));
                victim.assert_counts_on(counted);
                counted += 1;
                home.assert_staging_empty();
            }
        }
    }
    assert_eq!(victim.ask("check"), "memory ok 4096 pages");
    victim.end();
}

fn a_capture_of_another_processor_is_refused_unless_asked_for() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victim = Victim::start(&[]);
    let stored = home.capture([victim.pid()]).chunked(Chunking::default()).run(&store).or_explain();
    victim.end();
    let ProcsBlob::Chunked(mut blob) = stored.manifest else { panic!("{:?}", stored.manifest) };
    blob.host.cpu.push("avx4096".to_owned());
    blob.host.criu = "99.1".to_owned();
    let digest = store.put(&ProcsBlob::Chunked(blob).to_json()).unwrap();
    let error = home.restore().restore(&store, &digest).expect_err("nobody has that");
    assert!(matches!(&error, Error::Host { problem, .. } if problem.contains("avx4096")), "{error:?}");
    // Without input the trees would end at once, in the middle of the restore.
    let (_open, input, _) = Talk::through_pipes();
    let restored = home.restore().stdin(input).any_host(true).restore(&store, &digest).or_explain();
    assert!(matches!(restored.warnings.as_slice(), [Warning::OlderCriu { .. }]), "{restored:?}");
    for mut tree in restored.trees {
        tree.kill().unwrap();
        tree.wait().unwrap();
    }
}

fn options_that_need_real_files_have_them() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["memory=8", "children=2"]);
    let digest =
        home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    // criu cuts out of its images what it has read.
    let restore = home.restore().options(RestoreOptions::default().auto_dedup(true));
    let mut revived = Revived::from(restore, &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 2048 pages");
    drop(revived);
    home.assert_staging_empty();
}

/// A store that gives so many blobs, and then none before it is told to.
#[derive(Debug)]
struct Hanging<'a> {
    truth: &'a MemBlobStore,
    left: Mutex<usize>,
    told: Condvar,
}

impl BlobStore for Hanging<'_> {
    fn put(&self, _: &[u8]) -> criu_rpc::Result<Digest256> {
        Err(Error::store("store a blob", "nobody should"))
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        let left = self.left.lock().unwrap();
        *self.told.wait_while(left, |left| *left == 0).unwrap() -= 1;
        self.truth.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.truth.contains(digest)
    }
}

impl Hanging<'_> {
    fn release(&self) {
        *self.left.lock().unwrap() = usize::MAX;
        self.told.notify_all();
    }
}

/// Lets the store go on whatever way the test ends: what waits for it would wait for ever.
struct Released<'a>(&'a Hanging<'a>);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Our children that work in a folder of this home, as criu does. Other tests have children, too.
fn children_in(home: &Home) -> usize {
    let in_home = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(home.path("")))
    };
    children(i32::try_from(std::process::id()).unwrap()).iter().filter(|pid| in_home(pid)).count()
}

fn a_store_that_hangs_does_not_keep_criu_past_its_deadline() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victim = Victim::start(&["memory=64", "children=3"]);
    let members = victim.members();
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let hanging = Hanging { truth: &store, left: Mutex::new(8000), told: Condvar::new() };
    thread::scope(|scope| {
        let released = Released(&hanging);
        let restoring =
            scope.spawn(|| home.restore().deadline(Duration::from_secs(2)).restore(&hanging, &digest));
        wait_until("criu to begin", || children_in(&home) > 0 && *hanging.left.lock().unwrap() == 0);
        wait_until("criu to end, while the store hangs", || children_in(&home) == 0);
        wait_gone(&members);
        assert!(!restoring.is_finished(), "it waits for the store");
        drop(released);
        let error = restoring.join().unwrap().expect_err("it took too long");
        assert!(matches!(error, Error::TimedOut(_)), "{error:?}");
    });
    home.assert_staging_empty();
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 16384 pages");
}

/// A store that gives so many blobs, and panics then.
#[derive(Debug)]
struct Panicking<'a> {
    truth: &'a MemBlobStore,
    left: AtomicUsize,
}

impl BlobStore for Panicking<'_> {
    fn put(&self, _: &[u8]) -> criu_rpc::Result<Digest256> {
        Err(Error::store("store a blob", "nobody should"))
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.unwrap_or_else(|_| burst());
        self.truth.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.truth.contains(digest)
    }
}

fn a_store_that_panics_leaves_nothing_waiting() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victims = [Victim::start(&["memory=8"]), Victim::start(&["memory=64", "children=2"])];
    let members: Vec<_> = victims.iter().flat_map(Victim::members).collect();
    let pids = victims.each_ref().map(Victim::pid);
    let digest = home.capture(pids).chunked(Chunking::default()).capture(&store).or_explain();
    victims.into_iter().for_each(Victim::end);
    // Without input the trees would end at once, in the middle of the restore.
    let (_open, input, _) = Talk::through_pipes();
    let restore = home.restore().stdin(input);
    for left in [100, 5000, 12_000] {
        let panicking = Panicking { truth: &store, left: AtomicUsize::new(left) };
        let panicked = || restore.restore(&panicking, &digest).map(drop);
        let panic = catch_unwind(AssertUnwindSafe(panicked)).expect_err("the store panicked");
        assert_eq!(panic.downcast_ref(), Some(&Burst));
        wait_gone(&members);
        home.assert_staging_empty();
    }
    for mut tree in restore.restore(&store, &digest).or_explain().trees {
        tree.kill().unwrap();
        tree.wait().unwrap();
    }
}

fn all_trees_of_a_capture_are_within_the_limit() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victims = [Victim::start(&["memory=4"]), Victim::start(&["memory=4"])];
    let pids = victims.each_ref().map(Victim::pid);
    let stored = home.capture(pids).chunked(Chunking::default()).run(&store).or_explain();
    victims.into_iter().for_each(Victim::end);
    let ProcsBlob::Chunked(blob) = &stored.manifest else { panic!("{:?}", stored.manifest) };
    let bytes: u64 = blob.trees.iter().map(|tree| tree.image_bytes + tree.memory_bytes).sum();
    let error = home.restore().limit(bytes - 1).restore(&store, &stored.digest).expect_err("it is larger");
    assert!(matches!(&error, Error::Corrupt { problem, .. } if problem.contains("more than")), "{error:?}");
    // Without input the trees would end at once, in the middle of the restore.
    let (_open, input, _) = Talk::through_pipes();
    for mut tree in home.restore().stdin(input).limit(bytes).restore(&store, &stored.digest).or_explain().trees {
        tree.kill().unwrap();
        tree.wait().unwrap();
    }
}

fn labels_and_attached_blobs_are_part_of_a_capture() {
    let home = Home::new();
    let store = home.store();
    let files = store.put(b"a snapshot of files").unwrap();
    let victim = Victim::start(&["memory=1"]);
    let capture = home.capture([victim.pid()]).chunked(Chunking::default());
    let stored = capture.label("step", "16").label("step", "17").attach("files", files).run(&store).or_explain();
    victim.end();
    let read = ProcsBlob::from_json(&store.get(&stored.digest).unwrap()).unwrap();
    assert_eq!(read, stored.manifest);
    let ProcsBlob::Chunked(blob) = read else { panic!("{read:?}") };
    assert_eq!(blob.labels, [("step".to_owned(), "17".to_owned())].into());
    assert_eq!(blob.attached, [("files".to_owned(), files)].into());
    assert!(reachable(&store, &[stored.digest]).unwrap().contains(&files));
    let mut revived = Revived::from(home.restore(), &store, &stored.digest);
    assert_eq!(revived.ask("check"), "memory ok 256 pages");
}

fn a_capture_of_a_kernel_with_other_pages_is_refused() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victim = Victim::start(&["memory=1"]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    // Put maps with one page of another size in the place of its maps.
    let with_pages = |bytes: u32| {
        let content = |bytes: &[u8]| json!({ "bytes": bytes.len(), "depth": 0, "digest": store.put(bytes).unwrap() });
        let mut manifest: Value = serde_json::from_slice(&store.get(&digest).unwrap()).unwrap();
        let images = manifest["trees"][0]["images"]["digest"].as_str().unwrap().parse().unwrap();
        let mut listing: Value = serde_json::from_slice(&store.get(&images).unwrap()).unwrap();
        let mut map = b"CRIUMAP1".to_vec();
        map.extend([1, bytes].iter().flat_map(|number| number.to_le_bytes()));
        map.extend([1_u64, 0x40_0000].iter().flat_map(|number| number.to_le_bytes()));
        map.extend([1_u32, 4].iter().flat_map(|number| number.to_le_bytes()));
        let zeros = 1_u64;
        map.extend(store.put(&zeros.to_le_bytes()).unwrap().as_bytes());
        let memory = listing["memory"].as_array_mut().unwrap();
        memory.iter_mut().for_each(|file| file["map"] = content(&map));
        manifest["trees"][0]["memory_bytes"] = (u64::from(bytes) * memory.len() as u64).into();
        manifest["trees"][0]["images"] = content(&serde_json::to_vec(&listing).unwrap());
        store.put(&serde_json::to_vec(&manifest).unwrap()).unwrap()
    };
    for bytes in [16384, 65536] {
        let error = home.restore().restore(&store, &with_pages(bytes)).unwrap_err();
        assert!(matches!(error, Error::Host { .. }), "{error}");
        assert!(error.to_string().contains(&format!("pages of {bytes} bytes")), "{error}");
        let problems = home.restore().preflight(&store, &with_pages(bytes));
        assert!(!matches!(&problems, Ok(found) if found.blocks.is_empty()), "{problems:?}");
    }
    let error = home.restore().restore(&store, &with_pages(8192 + 1)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
