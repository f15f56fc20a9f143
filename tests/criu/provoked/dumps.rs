//! Trees that cannot be dumped, and what lets them be.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{
        fs::MetadataExt,
        net::{UnixDatagram, UnixListener},
    },
    process::{Command, Stdio},
};

use criu_rpc::{
    Cause, RestoreOptions, Target, Version,
    options::{LogLevel, NetworkLock, PageServerAddress, PageServerOptions},
    rpc::{Event, Lend, NoHooks, PageServer},
};
use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
};

use super::{Dumps, assert_cause, child, odd, odd_below, plain};
use crate::{
    harness::{criu, dumps_tcp, tests, version},
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
    a_large_file_that_was_deleted,
    a_deleted_name_of_a_file,
    a_file_from_another_mount_namespace,
    a_file_below_a_later_mount,
    files_of_unknown_kinds,
    an_io_uring,
    no_number_for_another_file,
    namespaces_inside_the_tree,
    another_root_folder,
    shared_memory_of_the_whole_machine,
    changes_of_memory_that_the_kernel_does_not_track,
    parent_images_that_do_not_exist,
    a_page_server_that_does_not_listen,
    a_page_server_that_ends_before_the_dump,
    a_file_of_options_that_criu_does_not_know,
    a_criu_without_privileges,
    a_folder_that_criu_cannot_see,
    a_folder_that_was_deleted,
    a_watched_file_that_cannot_be_found,
    memory_of_a_perf_event,
    functions_that_are_probed,
    a_folder_that_takes_no_names,
    a_unix_connection_with_words_that_nobody_accepted,
    another_file_at_the_path,
    a_file_system_that_criu_does_not_know,
    a_mount_from_outside,
    a_script_that_fails,
];

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
    let (_master, name) = terminal();
    let mut victim = odd(&[&format!("terminal={name}")]);
    dumps.refused(&mut victim, &plain(), Cause::ShellJob);
    dumps.cured(&mut victim, plain().shell_job(true));
}

/// A new terminal: its master, and its name.
pub(super) fn terminal() -> (PtyMaster, String) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname_r(&master).unwrap();
    (master, name)
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
    let file = format!("file={}", folder.join("file").display());
    let mount = format!("tmpfs={}", folder.display());
    let mut victim = in_mount_namespace("exec", &[&mount, &file, &mount]);
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
        Dumps::new().refused(&mut odd(&["io_uring_memory"]), &plain(), Cause::IoUring);
    }
}

fn no_number_for_another_file() {
    let (mut dumps, mut victim) = (Dumps::new(), Victim::start(&[]));
    let pid = victim.pid().to_string();
    let limit = |files: &str| {
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:100")]).status();
        assert!(limited.unwrap().success());
    };
    limit("3");
    dumps.refused(&mut victim, &plain(), Cause::DescriptorLimit);
    limit("8");
    dumps.cured(&mut victim, plain());
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
    let mut dumps = Dumps::new();
    let folder = dumps.home.folder("root").display().to_string();
    let mut victim = in_mount_namespace("exec", &[&format!("root={folder}")]);
    dumps.refused(&mut victim, &plain(), Cause::ChangedRoot);
    let within = format!("mount --rbind / {folder} && exec chroot {folder}");
    let mut victim = in_mount_namespace(&within, &[]);
    dumps.refused(&mut victim, &plain(), Cause::ChangedRoot);
}

/// A victim that was started in a mount namespace of its own, through a command of the shell.
pub(super) fn in_mount_namespace(through: &str, things: &[&str]) -> Victim {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{through} \"$0\" \"$@\""));
    command.arg(std::env::current_exe().unwrap()).args(["--odd", "session", "quiet"]).args(things);
    Victim::start_by(command)
}

fn shared_memory_of_the_whole_machine() {
    Dumps::new().refused(&mut odd(&["shm"]), &plain(), Cause::SysvShm);
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
    let nobody = || PageServerAddress::tcp("127.0.0.1", free_port());
    dumps.refused(&mut victim, &plain().ps(nobody()).log_level(LogLevel::Info), Cause::PageServer);
    let nowhere = PageServerAddress::tcp("nowhere.invalid", 1);
    // criu 4.2.1 crashes then, but says why before.
    let error = dumps.dump(victim.pid(), &plain().ps(nowhere)).unwrap_err();
    assert_eq!(error.failure().unwrap().cause, Cause::PageServer, "{}", explain(&error));

    // By itself criu does not log that it cannot connect.
    dumps.refused(&mut victim, &plain().ps(nobody()), Cause::PageServer);
}

fn a_page_server_that_ends_before_the_dump() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let folder = File::open(dumps.home.folder("served")).unwrap();
    let options = PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0));
    let server = criu().page_server(&options, Lend::images(&folder)).unwrap();
    let address = PageServerAddress::tcp("127.0.0.1", server.port().unwrap());
    let mut server = Some(server);
    let options = plain().ps(address);
    let error = criu()
        .dump(victim.pid(), &options, Lend::images(&folder), &mut |event: Event<'_>| {
            if matches!(event, Event::PreDump) {
                server.take().map(PageServer::stop).transpose()?;
            }
            Ok::<(), criu_rpc::BoxError>(())
        })
        .unwrap_err();
    assert_eq!(error.failure().unwrap().cause, Cause::PageServer, "{}", explain(&error));
    victim.ask("tick");
    dumps.cured(&mut victim, plain());
}

fn a_file_of_options_that_criu_does_not_know() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let path = dumps.home.path("options");
    fs::write(&path, "no-such-option\n").unwrap();
    let options = plain().config_file(path.display().to_string());
    dumps.refused(&mut victim, &options, Cause::OptionsRefused);
    dumps.cured(&mut victim, plain());
}

fn a_criu_without_privileges() {
    let mut dumps = Dumps::through(
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all CRIU \"$@\"",
    );
    let mut victim = odd(&[]);
    assert_eq!(fs::metadata(dumps.home.path("")).unwrap().uid(), 0);
    dumps.refused(&mut victim, &plain(), Cause::NotPrivileged);
}

fn a_folder_that_criu_cannot_see() {
    let mut dumps = Dumps::through("exec unshare --pid --fork --kill-child CRIU \"$@\"");
    dumps.refused(&mut odd(&[]), &plain(), Cause::FolderNotReachable);
}

fn a_folder_that_was_deleted() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let path = dumps.home.folder("deleted");
    let folder = File::open(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    let dumped = dumps.criu.dump(victim.pid(), &plain(), Lend::images(&folder), &mut NoHooks);
    assert_cause(dumped, Cause::FolderNotReachable, Target::Running);
    let restored = dumps.criu.restore(&RestoreOptions::default(), Lend::images(&folder), &mut NoHooks);
    assert_cause(restored, Cause::NoImages, Target::None);
    dumps.cured(&mut victim, plain());
}

fn a_watched_file_that_cannot_be_found() {
    for path in ["/proc/self", "/sys"] {
        let mut dumps = Dumps::new();
        let mut victim = odd(&[&format!("watch={path}")]);
        dumps.refused(&mut victim, &plain(), Cause::WatchedFile);
        if path == "/sys" {
            dumps.cured(&mut victim, plain().force_irmap(true).irmap_scan_paths("/sys"));
        }
    }
}

fn memory_of_a_perf_event() {
    Dumps::new().refused(&mut odd(&["perf_memory"]), &plain(), Cause::UnsupportedMapping);
}

fn functions_that_are_probed() {
    let mut victim = odd(&[]);
    let Some(probe) = odd::probe(victim.pid()) else { return };
    victim.ask("probed");
    drop(probe);
    let mut dumps = Dumps::new();
    if version() < Version::new(4, 2, 0) {
        return dumps.refused(&mut victim, &plain(), Cause::UnsupportedMapping);
    }
    dumps.refused(&mut victim, &plain(), Cause::Uprobes);
    dumps.criu = dumps.criu.argument("--allow-uprobes");
    dumps.cured(&mut victim, plain());
}

fn a_folder_that_takes_no_names() {
    let mut dumps = Dumps::new();
    let folder = dumps.home.folder("folder");
    let mut victim = odd(&[&format!("link={}", folder.join("link").display())]);
    let Some(fixed) = Immutable::new(folder) else { return };
    dumps.refused(&mut victim, &plain().link_remap(true), Cause::LinkRemapFailed);
    drop(fixed);
    dumps.cured(&mut victim, plain().link_remap(true));
}

/// A folder in which nothing can be made or removed.
struct Immutable(std::path::PathBuf);

impl Immutable {
    /// None where there is no such thing.
    fn new(folder: std::path::PathBuf) -> Option<Immutable> {
        Immutable::attribute("+i", &folder).then_some(Immutable(folder))
    }

    fn attribute(change: &str, folder: &std::path::Path) -> bool {
        let result = Command::new("chattr").arg(change).arg(folder).stderr(Stdio::null()).status();
        result.is_ok_and(|status| status.success())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        Immutable::attribute("-i", &self.0);
    }
}

fn a_unix_connection_with_words_that_nobody_accepted() {
    let mut dumps = Dumps::new();
    let path = |name: &str| dumps.home.path(name).display().to_string();
    let (one, other) = (path("one"), path("other"));
    let mut victim = odd(&[&format!("connecting-and-talking={one}")]);
    dumps.refused(&mut victim, &plain(), Cause::UnixSocketBusy);
    dumps.cured(&mut odd(&[&format!("connecting={other}")]), plain());
}

fn another_file_at_the_path() {
    let mut dumps = Dumps::new();
    let folder = dumps.home.folder("folder");
    let file = format!("file={}", folder.join("file").display());
    let mount = format!("tmpfs={}", folder.display());
    let mut victim = in_mount_namespace("exec", &[&file, &mount, &file]);
    dumps.refused(&mut victim, &plain(), Cause::UnsupportedPath);
    let entries = |kind: &str| format!("/proc/{}/{kind}", victim.pid());
    let hidden = fs::read_dir(entries("fd")).unwrap().map(|entry| entry.unwrap().path());
    let hidden = hidden.filter(|entry| fs::read_link(entry).unwrap().starts_with(&folder)).min().unwrap();
    let about = std::path::Path::new(&entries("fdinfo")).join(hidden.file_name().unwrap());
    let about = fs::read_to_string(about).unwrap();
    let mount: u32 = about.lines().find_map(|line| line.strip_prefix("mnt_id:\t")).unwrap().parse().unwrap();
    let file = format!("file[{mount:x}:{:x}]", fs::metadata(hidden).unwrap().ino());
    dumps.cured(&mut victim, plain().external(file));
}

fn a_file_system_that_criu_does_not_know() {
    let mut dumps = Dumps::new();
    let folder = dumps.home.folder("folder").display().to_string();
    let mut victim = in_mount_namespace(&format!("mount -t ramfs none {folder} && exec"), &[]);
    dumps.refused(&mut victim, &plain(), Cause::UnsupportedFileSystem);
    dumps.cured(&mut victim, plain().enable_fs("ramfs"));
    dumps.cured(&mut victim, plain().external(format!("mnt[{folder}]:label")));
    dumps.cured(&mut victim, plain().skip_mnt(folder));
}

fn a_mount_from_outside() {
    let mut dumps = Dumps::new();
    let (from, to) = (dumps.home.folder("from"), dumps.home.folder("to"));
    let (from, to) = (from.display(), to.display());
    let through = format!(
        "mount -t tmpfs none {from} && mkdir {from}/below && mount --bind {from}/below {to} && umount {from} && exec"
    );
    let mut victim = in_mount_namespace(&through, &[]);
    dumps.refused(&mut victim, &plain(), Cause::ExternalMount);
    dumps.cured(&mut victim, plain().external(format!("mnt[{to}]:label")));
}

fn a_script_that_fails() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    let path = dumps.home.path("options");
    fs::write(&path, "action-script /bin/false\n").unwrap();
    dumps.refused(&mut victim, &plain().config_file(path.display().to_string()), Cause::RefusedByClient);
    dumps.cured(&mut victim, plain());
}
