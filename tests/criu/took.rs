//! A restore reports its time by phase.

use std::{fs::File, time::Instant};

use criu_rpc::{Chunking, MemBlobStore, ProcsBlob, Restored};

use crate::{
    harness::tests,
    places::Home,
    program::{Program, in_each_way, only_tree},
    talk::Talk,
    tree::{OrExplain, Revived, Victim},
};

tests![
    the_phases_of_a_restore_are_all_of_its_time,
    the_phases_of_several_trees_are_added_up,
    a_placeholder_takes_reading_alone,
];

#[track_caller]
fn assert_whole(restored: &Restored, whole: std::time::Duration) {
    let took = restored.took;
    assert!(took.total() <= whole && took.total() > whole / 2, "{took:?} of {whole:?}");
    let phases = [took.read, took.prepare, took.wait, took.criu, took.finish];
    assert!(phases.iter().all(|phase| !phase.is_zero()), "{took:?}");
    let (forking, restoring) = (took.criu_forking.unwrap(), took.criu_restoring.unwrap());
    assert!(forking <= restoring && !restoring.is_zero() && restoring <= took.criu, "{took:?}");
}

fn the_phases_of_a_restore_are_all_of_its_time() {
    in_each_way(|way, home| {
        let mut program = Program::bash("echo ready; while read line; do echo \"$line\"; done");
        assert_eq!(program.talk.hear(), "ready");
        let (store, digest) = way.captured(home, program);
        let (talk, input, output) = Talk::through_pipes();
        let restore = home.restore().stdin(input).stdout(output).stderr(File::create("/dev/null").unwrap());
        let begun = Instant::now();
        let restored = restore.restore(&store, &digest).or_explain();
        assert_whole(&restored, begun.elapsed());
        drop(restore);
        assert_eq!(Revived::new(only_tree(restored), talk).ask("hello"), "hello");
    });
}

fn the_phases_of_several_trees_are_added_up() {
    let home = Home::new();
    let store = home.store();
    let victims = [Victim::start(&["children=2"]), Victim::start(&[])];
    let pids = victims.each_ref().map(Victim::pid);
    let digest = home.capture(pids).chunked(Chunking::default()).capture(&store).or_explain();
    victims.into_iter().for_each(Victim::end);
    // An input that has ended would end the victims at once.
    let (_talk, input, output) = Talk::through_pipes();
    let restore = home.restore().stdin(input).stdout(output);
    let begun = Instant::now();
    let mut restored = restore.restore(&store, &digest).or_explain();
    let whole = begun.elapsed();
    for tree in &mut restored.trees {
        tree.kill().unwrap();
        tree.wait().unwrap();
    }
    assert_eq!(restored.trees.len(), 2);
    assert_whole(&restored, whole);
    assert!(restored.took.criu_forking.is_some_and(|time| !time.is_zero()), "{:?}", restored.took);
}

fn a_placeholder_takes_reading_alone() {
    use criu_rpc::BlobStore;
    let store = MemBlobStore::new();
    let placeholder = ProcsBlob::Unsupported { unsupported_on: "here".into(), note: "a note".into() };
    let digest = store.put(&placeholder.to_json()).unwrap();
    let begun = Instant::now();
    let restored = Home::new().restore().restore(&store, &digest).or_explain();
    let (whole, took) = (begun.elapsed(), restored.took);
    assert!(!took.read.is_zero() && took.total() <= whole, "{took:?} of {whole:?}");
    assert!(took.criu.is_zero() && took.wait.is_zero() && took.criu_forking.is_none(), "{took:?}");
}
