//! Open files, and memory that is mapped.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, process::ExitStatusExt},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use criu_rpc::{
    Cause, DumpOptions, Error, RestoreOptions,
    options::NetworkLock,
    preflight::{Obstacle, Severity},
    rpc::{Key, NoHooks},
};
use nix::{fcntl::OFlag, sys::signal::Signal};

use super::{At, blocks, defaults, descriptor, lines, look, passes, perl, perl_by, perl_program};
use crate::{
    client::resource,
    harness::{criu, tests},
    places::{Home, copy_program, wait_until},
    requests::{Images, own},
    talk::pipe,
    tree::{OrExplain, Victim, explain, signal},
};

tests![
    file_locks,
    large_deleted_files,
    deleted_names,
    deleted_programs,
    terminals_from_outside,
    pipes_to_the_outside,
    files_that_criu_does_not_know,
    watches_on_the_kernels_own_file_systems,
    pidfds_of_others,
    memory_of_system_v,
    mapped_io_urings,
    mapped_rings_of_asynchronous_input,
    terminals_that_have_hung_up,
    files_that_a_mount_covers,
    pipes_that_keep_packets_apart,
    timers_that_wake_the_machine_up,
    files_of_processes_that_have_ended,
    memory_that_the_kernel_does_not_see,
    files_on_a_mount_that_is_nowhere,
];

/// Blocks at the one descriptor that a program opens like this.
#[track_caller]
fn blocks_for(call: &str, obstacle: impl Fn(&Obstacle) -> bool) -> Obstacle {
    let victim = perl(&format!("$^F = 100; {call}"));
    blocks(victim.pid(), &defaults(), victim.pid(), None, obstacle)
}

fn pipes_that_keep_packets_apart() {
    let call = "my $p = pack('ii', 0, 0); syscall(293, $p, 040000) == 0 or die; my ($r, $w) = unpack('ii', $p); \
                POSIX::close($r)";
    let found = blocks_for(call, |obstacle| *obstacle == Obstacle::PacketPipe);
    assert_eq!(found.cause(), Cause::PacketPipe);
}

fn timers_that_wake_the_machine_up() {
    for clock in [8, 9] {
        let call = format!("syscall(283, {clock}, 0) > 2 or die");
        let found = blocks_for(&call, |obstacle| *obstacle == Obstacle::AlarmTimer);
        assert_eq!(found.cause(), Cause::AlarmTimer);
    }
}

fn files_of_processes_that_have_ended() {
    let opened = |name: &str| {
        format!(
            "my $c = fork; unless ($c) {{ sleep 1000 while 1 }} my $p = \"/proc/$c{name}\"; syscall(2, $p, 0) > 2 or die; \
             kill 9, $c; waitpid($c, 0)"
        )
    };
    let gone = |obstacle: &Obstacle| matches!(obstacle, Obstacle::ProcGone { .. });
    assert_eq!(blocks_for(&opened("/fd"), gone).cause(), Cause::ProcFile);
    // criu dumps others, and no restore can open them.
    for name in ["/stat", ""] {
        let victim = perl(&opened(name));
        let findings = look(victim.pid(), &defaults());
        let [finding] = &findings[..] else { panic!("{}", lines(&findings)) };
        assert!(gone(&finding.obstacle) && finding.severity == Severity::Blocks, "{finding}");
        let home = Home::new();
        let error = home.capture([victim.pid()]).leave_running(false).capture(&home.store()).unwrap_err();
        assert!(matches!(&error, Error::Unrevivable { .. }), "{}", explain(&error));
    }
}

fn memory_that_the_kernel_does_not_see() {
    let call = "my $m = syscall(447, 0); $m > 2 or die";
    blocks_for(call, |obstacle| *obstacle == Obstacle::UnsupportedFile);
    let mapped = format!(
        "{call}; syscall(77, $m, 4096) == 0 or die; syscall(9, 0, 4096, 3, 1, $m, 0) != -1 or die; POSIX::close($m)"
    );
    let victim = perl(&mapped);
    blocks(victim.pid(), &defaults(), victim.pid(), None, |obstacle| *obstacle == Obstacle::UnsupportedMapping);
}

fn files_on_a_mount_that_is_nowhere() {
    let call = "my $p = '/tmp'; syscall(428, -100, $p, 1) > 2 or die";
    blocks_for(call, |obstacle| matches!(obstacle, Obstacle::UnseenMount { .. }));
}

fn file_locks() {
    let home = Home::new();
    let path = home.path("locked");
    File::create(&path).unwrap();
    let victim = Victim::start(&[&format!("lock={}", path.display())]);
    let place = descriptor(victim.pid(), path.to_str().unwrap());
    blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| *obstacle == Obstacle::FileLock);
    passes(victim.pid(), &defaults().file_locks(true));
}

/// A file of two MiB on the disk, not in a temporary file system.
fn large(path: &Path) -> String {
    let file = File::create(path).unwrap();
    let block: Vec<u8> = (0..1_u32 << 21).map(|byte| byte.to_le_bytes()[0] | 1).collect();
    file.write_all_at(&block, 0).unwrap();
    file.sync_all().unwrap();
    format!("file={}", path.display())
}

fn large_deleted_files() {
    let home = Home::new();
    let path = home.path("large");
    let victim = Victim::start(&[&large(&path)]);
    passes(victim.pid(), &defaults());
    fs::remove_file(&path).unwrap();
    let place = descriptor(victim.pid(), path.to_str().unwrap());
    let obstacle = blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| {
        matches!(obstacle, Obstacle::GhostTooLarge { limit: 0x10_0000, .. })
    });
    let Obstacle::GhostTooLarge { size, .. } = obstacle else { panic!("{obstacle}") };
    let size = u32::try_from(size).unwrap();
    let too_small = defaults().ghost_limit(size - 1);
    blocks(victim.pid(), &too_small, victim.pid(), None, |obstacle| {
        matches!(obstacle, Obstacle::GhostTooLarge { .. })
    });
    passes(victim.pid(), &defaults().ghost_limit(size));
}

fn deleted_names() {
    let home = Home::new();
    let path = home.path("first");
    let victim = Victim::start(&[&large(&path)]);
    fs::hard_link(&path, home.path("second")).unwrap();
    fs::remove_file(&path).unwrap();
    let place = descriptor(victim.pid(), path.to_str().unwrap());
    blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| *obstacle == Obstacle::DeletedName);
    passes(victim.pid(), &defaults().link_remap(true));
}

fn deleted_programs() {
    let home = Home::new();
    let program = home.path("program");
    copy_program(std::env::current_exe().unwrap(), &program);
    let mut command = Command::new(&program);
    command.args(["--victim", "session"]);
    let victim = Victim::start_by(command);
    fs::remove_file(&program).unwrap();
    let too_large = |obstacle: &Obstacle| matches!(obstacle, Obstacle::GhostTooLarge { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), None, too_large);
    passes(victim.pid(), &defaults().ghost_limit(u32::MAX));
}

fn terminals_from_outside() {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let slave = nix::pty::ptsname_r(&master).unwrap();
    let victim = Victim::start(&[&format!("file={slave}")]);
    let place = descriptor(victim.pid(), &slave);
    let terminal = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Terminal { .. });
    let obstacle = blocks(victim.pid(), &defaults(), victim.pid(), place, terminal);
    passes(victim.pid(), &defaults().shell_job(true));
    passes(victim.pid(), &defaults().external(obstacle.external().unwrap()));
}

/// criu dumps them. A restored program can reach no process through them, unless it gets another
/// pipe in their place.
fn pipes_to_the_outside() {
    let home = Home::new();
    let (mut read, write) = pipe();
    let end = format!("/proc/{}/fd/{}", own(), write.as_raw_fd());
    let mut command = Command::new("perl");
    command.args([
        "-e",
        &perl_program(&format!(
            "open(P, '>', '{end}') or die; $SIG{{USR1}} = sub {{ syswrite(P, \"word\\n\") }}"
        )),
    ]);
    let victim = Victim::start_by(command);
    drop(write);
    let place = descriptor(victim.pid(), &resource(own(), read.as_raw_fd()));
    let Some(At::Descriptor { fd, .. }) = place else { unreachable!("because it is open") };
    let key = Key::of_process(victim.pid(), fd).unwrap();
    let findings = look(victim.pid(), &defaults());
    let [finding] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert_eq!(finding.place, place.unwrap(), "{finding}");
    assert_eq!(finding.severity, Severity::Risk, "{finding}");
    let Obstacle::PipeOutside { inode, .. } = finding.obstacle else { panic!("{finding}") };
    assert_eq!(key, Key::Pipe { inode });
    passes(victim.pid(), &defaults());

    let folder = home.folder("images");
    let images = Images::of(&victim, &folder);
    let options = DumpOptions::default().network_lock(NetworkLock::Skip);
    criu().dump(victim.pid(), &options, images.lend(), &mut NoHooks).or_explain();
    victim.reap(&images.members);
    let mut revived = images.revive(&criu(), &RestoreOptions::default()).or_explain();
    // perl takes a signal when its call into the kernel ends, so maybe at the next one.
    let status = loop {
        signal(revived.pid(), Signal::SIGUSR1);
        if let Some(status) = revived.tree().wait_timeout(Duration::from_millis(100)).or_explain() {
            break status;
        }
    };
    assert_eq!(status.signal(), Some(Signal::SIGPIPE as i32), "nobody reads what it writes: {status}");
    drop(revived);
    let mut rest = String::new();
    read.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");

    let (read, write) = pipe();
    let mut revived = images.revive_with(&criu(), &RestoreOptions::default(), &[(key, &write)]).or_explain();
    drop(write);
    signal(revived.pid(), Signal::SIGUSR1);
    assert_eq!(revived.ask("?"), "here");
    let mut word = String::new();
    BufReader::new(read).read_line(&mut word).unwrap();
    assert_eq!(word, "word\n");
}

fn files_that_criu_does_not_know() {
    for (call, target) in [
        ("my $p = \"\\0\" x 200; syscall(425, 4, $p) > 2 or die", "anon_inode:[io_uring]"),
        ("syscall(323, 1) > 2 or die", "anon_inode:[userfaultfd]"),
        ("my $name = 'tmpfs'; syscall(430, $name, 0) > 2 or die", "anon_inode:[fscontext]"),
        ("open(F, '+<', '/dev/fuse') or die", "/dev/fuse"),
        ("open(F, '+<', '/dev/net/tun') or die", "/dev/net/tun"),
    ] {
        if target.starts_with('/') && !Path::new(target).exists() {
            eprintln!("there is no {target} here");
            continue;
        }
        let victim = perl(&format!("$^F = 100; {call}"));
        let place = descriptor(victim.pid(), target);
        let found = blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| {
            matches!(obstacle, Obstacle::IoUring | Obstacle::UnsupportedFile | Obstacle::Tun)
        });
        assert_eq!(found == Obstacle::IoUring, target.contains("io_uring"), "{found}");
    }
    let victim =
        perl("open(F, '<', '/dev/zero'); open(G, '<', '/'); open(H, '<', '/proc/self/ns/net'); pipe(I, J)");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn watches_on_the_kernels_own_file_systems() {
    let watch = |path: &str| {
        perl(&format!("my $i = syscall(253); my $p = '{path}'; syscall(254, $i, $p, 0x100) > 0 or die"))
    };
    for (path, kind) in [("/proc/self", "proc"), ("/sys", "sysfs")] {
        let victim = watch(path);
        let place = descriptor(victim.pid(), "anon_inode:inotify");
        let there = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Watch { on, .. } if on == kind);
        blocks(victim.pid(), &defaults(), victim.pid(), place.clone(), there);
        blocks(victim.pid(), &defaults().force_irmap(true), victim.pid(), place, there);
    }
    for path in ["/dev/shm", env!("CARGO_MANIFEST_DIR")] {
        let victim = watch(path);
        passes(victim.pid(), &defaults());
    }
}

fn pidfds_of_others() {
    let own = std::process::id();
    let victim = perl(&format!("syscall(434, {own}, 0) > 2 or die"));
    let outside = |obstacle: &Obstacle| matches!(obstacle, Obstacle::PidfdOutside { of, .. } if *of == own);
    let obstacle = blocks(victim.pid(), &defaults(), victim.pid(), None, outside);
    assert_eq!(obstacle.cause(), Cause::PidfdOutside);
    let victim = perl("syscall(434, $$ + 0, 0) > 2 or die");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn memory_of_system_v() {
    let victim = perl("my $id = shmget(0, 65536, 0600); my $at = syscall(30, $id, 0, 0); shmctl($id, 0, 0)");
    let memory = |obstacle: &Obstacle| *obstacle == Obstacle::SystemVMemory;
    blocks(victim.pid(), &defaults(), victim.pid(), None, memory);
    let mut command = Command::new("unshare");
    command.args(["--ipc", "perl"]);
    let victim = perl_by(command, "my $id = shmget(0, 65536, 0600); my $at = syscall(30, $id, 0, 0)");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn mapped_io_urings() {
    let victim = perl(
        "$^F = 100; my $p = \"\\0\" x 200; my $u = syscall(425, 4, $p); \
         syscall(9, 0, 4096, 3, 1, $u, 0) != -1 or die; POSIX::close($u)",
    );
    let mapped = |obstacle: &Obstacle| *obstacle == Obstacle::IoUring;
    blocks(victim.pid(), &defaults(), victim.pid(), None, mapped);
}

fn mapped_rings_of_asynchronous_input() {
    let victim = perl("my $c = \"\\0\" x 8; syscall(206, 8, $c) == 0 or die");
    let maps = fs::read_to_string(format!("/proc/{}/maps", victim.pid())).unwrap();
    assert!(maps.contains("/[aio]"), "{maps}");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn terminals_that_have_hung_up() {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let slave = nix::pty::ptsname_r(&master).unwrap();
    // Not its controlling terminal, or it would be told to end.
    let victim = perl(&format!("use Fcntl; sysopen(F, '{slave}', O_RDWR | O_NOCTTY) or die"));
    drop(master);
    // A process that another test forks has the master until it starts its program.
    let gone = format!("{slave} (deleted)");
    let links = || fs::read_dir(format!("/proc/{}/fd", victim.pid())).unwrap().flatten();
    wait_until("the terminal has hung up", || {
        links().any(|link| fs::read_link(link.path()).is_ok_and(|target| target.as_os_str() == gone.as_str()))
    });
    let place = descriptor(victim.pid(), &gone);
    let findings = look(victim.pid(), &defaults());
    let [finding] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert_eq!(finding.place, place.unwrap());
    assert_eq!(finding.obstacle, Obstacle::HungTerminal);
    passes(victim.pid(), &defaults());
    let foresight = Home::new().capture([victim.pid()]).preflight().unwrap();
    assert!(foresight.blocks.is_empty() && foresight.risks.is_empty(), "{foresight:?}");
}

/// In a mount namespace of their own, so that no mount is left behind.
fn files_that_a_mount_covers() {
    for (name, covered) in [
        ("its folder", "system('mount', '-t', 'tmpfs', 'x', '/mnt/a') == 0 or die"),
        ("the file", "system('mount', '--bind', '/mnt/g', '/mnt/a/f') == 0 or die"),
        ("the mount that it is on", "system('mount', '-t', 'tmpfs', 'x', '/mnt') == 0 or die"),
    ] {
        let victim = in_mounts(covered);
        let findings = look(victim.pid(), &defaults());
        let found = findings.iter().filter(|finding| finding.severity == Severity::Blocks);
        let [finding] = found.collect::<Vec<_>>()[..] else { panic!("{name}: {}", lines(&findings)) };
        assert_eq!(finding.place, descriptor(victim.pid(), "/mnt/a/f").unwrap(), "{name}: {finding}");
        assert_eq!(finding.obstacle, Obstacle::Overmounted, "{name}: {finding}");
        super::dump(victim.pid(), &defaults()).unwrap_err();
    }
    for clear in [
        "1",
        "system('mount', '-t', 'tmpfs', 'x', '/mnt/b') == 0 or die",
        "system('mount', '--bind', '/mnt/a', '/mnt/a') == 0 or die",
    ] {
        let findings = look(in_mounts(clear).pid(), &defaults());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Risk), "{}", lines(&findings));
    }
    passes(in_mounts("1").pid(), &defaults());
}

pub(super) fn in_mounts(then: &str) -> super::Perl {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "perl"]);
    let before = "POSIX::close($_) for 3 .. 20; open(STDERR, '>', '/dev/null'); \
                  system('mount', '-t', 'tmpfs', 'x', '/mnt') == 0 or die; \
                  mkdir \"/mnt/$_\" for 'a', 'b'; open(G, '>', '/mnt/g'); close G; \
                  open(F, '+>', '/mnt/a/f') or die; ";
    perl_by(command, &format!("{before}{then}"))
}
