//! Starting criu: a few-line shell script stands in for it, and writes down what it was started with.
//!
//! What concerns a whole process (its signals, its children, its memory) is tried in a process of its own: [`Apart`].

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, Failure, RestoreOptions, Result, Version,
    rpc::{Dumped, Lend, NoHooks, SelfDump},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, pthread_sigmask, signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, close, dup, dup2_stderr, dup2_stdin, dup2_stdout},
};

use prost::Message;

use crate::{
    peer::{self, DumpResp, Kind, Req, Resp},
    stores::Folder,
};

// What criu gets.

#[test]
fn criu_is_asked_to_listen_on_descriptor_3() {
    let script = StandIn::doing("");
    script.ends(&script.criu());
    assert_eq!(script.arguments(), ["--no-default-config", "swrk", "3"]);
}

#[test]
fn arguments_of_the_callers_come_before_swrk() {
    let script = StandIn::doing("");
    script.ends(&script.criu().argument("--file-validation").argument("file size"));
    assert_eq!(script.arguments(), ["--no-default-config", "--file-validation", "file size", "swrk", "3"]);
}

#[test]
fn an_argument_with_a_zero_byte_is_refused() {
    let script = StandIn::doing("");
    let error = script.criu().argument("a\0b").version().unwrap_err();
    assert!(matches!(error, Error::Options { option: "argument", .. }), "{error}");
}

#[test]
fn a_variable_that_no_program_can_have_is_refused() {
    let script = StandIn::doing("");
    for (name, value) in [("", "x"), ("a=b", "x"), ("a\0b", "x"), ("NAME", "a\0b")] {
        let error = script.criu().variable(name, value).version().unwrap_err();
        assert!(matches!(error, Error::Options { option: "variable", .. }), "{name:?}: {error}");
    }
}

#[test]
fn variables_that_change_criu_are_not_inherited() {
    let apart = Apart::new("variables_that_change_criu_are_not_inherited");
    let changing = ["CRIU_CONFIG_FILE", "CRIU_X", "CR_TEST", "HOME", "XDG_RUNTIME_DIR"];
    let apart = changing.iter().fold(apart, |apart, name| apart.variable(name, "/nowhere"));
    apart.variable("HARMLESS", "yes").run(|| {
        let script = StandIn::doing("");
        script.ends(&script.criu());
        let environment = script.environment();
        for name in changing {
            assert_eq!(environment.get(name), None, "{name}");
        }
        assert_eq!(environment.get("HARMLESS").map(String::as_str), Some("yes"));
    });
}

#[test]
fn variables_of_the_callers_arrive() {
    let script = StandIn::doing("");
    let criu = script.criu().variable("CRIU_X", "mine").variable("HOME", "/mine").variable("HOME", "/new");
    script.ends(&criu);
    let environment = script.environment();
    assert_eq!(environment["CRIU_X"], "mine");
    assert_eq!(environment["HOME"], "/new", "the last word counts");
}

#[test]
fn the_path_has_the_folders_of_system_programs() {
    Apart::new("the_path_has_the_folders_of_system_programs").variable("PATH", "/usr/bin:/bin").run(|| {
        let script = StandIn::doing("");
        script.ends(&script.criu());
        let environment = script.environment();
        let folders: Vec<_> = environment["PATH"].split(':').collect();
        assert_eq!(folders[..2], ["/usr/bin", "/bin"], "the caller's come first");
        for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
            assert!(folders.contains(&folder), "{folder} is not in {folders:?}");
        }
    });
}

#[test]
fn criu_inherits_its_own_files_and_no_others() {
    let leak = dup(File::open("/dev/null").unwrap()).unwrap(); // without close-on-exec
    let script = StandIn::doing("");
    script.ends(&script.criu());
    let descriptors = script.descriptors();
    assert_eq!(descriptors.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(descriptors[&0], "/dev/null");
    assert_eq!(descriptors[&1], descriptors[&2]);
    assert!(descriptors[&3].starts_with("socket:"), "{descriptors:?}");
    drop(leak);
}

#[test]
fn files_that_are_lent_follow_the_socket() {
    let script = StandIn::doing("");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let (one, two) = (folder.join("one"), folder.join("two"));
    let (first, second) = (File::create(&one).unwrap(), File::create(&two).unwrap());
    let lend = Lend::images(&images).inherit("a", &first).inherit("b", &second).terminal(&second);
    let error = script.criu().restore(&RestoreOptions::default(), lend, &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
    let descriptors = script.descriptors();
    assert_eq!(descriptors.len(), 6, "{descriptors:?}");
    assert_eq!(descriptors[&0], two.to_str().unwrap(), "the terminal");
    assert_eq!(descriptors[&4], one.to_str().unwrap());
    assert_eq!(descriptors[&5], two.to_str().unwrap());
}

#[test]
fn criu_finds_signals_as_it_needs_them() {
    Apart::new("criu_finds_signals_as_it_needs_them").run(|| {
        // A shell that waits for a program blocks signals for a moment; one that becomes the program does not.
        let script = StandIn::saying("#!/bin/sh\nexec cat /proc/self/status >\"${0%/*}/status\"\n");
        ignore(Signal::SIGCHLD);
        ignore(Signal::SIGUSR1);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
        let error = script.criu().version().unwrap_err();
        assert!(matches!(error, Error::Gone(_)), "{error}");
        assert_eq!(script.signals("SigBlk"), BTreeSet::new());
        let ignored = script.signals("SigIgn");
        assert!(!ignored.contains(&(Signal::SIGCHLD as u32)), "criu waits for children");
        assert!(
            ignored.contains(&(Signal::SIGXFSZ as u32)),
            "a write that is too large fails, and does not kill"
        );
        assert!(ignored.contains(&(Signal::SIGUSR1 as u32)), "what is ignored stays so");
        let mask = SigSet::thread_get_mask().unwrap();
        assert!(mask.contains(Signal::SIGTERM), "our own mask is as it was");
    });
}

#[test]
fn a_program_without_standard_streams_loses_nothing() {
    Apart::new("a_program_without_standard_streams_loses_nothing").run(|| {
        let script = StandIn::doing("ls -l /proc/$PPID/fd >\"$folder/parent\"; echo it hurts >&2; exit 3");
        let folder = Folder::new();
        let images = File::open(&*folder).unwrap();
        let saved =
            [dup(std::io::stdin()), dup(std::io::stdout()), dup(std::io::stderr())].map(Result::unwrap);
        (0..3).for_each(|stream| close(stream).unwrap());
        let asked = script.criu().version();
        let dumped = script.criu().dump(1, &DumpOptions::default(), Lend::images(&images), &mut NoHooks);
        let left: Vec<_> =
            (0..3).filter(|stream| Path::new(&format!("/proc/self/fd/{stream}")).exists()).collect();
        dup2_stdin(&saved[0]).unwrap();
        dup2_stdout(&saved[1]).unwrap();
        dup2_stderr(&saved[2]).unwrap();
        for error in [asked.unwrap_err(), dumped.unwrap_err()] {
            let failure = gone(&error);
            assert_eq!((failure.exit.unwrap().code(), failure.stderr.as_str()), (Some(3), "it hurts\n"));
        }
        assert_eq!(left, [0; 0], "something of ours stayed at a standard stream");
        for (number, file) in listed(&script.told("parent")) {
            assert!(number > 2 || file == "/dev/null", "{file} is where prints of the program's go");
        }
        assert_eq!(script.descriptors().keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    });
}

#[test]
fn the_criu_of_a_self_dump_is_not_our_descendant() {
    let script = StandIn::doing(
        "cut -d' ' -f4,6 /proc/$$/stat >\"$folder/stat\"; echo $$ >>\"$folder/stat\"; echo it hurts",
    );
    let folder = Folder::new();
    let error = script.criu().dump_self(&DumpOptions::default(), &folder).unwrap_err();
    let failure = gone(&error);
    assert_eq!(failure.stderr, "it hurts\n");
    let stat = script.told("stat");
    let numbers: Vec<u32> = stat.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [parent, session, pid] = numbers[..] else { panic!("{stat}") };
    assert_ne!(parent, process::id());
    assert_ne!(session, pid, "its parent led the session, and is gone");
    assert_eq!(script.descriptors().keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(fs::read_dir(&*folder).unwrap().count(), 0, "its output stayed among the images");
}

// What comes back.

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
        assert!(failure.report().to_string().contains("Criu::at"), "{}", failure.report());
    }
    for (lines, cause) in [
        ("echo 'criu: error while loading shared libraries: libnl-3.so.200' >&2; exit 127", Cause::NotCriu),
        ("echo 'Error (criu/x.c:1): something odd' >&2; exit 1", Cause::Unknown),
        ("kill -SEGV $$", Cause::Unknown),
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
        let Error::Io { doing, source } = &error else { panic!("{error}") };
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

// A conversation with a criu that we started.

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
    // As criu does: it writes until it cannot, puts things right, and says so.
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
    assert!(matches!(error, Error::Options { .. }), "{error}");
}

#[test]
fn an_option_that_this_criu_is_too_old_for_is_refused_before_it_is_asked() {
    let script = StandIn::talking((3, 10), "");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let options = RestoreOptions::default().tcp_established(true).tcp_close(true);
    let error = script.criu().restore(&options, Lend::images(&images), &mut NoHooks).unwrap_err();
    let Error::Options { option: "tcp_close", problem } = &error else { panic!("{error}") };
    assert_eq!(problem, "needs criu 3.12, and this is 3.10");
    assert!(fs::read(script.0.join("second")).is_ok_and(|heard| heard.is_empty()), "it was asked");
}

/// A dump of this process, in name: nobody touches it.
fn dumped(criu: &Criu) -> Result<Dumped> {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    criu.dump(process::id(), &DumpOptions::default(), Lend::images(&images), &mut NoHooks)
}

/// The shell's words for sending a message.
fn says(message: Resp) -> String {
    let bytes: String = message.encode_to_vec().iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{bytes}' >&3")
}

// What stays behind: nothing.

#[test]
fn no_zombie_and_no_descriptor_stays_behind() {
    Apart::new("no_zombie_and_no_descriptor_stays_behind").run(|| {
        let scripts = [
            StandIn::saying("#!/bin/sh\nexit 1\n"),
            StandIn::saying("#!/nowhere\n"),
            StandIn::saying("#!/bin/sh\nexec sleep 60\n"),
        ];
        let folder = Folder::new();
        let fail = |script: &StandIn| {
            let criu = script.criu().deadline(Duration::from_millis(3));
            criu.version().unwrap_err();
        };
        let fail_apart = |script: &StandIn| {
            script.criu().dump_self(&DumpOptions::default(), &folder).unwrap_err();
        };
        scripts.iter().for_each(fail); // what is made once is made now
        scripts[..2].iter().for_each(fail_apart);
        let before = open_descriptors();
        for _ in 0..50 {
            scripts.iter().for_each(fail);
            scripts[..1].iter().for_each(fail_apart);
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD), "a child is left");
        scripts[1..2].iter().for_each(fail_apart);
        assert_eq!(open_descriptors(), before);
        assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD), "a child is left");
    });
}

#[test]
fn a_program_that_ignores_its_children_learns_of_a_failure_all_the_same() {
    Apart::new("a_program_that_ignores_its_children_learns_of_a_failure_all_the_same").run(|| {
        let script = StandIn::doing("echo it hurts >&2; exit 3");
        ignore(Signal::SIGCHLD);
        let error = script.criu().version().unwrap_err();
        let failure = gone(&error);
        assert_eq!((failure.exit, failure.stderr.as_str()), (None, "it hurts\n"));
    });
}

#[test]
fn starting_criu_costs_the_same_however_large_we_are() {
    Apart::new("starting_criu_costs_the_same_however_large_we_are").run(|| {
        let Some(memory) = spare_memory().filter(|bytes| *bytes >= 3 * SIZE) else {
            return; // too little to tell
        };
        let script = StandIn::saying("#!/bin/sh\nexit 1\n");
        let small = best_of_twenty(&script);
        let mut large = vec![0_u8; SIZE];
        large.iter_mut().step_by(4096).for_each(|page| *page = 1);
        let then = best_of_twenty(&script);
        assert_eq!(large[SIZE - 4096], 1);
        assert!(then < small * 3, "{small:?} became {then:?}, with {memory} bytes to spare");
    });
}

/// A gigabyte and a half, whose page tables take a fork some ten milliseconds to copy.
const SIZE: usize = 3 << 29;

fn best_of_twenty(script: &StandIn) -> Duration {
    let once = |_| {
        let begin = Instant::now();
        script.criu().version().unwrap_err();
        begin.elapsed()
    };
    (0..20).map(once).min().unwrap()
}

fn spare_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What is known of a criu that left.
#[track_caller]
fn gone(error: &Error) -> &Failure {
    assert!(matches!(error, Error::Gone(_)), "{error}");
    error.failure().unwrap()
}

/// A shell script in the place of criu.
struct StandIn(Folder);

impl StandIn {
    /// A script that writes down how it was started, does this, and ends.
    fn doing(commands: &str) -> StandIn {
        StandIn::saying(&format!("{HEAD}{commands}\n"))
    }

    /// A script that says it is this release of criu, hears one request more, and does this.
    fn talking((major, minor): (i32, i32), commands: &str) -> StandIn {
        let version = Some(peer::Version { major, minor, ..peer::Version::default() });
        let answer = says(Resp { version, ..Resp::good(Kind::Version) });
        let hears = |name| format!("dd bs=65536 count=1 <&3 >\"$folder/{name}\" 2>/dev/null");
        StandIn::doing(&format!("{}\n{answer}\n{}\n{commands}", hears("first"), hears("second")))
    }

    /// The requests that it heard.
    fn heard(&self) -> [Req; 2] {
        ["first", "second"].map(|name| Req::decode(fs::read(self.0.join(name)).unwrap().as_slice()).unwrap())
    }

    /// A program of this text.
    fn saying(text: &str) -> StandIn {
        let script = StandIn(Folder::new());
        // Another process writes the file: in ours, a child that a test starts at the same moment could have it open
        // for writing for a while, and the kernel executes no such file.
        let mut writer = Command::new("/bin/sh");
        writer.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(script.program()).stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        script
    }

    fn program(&self) -> PathBuf {
        self.0.join("criu")
    }

    fn criu(&self) -> Criu {
        Criu::at(self.program())
    }

    /// Asks it for its version, which it cannot tell.
    #[track_caller]
    fn ends(&self, criu: &Criu) {
        let error = criu.version().unwrap_err();
        assert_eq!(gone(&error).exit.unwrap().code(), Some(0));
    }

    /// What it wrote down.
    fn told(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        self.told("arguments").lines().map(str::to_owned).collect()
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let told = self.told("environment");
        let mut environment = BTreeMap::new();
        for (name, value) in told.split_terminator('\0').filter_map(|line| line.split_once('=')) {
            let earlier = environment.insert(name.to_owned(), value.to_owned());
            assert_eq!(earlier, None, "{name} is there twice");
        }
        environment
    }

    /// Its open files, save for the script itself.
    fn descriptors(&self) -> BTreeMap<u32, String> {
        let mut descriptors = listed(&self.told("descriptors"));
        let own = self.program();
        descriptors.retain(|_, file| Path::new(file) != own);
        descriptors
    }

    /// A set of signals in its status.
    fn signals(&self, set: &str) -> BTreeSet<u32> {
        let status = self.told("status");
        let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':')).unwrap();
        let bits = u64::from_str_radix(line.trim(), 16).unwrap();
        (1..=64).filter(|signal| bits >> (signal - 1) & 1 == 1).collect()
    }
}

const HEAD: &str = r#"#!/bin/sh
folder=${0%/*}
printf '%s\n' "$@" >"$folder/arguments"
cat /proc/$$/environ >"$folder/environment"
(ls -l /proc/$$/fd >"$folder/descriptors")
"#;

/// The descriptors and their files, in what `ls -l` says of a process's.
fn listed(text: &str) -> BTreeMap<u32, String> {
    let lines = text.lines().filter_map(|line| line.split_once(" -> "));
    let number = |head: &str| head.rsplit(' ').next().unwrap().parse().unwrap();
    lines.map(|(head, file)| (number(head), file.to_owned())).collect()
}

/// A test that runs in a process of its own: this binary again, with that test alone.
pub(crate) struct Apart {
    name: String,
    variables: Vec<(String, String)>,
}

impl Apart {
    /// For the test of this name in this file.
    fn new(name: &str) -> Apart {
        Apart::with_path(&format!("spawn::{name}"))
    }

    /// For the test of this name, after the names of its modules.
    pub(crate) fn with_path(path: &str) -> Apart {
        Apart { name: path.to_owned(), variables: Vec::new() }
    }

    fn variable(mut self, name: &str, value: &str) -> Apart {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In the process of its own, does it. Else starts that process, and passes if it does.
    #[track_caller]
    pub(crate) fn run(self, act: impl FnOnce()) {
        if env::var(APART).is_ok_and(|name| name == self.name) {
            return act();
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &self.name, "--nocapture", "--test-threads=1"]);
        command.env(APART, &self.name).envs(self.variables);
        let (output, writer) = output_file();
        command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > end => break None,
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = fs::read_to_string(output.join("output")).unwrap();
        assert!(
            text.contains("1 passed") && status.is_some_and(|status| status.success()),
            "{status:?}\n{text}"
        );
    }
}

/// Ignores a signal, in this whole process.
#[allow(unsafe_code)]
fn ignore(one: Signal) {
    // SAFETY: no handler is installed, and the one that is replaced is never put back.
    unsafe { signal(one, SigHandler::SigIgn) }.unwrap();
}

const APART: &str = "CRIU_RPC_TEST_APART";

fn output_file() -> (Folder, File) {
    let folder = Folder::new();
    let file = File::options().append(true).create(true).open(folder.join("output")).unwrap();
    (folder, file)
}
