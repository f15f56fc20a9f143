//! The client against a scripted criu: one test a fault, and one a promise that needs no fault.

use std::{
    error::Error as _,
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, Request, RestoreOptions, Result, Target, Version,
    options::{CgroupMode, CpuCap, LogLevel, NetworkLock},
    rpc::{Cancel, Event, Hooks, Lend, NoHooks},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use prost::Message;

use crate::{
    peer::{
        self, Features, Kind, Line, Opts, Peer, Req, Resp, answer, hang_up, hear, hear_ack, notify, say,
        say_bytes,
    },
    stores::Folder,
};

// The answer.

#[test]
fn an_answer_cut_short_is_never_a_success() {
    let whole = version_answer().encode_to_vec();
    for length in 1..whole.len() {
        let (socket, peer) = Peer::play([hear(Kind::Version), say_bytes(&whole[..length])]);
        let error = Criu::over(socket).version().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. } | Error::Criu(_)), "{length}: {error}");
        peer.done();
    }
}

#[test]
fn junk_is_not_understood() {
    for junk in [&[0xff; 16][..], &[0], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let error = asked_for_its_version([say_bytes(junk)]);
        assert!(matches!(error, Error::Protocol { request: Request::Version, .. }), "{error}");
    }
}

#[test]
fn an_answer_to_another_question_is_not_taken() {
    let error = asked_for_its_version([answer(Kind::Dump)]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("DUMP")), "{error}");
}

#[test]
fn an_answer_of_a_type_from_the_future_is_not_taken() {
    let error = asked_for_its_version([say(Resp { kind: 4242, success: true, ..Resp::default() })]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("4242")), "{error}");
}

#[test]
fn a_criu_that_does_not_know_the_request_is_told_from_one_that_failed() {
    let error = asked_for_its_version([say(Resp::bad(Kind::Empty))]);
    assert!(
        matches!(&error, Error::Protocol { problem, .. } if problem.contains("does not know")),
        "{error}"
    );
}

#[test]
fn silence_ends_at_the_deadline() {
    let (socket, peer) = Peer::play([hear(Kind::Version)]);
    let begin = Instant::now();
    let error = Criu::over(socket).deadline(Duration::from_millis(50)).version().unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(50));
    peer.done();
}

#[test]
fn a_dump_past_its_deadline_is_given_up() {
    let (socket, peer) = Peer::play([hear(Kind::Dump)]);
    let criu = Criu::over(socket).deadline(Duration::from_millis(50));
    let error = dump_by(&criu, &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    peer.done();
}

#[test]
fn an_answer_in_time_is_not_late() {
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer())]);
    Criu::over(socket).deadline(Duration::from_secs(60)).version().unwrap();
    peer.done();
}

#[test]
fn a_hang_up_before_the_answer_is_told_as_such() {
    let error = asked_for_its_version([hang_up()]);
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn a_criu_that_left_before_the_request_is_told_as_such() {
    let (socket, peer) = Peer::play([hang_up()]);
    peer.done();
    let error = Criu::over(socket).version().unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn an_empty_packet_is_a_hang_up() {
    let error = asked_for_its_version([say_bytes([])]);
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn a_long_answer_arrives_whole() {
    let text = "long ".repeat(64 * 1024 / 5);
    let bad = Resp { errmsg: Some(format!("{text}and its end")), ..Resp::bad(Kind::Version) };
    let error = asked_for_its_version([say(bad)]);
    let message = error.failure().unwrap().message.as_deref().unwrap();
    assert_eq!(message.len(), text.len() + "and its end".len());
    assert!(message.ends_with("long and its end"));
}

#[test]
fn an_answer_beyond_the_ceiling_is_refused_and_not_read() {
    let bad = Resp { errmsg: Some("x".repeat(300 * 1024)), ..Resp::bad(Kind::Version) };
    let error = asked_for_its_version([say(bad)]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("bytes")), "{error}");
}

#[test]
fn a_descriptor_that_comes_with_an_answer_is_closed() {
    let (read, write) = pipe();
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer()).with(write)]);
    Criu::over(socket).version().unwrap();
    peer.done();
    read.ends();
}

#[test]
fn a_descriptor_that_comes_with_an_answer_beyond_the_ceiling_is_closed() {
    let (read, write) = pipe();
    let bad = Resp { errmsg: Some("x".repeat(300 * 1024)), ..Resp::bad(Kind::Version) };
    asked_for_its_version([say(bad).with(write)]);
    read.ends();
}

#[test]
fn a_descriptor_that_comes_with_an_event_is_closed() {
    let (read, write) = pipe();
    let (stray, other) = pipe();
    let heard = dumped([
        notify("pre-dump").with(write),
        hear_ack(true),
        notify("of-the-future").with(other),
        hear_ack(true),
        answer(Kind::Dump),
    ]);
    heard.unwrap();
    read.ends();
    stray.ends();
}

// Success and failure.

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
    let _ = root.wait(); // whoever is quicker, we or the tree's owner, reaps it
}

#[test]
fn a_restore_past_its_deadline_is_refused_at_its_next_event() {
    let script = [hear(Kind::Restore), notify("pre-restore"), hear_ack(true), notify("post-restore")];
    let end = [hear_ack(false), say(Resp::bad(Kind::Restore))];
    let (socket, peer) = Peer::play(script.into_iter().chain(end));
    let criu = Criu::over(socket).deadline(Duration::from_millis(20));
    let mut slow = |_: Event<'_>| {
        std::thread::sleep(Duration::from_millis(60));
        Ok(())
    };
    let error = restore_by(&criu, &mut slow).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    peer.done();
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
    let _ = root.wait(); // whoever is quicker, we or the tree's owner, reaps it
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

// Events.

#[test]
fn every_event_arrives_as_what_it_is() {
    type Is = fn(&Event<'_>) -> bool;
    let events: [(&str, Option<i32>, Is); 14] = [
        ("pre-stream", None, |event| matches!(event, Event::PreStream)),
        ("pre-dump", None, |event| matches!(event, Event::PreDump)),
        ("query-ext-files", None, |event| matches!(event, Event::QueryExtFiles(_))),
        ("network-lock", None, |event| matches!(event, Event::NetworkLock)),
        ("network-unlock", None, |event| matches!(event, Event::NetworkUnlock)),
        ("post-dump", None, |event| matches!(event, Event::PostDump)),
        ("pre-restore", None, |event| matches!(event, Event::PreRestore)),
        (
            "setup-namespaces",
            Some(41),
            |event| matches!(event, Event::SetupNamespaces { pid } if pid.as_raw() == 41),
        ),
        ("post-setup-namespaces", None, |event| matches!(event, Event::PostSetupNamespaces)),
        ("orphan-pts-master", None, |event| matches!(event, Event::OrphanPtsMaster(_))),
        ("post-restore", Some(42), |event| matches!(event, Event::PostRestore { pid } if pid.as_raw() == 42)),
        ("pre-resume", None, |event| matches!(event, Event::PreResume)),
        ("post-resume", None, |event| matches!(event, Event::PostResume)),
        ("status-ready", None, |event| matches!(event, Event::StatusReady)),
    ];
    let mut script = vec![hear(Kind::Dump)];
    for (name, pid, _) in &events {
        let event = say(Resp::event(Some(name), *pid));
        script.push(if *name == "orphan-pts-master" { event.with(pipe().1) } else { event });
        script.push(hear_ack(true));
    }
    script.push(answer(Kind::Dump));
    let mut seen = 0;
    let mut hooks = |event: Event<'_>| {
        let (name, _, is) = &events[seen];
        assert!(is(&event), "{event:?} is not {name}");
        assert_eq!(event.name(), *name);
        seen += 1;
        Ok(())
    };
    let (socket, peer) = Peer::play(script);
    dump_by(&Criu::over(socket), &mut hooks).unwrap();
    peer.done();
    assert_eq!(seen, events.len());
}

#[test]
fn an_event_of_the_future_is_told_and_acknowledged() {
    let mut seen = Vec::new();
    let mut hooks = |event: Event<'_>| {
        if let Event::Unknown { name, pid } = &event {
            seen.push(((*name).to_owned(), pid.map(|pid| pid.as_raw())));
        }
        assert!(!seen.is_empty(), "{event:?}");
        Ok(())
    };
    let (socket, peer) = Peer::play([
        hear(Kind::Dump),
        say(Resp::event(Some("of-the-future"), Some(42))),
        hear_ack(true),
        // Known names without what belongs to them.
        notify("setup-namespaces"),
        hear_ack(true),
        notify("orphan-pts-master"),
        hear_ack(true),
        answer(Kind::Dump),
    ]);
    dump_by(&Criu::over(socket), &mut hooks).unwrap();
    peer.done();
    let seen: Vec<_> = seen.iter().map(|(name, pid)| (name.as_str(), *pid)).collect();
    assert_eq!(seen, [("of-the-future", Some(42)), ("setup-namespaces", None), ("orphan-pts-master", None)]);
}

#[test]
fn an_event_without_a_name_is_not_understood() {
    for nameless in [Resp::good(Kind::Notify), Resp::event(None, Some(1))] {
        let error = dumped([say(nameless)]).unwrap_err();
        assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("name")), "{error}");
    }
}

#[test]
fn an_event_that_nobody_asked_for_is_acknowledged() {
    let (socket, peer) =
        Peer::play([hear(Kind::Dump), notify("post-dump"), hear_ack(true), answer(Kind::Dump)]);
    dump_by(&Criu::over(socket), &mut NoHooks).unwrap();
    peer.done();
}

#[test]
fn a_hang_up_while_the_hook_runs_is_told_as_such() {
    let (socket, peer) = Peer::play([hear(Kind::Dump), notify("pre-dump"), hang_up()]);
    let mut peer = Some(peer);
    let mut hooks = |_: Event<'_>| {
        peer.take().unwrap().done(); // the peer has hung up once this returns
        Ok(())
    };
    let error = dump_by(&Criu::over(socket), &mut hooks).unwrap_err();
    let Error::Gone(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.last_event.as_deref(), Some("pre-dump"));
}

#[test]
fn a_hang_up_after_an_event_is_told_as_such() {
    let error = dumped([notify("pre-dump"), hear_ack(true), hang_up()]).unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn what_a_hook_adds_goes_out_with_the_acknowledgement() {
    let mut hooks = |event: Event<'_>| {
        if let Event::QueryExtFiles(external) = event {
            external.extend(["file[1:2]".to_owned(), "unix[3]".to_owned()]);
        }
        Ok(())
    };
    let (socket, peer) = Peer::play([
        hear(Kind::Dump),
        notify("query-ext-files"),
        hear_ack(true),
        notify("post-dump"),
        hear_ack(true),
        answer(Kind::Dump),
    ]);
    dump_by(&Criu::over(socket), &mut hooks).unwrap();
    let heard = peer.done();
    let external = vec!["file[1:2]".to_owned(), "unix[3]".to_owned()];
    let expected = Opts { images_dir_fd: Some(-1), external, ..Opts::default() };
    assert_eq!(heard[1].opts, Some(expected));
    assert_eq!(heard[2].opts, None, "nothing to add, nothing said");
}

#[test]
fn the_master_of_an_orphaned_terminal_is_handed_over() {
    let (read, write) = pipe();
    let mut master = None;
    let mut hooks = |event: Event<'_>| {
        if let Event::OrphanPtsMaster(descriptor) = event {
            master = Some(descriptor);
        }
        Ok(())
    };
    let bad = say(Resp::bad(Kind::Restore));
    let (socket, peer) =
        Peer::play([hear(Kind::Restore), notify("orphan-pts-master").with(write), hear_ack(true), bad]);
    restore_by(&Criu::over(socket), &mut hooks).unwrap_err();
    peer.done();
    nix::unistd::write(master.unwrap(), b"here").unwrap();
    assert_eq!(read.ends(), b"here");
}

#[test]
fn a_refusal_goes_to_criu_and_comes_back_with_its_reason() {
    let mut hooks = |_: Event<'_>| Err("not today".into());
    let error = refused(&mut hooks);
    let Error::Refused { event, .. } = &error else { panic!("{error}") };
    assert_eq!(event, "post-dump");
    assert_eq!(error.source().unwrap().to_string(), "not today");
}

#[test]
fn a_hook_that_panics_refuses() {
    let mut hooks = |event: Event<'_>| match event {
        Event::PostDump => panic!("on purpose: {}", event.name()),
        _ => Ok(()),
    };
    let error = refused(&mut hooks);
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(error.source().unwrap().to_string(), "the hook panicked: on purpose: post-dump");
}

#[test]
fn of_several_refusals_the_first_is_told() {
    let mut hooks = |event: Event<'_>| Err(format!("not at {}", event.name()).into());
    let (socket, peer) = Peer::play([
        hear(Kind::Dump),
        notify("post-dump"),
        hear_ack(false),
        notify("network-unlock"),
        hear_ack(false),
        say(Resp::bad(Kind::Dump)),
    ]);
    let error = dump_by(&Criu::over(socket), &mut hooks).unwrap_err();
    assert!(matches!(&error, Error::Refused { event, .. } if event == "post-dump"), "{error}");
    peer.done();
}

#[test]
fn a_refusal_that_criu_ignores_is_no_failure() {
    let mut hooks = |_: Event<'_>| Err("not today".into());
    let (socket, peer) =
        Peer::play([hear(Kind::Dump), notify("network-unlock"), hear_ack(false), answer(Kind::Dump)]);
    dump_by(&Criu::over(socket), &mut hooks).unwrap();
    peer.done();
}

// The request.

#[test]
fn options_arrive_as_they_were_set() {
    let options = DumpOptions::default()
        .leave_running(true)
        .tcp_established(false)
        .shell_job(true)
        .log_level(LogLevel::Debug)
        .log_file("mine.log")
        .root("/new/root")
        .parent_img("../before")
        .cpu_cap(CpuCap::FPU | CpuCap::CPU)
        .manage_cgroups_mode(CgroupMode::Ignore)
        .ghost_limit(u32::MAX)
        .external("mnt[/a]:a")
        .external("dev[1/2]:b")
        .timeout(Duration::from_secs(7))
        .network_lock(NetworkLock::Skip)
        .leave_stopped(true);
    let (images, work) = (Folder::new(), Folder::new());
    let (images, work) = (File::open(&*images).unwrap(), File::open(&*work).unwrap());
    let (socket, peer) = Peer::play([hear(Kind::Dump), answer(Kind::Dump)]);
    let lend = Lend::images(&images).work(&work);
    Criu::over(socket).dump(4242, &options, lend, &mut NoHooks).unwrap();
    let expected = Opts {
        images_dir_fd: Some(images.as_raw_fd()),
        work_dir_fd: Some(work.as_raw_fd()),
        pid: Some(4242),
        leave_running: Some(true),
        tcp_established: Some(false),
        shell_job: Some(true),
        log_level: Some(4),
        log_file: Some("mine.log".to_owned()),
        root: Some("/new/root".to_owned()),
        parent_img: Some("../before".to_owned()),
        cpu_cap: Some(3),
        manage_cgroups_mode: Some(0),
        ghost_limit: Some(u32::MAX),
        external: vec!["mnt[/a]:a".to_owned(), "dev[1/2]:b".to_owned()],
        timeout: Some(7),
        network_lock: Some(3),
        leave_stopped: Some(true),
        ..Opts::default()
    };
    assert_eq!(peer.done(), [Req { opts: Some(expected), ..request(Kind::Dump) }]);
}

#[test]
fn a_restore_says_what_it_was_told() {
    let options = RestoreOptions::default().rst_sibling(true).exec_cmd("true").exec_cmd("-x");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let (socket, peer) = Peer::play([hear(Kind::Restore), say(Resp::bad(Kind::Restore))]);
    let _ = Criu::over(socket).restore(&options, Lend::images(&images), &mut NoHooks);
    let expected = Opts {
        images_dir_fd: Some(images.as_raw_fd()),
        log_level: Some(2),
        rst_sibling: Some(true),
        notify_scripts: Some(true), // its root is to be known, if it fails
        exec_cmd: vec!["true".to_owned(), "-x".to_owned()],
        ..Opts::default()
    };
    assert_eq!(peer.done(), [Req { opts: Some(expected), ..request(Kind::Restore) }]);
}

#[test]
fn criu_tells_of_events_only_where_somebody_listens() {
    for (hooks, told) in [(&mut NoHooks as &mut dyn Hooks, None), (&mut |_: Event<'_>| Ok(()), Some(true))] {
        let (socket, peer) = Peer::play([hear(Kind::Dump), answer(Kind::Dump)]);
        dump_by(&Criu::over(socket), hooks).unwrap();
        assert_eq!(peer.done()[0].opts.as_ref().unwrap().notify_scripts, told);
    }
}

#[test]
fn what_must_be_inherited_cannot_be_lent_over_a_foreign_socket() {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let lends = [Lend::images(&images).inherit("pipe:[1]", &images), Lend::images(&images).terminal(&images)];
    for lend in lends {
        let (socket, peer) = Peer::play([]);
        let error = Criu::over(socket).restore(&RestoreOptions::default(), lend, &mut NoHooks).unwrap_err();
        assert!(matches!(error, Error::Options { .. }), "{error}");
        peer.done();
    }
}

#[test]
fn a_self_dump_needs_a_criu_of_its_own() {
    let folder = Folder::new();
    let (socket, peer) = Peer::play([]);
    let error = Criu::over(socket).dump_self(&DumpOptions::default(), &folder).unwrap_err();
    assert!(matches!(error, Error::Options { .. }), "{error}");
    peer.done();
}

#[test]
fn a_connection_carries_one_request() {
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer())]);
    let criu = Criu::over(socket);
    criu.version().unwrap();
    let error = criu.clone().version().unwrap_err();
    assert!(matches!(error, Error::Options { option: "Criu", .. }), "{error}");
    peer.done();
}

// Small questions.

#[test]
fn a_version_is_what_criu_says_of_itself() {
    let version = told_version(peer::Version {
        sublevel: Some(1),
        gitid: Some("v4.1.1-3-gabc".to_owned()),
        name: Some("Swift".to_owned()),
        ..numbers(4, 1)
    });
    assert_eq!(version, Version::new(4, 1, 1));
    assert_eq!(version.git_id.as_deref(), Some("v4.1.1-3-gabc"));
    assert_eq!(version.name.as_deref(), Some("Swift"));
}

#[test]
fn a_version_without_a_sublevel_has_zero() {
    assert_eq!(told_version(numbers(4, 2)), Version::new(4, 2, 0));
}

#[test]
fn an_answer_without_a_version_is_not_understood() {
    let error = asked_for_its_version([answer(Kind::Version)]);
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn features_are_what_criu_says_of_them_and_the_others_are_missing() {
    let told = Features { mem_track: Some(true), lazy_pages: Some(false), pidfd_store: None };
    let good = Resp { features: Some(told), ..Resp::good(Kind::FeatureCheck) };
    let (socket, peer) = Peer::play([hear(Kind::FeatureCheck), say(good)]);
    let features = Criu::over(socket).features().unwrap();
    assert_eq!((features.mem_track, features.lazy_pages, features.pidfd_store), (true, false, false));
    let all = Features { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) };
    assert_eq!(peer.done(), [Req { features: Some(all), ..request(Kind::FeatureCheck) }]);
}

#[test]
fn an_answer_without_features_is_not_understood() {
    let (socket, peer) = Peer::play([hear(Kind::FeatureCheck), answer(Kind::FeatureCheck)]);
    let error = Criu::over(socket).features().unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    peer.done();
}

#[test]
fn a_check_that_fails_says_why() {
    let bad = Resp { errmsg: Some("no such kernel".to_owned()), ..Resp::bad(Kind::Check) };
    let (socket, peer) = Peer::play([hear(Kind::Check), say(bad)]);
    let error = Criu::over(socket).check().unwrap_err();
    assert_eq!(error.failure().unwrap().message.as_deref(), Some("no such kernel"));
    let heard = peer.done();
    assert_eq!(heard[0].opts.as_ref().unwrap().log_to_stderr, Some(true), "no log in somebody's folder");
}

// Helpers.

/// Asks for the version; the peer hears that, and then goes on as it is told.
#[track_caller]
fn asked_for_its_version(then: impl IntoIterator<Item = Line>) -> Error {
    let (socket, peer) = Peer::play([hear(Kind::Version)].into_iter().chain(then));
    let error = Criu::over(socket).version().unwrap_err();
    peer.done();
    error
}

#[track_caller]
fn told_version(version: peer::Version) -> Version {
    let good = Resp { version: Some(version), ..Resp::good(Kind::Version) };
    let (socket, peer) = Peer::play([hear(Kind::Version), say(good)]);
    let told = Criu::over(socket).version().unwrap();
    assert_eq!(peer.done(), [request(Kind::Version)]);
    told
}

/// Dumps, with a hook that agrees to everything; the peer hears that, and then goes on as it is told.
#[track_caller]
fn dumped(then: impl IntoIterator<Item = Line>) -> Result<()> {
    let (socket, peer) = Peer::play([hear(Kind::Dump)].into_iter().chain(then));
    let result = dump_by(&Criu::over(socket), &mut |_: Event<'_>| Ok(()));
    peer.done();
    result
}

/// A dump of this process, in name: nobody touches it.
fn dump_by(criu: &Criu, hooks: &mut dyn Hooks) -> Result<()> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.dump(process::id(), &DumpOptions::default(), Lend::images(&images), hooks).map(drop)
}

/// A dump whose hooks refuse at `post-dump`.
#[track_caller]
fn refused(hooks: &mut dyn Hooks) -> Error {
    let bad = say(Resp::bad(Kind::Dump));
    let (socket, peer) = Peer::play([hear(Kind::Dump), notify("post-dump"), hear_ack(false), bad]);
    let error = dump_by(&Criu::over(socket), hooks).unwrap_err();
    peer.done();
    error
}

#[track_caller]
fn restored(then: impl IntoIterator<Item = Line>) -> Result<criu_rpc::Tree> {
    let (socket, peer) = Peer::play([hear(Kind::Restore)].into_iter().chain(then));
    let result = restore_by(&Criu::over(socket), &mut NoHooks);
    peer.done();
    result
}

fn restore_by(criu: &Criu, hooks: &mut dyn Hooks) -> Result<criu_rpc::Tree> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.restore(&RestoreOptions::default(), Lend::images(&images), hooks)
}

fn request(kind: Kind) -> Req {
    Req { kind: kind as i32, ..Req::default() }
}

fn version_answer() -> Resp {
    Resp { version: Some(numbers(4, 2)), ..Resp::good(Kind::Version) }
}

fn numbers(major: i32, minor: i32) -> peer::Version {
    peer::Version { major, minor, ..peer::Version::default() }
}

/// A pipe, whose write end can be given away.
fn pipe() -> (ReadEnd, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (ReadEnd(read.into()), write)
}

struct ReadEnd(File);

impl ReadEnd {
    /// Reads to the end, which comes once every copy of the write end is closed.
    #[track_caller]
    fn ends(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::from(5000u16)).unwrap();
            assert_eq!(ready, 1, "somebody still holds the descriptor");
            let mut buffer = [0; 64];
            match self.0.read(&mut buffer).unwrap() {
                0 => return bytes,
                size => bytes.extend_from_slice(&buffer[..size]),
            }
        }
    }
}

#[test]
fn one_criu_serves_many_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Criu>();
    shared::<Cancel>();
}
