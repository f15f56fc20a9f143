//! The arguments, environment, files and signals that criu gets.

use super::*;

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
    let apart = Apart::new(module_path!(), "variables_that_change_criu_are_not_inherited");
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
    Apart::new(module_path!(), "the_path_has_the_folders_of_system_programs")
        .variable("PATH", "/usr/bin:/bin")
        .run(|| {
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
    Apart::new(module_path!(), "criu_finds_signals_as_it_needs_them").run(|| {
        // A shell that waits for a program blocks signals for a moment. A shell that becomes the
        // program does not.
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
        for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGTTOU, Signal::SIGTERM] {
            assert!(ignored.contains(&(signal as u32)), "{signal} is meant for the caller");
        }
        assert!(!ignored.contains(&(Signal::SIGALRM as u32)), "criu has a use for it");
        let status = script.told("status");
        let number = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(number("NSsid:"), number("Pid:"), "no terminal controls its session");
        // criu ends a helper of a restore by SIGTERM, and waits for it.
        ignore(Signal::SIGTERM);
        let folder = File::open(&*script.0).unwrap();
        let options = RestoreOptions::default();
        let error = script.criu().restore(&options, Lend::images(&folder), &mut NoHooks).unwrap_err();
        assert!(matches!(error, Error::Gone(_)), "{error}");
        let ignored = script.signals("SigIgn");
        assert!(!ignored.contains(&(Signal::SIGTERM as u32)), "criu has a use for it");
        assert!(ignored.contains(&(Signal::SIGUSR1 as u32)) && ignored.contains(&(Signal::SIGINT as u32)));
        let mask = SigSet::thread_get_mask().unwrap();
        assert!(mask.contains(Signal::SIGTERM), "our own mask is as it was");
    });
}

#[test]
fn a_signal_to_the_group_of_the_caller_does_not_end_a_criu_that_leaves_it() {
    Apart::new(module_path!(), "a_signal_to_the_group_of_the_caller_does_not_end_a_criu_that_leaves_it").run(
        || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).unwrap();
            for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGALRM] {
                outlive(signal);
            }
            let script = StandIn::saying("#!/bin/true\n");
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGALRM] {
                            kill(Pid::from_raw(0), signal).unwrap();
                        }
                    }
                });
                let begin = Instant::now();
                let ends: Vec<_> = (0..200)
                    .take_while(|round| *round < 10 || begin.elapsed() < Duration::from_secs(3))
                    .map(|_| script.criu().version().unwrap_err().failure().unwrap().exit.unwrap())
                    .filter(|exit| exit.code() != Some(0))
                    .collect();
                over.store(true, Ordering::SeqCst);
                assert_eq!(ends, []);
            });
        },
    );
}

#[test]
fn a_program_without_standard_streams_loses_nothing() {
    Apart::new(module_path!(), "a_program_without_standard_streams_loses_nothing").run(|| {
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
