//! Trees that cannot be dumped, and what lets them be.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{
        fs::MetadataExt,
        net::{UnixDatagram, UnixListener},
    },
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, DumpOptions, Error, Target,
    options::{LogLevel, NetworkLock, PageServerAddress},
};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use super::{Dumps, assert_cause, child, odd, odd::syscall, odd_below};
use crate::{
    harness::{dumps_tcp, tests},
    places::wait_until,
    tree::{Victim, explain},
};

tests![
    a_root_that_leads_no_session,
    a_session_from_outside_of_a_pid_namespace,
    a_pid_namespace_without_its_first_process,
    a_terminal_from_outside,
    a_stream_to_somebody_outside,
    a_datagram_socket_to_somebody_outside,
    a_tcp_connection,
    a_tcp_connection_that_nobody_accepted,
    a_tcp_connection_where_there_is_no_iptables,
    a_socket_of_multipath_tcp,
    a_socket_of_an_unknown_family,
    a_file_lock,
    a_file_lock_from_outside,
    a_large_file_that_was_deleted,
    a_deleted_name_of_a_file,
    a_file_from_another_mount_namespace,
    a_file_below_a_later_mount,
    files_of_unknown_kinds,
    an_io_uring,
    namespaces_inside_the_tree,
    another_root_folder,
    shared_memory_of_the_whole_machine,
    a_pending_trap,
    a_first_thread_that_ended,
    a_process_that_somebody_traces,
    a_process_that_cannot_be_frozen,
    a_control_group_without_a_freezer,
    a_process_that_does_not_exist,
    a_zombie,
    changes_of_memory_that_the_kernel_does_not_track,
    parent_images_that_do_not_exist,
    a_page_server_that_does_not_listen,
    a_file_of_options_that_does_not_exist,
    a_criu_without_privileges,
];

fn plain() -> DumpOptions {
    DumpOptions::default()
}

fn a_root_that_leads_no_session() {
    let mut dumps = Dumps::new();
    let mut victim = Victim::start_in_our_session(&[]);
    dumps.refused(&mut victim, &plain(), Cause::ShellJob);
    // With as little in the log as can be, the line that tells is there still.
    dumps.refused(&mut victim, &plain().log_level(LogLevel::Error), Cause::ShellJob);
    dumps.refused(&mut victim, &plain().log_level(LogLevel::Debug), Cause::ShellJob);
    dumps.cured(&mut victim, plain().shell_job(true));
}

fn a_session_from_outside_of_a_pid_namespace() {
    let mut dumps = Dumps::new();
    let mut victim = odd_below(&["unshare", "--pid", "--fork"], &[]);
    let inner = child(&victim);
    dumps.refused_of(&mut victim, inner, &plain(), Cause::SessionOutsidePidNamespace);
}

fn a_pid_namespace_without_its_first_process() {
    let mut dumps = Dumps::new();
    let mut victim = odd_below(&["unshare", "--pid", "--fork"], &["session", "child=setsid cat"]);
    let first = child(&victim);
    let [second] = crate::places::children(first)[..] else { panic!() };
    dumps.refused_of(&mut victim, second, &plain(), Cause::PidNamespaceWithoutInit);
}

fn a_terminal_from_outside() {
    let mut dumps = Dumps::new();
    let master = posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let mut victim = odd(&[&format!("terminal={}", ptsname_r(&master).unwrap())]);
    dumps.refused(&mut victim, &plain(), Cause::ShellJob);
    dumps.cured(&mut victim, plain().shell_job(true));
}

fn a_stream_to_somebody_outside() {
    let mut dumps = Dumps::new();
    let path = dumps.home.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut victim = odd(&[&format!("stream={}", path.display())]);
    let _end = listener.accept().unwrap();
    dumps.refused(&mut victim, &plain(), Cause::ExternalUnixSocket);
    let sockets = fs::read_dir(format!("/proc/{}/fd", victim.pid())).unwrap();
    let links = sockets.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string());
    let inode = links.filter_map(|link| Some(link.strip_prefix("socket:")?.to_owned())).next().unwrap();
    dumps.cured(&mut victim, plain().external(format!("unix{inode}")));
}

fn a_datagram_socket_to_somebody_outside() {
    let mut dumps = Dumps::new();
    let path = dumps.home.path("socket");
    let _end = UnixDatagram::bind(&path).unwrap();
    let mut victim = odd(&[&format!("datagram={}", path.display())]);
    dumps.refused(&mut victim, &plain(), Cause::ExternalUnixSocket);
    dumps.cured(&mut victim, plain().ext_unix_sk(true));
}

fn a_tcp_connection() {
    if !dumps_tcp() {
        return;
    }
    let mut dumps = Dumps::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut victim = odd(&[&format!("tcp={}", listener.local_addr().unwrap().port())]);
    let _end = listener.accept().unwrap();
    dumps.refused(&mut victim, &plain(), Cause::EstablishedTcp);
    dumps.cured(&mut victim, plain().tcp_established(true).network_lock(NetworkLock::Skip));
    dumps.cured(&mut victim, plain().tcp_close(true));
}

fn a_tcp_connection_that_nobody_accepted() {
    if !dumps_tcp() {
        return;
    }
    let mut dumps = Dumps::new();
    let port = free_port();
    let mut victim = odd(&[&format!("listen={port}")]);
    let _end = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let options = || plain().tcp_established(true).network_lock(NetworkLock::Skip);
    dumps.refused(&mut victim, &options(), Cause::InFlightTcp);
    dumps.cured(&mut victim, options().tcp_skip_in_flight(true));
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn a_tcp_connection_where_there_is_no_iptables() {
    if !dumps_tcp() {
        return;
    }
    let mut dumps = Dumps::through("PATH=/nonexistent exec CRIU \"$@\"");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut victim = odd(&[&format!("tcp={}", listener.local_addr().unwrap().port())]);
    let _end = listener.accept().unwrap();
    let options = || plain().tcp_established(true);
    dumps.refused(&mut victim, &options(), Cause::NetworkNotLocked);
    dumps.cured(&mut victim, options().network_lock(NetworkLock::Skip));
}

fn a_socket_of_multipath_tcp() {
    if !dumps_tcp() || !fs::exists("/proc/sys/net/mptcp/enabled").unwrap() {
        return;
    }
    let mut victim = odd(&["mptcp"]);
    Dumps::new().refused(&mut victim, &plain(), Cause::Mptcp);
}

fn a_socket_of_an_unknown_family() {
    if fs::exists("/dev/vsock").unwrap() {
        Dumps::new().refused(&mut odd(&["vsock"]), &plain(), Cause::UnsupportedSocket);
    }
}

fn a_file_lock() {
    let mut dumps = Dumps::new();
    let path = dumps.home.path("file");
    File::create(&path).unwrap();
    let mut victim = odd(&[&format!("lock={}", path.display())]);
    dumps.refused(&mut victim, &plain(), Cause::FileLocks);
    dumps.cured(&mut victim, plain().file_locks(true));
}

fn a_file_lock_from_outside() {
    let mut dumps = Dumps::new();
    let path = dumps.home.path("file");
    File::create(&path).unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.args(["--odd", "relay", &format!("locked-child={}", path.display())]);
    let mut victim = Victim::start_by(command);
    let inner = child(&victim);
    dumps.refused_of(&mut victim, inner, &plain().file_locks(true), Cause::ForeignFileLock);
}

fn a_large_file_that_was_deleted() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[&format!("ghost={}", dumps.home.path("ghost").display())]);
    dumps.refused(&mut victim, &plain(), Cause::GhostFileTooBig);
    dumps.cured(&mut victim, plain().ghost_limit(8_u32 << 20));
}

fn a_deleted_name_of_a_file() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[&format!("link={}", dumps.home.path("link").display())]);
    dumps.refused(&mut victim, &plain(), Cause::LinkRemap);
    dumps.cured(&mut victim, plain().link_remap(true));
}

fn a_file_from_another_mount_namespace() {
    let mut dumps = Dumps::new();
    let path = dumps.home.path("file");
    File::create(&path).unwrap();
    let mut victim = odd(&[&format!("file={}", path.display()), "unshare=mount"]);
    dumps.refused(&mut victim, &plain(), Cause::FileOutsideMounts);
}

fn a_file_below_a_later_mount() {
    let mut dumps = Dumps::new();
    let folder = dumps.home.folder("folder");
    File::create(folder.join("file")).unwrap();
    let file = format!("file={}", folder.join("file").display());
    let mut victim = odd(&["unshare=mount", "private", &file, &format!("tmpfs={}", folder.display())]);
    dumps.refused(&mut victim, &plain(), Cause::Overmounted);
}

fn files_of_unknown_kinds() {
    for kind in ["userfaultfd", "perf_event", "fscontext", "file=/dev/fuse"] {
        if kind.split_once('=').is_some_and(|(_, path)| !fs::exists(path).unwrap()) {
            continue;
        }
        Dumps::new().refused(&mut odd(&[kind]), &plain(), Cause::UnsupportedFile);
    }
}

fn an_io_uring() {
    if fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value == "0\n") {
        Dumps::new().refused(&mut odd(&["io_uring"]), &plain(), Cause::IoUring);
    }
}

fn namespaces_inside_the_tree() {
    for kind in ["--time --fork", "--uts", "--ipc"] {
        let mut victim = odd(&[&format!("child=unshare {kind} cat")]);
        wait_until("the child is in its namespace", || {
            let last = *victim.members().last().unwrap();
            fs::read_to_string(format!("/proc/{last}/comm")).is_ok_and(|name| name == "cat\n")
        });
        Dumps::new().refused(&mut victim, &plain(), Cause::NestedNamespaces);
    }
}

fn another_root_folder() {
    let dumps = Dumps::new();
    let root = format!("root={}", dumps.home.folder("root").display());
    let mut victim = odd(&["unshare=mount", "private", &root]);
    { dumps }.refused(&mut victim, &plain(), Cause::ChangedRoot);
}

fn shared_memory_of_the_whole_machine() {
    Dumps::new().refused(&mut odd(&["shm"]), &plain(), Cause::SysvShm);
}

fn a_pending_trap() {
    Dumps::new().refused(&mut odd(&["trap"]), &plain(), Cause::Untraceable);
}

fn a_first_thread_that_ended() {
    let mut victim = odd(&["leaderless"]);
    wait_until("the first thread has ended", || crate::places::state(victim.pid()) == Some('Z'));
    let result = Dumps::new().dump(victim.pid(), &plain());
    assert_cause(result, Cause::UnsupportedThreads, Target::Gone);
    assert_eq!(victim.ask("tick"), "count 1");
}

fn a_process_that_somebody_traces() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let seize = 0x4206;
    let detach = 17;
    let pid = i64::from(victim.pid());
    assert_eq!(syscall(libc::SYS_ptrace, [seize, pid, 0, 0, 0]), 0);
    dumps.refused(&mut victim, &plain(), Cause::NoSuchProcess);
    syscall(libc::SYS_ptrace, [detach, pid, 0, 0, 0]);
    let mut tree = odd(&["child=cat"]);
    let inner = i64::from(child(&tree));
    assert_eq!(syscall(libc::SYS_ptrace, [seize, inner, 0, 0, 0]), 0);
    dumps.refused(&mut tree, &plain(), Cause::Untraceable);
}

fn a_process_that_cannot_be_frozen() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&["stuck"]);
    wait_until("it is stuck", || crate::places::state(victim.pid()) == Some('D'));
    let started = Instant::now();
    let result = dumps.dump(victim.pid(), &plain().timeout(Duration::from_secs(1)));
    assert!(started.elapsed() < Duration::from_secs(9));
    assert_cause(result, Cause::FreezeTimeout, Target::Running);
    victim.talk.tell("go on");
    assert_eq!(victim.talk.hear(), format!("ready {}", victim.pid()));
    assert_eq!(victim.ask("tick"), "count 1");
}

fn a_control_group_without_a_freezer() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let folder = dumps.home.folder("no-group").display().to_string();
    dumps.refused(&mut victim, &plain().freeze_cgroup(folder), Cause::NoFreezer);
    dumps.cured(&mut victim, plain());
}

fn a_process_that_does_not_exist() {
    let victim = odd(&[]);
    let pid = victim.pid();
    victim.end();
    for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Debug] {
        let result = Dumps::new().dump(pid, &plain().log_level(level));
        assert_cause(result, Cause::NoSuchProcess, Target::Gone);
    }
}

fn a_zombie() {
    let mut child = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    wait_until("it has ended", || crate::places::state(pid) == Some('Z'));
    let result = Dumps::new().dump(pid, &plain());
    child.wait().unwrap();
    assert_cause(result, Cause::DeadRoot, Target::Gone);
}

fn changes_of_memory_that_the_kernel_does_not_track() {
    if crate::harness::criu().features().unwrap().mem_track {
        return;
    }
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    dumps.refused(&mut victim, &plain().track_mem(true), Cause::MemoryTracking);
    dumps.cured(&mut victim, plain());
}

fn parent_images_that_do_not_exist() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    dumps.refused(&mut victim, &plain().parent_img("../earlier"), Cause::ParentImages);
    dumps.cured(&mut victim, plain());
}

fn a_page_server_that_does_not_listen() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let nobody = PageServerAddress::tcp("127.0.0.1", free_port());
    dumps.refused(&mut victim, &plain().ps(nobody), Cause::PageServer);
    let nowhere = PageServerAddress::tcp("nowhere.invalid", 1);
    dumps.refused(&mut victim, &plain().ps(nowhere), Cause::PageServer);
}

fn a_file_of_options_that_does_not_exist() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let options = plain().config_file("/nonexistent/options");
    let error = dumps.dump(victim.pid(), &options).unwrap_err();
    eprintln!("{}", explain(&error));
    assert!(matches!(error, Error::Criu(_) | Error::Gone(_)));
    victim.assert_counts_on(0);
}

fn a_criu_without_privileges() {
    let mut dumps = Dumps::through(
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all CRIU \"$@\"",
    );
    let mut victim = odd(&[]);
    assert_eq!(fs::metadata(dumps.home.path("")).unwrap().uid(), 0);
    dumps.refused(&mut victim, &plain(), Cause::NotPrivileged);
    thread::yield_now();
}
