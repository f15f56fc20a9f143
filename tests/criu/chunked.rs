//! Captures in chunks: what changed is what they cost, and what they are made of is what was there.

use criu_rpc::{BlobStore, Capture, Chunking, MemBlobStore, ProcsBlob, Stored};

use crate::{
    capture::a_rich_tree,
    harness::tests,
    places::Home,
    tree::{OrExplain, Revived, Victim},
};

tests![
    a_rich_tree_goes_on_and_is_revived_from_chunks,
    chunks_of_every_size_are_revived,
    a_tree_ends_when_its_chunks_are_stored,
    several_trees_are_captured_in_chunks,
    what_did_not_change_costs_nothing,
    a_small_buffer_holds_the_stream_back_and_loses_nothing,
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
    let stored = stored(home.capture(pids).chunked(Chunking::default()).run(&store).or_explain());
    let ProcsBlob::Chunked(blob) = &stored.manifest else { panic!("{:?}", stored.manifest) };
    assert_eq!(blob.trees.iter().map(|tree| tree.root).collect::<std::collections::BTreeSet<_>>(), pids.into());
    assert!(blob.trees.iter().all(|tree| tree.memory_bytes > 4 << 20));
    for victim in &mut victims {
        victim.assert_counts_on(0);
    }
    victims.into_iter().for_each(Victim::end);
    let restored = home.restore().restore(&store, &stored.digest).or_explain();
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
    let run = || stored(home.capture([victim.pid()]).chunked(Chunking::default()).run(&store).or_explain());
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
    let capture = home.capture([victim.pid()]).chunked(Chunking::default().buffer(0));
    let digest = capture.capture(&store).or_explain();
    assert!(store.contains(&digest).unwrap());
    victim.assert_counts_on(0);
    victim.end();
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 16384 pages");
}

fn stored(capture: Capture) -> Stored {
    match capture {
        Capture::Stored(stored) => stored,
        other => panic!("{other:?}"),
    }
}
