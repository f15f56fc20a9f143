//! A conversation with a criu that we started.

use super::*;

#[test]
fn the_version_is_asked_first_on_the_same_connection() {
    let script = StandIn::talking((4, 2), &says(Resp::good(Kind::Dump)));
    assert_eq!(dumped(&script.criu()).unwrap().version, Some(Version::new(4, 2, 0)));
    let [first, second] = script.heard();
    let expected = Req { kind: Kind::Version as i32, keep_open: Some(true), ..Req::default() };
    assert_eq!(first, expected);
    assert_eq!(second.kind, Kind::Dump as i32);
    assert_eq!(second.opts.unwrap().log_to_stderr, Some(true));
}

#[test]
fn a_criu_that_cannot_log_to_its_standard_error_is_not_asked_to() {
    let script = StandIn::talking((3, 18), &says(Resp::good(Kind::Dump)));
    dumped(&script.criu()).unwrap();
    let [_, second] = script.heard();
    assert_eq!(second.opts.unwrap().log_to_stderr, None);
}

#[test]
fn the_log_on_standard_error_comes_with_a_failure() {
    let log = "echo '(00.1) Error (criu/x.c:1): it hurts' >&2; echo '(00.2) a detail' >&2; echo ouch >&2; ";
    let script = StandIn::talking((4, 2), &format!("{log}{}", says(Resp::bad(Kind::Dump))));
    let error = dumped(&script.criu()).unwrap_err();
    let Error::Criu(failure) = &error else { panic!("{error}") };
    assert_eq!((failure.log.as_slice(), failure.stderr.as_str()), (&["it hurts".to_owned()][..], "ouch\n"));
    assert_eq!(failure.version, Some(Version::new(4, 2, 0)));
    assert_eq!(failure.exit.unwrap().code(), Some(0));
}

#[test]
fn a_criu_that_is_killed_in_a_dump_is_told_with_all_that_is_known() {
    let script = StandIn::talking((4, 2), "kill -KILL $$");
    let error = dumped(&script.criu()).unwrap_err();
    let failure = gone(&error);
    assert_eq!(failure.exit.unwrap().signal(), Some(Signal::SIGKILL as i32));
    assert_eq!(failure.version, Some(Version::new(4, 2, 0)));
}

#[test]
fn a_dump_past_its_deadline_fails_by_itself_and_is_not_killed() {
    // As criu does: it writes until a write fails, repairs the tree, and answers.
    let writes =
        "while echo image >>\"$folder/image\"; do sleep 0.01; done 2>/dev/null; mkdir \"$folder/righted\"; ";
    let script = StandIn::talking((4, 2), &format!("{writes}{}", says(Resp::bad(Kind::Dump))));
    let error = dumped(&script.criu().deadline(Duration::from_millis(500))).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert_eq!(error.failure().unwrap().exit.unwrap().code(), Some(0));
    assert!(script.0.join("righted").is_dir());
}

#[test]
fn a_restore_is_given_up_at_the_deadline_while_nothing_exists_yet() {
    let script = StandIn::doing("exec sleep 60");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let criu = script.criu().deadline(Duration::from_millis(100));
    let error = criu.restore(&RestoreOptions::default(), Lend::images(&images), &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
}

#[test]
fn a_restore_past_its_deadline_is_heard_out() {
    let script = StandIn::talking((4, 2), &format!("sleep 0.6; {}", says(Resp::bad(Kind::Restore))));
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let criu = script.criu().deadline(Duration::from_millis(400));
    let error = criu.restore(&RestoreOptions::default(), Lend::images(&images), &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert_eq!(error.failure().unwrap().exit.unwrap().code(), Some(0));
}

#[test]
fn a_self_dump_names_its_folder_by_criu_s_own_descriptor_and_returns_twice() {
    for restored in [None, Some(true)] {
        let answer = Resp { dump: Some(DumpResp { restored }), ..Resp::good(Kind::Dump) };
        let script = StandIn::talking((4, 2), &says(answer));
        let folder = Folder::new();
        let side = script.criu().dump_self(&DumpOptions::default(), &folder).unwrap();
        assert_eq!(matches!(side, SelfDump::Restored), restored == Some(true), "{side:?}");
        let [_, second] = script.heard();
        let opts = second.opts.unwrap();
        assert_eq!((opts.images_dir_fd, opts.images_dir.as_deref()), (Some(-1), Some("/proc/self/fd/4")));
        assert_eq!((opts.pid, opts.leave_running), (i32::try_from(process::id()).ok(), Some(true)));
        assert_eq!(opts.notify_scripts, None);
        assert_eq!(script.descriptors()[&4], folder.to_str().unwrap());
        assert_eq!(fs::read_dir(&*folder).unwrap().count(), 0, "its output stayed among the images");
    }
}

#[test]
fn a_self_dump_by_a_criu_that_is_too_old_is_refused() {
    let script = StandIn::talking((3, 18), "");
    let folder = Folder::new();
    let error = script.criu().dump_self(&DumpOptions::default(), &folder).unwrap_err();
    assert!(matches!(error, Error::TooOld { option: "dump_self", .. }), "{error}");
}

#[test]
fn an_option_that_this_criu_is_too_old_for_is_refused_before_it_is_asked() {
    let script = StandIn::talking((3, 10), "");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let options = RestoreOptions::default().tcp_established(true).tcp_close(true);
    let error = script.criu().restore(&options, Lend::images(&images), &mut NoHooks).unwrap_err();
    assert_eq!(error.to_string(), "tcp_close needs criu 3.12 or newer, found criu 3.10");
    assert!(matches!(error, Error::TooOld { option: "tcp_close", .. }), "{error:?}");
    assert!(fs::read(script.0.join("second")).is_ok_and(|heard| heard.is_empty()), "it was asked");
}

/// A page server with this pid. Its script runs `words`, then reports this exit status.
fn page_server(pid: i32, words: &str, status: i32) -> PageServer {
    let ps = Some(peer::Server { port: Some(4711), pid: Some(pid) });
    let started = says(Resp { ps, ..Resp::good(Kind::PageServer) });
    let ended = says(Resp { status: Some(status), ..Resp::good(Kind::WaitPid) });
    let hears = "dd bs=65536 count=1 <&3 >/dev/null 2>&1";
    let script = StandIn::talking((4, 2), &format!("{started}; {hears}; {words}{ended}"));
    let folder = File::open(&*script.0).unwrap();
    let options = PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0));
    let server = script.criu().page_server(&options, Lend::images(&folder)).unwrap();
    assert_eq!((server.pid().as_raw(), server.port()), (pid, Some(4711)));
    server
}

fn own() -> i32 {
    process::id().try_into().unwrap()
}

#[test]
fn the_words_of_a_page_server_that_failed_come_with_the_error() {
    let log = "echo 'Error (criu/page-xfer.c:1): it hurts' >&2; echo ouch >&2; ";
    let error = page_server(own(), log, 7 << 8).wait().unwrap_err();
    let Error::Criu(failure) = &error else { panic!("{error}") };
    assert_eq!((failure.log.as_slice(), failure.stderr.as_str()), (&["it hurts".to_owned()][..], "ouch\n"));
    assert_eq!(failure.exit.unwrap().code(), Some(7), "its own, not criu's");
    assert_eq!(failure.version, Some(Version::new(4, 2, 0)));
    assert_eq!(failure.request, Request::WaitPid);

    let error = page_server(own(), "", Signal::SIGKILL as i32).wait().unwrap_err();
    let Error::Criu(failure) = &error else { panic!("{error}") };
    assert_eq!((failure.cause, failure.exit.unwrap().signal()), (Cause::CriuKilled, Some(9)));

    assert!(page_server(own(), log, 0).wait().unwrap().success());
}

#[test]
fn a_process_that_does_not_descend_from_its_criu_is_not_stopped() {
    let error = page_server(own(), "", 0).stop().unwrap_err();
    assert!(matches!(error, Error::Options { option: "PageServer::stop", .. }), "{error}");
}

fn dumped(criu: &Criu) -> Result<Dumped> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.dump(process::id(), &DumpOptions::default(), Lend::images(&images), &mut NoHooks)
}
