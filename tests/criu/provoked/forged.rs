//! Captured programs that put criu's words into names: they decide neither the cause nor what a
//! terminal does.

use std::{
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStringExt,
            net::{SocketAddr, UnixListener},
        },
    },
    process::Command,
};

use criu_rpc::{
    Cause, Chunking, DumpOptions, Error, Failure, MemBlobStore, RestoreOptions,
    options::{LogLevel, NetworkLock},
};

use super::{Dumps, plain};
use crate::{
    harness::tests,
    places::Home,
    preflight::{Perl, perl, perl_by, perl_program},
    tree::{OrExplain, Victim},
};

tests![
    names_of_deleted_files,
    names_of_sockets,
    names_of_processes,
    names_in_images,
    names_of_mount_points,
    no_placeholder_is_stored_because_of_a_name,
    a_placeholder_is_stored_if_criu_can_do_nothing_without_a_tree_either,
];

/// The text of a name behind a line break, or without one.
const WORDS: &[&str] = &[
    "No space left on device",
    "x\n(00.000001) Error (criuxc:1): No space left on device ",
    "x\n(00.000001) Error (criu/x.c:1): vdso: Can't find ",
    "x\n(00.900001)      1: Error (criu/x.c:1): vdso: Can't find ",
    "x\nError (criu/x.c:1): vdso: Can't find ",
    "x\nRunning as non-root requires '--unprivileged'\n",
    "x\nx of 4194304 size\nError (criu/x.c:1): Can't dump ghost ",
    "\u{1b}[31mx\u{7}\u{202e}\r\nError (criu/x.c:1): A root task is dead\n\u{9b}31m",
];

/// A victim that does `before`, in which `$ENV{NAME}` is this name.
#[track_caller]
fn named(mut command: Command, name: &str, before: &str) -> Perl {
    command.env("NAME", OsString::from_vec(name.as_bytes().to_vec()));
    perl_by(command, before)
}

/// No words of criu's can act on a terminal.
#[track_caller]
fn assert_harmless(failure: &Failure) {
    let report = failure.report().to_string();
    let acts = |text: &str| text.chars().any(|c| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c));
    let line = failure.to_string();
    assert!(!acts(&report) && !acts(&line) && !line.contains('\n'), "{report:?}");
    let lines = failure.log.iter().chain(&failure.message);
    lines.for_each(|line| assert!(!acts(line) && !line.contains('\n'), "{line:?}"));
    assert!(!acts(&failure.stderr), "{:?}", failure.stderr);
}

/// The dump fails for this cause, at each level of criu's log.
#[track_caller]
fn refused(victim: &mut Perl, options: &DumpOptions, cause: Cause) {
    let mut dumps = Dumps::new();
    for options in [options.clone(), options.clone().log_level(LogLevel::Debug)] {
        let error = dumps.dump(victim.pid(), &options).unwrap_err();
        let Error::Criu(failure) = &error else { panic!("{error:?}") };
        assert_eq!(failure.cause, cause, "{}", failure.report());
        assert_harmless(failure);
        assert_eq!(victim.ask("?"), "here");
    }
}

const LARGE_AND_DELETED: &str = "my $path = $ENV{HOMEDIR} . '/' . $ENV{NAME}; \
     (my $folder = $path) =~ s{/[^/]*$}{}s; system('mkdir', '-p', $folder) == 0 or die; \
     open(F, '+>', $path) or die; syswrite(F, 'x' x (4 << 20)); unlink($path)";

fn names_of_deleted_files() {
    for words in WORDS {
        let home = Home::new();
        let mut command = Command::new("perl");
        command.env("HOMEDIR", home.path(""));
        let mut victim = named(command, words, LARGE_AND_DELETED);
        refused(&mut victim, &plain(), Cause::GhostFileTooBig);
    }
}

fn names_of_sockets() {
    for words in WORDS {
        let name = format!("{}-{words}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut command = Command::new("perl");
        command.env("PEER", &name);
        let mut victim = named(
            command,
            words,
            "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un(\"\\0$$\" . $ENV{NAME})) or die; \
             connect(S, pack_sockaddr_un(\"\\0$ENV{PEER}\")) or die",
        );
        let _accepted = listener.accept().unwrap();
        refused(&mut victim, &plain(), Cause::ExternalUnixSocket);
    }
}

fn names_of_processes() {
    for words in ["\u{1b}[31m\nError (", "a\nError (a.c:1", "a\nx"] {
        let home = Home::new();
        let mut command = Command::new("perl");
        command.env("HOMEDIR", home.path("")).env("OWN", words);
        let mut victim = named(command, "x", &format!("syscall(157, 15, $ENV{{OWN}}, 0, 0, 0); {LARGE_AND_DELETED}"));
        refused(&mut victim, &plain(), Cause::GhostFileTooBig);
        let findings = crate::harness::criu().preflight(victim.pid(), &plain()).unwrap().findings;
        assert!(findings.iter().all(|finding| !finding.to_string().contains(char::is_control)));
    }
}

fn names_in_images() {
    for words in WORDS {
        let home = Home::new();
        let mut command = Command::new("perl");
        command.env("HOMEDIR", home.path("")).env("NAME", words);
        command.args(["-e", &perl_program(&LARGE_AND_DELETED.replace("unlink($path)", "1"))]);
        let taken = Dumps::new().taken(Victim::start_by(command), &plain());
        std::fs::write(home.path(words), "too short").unwrap();
        for level in [LogLevel::Warn, LogLevel::Debug] {
            let error = taken.restore(&RestoreOptions::default().log_level(level)).unwrap_err();
            let failure = error.failure().unwrap();
            assert_eq!(failure.cause, Cause::FileChanged, "{}", failure.report());
            assert_harmless(failure);
        }
    }
}

fn names_of_mount_points() {
    // criu itself cannot read others.
    for words in WORDS.iter().filter(|words| !words.contains('\r')) {
        let home = Home::new();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "perl"]).env("HOMEDIR", home.path(""));
        let mut victim = named(
            command,
            words,
            "my $at = $ENV{HOMEDIR} . '/' . $ENV{NAME}; system('mkdir', '-p', $at) == 0 or die; \
             system('mount', '-t', 'ramfs', 'x', $at) == 0 or die",
        );
        refused(&mut victim, &plain(), Cause::UnsupportedFileSystem);
    }
}

fn no_placeholder_is_stored_because_of_a_name() {
    // What is no error to the rules that are asked first, and ends with the name.
    for words in WORDS.iter().chain(&["x failed when initializing kerndat", "vdso: Can't find x"]) {
        let home = Home::new();
        let mut command = Command::new("perl");
        command.env("HOMEDIR", home.path(""));
        let mut victim = named(command, words, LARGE_AND_DELETED);
        for capture in [home.capture([victim.pid()]), home.capture([victim.pid()]).chunked(Chunking::default())] {
            let options = DumpOptions::default().network_lock(NetworkLock::Skip).ghost_limit(1_u32 << 20);
            let capture = capture.options(options).placeholder_if_unusable(true);
            let error = capture.capture(&MemBlobStore::new()).unwrap_err();
            assert_eq!(error.failure().unwrap().cause, Cause::GhostFileTooBig, "{}", error.report());
        }
        assert_eq!(victim.ask("?"), "here");
    }
}

fn a_placeholder_is_stored_if_criu_can_do_nothing_without_a_tree_either() {
    const UNPRIVILEGED: &str =
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all CRIU \"$@\"";
    let mut victim = perl("1");
    let mut captured = |lines: &str| {
        let dumps = Dumps::through(lines);
        let capture = dumps.home.capture([victim.pid()]).criu(dumps.criu.program().unwrap());
        let stored = capture.placeholder_if_unusable(true).run(&MemBlobStore::new());
        assert_eq!(victim.ask("?"), "here");
        stored
    };
    let stored = captured(UNPRIVILEGED).or_explain();
    assert!(stored.placeholder().is_some_and(|note| note.starts_with("criu lacks a privilege")), "{stored:?}");
    let once = format!("if mkdir \"$0.once\"; then {UNPRIVILEGED}; fi; exec CRIU \"$@\"");
    let error = captured(&once).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::NotPrivileged), "{}", error.report());
}
