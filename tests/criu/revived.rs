//! A revived tree has an owner: its status arrives, it can be killed, and it may be left alone.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::symlink,
        process::{CommandExt, ExitStatusExt},
    },
    process::Command,
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, DumpOptions, Error, RestoreOptions,
    rpc::{Event, Lend, NoHooks},
};
use nix::sys::signal::Signal;

use crate::{
    harness::{criu, tests},
    places::{Home, family, lives, state},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, signal, wait_gone},
    ways::WAYS,
};

tests![
    the_exit_status_arrives,
    the_signal_that_killed_arrives,
    waiting_takes_no_longer_than_asked,
    a_tree_outlives_the_thread_that_revived_it,
    killing_ends_every_process_of_the_tree,
    a_tree_left_alone_runs_on_and_leaves_no_zombie,
    a_pid_that_is_taken_is_a_cause_and_its_process_is_left_alone,
    of_two_restores_at_once_one_succeeds_and_its_status_arrives,
    a_tree_that_ends_at_once_is_revived_all_the_same,
    the_holder_of_a_pid_is_named,
    a_live_tree_is_ended_with_all_its_descendants_and_can_be_gone_back_to,
    a_restore_that_is_refused_touches_no_tree_that_another_revived_meanwhile,
    a_name_that_is_not_utf8_is_no_obstacle,
];

/// A victim that was captured, ended and revived.
#[track_caller]
fn revived(home: &Home, flags: &[&str]) -> Revived {
    let victim = Victim::start(flags);
    let store = home.store();
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    Revived::from(home.restore(), &store, &digest)
}

fn the_exit_status_arrives() {
    let home = Home::new();
    let mut revived = revived(&home, &["children=1"]);
    revived.talk.tell("exit 7");
    let status = revived.tree().wait().or_explain();
    assert_eq!(status.code(), Some(7));
    assert_eq!(revived.tree().wait().or_explain(), status); // and can be asked for again
    assert_eq!(revived.tree().wait_timeout(Duration::ZERO).or_explain(), Some(status));
    revived.tree().kill().or_explain(); // too late, and no error
}

fn the_signal_that_killed_arrives() {
    let home = Home::new();
    let mut revived = revived(&home, &[]);
    signal(revived.pid(), Signal::SIGTERM);
    let status = revived.tree().wait_timeout(crate::places::PATIENCE).or_explain().unwrap();
    assert_eq!((status.code(), status.signal()), (None, Some(Signal::SIGTERM as i32)));
}

fn waiting_takes_no_longer_than_asked() {
    let home = Home::new();
    let mut revived = revived(&home, &[]);
    let start = Instant::now();
    assert_eq!(revived.tree().wait_timeout(Duration::ZERO).or_explain(), None);
    assert_eq!(revived.tree().wait_timeout(Duration::from_millis(50)).or_explain(), None);
    assert!(start.elapsed() >= Duration::from_millis(50));
    revived.assert_counts_on(0);
}

fn a_tree_outlives_the_thread_that_revived_it() {
    for way in WAYS {
        let home = Home::new();
        let (store, victim) = (home.store(), Victim::start(&["parent-death", "children=1"]));
        let members = victim.members();
        let digest = way.capture(&home, victim.pid()).capture(&store).or_explain();
        if way.ends { victim.reap(&members) } else { victim.end() }
        let mut revived = thread::scope(|scope| {
            scope.spawn(|| Revived::from(home.restore(), &store, &digest)).join().unwrap()
        });
        // The kernel tells the tree of the thread's end a moment after that is known here.
        for count in 0..20 {
            assert!(lives(revived.pid()), "{way:?}");
            revived.assert_counts_on(count);
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn killing_ends_every_process_of_the_tree() {
    let home = Home::new();
    let mut revived = revived(&home, &["children=3", "threads=2"]);
    let members = family(revived.pid());
    assert_eq!(members.len(), 4);
    revived.tree().kill().or_explain();
    let status = revived.tree().wait().or_explain();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    wait_gone(&members);
}

fn a_tree_left_alone_runs_on_and_leaves_no_zombie() {
    let home = Home::new();
    let revived = revived(&home, &["children=1"]);
    let members = family(revived.pid());
    let (tree, mut talk) = revived.give();
    drop(tree);
    assert_eq!(talk.ask("tick"), "count 1");
    assert_eq!(talk.ask("child 0 tick"), "count 1");
    talk.hang_up();
    wait_gone(&members); // a zombie would stay
}

fn a_pid_that_is_taken_is_a_cause_and_its_process_is_left_alone() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["children=1", "memory=4"]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();

    let error = home.restore().restore(&store, &digest).unwrap_err();
    assert!(
        matches!(&error, Error::Criu(failure) if failure.cause == Cause::PidInUse),
        "{}",
        explain(&error)
    );
    assert!(error.advice().is_some());
    home.assert_staging_empty();
    victim.assert_counts_on(0);
    assert_eq!(victim.ask("check"), "memory ok 1024 pages");
    assert_eq!(victim.ask("child 0 tick"), "count 1");
    assert_eq!(victim.members().len(), 2);

    let members = victim.members();
    victim.end();
    assert!(members.iter().all(|pid| state(*pid).is_none()));
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn of_two_restores_at_once_one_succeeds_and_its_status_arrives() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["children=1"]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    for _ in 0..6 {
        let attempt = || {
            let (talk, input, output) = Talk::through_pipes();
            let restored = home.restore().stdin(input).stdout(output).restore(&store, &digest);
            restored.map(|mut restored| Revived::new(restored.trees.remove(0), talk))
        };
        let results = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(attempt));
            both.map(|one| one.join().unwrap())
        });
        let mut winners = 0;
        for result in results {
            match result {
                Ok(mut revived) => {
                    winners += 1;
                    let members = family(revived.pid());
                    revived.assert_counts_on(0);
                    revived.talk.tell("exit 7");
                    assert_eq!(revived.tree().wait().or_explain().code(), Some(7));
                    wait_gone(&members);
                }
                Err(error) => {
                    let cause = error.failure().map(|failure| failure.cause);
                    assert_eq!(cause, Some(Cause::PidInUse), "{}", explain(&error));
                }
            }
        }
        assert!(winners > 0, "each was in the other's way");
    }
}

fn a_tree_that_ends_at_once_is_revived_all_the_same() {
    let home = Home::new();
    let store = home.store();
    // Of one thread: criu 4.2 fails if a thread ends others that it has not let go yet.
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    for _ in 0..20 {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let mut restored = home.restore().stdin(nothing).restore(&store, &digest).or_explain();
        assert!(restored.trees[0].wait().or_explain().success());
    }
}

fn the_holder_of_a_pid_is_named() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["children=1"]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    let error = home.restore().restore(&store, &digest).unwrap_err();
    let holder = format!("found:       pid {} is held by", victim.pid());
    assert!(error.report().to_string().contains(&holder), "{}", explain(&error));

    // A zombie is waited for, since its parent may be about to reap it; but not for ever.
    let (pid, members) = (victim.pid(), victim.members());
    criu_rpc::kill_tree(pid).or_explain();
    let begin = Instant::now();
    let patience = Duration::from_millis(300);
    let error = home.restore().wait_for_pids(patience).restore(&store, &digest).unwrap_err();
    assert!(begin.elapsed() >= patience);
    assert!(error.report().to_string().contains(&format!("pid {pid} is held by the zombie")), "{}", explain(&error));
    victim.reap(&members);
}

fn a_live_tree_is_ended_with_all_its_descendants_and_can_be_gone_back_to() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["children=3", "threads=2"]);
    let members = victim.members();
    assert_eq!(members.len(), 4);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();

    criu_rpc::kill_tree(victim.pid()).or_explain();
    assert!(!members.iter().any(|pid| state(*pid).is_some_and(|state| state != 'Z')), "some live on");
    criu_rpc::kill_tree(victim.pid()).or_explain(); // it has ended already
    victim.reap(&members);
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);

    for ours in [std::process::id(), std::os::unix::process::parent_id()] {
        assert!(matches!(criu_rpc::kill_tree(ours), Err(Error::Process { .. })));
    }
    for nobody in [0, -1, i32::MIN, 1] {
        assert!(criu_rpc::kill_tree(nobody).is_err());
    }
}

fn a_restore_that_is_refused_touches_no_tree_that_another_revived_meanwhile() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["children=1"]);
    let pid = victim.pid();
    let folder = home.folder("images");
    let images = File::open(&folder).unwrap();
    let options = DumpOptions::default().leave_running(true);
    criu().dump(pid, &options, Lend::images(&images), &mut NoHooks).or_explain();
    let digest = home.capture([pid]).capture(&store).or_explain();
    victim.end();

    // The second begins inside the first, and is told that the pid is spoken for.
    let mut second = None;
    let mut hooks = |event: Event<'_>| match event {
        Event::PreRestore => {
            second = Some(home.restore().restore(&store, &digest));
            Err("that was all".into())
        }
        _ => Ok(()),
    };
    let options = RestoreOptions::default().rst_sibling(true);
    let first = criu().restore(&options, Lend::images(&images), &mut hooks).unwrap_err();
    assert!(matches!(first, Error::Refused { .. }), "{}", explain(&first));
    let second = second.unwrap().unwrap_err();
    assert!(second.failure().is_some_and(|failure| failure.cause == Cause::PidInUse), "{}", explain(&second));
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn a_name_that_is_not_utf8_is_no_obstacle() {
    let home = Home::new();
    let store = home.store();
    // The kernel names a process after the file that it executes.
    let program = home.path("staging").parent().unwrap().join(OsStr::from_bytes(b"gr\xff) R 1"));
    symlink(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(&program);
    command.arg0("victim").args(["--victim", "session"]);
    let mut victim = Victim::start_by(command);
    assert_eq!(fs::read(format!("/proc/{}/comm", victim.pid())).unwrap(), b"gr\xff) R 1\n");
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.assert_counts_on(0);
    victim.end();
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}
