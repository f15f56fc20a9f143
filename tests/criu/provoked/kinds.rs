//! Kinds of files, sockets and namespaces that have causes of their own, each in a program that has
//! one.

use std::{fs, fs::File, process::Command};

use criu_rpc::{
    Cause, RestoreOptions, Target,
    preflight::{Obstacle, Severity},
    rpc::{Lend, NoHooks},
};

use super::{Dumps, Taken, assert_cause, plain};
use crate::{
    harness::{criu, skip, tests},
    places::{Home, wait_until},
    preflight::{Perl, perl, perl_program},
    tree::{OrExplain, Victim},
};

tests![
    a_message_queue,
    a_udp_socket_that_is_corked,
    a_netlink_socket_with_unread_messages,
    a_tun_device_without_a_namespace,
    a_process_of_another_user,
    an_epoll_whose_maker_closed_the_file,
    an_epoll_on_nothing,
    a_file_of_proc,
    a_network_namespace_of_a_child,
    a_mount_namespace_of_a_child,
    a_temporary_name_that_is_gone,
    a_named_pipe_that_is_gone,
    a_folder_of_a_socket_that_is_gone,
    a_tracer_inside_the_tree,
];

/// The dump fails for this cause, as does a capture in each way, and the victim goes on.
#[track_caller]
fn refused(victim: &mut Perl, cause: Cause) {
    let mut dumps = Dumps::new();
    assert_cause(dumps.dump(victim.pid(), &plain()), cause, Target::Running);
    assert_eq!(victim.ask("?"), "here");
    crate::enclosed::refused(&Home::new(), victim.pid(), cause);
    assert_eq!(victim.ask("?"), "here");
}

/// Preflight finds this, of this severity.
#[track_caller]
fn found(pid: i32, severity: Severity, is: impl Fn(&Obstacle) -> bool) {
    let findings = criu().preflight(pid, &plain()).or_explain().findings;
    let found = findings.iter().any(|finding| finding.severity == severity && is(&finding.obstacle));
    assert!(found, "{findings:?}");
}

#[track_caller]
fn taken(before: &str) -> Taken {
    let mut command = Command::new("perl");
    command.args(["-e", &perl_program(before)]);
    Dumps::new().taken(Victim::start_by(command), &plain())
}

fn a_message_queue() {
    let mut victim = perl("my $n = \"q$$\"; syscall(240, $n, 0x42, 0600, 0) >= 0 or die; syscall(241, $n)");
    refused(&mut victim, Cause::UnsupportedFile);
    found(victim.pid(), Severity::Blocks, |obstacle| *obstacle == Obstacle::MessageQueue);
    let mut victim = perl("my $n = \"q$$\"; syscall(240, $n, 0x42, 0600, 0) >= 0 or die; $SIG{TERM} = sub {}");
    refused(&mut victim, Cause::UnsupportedFile);
    let name = format!("q{}\0", victim.pid());
    super::odd::syscall(libc::SYS_mq_unlink, [name.as_ptr() as i64, 0, 0, 0, 0]);
}

fn a_udp_socket_that_is_corked() {
    let mut victim = perl(
        "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); connect(S, pack_sockaddr_in(9, INADDR_LOOPBACK)) or die; \
         setsockopt(S, 17, 1, 1) or die; send(S, 'x', 0) or die",
    );
    refused(&mut victim, Cause::CorkedSocket);
}

/// It has asked for a list of the network devices, and read a part of the answer at most.
fn a_netlink_socket_with_unread_messages() {
    let ask = "socket(S, 16, 3, 0) or die; send(S, pack('LSSLLL', 20, 18, 0x301, 1, 0, 0), 0) or die; ";
    let mut victim = perl(ask);
    refused(&mut victim, Cause::NetlinkSocket);
    found(victim.pid(), Severity::Blocks, |obstacle| *obstacle == Obstacle::NetlinkUnread);
    let victim = perl(&format!("{ask} 1 while recv(S, $_, 65536, 0x40) && length"));
    assert!(criu().preflight(victim.pid(), &plain()).or_explain().findings.is_empty());
    Dumps::new().dump(victim.pid(), &plain()).or_explain();
}

fn a_tun_device_without_a_namespace() {
    if File::open("/dev/net/tun").is_err() {
        skip("there is no /dev/net/tun here");
    }
    let mut victim = perl(
        "$^F = 100; open(T, '+<', '/dev/net/tun') or die; my $i = pack('a16sx22', 'criu-rpc%d', 0x1001); \
         ioctl(T, 0x400454ca, $i) or die",
    );
    refused(&mut victim, Cause::TunOutside);
    found(victim.pid(), Severity::Blocks, |obstacle| *obstacle == Obstacle::Tun);
}

fn a_process_of_another_user() {
    let bounding = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    if u64::from_str_radix(&bounding, 16).unwrap() & (1 << 24) != 0 {
        return eprintln!("with CAP_SYS_RESOURCE criu can dump it");
    }
    let mut victim =
        perl("$( = $) = '1000 1000'; $< = $> = 1000; syscall(157, 4, 1, 0, 0, 0); $> == 1000 or die");
    refused(&mut victim, Cause::OtherUser);
}

/// As pre-forking servers do: the parent makes the epoll, and closes what it waits for.
const EPOLL_OF_A_CLOSED_FILE: &str = "$^F = 100; pipe(R, W); my $e = syscall(291, 0); my $v = pack('LLL', 1, 7, 0); \
     syscall(233, $e, 1, fileno(R), $v) == 0 or die; \
     if (fork() == 0) { open(STDIN, '<', '/dev/null'); open(STDOUT, '>', '/dev/null'); sleep 1000 while 1 } close(R)";

fn an_epoll_whose_maker_closed_the_file() {
    let mut victim = perl(EPOLL_OF_A_CLOSED_FILE);
    refused(&mut victim, Cause::EpollElsewhere);
    found(victim.pid(), Severity::Blocks, |obstacle| matches!(obstacle, Obstacle::EpollElsewhere { .. }));
    let victim = perl(&EPOLL_OF_A_CLOSED_FILE.replace("close(R)", "1"));
    assert_eq!(criu().preflight(victim.pid(), &plain()).or_explain().findings, []);
}

fn an_epoll_on_nothing() {
    let taken = taken(
        "my $e = syscall(291, 0); my $v = pack('LLL', 1, 0, 0); syscall(233, $e, 1, 0, $v) == 0 or die",
    );
    let folder = File::open(taken.home.path("images-1")).unwrap();
    let nothing = File::options().read(true).write(true).open("/dev/null").unwrap();
    let lend =
        Lend::images(&folder).inherit(&*taken.keys[0], &nothing).inherit(&*taken.keys[1], &nothing);
    let restored = criu().restore(&RestoreOptions::default().rst_sibling(true), lend, &mut NoHooks);
    assert_cause(restored, Cause::EpollOnFile, Target::None);
    let mut revived = taken.restore(&RestoreOptions::default()).or_explain();
    assert_eq!(revived.ask("?"), "here");
}

fn a_file_of_proc() {
    let outside = perl("1");
    let taken = taken(&format!("open(F, '<', '/proc/{}/stat') or die", outside.pid()));
    drop(outside);
    taken.refused(&RestoreOptions::default(), Cause::ProcFile);

    let outside = perl("1");
    let victim = perl(&format!("open(F, '<', '/proc/{}/stat') or die", outside.pid()));
    found(victim.pid(), Severity::Risk, |obstacle| matches!(obstacle, Obstacle::ProcOutside { .. }));
    let victim = perl("open(F, '<', '/proc/self/stat'); open(G, '<', '/proc/cpuinfo'); open(H, '<', '/proc/self/fd')");
    assert_eq!(criu().preflight(victim.pid(), &plain()).or_explain().findings, []);
    let victim = perl("open(F, '<', '/proc/thread-self/stat') or die");
    assert_eq!(criu().preflight(victim.pid(), &plain()).or_explain().findings, []);
}

fn a_network_namespace_of_a_child() {
    of_a_child("--net", "net");
}

fn a_mount_namespace_of_a_child() {
    of_a_child("--mount", "mnt");
}

#[track_caller]
fn of_a_child(kind: &str, name: &str) {
    let before = format!("open(my $c, '|-', 'exec unshare {kind} cat >/dev/null') or die");
    let mut command = Command::new("perl");
    command.args(["-e", &perl_program(&before)]);
    let victim = Victim::start_by(command);
    wait_until("the child is in its namespace", || {
        let last = *victim.members().last().unwrap();
        fs::read_to_string(format!("/proc/{last}/comm")).is_ok_and(|name| name == "cat\n")
    });
    found(victim.pid(), Severity::Blocks, |obstacle| {
        matches!(obstacle, Obstacle::NestedNamespace { kind, .. } if *kind == name)
    });
    let taken = Dumps::new().taken(victim, &plain());
    let restored = taken.restore(&RestoreOptions::default());
    assert_cause(restored, Cause::NamespaceOfChild, Target::None);
}

fn a_temporary_name_that_is_gone() {
    let home = Home::new();
    let path = home.path("file");
    let mut command = Command::new("perl");
    command.env("FILE", &path).args([
        "-e",
        &perl_program("open(F, '+>', $ENV{FILE}) or die; link($ENV{FILE}, \"$ENV{FILE}.2\"); unlink($ENV{FILE})"),
    ]);
    let taken = Dumps::new().taken(Victim::start_by(command), &plain().link_remap(true));
    for entry in fs::read_dir(home.path("")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("link_remap.") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    taken.refused(&RestoreOptions::default(), Cause::LinkRemapGone);
}

fn a_named_pipe_that_is_gone() {
    let home = Home::new();
    let path = home.path("fifo").display().to_string();
    let taken = taken(&format!("POSIX::mkfifo('{path}', 0600) or die; open(F, '+<', '{path}') or die"));
    fs::remove_file(path).unwrap();
    taken.refused(&RestoreOptions::default(), Cause::FileChanged);
}

fn a_folder_of_a_socket_that_is_gone() {
    let home = Home::new();
    let folder = home.folder("folder");
    let taken = taken(&format!(
        "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un('{}/s')) or die; listen(S, 5)",
        folder.display()
    ));
    fs::remove_dir_all(folder).unwrap();
    taken.refused(&RestoreOptions::default(), Cause::FileChanged);
}

fn a_tracer_inside_the_tree() {
    let mut victim = perl(
        "my $traced = fork(); if ($traced == 0) { open(STDIN, '<', '/dev/null'); open(STDOUT, '>', '/dev/null'); sleep 1000 while 1 } \
         syscall(101, 0x4206, $traced, 0, 0) == 0 or die",
    );
    let error = Dumps::new().dump(victim.pid(), &plain()).unwrap_err();
    let failure = error.failure().unwrap();
    assert_eq!(failure.cause, Cause::Untraceable, "{}", error.report());
    let advice = failure.advice();
    assert!(advice.contains(&format!("process {}, which is a part of the tree", victim.pid())), "{advice}");
    assert_eq!(victim.ask("?"), "here");
}
