//! Events, hooks, and refusals.

use std::error::Error as _;

use criu_rpc::{
    Criu, Error,
    rpc::{Event, NoHooks},
};

use super::{dump_by, dumped, pipe, refused, restore_by};
use crate::peer::{Kind, Opts, Peer, Resp, answer, hang_up, hear, hear_ack, notify, say};

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
            |event| matches!(event, Event::SetupNamespaces { pid, .. } if pid.as_raw() == 41),
        ),
        ("post-setup-namespaces", None, |event| matches!(event, Event::PostSetupNamespaces)),
        ("orphan-pts-master", None, |event| matches!(event, Event::OrphanPtsMaster(_))),
        (
            "post-restore",
            Some(42),
            |event| matches!(event, Event::PostRestore { pid, .. } if pid.as_raw() == 42),
        ),
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
        if let Event::Unknown { name, pid, .. } = &event {
            seen.push(((*name).to_owned(), pid.map(|pid| pid.as_raw())));
        }
        assert!(!seen.is_empty(), "{event:?}");
        Ok(())
    };
    let (socket, peer) = Peer::play([
        hear(Kind::Dump),
        say(Resp::event(Some("of-the-future"), Some(42))),
        hear_ack(true),
        // Known names without their data.
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
    assert!(error.report().to_string().contains("the tree:    goes on as it was"), "{}", error.report());
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
