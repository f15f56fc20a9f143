//! A tree that is to end is stored first; if that fails, it runs on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use criu_rpc::Digest256;

use crate::{
    harness::tests,
    places::{Home, stored_files},
    stores::{Burst, FULL, Failing, Fault, Watching, says},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_tree_is_stored_before_it_ends,
    a_tree_runs_on_when_the_store_fails,
    a_tree_runs_on_when_the_store_panics,
    a_tree_that_is_left_running_runs_on_when_the_store_fails,
];

fn a_tree_is_stored_before_it_ends() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=2", "threads=2", "memory=8"]);
    victim.assert_counts_on(0);
    let members = victim.members();
    let store = Watching { inner: home.store(), pids: members.clone(), seen: Mutex::default() };

    let digest = home.capture([victim.pid()]).leave_running(false).capture(&store).or_explain();
    home.assert_staging_empty();
    victim.reap(&members);
    // Archive and manifest were there while every process was stopped, and there still.
    assert_eq!(*store.seen.lock().unwrap(), [Some('t'); 6]);

    let mut revived = Revived::from(home.restore(), &store, &digest);
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("check"), "memory ok 2048 pages");
    assert_eq!(revived.ask("child 1 tick"), "count 1");
}

fn a_tree_runs_on_when_the_store_fails() {
    for fault in [Fault::Writer, Fault::WriteAfter(0), Fault::WriteAfter(3 << 20), Fault::Commit, Fault::Put]
    {
        let (home, mut victim, store) = prepare(fault);
        let error = home.capture([victim.pid()]).leave_running(false).capture(&store).unwrap_err();
        assert!(says(&error, FULL), "{fault:?}: {}", explain(&error));
        assert_unharmed(&home, &mut victim, fault);
    }
}

fn a_tree_runs_on_when_the_store_panics() {
    for fault in [Fault::PanicAfter(0), Fault::PanicAfter(3 << 20), Fault::PanicAtCommit, Fault::PanicAtPut] {
        let (home, mut victim, store) = prepare(fault);
        let capture = home.capture([victim.pid()]).leave_running(false);
        let panic = catch_unwind(AssertUnwindSafe(|| capture.capture(&store))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&Burst), "{fault:?}");
        assert_unharmed(&home, &mut victim, fault);
    }
}

fn a_tree_that_is_left_running_runs_on_when_the_store_fails() {
    let (home, mut victim, store) = prepare(Fault::WriteAfter(100));
    let error = home.capture([victim.pid()]).capture(&store).unwrap_err();
    assert!(says(&error, FULL), "{}", explain(&error));
    assert_unharmed(&home, &mut victim, Fault::WriteAfter(100));
}

fn prepare(fault: Fault) -> (Home, Victim, Failing) {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1", "threads=2", "memory=8"]);
    victim.assert_counts_on(0);
    let store = Failing { inner: home.store(), fault };
    (home, victim, store)
}

#[track_caller]
fn assert_unharmed(home: &Home, victim: &mut Victim, fault: Fault) {
    victim.assert_counts_on(1);
    assert_eq!(victim.ask("check"), "memory ok 2048 pages", "{fault:?}");
    assert_eq!(victim.ask("child 0 tick"), "count 1", "{fault:?}");
    home.assert_staging_empty();
    let stored = stored_files(&home.path("store"));
    // An archive without its manifest belongs to no capture.
    let manifests = stored
        .iter()
        .filter(|file| std::fs::read(file).is_ok_and(|bytes| criu_rpc::ProcsBlob::from_json(&bytes).is_ok()));
    assert_eq!(manifests.count(), 0, "{fault:?}");
    if !matches!(fault, Fault::Put | Fault::PanicAtPut) {
        let digests: Vec<_> =
            stored.iter().map(|file| Digest256::of(&std::fs::read(file).unwrap())).collect();
        assert_eq!(digests, [], "{fault:?}: {stored:?}");
    }
}
