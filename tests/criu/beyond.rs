//! State that criu dumps and could never restore: an error if the tree is to end, and a warning if
//! it goes on.

use std::process::Command;

use criu_rpc::{Cause, Error, Warning};

use crate::{
    harness::tests,
    places::{Home, lives, wait_until},
    tree::{OrExplain, Victim, explain},
    ways::{Script, WAYS},
};

tests![
    a_child_in_a_network_namespace_of_its_own,
    sockets_in_flight_that_have_sockets_in_flight,
    a_standard_stream_in_flight,
    an_epoll_with_a_file_twice,
    a_file_in_proc_of_a_thread,
    a_file_in_proc_of_a_process_of_the_tree_is_fine,
    a_tree_that_could_not_be_revived_is_not_frozen_to_be_ended,
    a_program_from_a_memfd,
    shared_memory_of_a_memfd_that_is_sealed_against_writes,
    memory_of_memfds_with_other_seals_is_fine,
    a_user_namespace_by_itself,
];

/// It can be captured with a warning while it goes on, and is left running, and nothing stored, if
/// it were to end.
#[track_caller]
pub(crate) fn is_never_revived(pid: i32, problem: &str) {
    for way in WAYS {
        let home = Home::new();
        let captured = way.capture(&home, pid).run(&home.store());
        match captured {
            Ok(stored) if !way.ends => {
                let told = |warning: &&Warning| matches!(warning, Warning::Unrevivable { .. });
                let told: Vec<_> = stored.warnings.iter().filter(told).map(Warning::to_string).collect();
                assert!(matches!(&told[..], [one] if one.contains(problem)), "{:?}", stored.warnings);
                let foresight = home.restore().preflight(&home.store(), &stored.digest).or_explain();
                let error = home.restore().restore(&home.store(), &stored.digest).unwrap_err();
                let cause = error.failure().map(|failure| failure.cause);
                let foreseen = foresight.blocks.iter().any(|finding| finding.cause == cause);
                assert!(cause.is_some() && foreseen, "{foresight:?}: {}", explain(&error));
            }
            Err(error) if way.ends => {
                assert!(matches!(error, Error::Unrevivable { .. }), "{}", explain(&error));
                assert!(error.to_string().contains(problem), "{error}");
                assert!(error.advice().is_some());
                assert_eq!(home.store().usage().unwrap().blobs.blobs, 0, "something was stored");
            }
            other => panic!("{way:?}: {other:?}"),
        }
        home.assert_staging_empty();
        assert!(lives(pid));
    }
}

/// A victim with a child in a namespace of its own, and the child's pid.
fn with_namespace(option: &str) -> (Script, String) {
    let mut victim = Script::perl(&format!(
        "pipe(my $r, my $w); my $child = fork; if (!$child) {{ open(STDOUT, '>', '/dev/null'); \
         close $w; open(STDIN, '<&', $r); exec 'unshare', '{option}', 'cat'; }} sub answer {{ return $child; }}"
    ));
    let child = victim.ask("?");
    let name = format!("/proc/{child}/comm");
    wait_until("the child waits", || std::fs::read_to_string(&name).unwrap().trim() == "cat");
    (victim, child)
}

fn a_child_in_a_network_namespace_of_its_own() {
    let (mut victim, child) = with_namespace("--net");
    is_never_revived(victim.pid(), &format!("process {child} has a network namespace"));
    assert_eq!(victim.ask("?"), child);
}

/// criu reads of the inner ones first, and crashes.
fn sockets_in_flight_that_have_sockets_in_flight() {
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import array, os, socket, sys\n\
         os.setsid()\n\
         pairs = [socket.socketpair() for _ in range(8)]\n\
         for one, other in zip(pairs, pairs[1:]):\n  \
           rights = array.array('i', [end.fileno() for end in one])\n  \
           other[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n\
         for one in pairs[:-1]:\n  \
           for end in one: end.close()\n\
         print('ready', os.getpid(), flush=True)\n\
         for line in sys.stdin: print(line.strip(), flush=True)",
    ]);
    let mut victim = Script::by(command);
    is_never_revived(victim.pid(), "descriptors are on their way to the unix socket");
    assert_eq!(victim.ask("hello"), "hello");
}

/// A program in python that does this first.
fn echo_after(first: &str) -> Script {
    let mut command = Command::new("python3");
    command.args([
        "-c",
        &format!(
            "import os, select, socket, sys\nos.setsid()\n{first}\nprint('ready', os.getpid(), flush=True)\n\
             for line in sys.stdin: print(line.strip(), flush=True)"
        ),
    ]);
    Script::by(command)
}

fn a_standard_stream_in_flight() {
    let mut victim = echo_after("one, other = socket.socketpair()\nsocket.send_fds(one, [b'x'], [0])");
    is_never_revived(victim.pid(), "the standard stream 0 is on its way through a unix socket");
    assert_eq!(victim.ask("hello"), "hello");
}

fn an_epoll_with_a_file_twice() {
    let mut victim = echo_after(
        "r, w = os.pipe()\ncopy = os.dup(r)\nepoll = select.epoll()\nepoll.register(r)\nepoll.register(copy)\n\
         os.close(copy)",
    );
    is_never_revived(victim.pid(), "an epoll waits twice for the file of descriptor");
    assert_eq!(victim.ask("hello"), "hello");
}

fn a_file_in_proc_of_a_thread() {
    let mut victim = Victim::start(&["threads=1", "thread-file=stat"]);
    is_never_revived(victim.pid(), "/proc/");
    victim.assert_counts_on(0);
}

fn a_file_in_proc_of_a_process_of_the_tree_is_fine() {
    crate::ways::comes_back(
        |_| Script::perl("open(my $f, '<', \"/proc/$$/task/$$/stat\") or die; sub answer { seek($f, 0, 0); my $l = <$f>; return $l =~ /^$$ / ? 'own' : $l; }"),
        |talk| assert_eq!(talk.ask("?"), "own"),
    );
}

fn a_tree_that_could_not_be_revived_is_not_frozen_to_be_ended() {
    let with_thread = Victim::start(&["threads=1", "thread-file=stat"]);
    let (with_network, _) = with_namespace("--net");
    let (with_mounts, _) = with_namespace("--mount");
    for pid in [with_thread.pid(), with_network.pid(), with_mounts.pid()] {
        let home = Home::new();
        // What is asked of it instead of criu is noted.
        let (program, asked) = (home.path("criu"), home.path("asked"));
        std::fs::write(&program, format!("#!/bin/sh\ntouch {}\nexit 1\n", asked.display())).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
        let capture = home.capture([pid]).criu(&program).leave_running(false);
        let error = capture.run(&home.store()).unwrap_err();
        assert!(matches!(error, Error::Unrevivable { .. }), "{}", explain(&error));
        assert!(!asked.exists(), "criu was asked");
        home.assert_staging_empty();
    }
}

/// A preflight of a capture says so before it.
#[track_caller]
fn blocks(pid: i32, cause: Cause) {
    let foresight = Home::new().capture([pid]).preflight().or_explain();
    let causes: Vec<_> = foresight.blocks.iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [Some(cause)]);
}

fn python(program: &str) -> Script {
    let mut command = Command::new("python3");
    command.args(["-c", program]);
    Script::by(command)
}

fn a_program_from_a_memfd() {
    let mut victim = python(
        "import os, shutil\n\
         os.setsid()\n\
         file = os.memfd_create('program', 0)\n\
         os.write(file, open(shutil.which('cat'), 'rb').read())\n\
         print('ready', os.getpid(), flush=True)\n\
         os.execve(file, ['cat'], {})",
    );
    let name = format!("/proc/{}/exe", victim.pid());
    let program = || std::fs::read_link(&name).unwrap().display().to_string();
    wait_until("it runs from the memfd", || program().starts_with("/memfd:"));
    assert_eq!(victim.ask("hello"), "hello");
    blocks(victim.pid(), Cause::MemfdProgram);
    is_never_revived(victim.pid(), "runs from a memfd");
    assert_eq!(victim.ask("hello"), "hello");
}

/// A program with a shared and a private mapping, each of a memfd with these seals. It answers with
/// what it reads and with the seals.
fn sealed(shared: u32, private: u32) -> Script {
    python(&format!(
        "import fcntl, mmap, os, sys\n\
         os.setsid()\n\
         def mapped(seals, flags):\n  \
           file = os.memfd_create('sealed', os.MFD_ALLOW_SEALING)\n  \
           os.write(file, b'contents')\n  \
           fcntl.fcntl(file, 1033, seals)\n  \
           return file, mmap.mmap(file, 8, flags=flags, prot=mmap.PROT_READ)\n\
         both = [mapped({shared}, mmap.MAP_SHARED), mapped({private}, mmap.MAP_PRIVATE)]\n\
         print('ready', os.getpid(), flush=True)\n\
         for line in sys.stdin:\n  \
           print(*(f'{{memory[:].decode()}} {{fcntl.fcntl(file, 1034)}}' for file, memory in both), flush=True)",
    ))
}

const SEAL_SHRINK: u32 = 2;
const SEAL_WRITE: u32 = 8;
const SEAL_FUTURE_WRITE: u32 = 16;

fn shared_memory_of_a_memfd_that_is_sealed_against_writes() {
    let mut victim = sealed(SEAL_SHRINK | SEAL_WRITE, 0);
    blocks(victim.pid(), Cause::SealedMemfd);
    is_never_revived(victim.pid(), "sealed against writes");
    assert_eq!(victim.ask("?"), "contents 10 contents 0");
}

fn memory_of_memfds_with_other_seals_is_fine() {
    crate::ways::comes_back(
        |_| sealed(SEAL_SHRINK | SEAL_FUTURE_WRITE, SEAL_WRITE),
        |talk| assert_eq!(talk.ask("?"), "contents 18 contents 8"),
    );
}

fn a_user_namespace_by_itself() {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "perl", "-e"]).arg(
        "use POSIX; POSIX::setsid(); $| = 1; print \"ready $$\\n\"; \
         while (<STDIN>) { print readlink('/proc/self/ns/user'), \"\\n\" }",
    );
    let mut victim = Script::by(command);
    let namespace = victim.ask("?");
    blocks(victim.pid(), Cause::UserNamespace);
    is_never_revived(victim.pid(), "a user namespace");
    assert_eq!(victim.ask("?"), namespace);
}
