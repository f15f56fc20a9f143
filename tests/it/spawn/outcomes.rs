//! The answers and errors that the caller gets.

use criu_rpc::{BlobStore, Digest256, MemBlobStore, ProcsBlob, ProcsCapture, ProcsRestore};

use super::*;

#[test]
fn a_program_that_is_no_criu_is_told_as_it_ended() {
    let script = StandIn::doing("echo to standard output; echo to standard error >&2; exit 7");
    let error = script.criu().version().unwrap_err();
    let failure = gone(&error);
    assert_eq!(failure.exit.unwrap().code(), Some(7));
    assert_eq!(failure.stderr, "to standard output\nto standard error\n");
    assert!(failure.report().to_string().contains("to standard error"));
}

#[test]
fn a_program_that_a_signal_killed_is_told_as_it_ended() {
    let script = StandIn::doing("kill -SEGV $$");
    let error = script.criu().version().unwrap_err();
    assert_eq!(gone(&error).exit.unwrap().signal(), Some(Signal::SIGSEGV as i32));
    assert_eq!(gone(&error).cause, Cause::CriuFault, "nobody sent it");

    let error = StandIn::doing("kill -KILL $$").criu().version().unwrap_err();
    assert_eq!(gone(&error).cause, Cause::CriuKilled);
    let told = gone(&error).to_string();
    assert_eq!(told, "a signal killed criu before it was done (signal: 9 (SIGKILL))");
}

#[test]
fn a_megabyte_on_standard_error_stops_nobody_and_its_tail_arrives() {
    let script = StandIn::doing("yes 'line after line' | head -c 1500000 >&2; echo the end >&2; exit 1");
    let error = script.criu().version().unwrap_err();
    let failure = gone(&error);
    let end = &failure.stderr[failure.stderr.len() - 100..];
    assert!(end.ends_with("\nthe end\n"), "{end}");
    assert!((1 << 10..=1 << 20).contains(&failure.stderr.len()), "{} bytes were kept", failure.stderr.len());
}

#[test]
fn a_missing_program_is_told_with_the_paths_that_were_tried() {
    let error = Criu::at("/nowhere/criu").version().unwrap_err();
    let Error::NoCriu { searched, .. } = &error else { panic!("{error}") };
    assert_eq!(*searched, [PathBuf::from("/nowhere/criu")]);
    assert_eq!(error.to_string(), "no criu found (looked for /nowhere/criu)");

    let error = Criu::at("no-criu-of-that-name").version().unwrap_err();
    let Error::NoCriu { searched, .. } = &error else { panic!("{error}") };
    for folder in ["/usr/local/sbin", "/usr/sbin", "/usr/bin"] {
        assert!(searched.contains(&Path::new(folder).join("no-criu-of-that-name")), "{searched:?}");
    }
    let once: BTreeSet<_> = searched.iter().collect();
    assert_eq!(once.len(), searched.len(), "{searched:?}");
}

#[test]
fn what_cannot_be_executed_is_no_criu() {
    let folder = Folder::new();
    let plain = folder.join("plain");
    fs::write(&plain, "text").unwrap();
    for (path, problem) in [(folder.to_path_buf(), "is a folder"), (plain, "is not executable")] {
        let error = Criu::at(&path).version().unwrap_err();
        let name = path.display();
        assert_eq!(error.to_string(), format!("no criu found (looked for {name}; {name} {problem})"));
        let Error::NoCriu { searched, .. } = &error else { panic!("{error}") };
        assert_eq!(*searched, [path]);
    }
}

#[test]
fn a_program_that_is_no_criu_is_told_from_one_that_crashed() {
    for program in ["true", "false", "cat"] {
        let error = Criu::at(program).version().unwrap_err();
        let failure = gone(&error);
        assert_eq!(failure.cause, Cause::NotCriu, "{}", failure.report());
        let report = failure.report().to_string();
        assert!(report.contains("Criu::at") && report.contains(&format!("/{program}")), "{report}");
    }
    for (lines, cause) in [
        ("echo 'criu: error while loading shared libraries: libnl-3.so.200' >&2; exit 127", Cause::NotCriu),
        ("echo 'Error (criu/x.c:1): something odd' >&2; exit 1", Cause::Unknown),
        ("kill -SEGV $$", Cause::CriuFault),
    ] {
        let error = StandIn::doing(lines).criu().version().unwrap_err();
        assert_eq!(gone(&error).cause, cause, "{lines}: {}", error.report());
    }
}

#[test]
fn what_the_kernel_does_not_execute_is_told_with_its_reason() {
    for (text, reason) in
        [("text without a word on who reads it\n", Errno::ENOEXEC), ("#!/nowhere\n", Errno::ENOENT)]
    {
        let script = StandIn::saying(text);
        let error = script.criu().version().unwrap_err();
        let Error::Io { doing, source, .. } = &error else { panic!("{error}") };
        assert_eq!(*doing, format!("start {}", script.program().display()));
        assert_eq!(source.raw_os_error(), Some(reason as i32));
    }
}

#[test]
fn a_program_that_says_nothing_is_killed_at_the_deadline() {
    let script = StandIn::doing("echo $$ >\"$folder/pid\"; exec sleep 60");
    let begin = Instant::now();
    let error = script.criu().deadline(Duration::from_millis(200)).version().unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(error.failure().unwrap().exit.unwrap().signal(), Some(Signal::SIGKILL as i32));
    let pid: i32 = script.told("pid").trim().parse().unwrap();
    assert_eq!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH), "it was not reaped");
}

#[test]
fn a_child_of_criu_that_holds_the_socket_keeps_nobody_waiting() {
    let script = StandIn::doing("sleep 60 & echo $! >\"$folder/pid\"; exit 5");
    let error = script.criu().version().unwrap_err();
    let pid: i32 = script.told("pid").trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap(); // which shows that it lived all the while
    assert_eq!(gone(&error).exit.unwrap().code(), Some(5));
}

#[test]
fn a_name_that_criu_never_gives_is_refused() {
    let store = MemBlobStore::new();
    let manifest = ProcsBlob::Criu { criu_dump: Digest256::of(b""), pids: vec![7.into()] };
    let digest = store.put(&manifest.to_json()).unwrap();
    for key in ["", "/", "tty", "pipe:12", "socket:[1"] {
        let capture = ProcsCapture::new([std::process::id()]).stdout(key);
        let restore = ProcsRestore::new().inherit(key, fs::File::open("/dev/null").unwrap());
        for (error, at) in [
            (capture.capture(&store).map(drop), "stdout"),
            (capture.preflight().map(drop), "stdout"),
            (restore.restore(&store, &digest).map(drop), "inherit"),
            (restore.preflight(&store, &digest).map(drop), "inherit"),
        ] {
            let refused = matches!(&error, Err(Error::Options { option, .. }) if *option == at);
            assert!(refused, "{key:?} {at}: {error:?}");
        }
    }
}
