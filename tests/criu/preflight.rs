//! What preflight says of a tree is what criu then does: it refuses what blocks, and takes what is clear or cured.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::{
        fs::FileExt,
        net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use criu_rpc::{
    DumpOptions, Error, Pid, ProcessProblem,
    options::{External, NetworkLock},
    preflight::{Finding, Obstacle, Place, Severity},
    rpc::{Lend, NoHooks},
};

use nix::{
    fcntl::OFlag,
    sys::{
        resource::{UsageWho, getrusage},
        time::{TimeVal, TimeValLike},
    },
};

use crate::{
    harness::{criu, dumps_tcp, skip, tests},
    places::{Home, children, state},
    talk::Talk,
    tree::{OrExplain, Victim, explain},
};

tests![
    a_clean_tree_is_clear,
    a_look_takes_milliseconds_and_touches_nothing,
    a_pid_of_no_process_is_an_error,
    tcp_connections,
    tcp_connections_that_nobody_accepted,
    unix_sockets_to_the_outside,
    unix_connections_that_nobody_accepted,
    unix_datagrams_to_the_outside,
    unix_sockets_within_the_tree,
    file_locks,
    large_deleted_files,
    deleted_names,
    deleted_programs,
    a_root_that_leads_no_session,
    terminals_from_outside,
    memory_tracking,
    a_tree_with_the_caller_in_it,
    files_that_criu_does_not_know,
    sockets_that_criu_does_not_know,
    watches_on_the_kernels_own_file_systems,
    pidfds_of_others,
    memory_of_system_v,
    mapped_io_urings,
    debuggers,
    other_users,
    filters_that_root_may_dump,
    dead_leaders,
    namespaces_of_children,
    pid_namespaces_without_init,
    mount_namespaces_of_their_own,
    callers_without_privileges,
];

fn defaults() -> DumpOptions {
    DumpOptions::default().leave_running(true).network_lock(NetworkLock::Skip)
}

#[track_caller]
fn look(pid: i32, options: &DumpOptions) -> Vec<Finding> {
    criu().preflight(pid, options).or_explain().findings
}

/// What criu does, in a folder of its own. Afterwards nothing is stopped that was not before.
#[track_caller]
fn dump(pid: i32, options: &DumpOptions) -> Result<(), String> {
    let home = Home::new();
    let images = File::open(home.folder("images")).unwrap();
    let before = state(pid);
    let dumped = criu().dump(pid, options, Lend::images(&images), &mut NoHooks);
    let stopped = |state: Option<char>| state.is_some_and(|state| matches!(state, 'T' | 't'));
    assert!(stopped(before) || !stopped(state(pid)), "{pid} was left stopped");
    dumped.map(drop).map_err(|error| explain(&error))
}

/// Preflight finds this one obstacle, at this place of this process, and criu refuses the dump.
#[track_caller]
fn blocks(
    root: i32,
    options: &DumpOptions,
    pid: i32,
    place: Option<Place>,
    is: impl Fn(&Obstacle) -> bool,
) -> Obstacle {
    let findings = look(root, options);
    let refused = dump(root, options);
    let [finding] = &findings[..] else { panic!("{}; criu: {refused:?}", lines(&findings)) };
    assert!(is(&finding.obstacle), "{finding}");
    assert_eq!(finding.severity, Severity::Blocks, "{finding}");
    assert_eq!(finding.pid, Pid::from(pid), "{finding}");
    if let Some(place) = place {
        assert_eq!(finding.place, place, "{finding}");
    }
    assert!(refused.is_err(), "criu dumped it, in spite of: {finding}");
    finding.obstacle.clone()
}

/// Preflight finds nothing that blocks, and criu dumps the tree.
#[track_caller]
fn passes(root: i32, options: &DumpOptions) {
    let findings = look(root, options);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Risk), "{}", lines(&findings));
    dump(root, options).unwrap_or_else(|error| panic!("criu refused what is clear: {error}"));
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The descriptor whose target starts like this.
#[track_caller]
fn descriptor(pid: i32, start: &str) -> Option<Place> {
    let found = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        target.to_str()?.starts_with(start).then_some((fd, target))
    });
    let (fd, target) = found.unwrap_or_else(|| panic!("{pid} has no {start}"));
    Some(descriptor_of(fd, target))
}

/// A place as preflight makes it: its fields can be read, but not written.
fn descriptor_of(fd: i32, target: PathBuf) -> Place {
    Place::Descriptor { fd, target }
}

/// A victim in perl, for system calls that no safe code makes. It does not see to its children's end; this does.
struct Perl(Victim);

impl std::ops::Deref for Perl {
    type Target = Victim;

    fn deref(&self) -> &Victim {
        &self.0
    }
}

impl std::ops::DerefMut for Perl {
    fn deref_mut(&mut self) -> &mut Victim {
        &mut self.0
    }
}

impl Drop for Perl {
    fn drop(&mut self) {
        for descendant in self.0.members().into_iter().skip(1).rev() {
            crate::tree::signal(descendant, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Runs `before` in a session of its own.
#[track_caller]
fn perl(before: &str) -> Perl {
    perl_by(Command::new("perl"), before)
}

#[track_caller]
fn perl_by(mut command: Command, before: &str) -> Perl {
    let program = format!(
        "use POSIX; POSIX::setsid(); {before}; $| = 1; print \"ready $$\\n\"; while (<STDIN>) {{ print \"here\\n\"; }}"
    );
    command.args(["-e", &program]);
    Perl(Victim::start_by(command))
}

fn a_clean_tree_is_clear() {
    let mut victim = Victim::start(&["children=2", "threads=2", "memory=2", "listen=tcp"]);
    let preflight = criu().preflight(victim.pid(), &defaults()).or_explain();
    assert_eq!(preflight.findings, [], "{}", lines(&preflight.findings));
    assert_eq!((preflight.processes, preflight.blockers().count()), (3, 0));
    if dumps_tcp() {
        dump(victim.pid(), &defaults()).unwrap();
    }
    victim.assert_counts_on(0);
}

/// Fifty processes that sleep.
fn a_look_takes_milliseconds_and_touches_nothing() {
    let mut victim = perl("for (1 .. 49) { unless (fork) { sleep 1000; exit } }");
    let members = victim.members();
    assert_eq!(members.len(), 50);
    let start = Instant::now();
    let preflight = criu().preflight(victim.pid(), &defaults()).or_explain();
    let first = start.elapsed();
    let (start, worked) = (Instant::now(), processor_time());
    for _ in 0..10 {
        assert_eq!(criu().preflight(victim.pid(), &defaults()).or_explain(), preflight);
    }
    let (then, worked) = (start.elapsed() / 10, (processor_time() - worked) / 10);
    // The machine may be busy: what the processor did says more than the clock.
    eprintln!("preflight of {} processes: {first:?}, then {then:?}; at work {worked:?}", preflight.processes);
    assert_eq!(preflight.findings, [], "{}", lines(&preflight.findings));
    assert_eq!(preflight.processes, 50);
    assert!(members.iter().all(|pid| state(*pid) == Some('S')));
    assert_eq!(victim.ask("?"), "here");
}

/// How long this thread has been at work.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap());
    micros(usage.user_time()) + micros(usage.system_time())
}

fn a_pid_of_no_process_is_an_error() {
    for pid in [i32::MAX, 0, -1] {
        let error = criu().preflight(pid, &defaults()).unwrap_err();
        assert!(matches!(error, Error::Process { problem: ProcessProblem::Missing, .. }), "{error}");
    }
    // Inside a pid namespace there is no thread of the kernel.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        let error = criu().preflight(2, &defaults()).unwrap_err();
        assert!(matches!(error, Error::Process { problem: ProcessProblem::Kernel, .. }), "{error}");
    }
}

fn tcp_connections() {
    if !dumps_tcp() {
        return eprintln!("this criu cannot dump TCP sockets");
    }
    let mut victim = Victim::start(&["listen=tcp"]);
    let port = victim.ask("port");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    victim.ask(&format!("connect {}", listener.local_addr().unwrap().port()));
    let _accepted = listener.accept().unwrap();
    assert!(port.parse::<u16>().is_ok());
    blocks(victim.pid(), &defaults(), victim.pid(), None, |obstacle| *obstacle == Obstacle::Tcp);
    passes(victim.pid(), &defaults().tcp_established(true));
    passes(victim.pid(), &defaults().tcp_close(true));
}

fn tcp_connections_that_nobody_accepted() {
    if !dumps_tcp() {
        return eprintln!("this criu cannot dump TCP sockets");
    }
    let mut victim = Victim::start(&["listen=tcp"]);
    let port: u16 = victim.ask("port").parse().unwrap();
    let _waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let place = descriptor(victim.pid(), "socket:");
    blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| *obstacle == Obstacle::TcpInFlight);
    passes(victim.pid(), &defaults().tcp_skip_in_flight(true));
}

fn unix_sockets_to_the_outside() {
    let home = Home::new();
    let path = home.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut victim = Victim::start(&[]);
    victim.ask(&format!("connect {}", path.display()));
    let _accepted = listener.accept().unwrap();
    let place = descriptor(victim.pid(), "socket:");
    let outside = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnixOutside { .. });
    let obstacle = blocks(victim.pid(), &defaults(), victim.pid(), place, outside);
    let Some(external @ External::Unix { .. }) = obstacle.external() else { panic!("{obstacle}") };
    passes(victim.pid(), &defaults().external(external));
}

/// criu dumps these; to whom the connection goes at the restore it cannot know.
fn unix_connections_that_nobody_accepted() {
    let home = Home::new();
    let path = home.path("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut victim = Victim::start(&[]);
    victim.ask(&format!("connect {}", path.display()));
    let findings = look(victim.pid(), &defaults());
    assert!(
        matches!(
            &findings[..],
            [Finding { severity: Severity::Risk, obstacle: Obstacle::UnixOutside { .. }, .. }]
        ),
        "{}",
        lines(&findings)
    );
    passes(victim.pid(), &defaults());
}

fn unix_datagrams_to_the_outside() {
    let home = Home::new();
    let path = home.path("socket");
    let _log = UnixDatagram::bind(&path).unwrap();
    let victim = perl(&format!(
        "use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); connect(S, pack_sockaddr_un('{}')) or die",
        path.display()
    ));
    let place = descriptor(victim.pid(), "socket:");
    let outside = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnixOutside { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), place, outside);
}

fn unix_sockets_within_the_tree() {
    let victim = perl(
        "use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0); socketpair(C, D, AF_UNIX, SOCK_DGRAM, 0); close D; \
         socketpair(E, F, AF_UNIX, SOCK_STREAM, 0); close F",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
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
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--victim", "session"]);
    let victim = Victim::start_by(command);
    fs::remove_file(&program).unwrap();
    let too_large = |obstacle: &Obstacle| matches!(obstacle, Obstacle::GhostTooLarge { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), None, too_large);
    passes(victim.pid(), &defaults().ghost_limit(u32::MAX));
}

fn a_root_that_leads_no_session() {
    let victim = Victim::start_in_our_session(&[]);
    let no_session = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NoSession { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), Some(Place::Process), no_session);
    passes(victim.pid(), &defaults().shell_job(true));
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

fn memory_tracking() {
    let victim = Victim::start(&[]);
    let options = defaults().track_mem(true);
    if criu().features().or_explain().mem_track {
        return passes(victim.pid(), &options);
    }
    let untracked = |obstacle: &Obstacle| *obstacle == Obstacle::NoMemoryTracking;
    blocks(victim.pid(), &options, victim.pid(), Some(Place::Process), untracked);
}

fn a_tree_with_the_caller_in_it() {
    let own = i32::try_from(std::process::id()).unwrap();
    let findings = look(own, &defaults().shell_job(true));
    assert!(
        findings.iter().any(|finding| finding.obstacle == Obstacle::CallerInside),
        "{}",
        lines(&findings)
    );
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

fn sockets_that_criu_does_not_know() {
    for (socket, name) in [("2, 1, 262", "MPTCP"), ("40, 1, 0", "AF_VSOCK")] {
        let victim = perl(&format!("socket(S, {socket}) or die"));
        let place = descriptor(victim.pid(), "socket:");
        let unknown = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnsupportedSocket { protocol } if protocol == name);
        blocks(victim.pid(), &defaults(), victim.pid(), place, unknown);
    }
    let victim = perl(
        "socket(A, 2, 2, 0); socket(B, 10, 2, 0); socket(C, 16, 3, 0); socket(D, 17, 3, 0); socket(E, 2, 3, 1); \
         socket(F, 2, 2, 136)",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    if !dumps_tcp() {
        skip("it cannot dump internet sockets on newer kernels");
    }
    passes(victim.pid(), &defaults());
}

fn watches_on_the_kernels_own_file_systems() {
    let watch = |path: &str| {
        perl(&format!("my $i = syscall(253); my $p = '{path}'; syscall(254, $i, $p, 0x100) > 0 or die"))
    };
    for (path, kind) in [("/proc/self", "proc"), ("/sys", "sysfs")] {
        let victim = watch(path);
        let place = descriptor(victim.pid(), "anon_inode:inotify");
        let there = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Watch { on } if on == kind);
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
    let outside = |obstacle: &Obstacle| *obstacle == Obstacle::PidfdOutside { of: Pid::from(own) };
    blocks(victim.pid(), &defaults(), victim.pid(), None, outside);
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
    let mapped = |obstacle: &Obstacle| *obstacle == Obstacle::UnsupportedMapping;
    blocks(victim.pid(), &defaults(), victim.pid(), None, mapped);
}

/// A process that was started for a test, and that nothing is to be asked of.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended, then
        let _ = self.0.wait();
    }
}

fn debuggers() {
    let mut victim = perl("1");
    let mut child = Command::new("perl")
        .args([
            "-e",
            "$| = 1; syscall(101, 0x4206, $ARGV[0] + 0, 0, 0) == 0 or die; print \"ready\\n\"; <STDIN>",
        ])
        .arg(victim.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut talk = Talk::new(child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let debugger = Helper(child);
    assert_eq!(talk.hear(), "ready");
    let by = Obstacle::Traced { by: Pid::from(debugger.0.id()) };
    blocks(victim.pid(), &defaults(), victim.pid(), Some(Place::Process), |obstacle| *obstacle == by);
    drop(debugger);
    passes(victim.pid(), &defaults());
    assert_eq!(victim.ask("?"), "here");
}

fn other_users() {
    let victim =
        perl("$( = $) = '1000 1000'; $< = $> = 1000; syscall(157, 4, 1, 0, 0, 0); $> == 1000 or die");
    let bounding = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    if u64::from_str_radix(&bounding, 16).unwrap() & (1 << 24) != 0 {
        return passes(victim.pid(), &defaults());
    }
    let other = |obstacle: &Obstacle| *obstacle == Obstacle::OtherUser { uid: 1000 };
    blocks(victim.pid(), &defaults(), victim.pid(), Some(Place::Process), other);
}

fn filters_that_root_may_dump() {
    // One instruction that allows everything.
    let victim = perl(
        "syscall(157, 38, 1, 0, 0, 0) == 0 or die; my $f = pack('SCCL', 6, 0, 0, 0x7fff0000); \
         my $p = pack('Sx6P', 1, $f); syscall(157, 22, 2, $p, 0, 0) == 0 or die",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn dead_leaders() {
    let has_threads = Command::new("perl").args(["-Mthreads", "-e", "1"]).stderr(Stdio::null()).status();
    if !has_threads.is_ok_and(|status| status.success()) {
        return eprintln!("this perl has no threads");
    }
    let victim = perl(
        "use threads; threads->create(sub { sleep 1000 }); $| = 1; print \"ready $$\\n\"; syscall(60, 0)",
    );
    crate::places::wait_until("the first thread has ended", || state(victim.pid()) == Some('Z'));
    let dead = |obstacle: &Obstacle| *obstacle == Obstacle::DeadLeader;
    blocks(victim.pid(), &defaults(), victim.pid(), Some(Place::Process), dead);
}

/// In a tree, a child in a namespace of its own.
#[track_caller]
fn child_in(flag: &str) -> Perl {
    let victim = perl(&format!(
        "pipe(R, W); unless (fork) {{ $^F = 100; close W; open(STDIN, '<', '/dev/null'); \
         exec('unshare', '{flag}', 'sleep', '1000') }} close R"
    ));
    let child = children(victim.pid())[0];
    let started =
        || fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "sleep");
    crate::places::wait_until("the child is in its namespace", started);
    victim
}

fn namespaces_of_children() {
    for (flag, kind) in [("--uts", "uts"), ("--ipc", "ipc"), ("--cgroup", "cgroup"), ("--time", "time")] {
        let victim = child_in(flag);
        let child = children(victim.pid())[0];
        let nested = |obstacle: &Obstacle| *obstacle == Obstacle::NestedNamespace { kind };
        blocks(victim.pid(), &defaults(), child, Some(Place::Process), nested);
    }
    let victim = child_in("--net");
    passes(victim.pid(), &defaults());
}

fn pid_namespaces_without_init() {
    let victim = perl(
        "unless (fork) { exec('unshare', '--pid', '--fork', 'perl', '-e', \
         'unless (fork) { use POSIX; POSIX::setsid(); sleep 1000 } sleep 1000') }",
    );
    let inner = || Some(*children(*children(*children(victim.pid()).first()?).first()?).first()?);
    crate::places::wait_until("the namespace has a second process", || {
        inner().is_some_and(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.split(' ').nth(5) == Some(&pid.to_string())
        })
    });
    let inner = inner().unwrap();
    let no_init = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NoInit { .. });
    let Obstacle::NoInit { namespace } = blocks(inner, &defaults(), inner, Some(Place::Process), no_init)
    else {
        unreachable!("because that was asked for")
    };
    let external = External::Pid { inode: namespace, label: "there".to_owned() };
    passes(inner, &defaults().external(external));
}

fn mount_namespaces_of_their_own() {
    let in_own = |before: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "perl"]);
        perl_by(command, &format!("POSIX::close($_) for 3 .. 20; {before}"))
    };
    let needs_root = |finding: &Finding| {
        finding.obstacle == Obstacle::MountNamespace && finding.severity == Severity::Risk
    };
    // Its standard error is open since before it had its namespace.
    let victim = in_own("1");
    let findings = look(victim.pid(), &defaults());
    let [root, unseen] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert!(needs_root(root), "{root}");
    assert!(matches!(unseen.obstacle, Obstacle::UnseenMount { .. }), "{unseen}");
    assert_eq!(Some(&unseen.place), descriptor(victim.pid(), "/dev/null").as_ref());
    dump(victim.pid(), &defaults()).unwrap_err();

    let victim = in_own("open(STDERR, '>', '/dev/null')");
    let findings = look(victim.pid(), &defaults());
    let [root] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert!(needs_root(root), "{root}");
    assert_eq!(look(victim.pid(), &defaults().root("/mnt")), []);
}

/// Looks and dumps as somebody else, and says what came of it.
#[track_caller]
fn as_somebody_else(who: &[&str], pid: i32) -> (Vec<String>, String) {
    let output = Command::new("setpriv")
        .args(who)
        .arg(std::env::current_exe().unwrap())
        .args(["--look", &pid.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (lines, last)
}

/// The process that looks as somebody else.
pub(crate) fn main(arguments: &[String]) {
    let pid = arguments[0].parse().unwrap();
    for finding in look(pid, &defaults()) {
        println!("{:?}: {}", finding.severity, finding.obstacle);
    }
    println!("{}", if dump(pid, &defaults()).is_ok() { "dumped" } else { "refused" });
}

fn callers_without_privileges() {
    const NOBODY: [&str; 3] = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let victim = Victim::start(&[]);
    let (findings, end) = as_somebody_else(&NOBODY, victim.pid());
    let needs = |name: &str| findings.iter().any(|line| line.starts_with("Blocks") && line.contains(name));
    assert!(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"].into_iter().all(needs), "{findings:?}");
    assert_eq!(end, "refused");

    for (name, short) in [("CAP_SYS_ADMIN", "sys_admin"), ("CAP_SYS_PTRACE", "sys_ptrace")] {
        let without = [format!("--bounding-set=-{short}"), format!("--inh-caps=-{short}")];
        let (findings, end) = as_somebody_else(&[&without[0], &without[1]], victim.pid());
        assert_eq!(
            (&findings[..], end.as_str()),
            (&[format!("Blocks: criu would have to run without {name}")][..], "refused")
        );
    }
    passes(victim.pid(), &defaults());
}
