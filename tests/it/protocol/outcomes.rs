//! The outcomes of a request: success, failure, a missed deadline, a cancelling token.

use std::{fs::File, process, time::Duration};

use criu_rpc::{
    Cancel, Cause, Criu, DumpOptions, Error, Request, Target,
    rpc::{Event, Lend, NoHooks},
};

use super::{dump_by, dumped, restore_by, restored};
use crate::{
    peer::{Kind, Peer, Resp, answer, hear, hear_ack, notify, say},
    stores::Folder,
};

#[test]
fn a_failure_comes_with_all_that_criu_told() {
    let bad = Resp {
        errno: Some(3),
        errmsg: Some("Error (criu/files.c:12): Some file locks are hold by dumping tasks!".to_owned()),
        ..Resp::bad(Kind::Dump)
    };
    let error = dumped([notify("pre-dump"), hear_ack(true), say(bad)]).unwrap_err();
    let Error::Criu(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.request, Request::Dump);
    assert_eq!(failure.errno, Some(3));
    assert_eq!(failure.message.as_deref(), Some("Some file locks are hold by dumping tasks!"));
    assert_eq!(failure.cause, Cause::FileLocks);
    assert_eq!(failure.last_event.as_deref(), Some("pre-dump"));
    assert_eq!(failure.target, Target::Running);
    assert!(error.advice().unwrap().contains("file_locks"));
}

#[test]
fn a_failure_without_a_word_is_a_failure() {
    let error = dumped([say(Resp::bad(Kind::Dump))]).unwrap_err();
    let failure = error.failure().unwrap();
    assert!(matches!(error, Error::Criu(_)), "{error}");
    assert_eq!((failure.cause, failure.errno, &failure.message), (Cause::Unknown, None, &None));
}

#[test]
fn the_log_in_the_lent_folder_comes_with_a_failure() {
    let folder = Folder::new();
    std::fs::write(folder.join("criu.log"), "(00.1) Error (criu/x.c:1): it hurts\n").unwrap();
    // A log from before the request is ignored, and the request comes later than this line.
    let log = File::options().write(true).open(folder.join("criu.log")).unwrap();
    log.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(60)).unwrap();
    let images = File::open(&*folder).unwrap();
    let (socket, peer) = Peer::play([hear(Kind::Dump), say(Resp::bad(Kind::Dump))]);
    let options = DumpOptions::default();
    let result = Criu::over(socket).dump(process::id(), &options, Lend::images(&images), &mut NoHooks);
    assert_eq!(result.unwrap_err().failure().unwrap().log, ["it hurts"]);
    peer.done();
}

#[test]
fn a_success_with_an_error_message_is_a_success() {
    let good = Resp { errmsg: Some("rlimit: harmless".to_owned()), errno: Some(1), ..Resp::good(Kind::Dump) };
    dumped([say(good)]).unwrap();
}

#[test]
fn a_restore_to_a_pid_that_no_tree_can_have_is_not_believed() {
    for pid in [-1, 0, 1, i32::MIN] {
        let error = restored([say(Resp::restored(pid))]).unwrap_err();
        assert!(matches!(error, Error::Protocol { request: Request::Restore, .. }), "{pid}: {error}");
    }
    let error = restored([answer(Kind::Restore)]).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn a_restore_that_failed_makes_no_tree_of_a_stale_pid() {
    let stale = Resp { success: false, ..Resp::restored(i32::try_from(process::id()).unwrap()) };
    let error = restored([say(stale)]).unwrap_err();
    assert!(matches!(error, Error::Criu(_)), "{error}");
}

#[test]
fn a_restore_gives_the_tree_that_criu_named() {
    let mut root = process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(root.id()).unwrap();
    let tree = restored([say(Resp::restored(pid))]);
    let killed = tree.as_ref().map(|tree| (tree.pid().as_raw(), tree.kill().is_ok()));
    root.kill().unwrap();
    assert_eq!(killed.unwrap(), (pid, true));
    drop(tree);
    let _ = root.wait(); // the tree's owner may have reaped it already
}

#[test]
fn a_restore_whose_hook_is_late_is_refused_then_and_at_all_events_after() {
    let script = [hear(Kind::Restore), notify("pre-restore"), hear_ack(false), notify("post-restore")];
    let end = [hear_ack(false), say(Resp::bad(Kind::Restore))];
    let (socket, peer) = Peer::play(script.into_iter().chain(end));
    let criu = Criu::over(socket).deadline(Duration::from_millis(20));
    let mut asked = Vec::new();
    let mut slow = |event: Event<'_>| {
        asked.push(event.name().to_owned());
        std::thread::sleep(Duration::from_millis(60));
        Ok(())
    };
    let error = restore_by(&criu, &mut slow).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert_eq!(error.failure().unwrap().cause, Cause::GivenUp);
    assert_eq!(asked, ["pre-restore"]);
    peer.done();
}

#[test]
fn what_was_begun_is_undone_also_where_it_was_cancelled() {
    for event in ["pre-dump", "network-lock", "post-dump"] {
        let script = [hear(Kind::Dump), notify(event), hear_ack(event == "post-dump")];
        let then = [notify("network-unlock"), hear_ack(true)];
        let end = match event {
            // This event was accepted, so the dump completes.
            "post-dump" => answer(Kind::Dump),
            _ => say(Resp::bad(Kind::Dump)),
        };
        let (socket, peer) = Peer::play(script.into_iter().chain(then).chain([end]));
        let cancel = Cancel::new().unwrap();
        let mut asked = Vec::new();
        let mut hooks = |event: Event<'_>| {
            asked.push(event.name().to_owned());
            cancel.cancel();
            Ok(())
        };
        let result = dump_by(&Criu::over(socket).cancelled_by(&cancel), &mut hooks);
        assert_eq!(asked, [event, "network-unlock"]);
        match result {
            Err(error) => assert!(matches!(error, Error::Cancelled(_)) && event != "post-dump", "{error}"),
            Ok(()) => assert_eq!(event, "post-dump"),
        }
        peer.done();
    }
}

#[test]
fn a_restore_that_succeeds_past_its_deadline_has_succeeded() {
    let mut root = process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(root.id()).unwrap();
    let script = [hear(Kind::Restore), notify("post-resume"), hear_ack(true), say(Resp::restored(pid))];
    let (socket, peer) = Peer::play(script);
    let criu = Criu::over(socket).deadline(Duration::from_millis(20));
    let mut slow = |_: Event<'_>| {
        std::thread::sleep(Duration::from_millis(60));
        Ok(())
    };
    let tree = restore_by(&criu, &mut slow);
    root.kill().unwrap();
    assert_eq!(tree.unwrap().pid().as_raw(), pid);
    peer.done();
    let _ = root.wait(); // the tree's owner may have reaped it already
}

#[test]
fn a_token_cancels_from_another_thread_and_for_good() {
    let cancel = Cancel::new().unwrap();
    let (socket, peer) = Peer::play([hear(Kind::Version)]);
    let criu = Criu::over(socket).cancelled_by(&cancel);
    let remote = cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        remote.cancel();
    });
    let error = criu.version().unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{error}");
    canceller.join().unwrap();
    peer.done();

    let (socket, peer) = Peer::play([hear(Kind::Version)]);
    let error = Criu::over(socket).cancelled_by(&cancel).version().unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{error}");
    peer.done();
}
