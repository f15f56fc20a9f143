//! A dump that takes too long is given up, and its tree is whole.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cancel, Cause, DumpOptions, Error, RestoreOptions, Target,
    rpc::{Event, Lend, NoHooks},
};

use crate::{
    harness::{criu, tests},
    places::{Home, stored_files},
    requests::Images,
    stores::{FULL, Failing, Fault, Slow, says},
    tree::{OrExplain, Revived, Victim, explain, wait_gone},
};

tests![
    a_dump_that_takes_too_long_leaves_the_tree_whole,
    a_deadline_long_enough_changes_nothing,
    a_tree_that_is_stored_after_the_deadline_goes_on,
    a_capture_that_is_cancelled_leaves_the_tree_whole_and_stores_nothing,
    a_restore_that_is_cancelled_leaves_nothing_running,
    a_hook_that_cancels_before_the_dump_or_locks_the_network_is_told_to_unlock_it,
    a_restore_that_is_late_or_cancelled_within_its_last_hook_leaves_nothing,
];

#[track_caller]
fn assert_nothing_stored(home: &Home) {
    assert_eq!(stored_files(&home.path("store")), [""; 0].map(std::path::PathBuf::from));
}

fn a_dump_that_takes_too_long_leaves_the_tree_whole() {
    let home = Home::new();
    let store = Failing { inner: home.store(), fault: Fault::Writer };
    let mut victim = Victim::start(&["children=3", "threads=8", "memory=48"]);
    let members = victim.members();
    let (mut late, mut stored) = (0, 0);
    for count in 0..16 {
        let deadline = 1 + RandomState::new().hash_one(count) % 80;
        let capture = home.capture([victim.pid()]).deadline(Duration::from_millis(deadline));
        let start = Instant::now();
        match capture.leave_running(count % 2 == 0).capture(&store) {
            Err(Error::TimedOut(failure)) => {
                late += 1;
                assert!(matches!(failure.target, Target::Running), "{}", failure.report());
                assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
            }
            Err(Error::Overdue { .. }) => late += 1, // as criu was done
            // It was quick enough; but a tree that is to end must not, here.
            Err(error) if says(&error, FULL) => stored += 1,
            Err(error) => panic!("{deadline} ms: {}", explain(&error)),
            Ok(_) => panic!("{deadline} ms: this store takes nothing"),
        }
        victim.assert_counts_on(count);
        assert_eq!(victim.ask("check"), "memory ok 12288 pages", "{deadline} ms");
        assert_eq!(victim.ask("threads").split(' ').count(), 8);
        assert_eq!(victim.ask("child 2 tick"), format!("count {}", count + 1));
        assert_eq!(victim.ask("child 1 check"), "memory ok 256 pages");
        assert_eq!(victim.members(), members);
        home.assert_staging_empty();
    }
    assert!(late > 0, "no deadline was too short: {stored} dumps");
    assert_nothing_stored(&home);
}

fn a_deadline_long_enough_changes_nothing() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=1"]);
    let capture = home.capture([victim.pid()]).deadline(Duration::from_secs(100));
    capture.capture(&home.store()).unwrap();
    victim.assert_counts_on(0);
}

fn a_tree_that_is_stored_after_the_deadline_goes_on() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1"]);
    let mut late = 0;
    for count in 0..3 {
        let store = Slow { inner: home.store(), pause: Duration::from_millis(3000) };
        let capture = home.capture([victim.pid()]).leave_running(false).deadline(Duration::from_secs(2));
        match capture.run(&store).expect_err("it was stored late") {
            // criu was quick enough, and the store was not.
            Error::Overdue { .. } => late += 1,
            Error::TimedOut(_) => {} // the machine was not
            error => panic!("{}", explain(&error)),
        }
        victim.assert_counts_on(count);
        home.assert_staging_empty();
    }
    assert!(late > 0, "criu itself was always late");
    let store = Slow { inner: home.store(), pause: Duration::from_millis(300) };
    let members = victim.members();
    let capture = home.capture([victim.pid()]).leave_running(false).deadline(Duration::from_secs(60));
    let stored = capture.run(&store).or_explain();
    assert!(stored.frozen.is_some_and(|frozen| frozen >= store.pause), "{:?}", stored.frozen);
    victim.reap(&members);
    Revived::from(home.restore(), &store, &stored.digest).assert_counts_on(3);
}

fn a_capture_that_is_cancelled_leaves_the_tree_whole_and_stores_nothing() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=2", "threads=4", "memory=96"]);
    let members = victim.members();
    let mut cancelled = 0;
    for count in 0..8 {
        let cancel = Cancel::new().or_explain();
        let pause = Duration::from_millis(1 + RandomState::new().hash_one(count) % 60);
        let capture = home.capture([victim.pid()]).leave_running(count % 2 == 0).cancelled_by(&cancel);
        // A tree that is to end must not, here.
        let store = Failing { inner: home.store(), fault: Fault::Writer };
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(pause);
                cancel.cancel();
            });
            capture.capture(&store)
        });
        match result {
            Err(Error::Cancelled(failure)) => {
                cancelled += 1;
                assert!(matches!(failure.target, Target::Running), "{}", failure.report());
            }
            Err(Error::Stopped { .. }) => cancelled += 1, // as criu was done
            Err(error) if says(&error, FULL) => {}        // criu was quicker
            Err(error) => panic!("{pause:?}: {}", explain(&error)),
            Ok(_) => panic!("{pause:?}: this store takes nothing"),
        }
        victim.assert_counts_on(count);
        assert_eq!(victim.ask("check"), "memory ok 24576 pages", "{pause:?}");
        assert_eq!(victim.ask("child 1 tick"), format!("count {}", count + 1));
        assert_eq!(victim.members(), members);
        home.assert_staging_empty();
    }
    assert!(cancelled > 0, "criu was always quicker");
    assert_nothing_stored(&home);
}

fn a_restore_that_is_cancelled_leaves_nothing_running() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1", "memory=8"]);
    victim.assert_counts_on(0);
    let members = victim.members();
    let digest = home.capture([victim.pid()]).leave_running(false).capture(&home.store()).or_explain();
    victim.reap(&members);
    let cancel = Cancel::new().or_explain();
    cancel.cancel();
    let error = home.restore().cancelled_by(&cancel).restore(&home.store(), &digest).unwrap_err();
    assert!(error.is_cancelled(), "{}", explain(&error));
    home.assert_staging_empty();
    wait_gone(&members);
    Revived::from(home.restore(), &home.store(), &digest).assert_counts_on(1);
}

fn a_hook_that_cancels_before_the_dump_or_locks_the_network_is_told_to_unlock_it() {
    let home = Home::new();
    let mut command = Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe().unwrap()).args(["--victim", "session"]);
    let mut victim = Victim::start_by(command);
    for (count, at) in [(0, "pre-dump"), (1, "network-lock")] {
        let folder = File::open(home.folder(at)).unwrap();
        let cancel = Cancel::new().or_explain();
        let mut seen = Vec::new();
        let mut hooks = |event: Event<'_>| {
            seen.push(event.name().to_owned());
            if event.name() == at {
                cancel.cancel();
            }
            Ok(())
        };
        let criu = criu().cancelled_by(&cancel);
        let options = DumpOptions::default();
        let error = criu.dump(victim.pid(), &options, Lend::images(&folder), &mut hooks).unwrap_err();
        let Error::Cancelled(failure) = &error else { panic!("{}", explain(&error)) };
        assert_eq!((failure.cause, failure.target), (Cause::GivenUp, Target::Running), "{}", explain(&error));
        assert_eq!(seen.iter().filter(|name| *name == at).count(), 1, "{seen:?}");
        if at == "network-lock" {
            assert_eq!(seen.last().map(String::as_str), Some("network-unlock"), "{seen:?}");
        }
        victim.assert_counts_on(count);
    }
}

fn a_restore_that_is_late_or_cancelled_within_its_last_hook_leaves_nothing() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1"]);
    victim.assert_counts_on(0);
    let images = Images::of(&victim, &home.folder("images"));
    criu().dump(victim.pid(), &DumpOptions::default(), images.lend(), &mut NoHooks).or_explain();
    victim.reap(&images.members);
    let cancel = Cancel::new().or_explain();
    let limit = Duration::from_secs(3);
    let mut late = |event: Event<'_>| {
        if matches!(event, Event::PostRestore { .. }) {
            thread::sleep(limit);
        }
        Ok(())
    };
    let mut cancels = |event: Event<'_>| {
        if matches!(event, Event::PostRestore { .. }) {
            cancel.cancel();
        }
        Ok(())
    };
    let error = images.revive_by(&criu().deadline(limit), &mut late).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{}", explain(&error));
    assert_eq!(error.failure().unwrap().last_event.as_deref(), Some("post-restore"));
    wait_gone(&images.members);
    let error = images.revive_by(&criu().cancelled_by(&cancel), &mut cancels).unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{}", explain(&error));
    // It was not a hook that refused.
    assert_eq!(error.failure().unwrap().cause, Cause::GivenUp, "{}", explain(&error));
    wait_gone(&images.members);
    images.revive(&criu(), &RestoreOptions::default()).or_explain().assert_counts_on(1);
}
