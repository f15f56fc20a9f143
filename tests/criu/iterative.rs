//! Captures after pre-dumps: what is kept is the memory of the last moment, whatever happened in
//! the rounds before.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use criu_rpc::{
    BlobStore, Cancel, Chunking, Digest256, Error, MemBlobStore, ProcessProblem, ProcsBlob, Stored,
};

use crate::{
    harness::{criu, skip, tests},
    places::{Home, files, lives, names, wait_until},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    where_memory_is_not_tracked_one_dump_is_all,
    chunks_of_several_pages_are_refused,
    what_happens_between_rounds_is_captured_as_it_is_in_the_end,
    a_tree_ends_after_pre_dumps,
    several_trees_are_pre_dumped_side_by_side,
    the_tree_stands_still_for_less_time_and_nothing_more_is_sent,
    a_store_that_fails_in_any_round_leaves_the_tree_as_it_was,
    a_capture_is_cancelled_in_any_round,
    a_deadline_is_for_all_rounds,
    two_captures_do_not_track_one_tree,
    a_tree_that_ends_between_rounds_is_missed,
];

fn tracked() -> bool {
    criu().features().or_explain().mem_track
}

fn needs_tracking() {
    if !tracked() {
        skip("this kernel does not track changes of memory");
    }
}

/// A victim whose memory changes all the time, and as it is told.
fn churning() -> Victim {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--churn");
    Victim::start_by(command)
}

#[track_caller]
fn do_all(victim: &mut Victim, commands: &[&str]) {
    for command in commands {
        let answer = victim.ask(command);
        assert!(answer.starts_with("done"), "{command}: {answer}");
    }
}

fn pre_dumps(most: u32) -> Chunking {
    Chunking::default().pre_dumps(most)
}

fn where_memory_is_not_tracked_one_dump_is_all() {
    if tracked() {
        skip("this kernel tracks memory");
    }
    let home = Home::new();
    let store = home.store();
    let mut victim = churning();
    do_all(&mut victim, &["make a 4 7", "fork child"]);
    let stored = home.capture([victim.pid()]).chunked(pre_dumps(3)).run(&store).or_explain();
    assert_eq!(stored.pre_dumps, 0);
    let expected = victim.ask("check");
    victim.end();
    let mut revived = Revived::from(home.restore(), &store, &stored.digest);
    assert_eq!(revived.ask("check"), expected);
}

fn chunks_of_several_pages_are_refused() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let mut victim = Victim::start(&[]);
    let chunking = pre_dumps(1).chunk(8192);
    let error = home.capture([victim.pid()]).chunked(chunking).capture(&store).expect_err("pages are tracked");
    assert!(matches!(error, Error::Options { option: "pre_dumps", .. }), "{error:?}");
    assert!(store.is_empty());
    victim.assert_counts_on(0);
}

/// A store that does something as soon as it gets the first blob of a round.
struct Meddling<'a> {
    inner: MemBlobStore,
    staging: PathBuf,
    root: i32,
    rounds: AtomicUsize,
    act: Mutex<Box<dyn FnMut(usize) -> criu_rpc::Result<()> + Send + 'a>>,
}

impl std::fmt::Debug for Meddling<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a store that meddles with {}", self.root)
    }
}

impl<'a> Meddling<'a> {
    fn new(home: &Home, root: i32, act: impl FnMut(usize) -> criu_rpc::Result<()> + Send + 'a) -> Meddling<'a> {
        let act = Mutex::new(Box::new(act) as Box<_>);
        Meddling { inner: MemBlobStore::new(), staging: home.staging(), root, rounds: AtomicUsize::new(0), act }
    }

    fn into_inner(self) -> MemBlobStore {
        self.inner
    }

    /// Returns the number of the current round.
    fn round(&self) -> usize {
        let start = format!("{}-", self.root);
        let rounds = names(&self.staging).into_iter().flat_map(|name| {
            // It may be gone by now.
            let folders = fs::read_dir(self.staging.join(name)).into_iter().flatten().flatten();
            folders.filter_map(|folder| folder.file_name().to_str()?.strip_prefix(&start)?.parse().ok())
        });
        rounds.max().unwrap_or(0)
    }
}

impl BlobStore for Meddling<'_> {
    fn put(&self, bytes: &[u8]) -> criu_rpc::Result<Digest256> {
        let mut act = self.act.lock().unwrap();
        let round = self.round();
        if self.rounds.fetch_max(round, Ordering::Relaxed) < round {
            act(round)?;
        }
        drop(act);
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        self.inner.contains(digest)
    }
}

fn what_happens_between_rounds_is_captured_as_it_is_in_the_end() {
    needs_tracking();
    let home = Home::new();
    let mut victim = churning();
    do_all(
        &mut victim,
        &[
            "make a 16 7",
            "make b 4 8",
            "make gone 2 9",
            "make moved 2 10",
            "make wiped 2 12",
            "make untouched 2 13",
            "zero z 4",
            "share s 2 11",
            "fork first",
            "fork second",
        ],
    );
    let first = victim.ask("pid first");
    let reuse = format!("fork-as fourth {first}");
    let steps: [&[&str]; 3] = [
        &[
            "fill a 0 2000 21",
            "drop gone",
            "grow moved 6 22",
            "fill s 0 300 23",
            "wipe wiped 0 256",
            "discard b 3 500",
            "end first",
            "fork third",
            "ask second fill a 0 256 31",
            "ask third fill b 0 200 32",
        ],
        &[
            "fill a 1000 2100 24",
            "make new 2 25",
            &reuse,
            "ask fourth fill untouched 0 5 41",
            "fill wiped 10 20 26",
            "fill s 3 4 27",
            "fill z 7 9 28",
            "end third",
            "ask second drop b",
        ],
        &["fill a 5 600 29", "drop new", "grow untouched 1 0", "fill b 1 2 30", "ask second fill wiped 0 9 42"],
    ];
    let root = victim.pid();
    let before: u64 = victim.ask("count").parse().unwrap();
    let victim = Mutex::new(victim);
    let store = Meddling::new(&home, root, |round| {
        do_all(&mut victim.lock().unwrap(), steps[round - 1]);
        Ok(())
    });
    let stored = home.capture([root]).chunked(pre_dumps(3)).run(&store).or_explain();
    assert_eq!(stored.pre_dumps, 3);
    let store = store.into_inner();
    let mut victim = victim.into_inner().unwrap();
    let after: u64 = victim.ask("count").parse().unwrap();
    let checks = ["check", "ask second check", "ask fourth check"];
    let expected = checks.map(|check| victim.ask(check));
    assert!(expected.iter().all(|check| check.starts_with("fine")), "{expected:?}");
    do_all(&mut victim, &["fill a 0 4096 99", "fill s 0 512 99"]);
    victim.end();
    home.assert_staging_empty();
    let mut revived = Revived::from(home.restore(), &store, &stored.digest);
    assert_eq!(checks.map(|check| revived.ask(check)), expected);
    let count: u64 = revived.ask("count").parse().unwrap();
    assert!(before < count, "{before} {count} {after}");
    // It can be captured again, as anything can.
    let again = home.capture([revived.pid()]).chunked(pre_dumps(2)).capture(&store).or_explain();
    drop(revived);
    let mut revived = Revived::from(home.restore(), &store, &again);
    assert_eq!(checks.map(|check| revived.ask(check)), expected);
}

fn a_tree_ends_after_pre_dumps() {
    needs_tracking();
    let home = Home::new();
    let store = home.store();
    let mut victim = churning();
    do_all(&mut victim, &["make a 8 7", "fork child", "ask child fill a 0 100 8"]);
    let checks = ["check", "ask child check"];
    let expected = checks.map(|check| victim.ask(check));
    let members = victim.members();
    let capture = home.capture([victim.pid()]).chunked(pre_dumps(2)).leave_running(false);
    let stored = capture.run(&store).or_explain();
    assert!(stored.pre_dumps >= 1);
    victim.reap(&members);
    let mut revived = Revived::from(home.restore(), &store, &stored.digest);
    assert_eq!(checks.map(|check| revived.ask(check)), expected);
}

fn several_trees_are_pre_dumped_side_by_side() {
    needs_tracking();
    let home = Home::new();
    let store = home.store();
    let mut victims = [churning(), Victim::start(&["memory=8", "children=1"])];
    do_all(&mut victims[0], &["make a 4 7"]);
    let pids = victims.each_ref().map(Victim::pid);
    let stored = home.capture(pids).chunked(pre_dumps(2)).run(&store).or_explain();
    assert!(stored.pre_dumps >= 1);
    let ProcsBlob::Chunked(blob) = &stored.manifest else { panic!("{:?}", stored.manifest) };
    assert!(blob.trees.len() == 2 && blob.trees.iter().all(|tree| tree.memory_bytes > 4 << 20), "{blob:?}");
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

fn the_tree_stands_still_for_less_time_and_nothing_more_is_sent() {
    needs_tracking();
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["memory=128", "children=1"]);
    let plain = home.capture([victim.pid()]).chunked(Chunking::default()).run(&store).or_explain();
    // It sleeps: a round more would bring nothing.
    let after = home.capture([victim.pid()]).chunked(pre_dumps(9)).run(&store).or_explain();
    assert_eq!((plain.pre_dumps, after.pre_dumps), (0, 2));
    assert!(after.frozen.unwrap() < plain.frozen.unwrap(), "{:?} {:?}", after.frozen, plain.frozen);
    let memory = |stored: &Stored| match &stored.manifest {
        ProcsBlob::Chunked(blob) => blob.trees[0].memory_bytes,
        other => panic!("{other:?}"),
    };
    // A stack is a page more or less.
    assert!(memory(&plain).abs_diff(memory(&after)) < 1 << 20, "{} {}", memory(&plain), memory(&after));
    assert!(after.bytes < 2 << 20, "{}", after.bytes);
    assert_eq!(victim.ask("check"), "memory ok 32768 pages");
    victim.end();
    let mut revived = Revived::from(home.restore(), &store, &after.digest);
    assert_eq!(revived.ask("check"), "memory ok 32768 pages");
    assert_eq!(revived.ask("child 0 check"), "memory ok 256 pages");
}

/// Memory that takes a few rounds.
const LARGE: [&str; 2] = ["make a 16 7", "fork child"];
const CHANGES: [&str; 3] = ["fill a 0 2000 21", "fill a 0 1000 22", "fill a 0 400 23"];

fn a_store_that_fails_in_any_round_leaves_the_tree_as_it_was() {
    needs_tracking();
    for failing in 1..=3 {
        let home = Home::new();
        let mut victim = churning();
        do_all(&mut victim, &LARGE);
        let root = victim.pid();
        let victim = Mutex::new(victim);
        let store = Meddling::new(&home, root, |round| {
            do_all(&mut victim.lock().unwrap(), &CHANGES[round - 1..round]);
            if round == failing { Err(Error::store("store a blob", "it is full")) } else { Ok(()) }
        });
        let capture = home.capture([root]).chunked(pre_dumps(3)).leave_running(false);
        let error = capture.capture(&store).expect_err("the store is full");
        assert!(matches!(&error, Error::Store { source, .. } if source.to_string() == "it is full"), "{error:?}");
        drop(store);
        home.assert_staging_empty();
        let mut victim = victim.into_inner().unwrap();
        assert!(victim.ask("check").starts_with("fine"));
        // Nothing of that is left.
        let store = home.store();
        let digest = home.capture([root]).chunked(pre_dumps(2)).capture(&store).or_explain();
        let expected = victim.ask("check");
        victim.end();
        assert_eq!(Revived::from(home.restore(), &store, &digest).ask("check"), expected);
    }
}

fn a_capture_is_cancelled_in_any_round() {
    needs_tracking();
    for cancelled in 1..=2 {
        let home = Home::new();
        let mut victim = churning();
        do_all(&mut victim, &LARGE);
        let root = victim.pid();
        let victim = Mutex::new(victim);
        let cancel = Cancel::new().unwrap();
        let store = Meddling::new(&home, root, |round| {
            do_all(&mut victim.lock().unwrap(), &CHANGES[round - 1..round]);
            if round == cancelled {
                cancel.cancel();
            }
            Ok(())
        });
        let capture = home.capture([root]).chunked(pre_dumps(3)).cancelled_by(&cancel);
        let error = capture.capture(&store).expect_err("it was cancelled");
        assert!(error.is_cancelled(), "{}", explain(&error));
        drop(store);
        home.assert_staging_empty();
        assert!(victim.into_inner().unwrap().ask("check").starts_with("fine"));
    }
}

fn a_deadline_is_for_all_rounds() {
    needs_tracking();
    let home = Home::new();
    let mut victim = churning();
    do_all(&mut victim, &LARGE);
    let root = victim.pid();
    let store = Meddling::new(&home, root, |_| {
        std::thread::sleep(Duration::from_secs(11));
        Ok(())
    });
    let capture = home.capture([root]).chunked(pre_dumps(3)).deadline(Duration::from_secs(10));
    let error = capture.capture(&store).expect_err("it was late");
    assert!(error.is_timeout(), "{}", explain(&error));
    assert_eq!(store.rounds.load(Ordering::Relaxed), 1);
    drop(store);
    home.assert_staging_empty();
    assert!(victim.ask("check").starts_with("fine"));
}

fn two_captures_do_not_track_one_tree() {
    needs_tracking();
    let home = Home::new();
    let mut victim = churning();
    do_all(&mut victim, &LARGE);
    let child: i32 = victim.ask("pid child").parse().unwrap();
    let root = victim.pid();
    let other = Home::new();
    let mut errors = Vec::new();
    let store = Meddling::new(&home, root, |_| {
        for pid in [root, child] {
            let capture = other.capture([pid]).chunked(pre_dumps(1));
            errors.push(capture.capture(&MemBlobStore::new()).expect_err("it is tracked"));
        }
        Ok(())
    });
    home.capture([root]).chunked(pre_dumps(1)).capture(&store).or_explain();
    drop(store);
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert!(matches!(error, Error::Busy { .. }), "{}", explain(&error));
    }
    assert!(victim.ask("check").starts_with("fine"));
}

fn a_tree_that_ends_between_rounds_is_missed() {
    needs_tracking();
    let home = Home::new();
    let mut victim = churning();
    do_all(&mut victim, &["make a 8 7"]);
    let root = victim.pid();
    let store = Meddling::new(&home, root, |_| {
        // criu writes this image when the round is over.
        let over = || files(&home.staging()).iter().any(|file| file.ends_with(format!("{root}-1/inventory.img")));
        wait_until("the first round is over", over);
        victim.talk.hang_up();
        wait_until("the victim has ended", || !lives(root));
        Ok(())
    });
    let error = home.capture([root]).chunked(pre_dumps(3)).capture(&store).expect_err("it has ended");
    let missing = |error: &Error| {
        matches!(error, Error::Process { problem: ProcessProblem::Missing | ProcessProblem::Zombie, .. })
    };
    assert!(missing(&error), "{}", explain(&error));
    drop(store);
    home.assert_staging_empty();
}
