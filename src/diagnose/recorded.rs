//! Tests of the tables: a recorded line for every stem, with names and numbers as criu prints them.

use super::{
    Output, OutputContext,
    rules::{self, cause},
};
use crate::{Cause, Request};

/// A line of the log without its place in criu's source, and its cause.
const LINES: &[(&str, Cause)] = &[
    // Dumps: the tree
    ("The root process 4242 is not a session leader. Consider using --shell-job option", Cause::ShellJob),
    ("A session leader of 4242(2) is outside of its pid namespace", Cause::SessionOutsidePidNamespace),
    (
        "A session leader of zombie process 4242(2) is outside of its pid namespace",
        Cause::SessionOutsidePidNamespace,
    ),
    ("tty: Found slave peer index 3 without correspond master peer", Cause::ShellJob),
    ("tty: Only one slave external peer is allowed (index 1)", Cause::ShellJob),
    ("tty: Found dangling tty with sid 4242 pgid 4242 (pts) on peer fd 1.", Cause::ShellJob),
    ("The criu itself is within dumped tree.", Cause::CriuInsideTree),
    ("Unseizable non-zombie 4242 found, state t, err -1/1", Cause::Untraceable),
    ("Can't dump the 4242 thread with a pending SIGTRAP.", Cause::PendingTrap),
    ("SEIZE 4242: unsupported stop signal 21", Cause::StoppedJob),
    ("Can't make VM id for 4242", Cause::SharedState),
    ("Can't make FS id for 4242", Cause::SharedState),
    ("Can't make FILES id for 4242", Cause::SharedState),
    ("Can't make IO id for 4242", Cause::SharedState),
    ("Zombies with threads are not supported", Cause::UnsupportedThreads),
    ("Zombie thread not supported", Cause::UnsupportedThreads),
    ("Individually stopped threads not supported", Cause::UnsupportedThreads),
    ("A root task is dead", Cause::DeadRoot),
    ("Timeout reached. Try to interrupt: 0", Cause::FreezeTimeout),
    (
        "Unable to freeze cgroup /sys/fs/cgroup/freezer/x (10 x 100ms attempts, timeout: 1s)",
        Cause::FreezeTimeout,
    ),
    ("Neither a cgroupv1 (freezer.state) or cgroupv2 (cgroup.freeze) control file found.", Cause::NoFreezer),
    ("Can't dump nested uts namespace for 4243", Cause::NestedNamespaces),
    ("Can't dump nested time namespace for 4243", Cause::NestedNamespaces),
    ("mnt: Nested mount namespaces are not supported without mnt_id in fdinfo", Cause::NestedNamespaces),
    ("Can't dump a pid namespace without the process init", Cause::PidNamespaceWithoutInit),
    ("Task 4242 with SysVIPC shmem map @7f1234560000 doesn't live in IPC ns", Cause::SysvShm),
    ("Can't dump task 4242 running in 32-bit mode", Cause::UnsupportedProgram),
    ("Can't dump task 4242 with LDT descriptors", Cause::UnsupportedProgram),
    ("seccomp: Can't fetch filter on tid_real 4242 i 0: Operation not permitted", Cause::Seccomp),
    ("Kernel doesn't support PTRACE_O_SUSPEND_SECCOMP", Cause::Seccomp),
    ("4242 has rseq but kernel lacks get_rseq_conf feature", Cause::RestartableSequences),
    ("failed to collect AA namespace", Cause::SecurityProfile),
    ("Invalid selinux context unconfined_u", Cause::SecurityProfile),
    // Dumps: images
    ("Unable to spice data: No space left on device", Cause::NoSpace),
    ("Can't create ghost dir /tmp/x: No space left on device", Cause::NoSpace),
    ("Can't make ghost dir: No space left on device", Cause::NoSpace),
    // Dumps: connections
    ("unix: External socket is used. Consider using --ext-unix-sk option.", Cause::ExternalUnixSocket),
    (
        "unix: Can't dump half of stream unix connection. name: /tmp/socket; peer name: (null)",
        Cause::ExternalUnixSocket,
    ),
    ("unix: Can't dump name-less external socket.", Cause::ExternalUnixSocket),
    ("unix: Dangling connection 51234", Cause::UnixSocketBusy),
    ("unix: In-flight connection on non-listening socket 51234", Cause::UnixSocketBusy),
    ("unix: Non-empty write queue on an in-flight socket 0xc822", Cause::UnixSocketBusy),
    ("unix: Found a closed in-flight socket to 0xc822", Cause::UnixSocketBusy),
    ("pidfd: pidfd pid 32281 is not a part of process tree..", Cause::PidfdOutside),
    ("pidfd: PIDFD_THREAD flag is currently not supported", Cause::UnsupportedFile),
    ("Can't get rlimit 0: Operation not permitted", Cause::OtherUser),
    ("Unable to drop capability 21: -1", Cause::NotPrivileged),
    (
        "sockets: Unable to set socket SO_SNDBUFFORCE/SO_RCVBUFFORCE: Operation not permitted",
        Cause::NotPrivileged,
    ),
    (
        "libnet_init failed (libnet_open_raw4(): SOCK_RAW allocation failed: Operation not permitted)",
        Cause::NotPrivileged,
    ),
    ("Can't change root: Operation not permitted", Cause::NotPrivileged),
    ("Can't restore sub-task in NS (cflags 40000000)", Cause::NamespaceOfChild),
    ("tty: ctty inheritance detected sid/pgrp 4242, no PID with such sid found", Cause::ShellJob),
    ("inet: Can't dump corked dgram socket c822", Cause::CorkedSocket),
    ("Control messages in queue, not supported", Cause::QueuedCredentials),
    ("unix: Unable too cut one from /tmp/two", Cause::SocketPath),
    ("The packetized mode for pipes is not supported yet", Cause::PacketPipe),
    ("Unknown clock type 8 for 0", Cause::AlarmTimer),
    ("Unknown clock type 9 for 0", Cause::AlarmTimer),
    ("Can't stat fd 21: No such file or directory", Cause::ProcFile),
    ("Can't lookup mount=15 for fd=3 path=/secretmem (deleted)", Cause::UnsupportedFile),
    ("net: a macvlan parent for eth0 is required", Cause::MacvlanParent),
    ("tun: Can't open tun device: No such file or directory", Cause::TunDevice),
    ("Can't link tmp/link_remap.5 -> tmp/x: No such file or directory", Cause::LinkRemapGone),
    ("Dump eventpoll (pid: 4242) failed with -1", Cause::EpollElsewhere),
    ("epoll: Can't add event on 0x000005: Operation not permitted", Cause::EpollOnFile),
    ("Can't open file proc/4242/task/4243/stat on restore: No such file or directory", Cause::ProcFile),
    ("fifo: Can't open fake fifo 0x5 [tmp/in]: No such file or directory", Cause::FileChanged),
    ("unix: Can't bind id 0x5 ino 51234 addr /tmp/socket: No such file or directory", Cause::FileChanged),
    (
        "unix: ghost: Can't bind on socket id 0x5 ino 51234 addr /tmp/socket: No such file or directory",
        Cause::FileChanged,
    ),
    ("uffd: Failed sending restore finished indication: Broken pipe", Cause::LazyPages),
    ("Deprecated functionality (TTY w/o regfile) rejected.", Cause::Deprecated),
    ("unix: Unix socket 51234 with unreachable peer 51235 (51236)", Cause::UnixSocketBusy),
    ("inet: Connected TCP socket, consider using --tcp-established option.", Cause::EstablishedTcp),
    ("inet: In-flight connection (l) for c822", Cause::InFlightTcp),
    ("inet: In-flight connections can be ignored with the --skip-in-flight option.", Cause::InFlightTcp),
    ("recv failed (4, want 8): Resource temporarily unavailable", Cause::TcpMoved),
    (
        "net: Locking network failed: iptables-restore returned 1. This may be connected to disabled \
         CONFIG_NETFILTER_XT_MARK kernel build config option.",
        Cause::NetworkNotLocked,
    ),
    ("net: Locking network failed using nftables", Cause::NetworkNotLocked),
    ("Iptables configuration failed", Cause::NetworkNotLocked),
    ("tcp: Failed to lock TCP connection c822", Cause::NetworkNotLocked),
    ("Locking connection failed using nftables", Cause::NetworkNotLocked),
    ("execvp(\"iptables-restore\", ...) failed: No such file or directory", Cause::NetworkNotLocked),
    ("CRIU was built without libnftables support", Cause::NetworkNotLocked),
    ("inet: Unsupported proto 262 for socket c822", Cause::Mptcp),
    ("inet: For Go programs, consider using \"GODEBUG=multipathtcp=0\" to disable MPTCP", Cause::Mptcp),
    ("inet: Unsupported proto 132 for socket c822", Cause::UnsupportedSocket),
    ("netlink: The socket has data to read", Cause::NetlinkSocket),
    ("netlink: The netlink socket 0xc822 has more than 32 groups", Cause::NetlinkSocket),
    ("netlink: The netlink socket 0xc822 is bound to groups but not to portid", Cause::NetlinkSocket),
    ("tun: Net namespace is required to dump tun link", Cause::TunOutside),
    ("sockets: BUG! Unknown socket collected (family 40)", Cause::UnsupportedSocket),
    (
        "inet: Can't dump 6 inet socket c822. Only stream, dgram and raw are supported.",
        Cause::UnsupportedSocket,
    ),
    ("sockets: Can't create sock diag socket: Protocol not supported", Cause::SocketModules),
    // Dumps: files
    ("Some file locks are hold by dumping tasks! You can try --file-locks to dump them.", Cause::FileLocks),
    ("Unresolved lock found pid 4200 ino 131081", Cause::ForeignFileLock),
    ("Can't dump ghost file /tmp/x of 2097152 size, increase limit", Cause::GhostFileTooBig),
    ("Can't create link remap for /tmp/x. Use link-remap option.", Cause::LinkRemap),
    ("Can't link remap to tmp/x: Permission denied", Cause::LinkRemapFailed),
    ("Can't create ghost regfile: File exists", Cause::LinkRemapFailed),
    ("Can't create node for ghost file: Permission denied", Cause::LinkRemapFailed),
    ("Can't make ghost dir: Read-only file system", Cause::LinkRemapFailed),
    ("Can't lookup mount=29 for fd=3 path=/tmp/x", Cause::FileOutsideMounts),
    ("Open files on overmounted mounts are not supported yet; mount=29 fd=3 path=/tmp/x", Cause::Overmounted),
    ("The path [/tmp/x] is not supported", Cause::UnsupportedPath),
    ("Unaccessible path opened 8:1, need 8:2", Cause::UnsupportedPath),
    ("Can't dump file 3 of that type [600] (anon anon_inode:[userfaultfd])", Cause::UnsupportedFile),
    ("Can't dump file 3 of that type [20666] (chr 10:200)", Cause::UnsupportedFile),
    ("Can't dump file 3 of that type [600] (anon anon_inode:[io_uring])", Cause::IoUring),
    ("Unknown shit 600 (anon_inode:[io_uring])", Cause::IoUring),
    ("send_fds failed (-22)", Cause::IoUring),
    ("Can't retrieve FDs from socket", Cause::IoUring),
    ("Message reply from daemon is trimmed (4/0)", Cause::IoUring),
    ("Can't create memfd in victim: Too many open files", Cause::DescriptorLimit),
    ("Message reply from daemon is trimmed (12/0)", Cause::DescriptorLimit),
    ("fsnotify: \tCan't dump that handle", Cause::WatchedFile),
    ("fsnotify: Can't find suitable path for handle (dev 0x1 ino 0x20009): -2", Cause::WatchedFile),
    ("fsnotify: Unable to lookup a mount by dev 0x1", Cause::WatchedFile),
    // Dumps: memory
    ("Unsupported mapping found 00007f1234560000-00007f1234570000", Cause::UnsupportedMapping),
    ("Can't handle non-regular mapping on 4242's map 7f1234560000", Cause::UnsupportedMapping),
    ("Strange file mapped at 7f1234560000 [/dev/x]:10.200.77", Cause::UnsupportedMapping),
    ("Can't open 4242's mapfile link 7f1234560000: No such device or address", Cause::UnsupportedMapping),
    ("Bogus mapping 0x7f1234560000-0x7f1234570000 (flags: 0x1 vm_file_fd: -1)", Cause::UnsupportedMapping),
    ("Cannot apply seals on memfd: Device or resource busy", Cause::SealedMemfd),
    ("PID 4242 has uprobes vma. Consider using --allow-uprobes.", Cause::Uprobes),
    ("Tracking memory is not available. Consider omitting --track-mem option.", Cause::MemoryTracking),
    ("mnt: BUG at criu/mount.c:48", Cause::CriuFault),
    ("BUG at criu/mem.c:512", Cause::MemoryTracking),
    ("Invalid parent image directory provided: ../earlier", Cause::ParentImages),
    ("page-xfer: Missing 7f1234560000 in parent pagemap", Cause::ParentImages),
    ("page-xfer: Hole 0x7f1234560000 - 0x7f1234570000 not found in parent", Cause::ParentImages),
    (
        "Pid-reuse detection failed: no parent inventory, check warnings in get_parent_inventory",
        Cause::ParentImages,
    ),
    ("Failed to resolve hostname: nowhere.example: Name or service not known", Cause::PageServer),
    ("page-xfer: The page server doesn't answer: Success", Cause::PageServer),
    ("page-xfer: Can't write pages to socket: Broken pipe", Cause::PageServer),
    ("page-xfer: Can't send PSI 4 to server: Broken pipe", Cause::PageServer),
    ("page-xfer: Can't write to page server: Connection reset by peer", Cause::PageServer),
    ("page-xfer: The data were not flushed", Cause::PageServer),
    // Mounts and control groups
    ("mnt: FS mnt ./data dev 0x31 root / unsupported id 77", Cause::UnsupportedFileSystem),
    ("mnt: 77:./data doesn't have a proper root mount", Cause::ExternalMount),
    (
        "mnt: Mount 77 ./data (master_id: 3 shared_id: 0) has unreachable sharing. Try --enable-external-masters.",
        Cause::ExternalMount,
    ),
    (
        "mnt-v2: Sharing group (0, 3) has unreachable sharing. Try --enable-external-masters.",
        Cause::ExternalMount,
    ),
    ("mnt: No mapping for 77:./data mountpoint", Cause::ExternalMount),
    ("mnt: A few mount points can't be mounted", Cause::ExternalMount),
    (
        "mnt: Mount 77:./data is autodetected external mount. Try \"--ext-mount-map auto\" to allow them.",
        Cause::ExternalMount,
    ),
    ("mnt: Can't parse 4242's mountinfo", Cause::ChangedRoot),
    ("mnt: The root task has another root than mntns: /jail", Cause::ChangedRoot),
    ("mnt-v2: The --root option is required to restore a mount namespace", Cause::RootFolderNeeded),
    ("mnt: Can't umount at ./sys: Device or resource busy", Cause::RootFolderNeeded),
    ("cg: Cgroup dir x doesn't exist", Cause::Cgroups),
    ("cg: Abort restore of existing cgroups", Cause::Cgroups),
    ("cg: Restoring memory.limit_in_bytes special property failed", Cause::Cgroups),
    ("cg: Can't move 4242 into /x//tasks (-1/13): Permission denied", Cause::Cgroups),
    // Restores
    ("Unable to open the proc file system: Operation not permitted", Cause::UserNamespace),
    ("Can't fork for 4242: File exists", Cause::PidInUse),
    ("Unable to create a thread: -17", Cause::PidInUse),
    ("Pid 77 do not match expected 4242", Cause::PidInUse),
    ("Can't fork for 4242: Operation not permitted", Cause::NotPrivileged),
    ("Setting PID failed", Cause::NotPrivileged),
    ("This process tree can only be restored in a new pid namespace.", Cause::NewPidNamespace),
    ("Unable to restore into an empty PID namespace", Cause::NewPidNamespace),
    ("First PID in a PID namespace needs to be 1 and not 4242", Cause::NewPidNamespace),
    ("Can't open file tmp/x on restore: No such file or directory", Cause::FileChanged),
    ("File tmp/x has bad size 12 (expect 3)", Cause::FileChanged),
    ("File usr/lib/libx.so has bad build-ID length 8 (expect 20)", Cause::ProgramChanged),
    ("File usr/lib/libx.so has bad build-ID", Cause::ProgramChanged),
    ("File tmp/x has bad mode 0100600 (expect 0100644)", Cause::ModeChanged),
    ("Can't fstat inherit fd 7: Bad file descriptor", Cause::InheritedFile),
    ("Unable to open fd=3 id=0x4", Cause::NotReopened),
    ("`- Can't open vma", Cause::NotReopened),
    ("Can't open cwd", Cause::NotReopened),
    ("Can't open root", Cause::NotReopened),
    ("Can not set ofd lock!", Cause::LockTaken),
    ("inet: Connected TCP socket in image", Cause::EstablishedTcp),
    ("Need to set the --tcp-close options.", Cause::EstablishedTcp),
    ("inet: Can't bind inet socket (id 12): Address already in use", Cause::TcpNotRestored),
    ("inet: Can't connect inet socket back: Network is unreachable", Cause::TcpNotRestored),
    ("tty: Don't have tty to inherit session from, aborting", Cause::ShellJob),
    ("tty: Unable to open /dev/pts/ with specified index 3", Cause::TerminalTaken),
    ("Requested sid 4000 doesn't match inherited 4242", Cause::SessionNumbers),
    ("Can't find a session leader for 4242", Cause::SessionNumbers),
    ("Can't restore pgid (2/3->4): Operation not permitted", Cause::SessionNumbers),
    ("Current sid 4242 intersects with pid (4242) in images", Cause::SessionNumbers),
    (
        "unix: External socket found in image. Consider using the --ext-unix-sk option to allow restoring it.",
        Cause::ExternalUnixSocket,
    ),
    ("cpu: CPU instruction capabilities do not match run time", Cause::CpuMismatch),
    ("cpu: CPU capabilities do not match run time", Cause::CpuMismatch),
    (
        "cpu: FPU feature required by image is not supported on host (fpu:1 fxsr:1 osxsave:1 xsaves:0)",
        Cause::CpuMismatch,
    ),
    ("cpu: CPU xfeatures has unsupported bits (0x200)", Cause::CpuMismatch),
    ("cpu: CPU xsave size mismatch (832/2440)", Cause::CpuMismatch),
    ("cpu: No cpuinfo image", Cause::NoImages),
    ("Task had vdso, restorer doesn't", Cause::CpuMismatch),
    ("seccomp: SECCOMP_SET_MODE_FILTER returned -22 on tid 4242", Cause::Seccomp),
    ("suspending seccomp failed: Operation not permitted", Cause::Seccomp),
    ("couldn't suspend seccomp: Operation not permitted", Cause::Seccomp),
    ("failed to suspend seccomp, restore will probably fail...", Cause::Seccomp),
    ("mismatched lsm types and lsm profile specified", Cause::SecurityProfile),
    ("apparmor LSM specified but apparmor not supported by kernel", Cause::SecurityProfile),
    ("selinux LSM specified but selinux not supported by kernel", Cause::SecurityProfile),
    ("unknown lsm 7", Cause::SecurityProfile),
    ("can't write lsm profile -13", Cause::SecurityProfile),
    ("Unable to restore capabilities: -1", Cause::Credentials),
    ("Can't setgroups([3 gids]): -1", Cause::Credentials),
    ("Unable to set real, effective and saved user ID: -1", Cause::Credentials),
    ("Unable to create a new time namespace: Operation not permitted", Cause::TimeNamespace),
    ("Unable to set a monotonic clock offset: Operation not permitted", Cause::TimeNamespace),
    ("uffd: connect to lazy-pages.socket failed: No such file or directory", Cause::LazyPages),
    ("uffd: Unable to open an userfaultfd descriptor: Operation not permitted", Cause::LazyPages),
    ("lazy-pages: register 7f1234560000 failed: rc:-16, ", Cause::LazyPages),
    ("uffd: Restorer unexpectedly closed the connection", Cause::LazyPages),
    ("Unexpected EOF on core-4242.img", Cause::DamagedImages),
    (
        "Read 18 bytes while 2350 expected from /x/core-4242.img: No such file or directory",
        Cause::DamagedImages,
    ),
    ("Magic doesn't match for core-4242.img", Cause::DamagedImages),
    ("Head magic doesn't match for inventory.img", Cause::DamagedImages),
    ("Failed unpacking object 0x55d0c0ffee00 from core-4242.img", Cause::DamagedImages),
    ("Page entry address 7f1234560000 outside of VMA 7f1230000000-7f1234000000", Cause::DamagedImages),
    ("No IDS for root task.", Cause::DamagedImages),
    ("Can't read pages data (0)", Cause::DamagedImages),
    ("Not supported images version 3", Cause::ImagesVersion),
    ("Too old image, no longer supported", Cause::ImagesVersion),
    ("Missing required plugin: amdgpu", Cause::Plugin),
    ("Dumped with --allow-uprobes. Need to set it on restore as well.", Cause::Uprobes),
    ("remote mmap() failed: Cannot allocate memory", Cause::MemoryLimit),
    ("Unable to reserve memory (1073741824 bytes): Cannot allocate memory", Cause::NotEnoughMemory),
    ("Can't restore 7f1234560000 mapping with fffffffffffffff4", Cause::NotEnoughMemory),
    ("4242 stopped by signal 11: Segmentation fault", Cause::TaskDied),
    ("4242 killed by signal 9: Killed", Cause::TaskDied),
    ("4242 exited, status=1", Cause::TaskDied),
    ("Child 4243 died too early", Cause::TaskDied),
    ("4242 was stopped by 5 unexpectedly", Cause::Disturbed),
    ("Unexpected 4242 task interruption, aborting", Cause::Disturbed),
    ("Unable to detach from 4244: No such process", Cause::Unknown),
    ("Unable to detach 4244: No such process", Cause::TaskDied),
    ("net: Unable to find an external netns: net", Cause::NetworkNamespace),
    ("net: IP tool failed on addr restore (null) (null)", Cause::NetworkNamespace),
    ("net: iptables-restore failed", Cause::NetworkNamespace),
    ("net: nft restore failed", Cause::NetworkNamespace),
    // Everywhere
    ("RPC client reported script error", Cause::RefusedByClient),
    ("One of more action scripts failed", Cause::RefusedByClient),
    ("Can't open dir /proc/0/fd/5: No such file or directory", Cause::FolderNotReachable),
    ("Can't open dir /proc/4200/fd/3: Permission denied", Cause::NotPrivileged),
    ("Can't open images directory: No such file or directory", Cause::FolderNotReachable),
    ("waitpid() failed: No child processes", Cause::ChildrenIgnored),
    ("vdso: Unexpected rt vDSO area bounds", Cause::TooOldForKernel),
    ("vdso: Can't find vDSO/VVAR bounds", Cause::TooOldForKernel),
    ("sockets: Can't get 1:16 opt: Operation not supported", Cause::TooOldForKernel),
    ("kerndat_has_nftables_concat failed when initializing kerndat.", Cause::NotPrivileged),
    ("kerndat_vdso_fill_symtable failed when initializing kerndat.", Cause::TooOldForKernel),
    ("Can't read request: Connection reset by peer", Cause::ConversationBroken),
    ("Failed unpacking request: Success", Cause::ConversationBroken),
    ("Client exited unexpectedly", Cause::ConversationBroken),
    ("Unable to set a pipe size: Operation not permitted", Cause::PipesTooSmall),
    ("page-pipe: tee: -1: Operation not permitted", Cause::PipesTooSmall),
    ("page-pipe: splice: -1: Bad file descriptor", Cause::PipesTooSmall),
    // Not log lines: criu prints these for people.
    ("criu: unrecognized option '--no-such-option'", Cause::OptionsRefused),
    ("/bin/cat: unrecognized option '--no-default-config'", Cause::NotCriu),
    (
        "criu: error while loading shared libraries: libnl-3.so.200: cannot open shared object file: No such file",
        Cause::NotCriu,
    ),
    ("CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability:", Cause::NotPrivileged),
    ("Running as non-root requires '--unprivileged'", Cause::NotPrivileged),
];

/// Lines that are not errors, but name the cause if no error does.
const HINTS: &[(&str, Cause)] = &[
    ("Unable to interrupt task: 4242 (No such process)", Cause::NoSuchProcess),
    ("Can't connect to server 127.0.0.1:9999", Cause::PageServer),
    ("sockets: Diag module missing (-2)", Cause::SocketModules),
];

/// The same, for lines that count only if criu repeats them.
const REPEATED: &[(&str, Cause)] =
    &[("Unable to interrupt task: 4242 (Operation not permitted)", Cause::Untraceable)];

/// Lines that are in the log of successes as well, whatever their level.
const HARMLESS: &[&str] = &[
    "rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
    "iptables-save -V failed",
    "No parent image found, though parent directory is set",
];
const HARMLESS_WARNINGS: &[&str] = &[
    "page-xfer: Unable to set TCP_CORK=1: Operation not supported",
    "page-xfer: Unable to set TCP_NODELAY=1: Operation not supported",
    "Pid reuse detected for pid 4242",
    "Unable to interrupt task: 4242 (Operation not permitted)",
];

/// Returns the forms of a logged line: with its place, and with time and pid where criu adds them.
fn as_logged(level: &str, line: &str) -> [String; 4] {
    [
        format!("{level} (criu/some-file.c:1234): {line}"),
        format!("(00.012345) {level} (criu/some-file.c:1234): {line}"),
        format!("(00.012345)   4242: {level} (criu/some-file.c:1234): {line}"),
        format!("(00.012345) pie: 4242: {level} (criu/pie/restorer.c:1234): {line}"),
    ]
}

fn cause_of_log(log: &str) -> Cause {
    let output = Output::parse(log);
    cause(Request::Dump, None, output.telling())
}

#[test]
fn every_line_tells_its_cause_whatever_comes_before_and_after() {
    let all = |line| as_logged("Error", line);
    let after = ["Unable to open fd=3 id=0x4", "4242 exited, status=1", "Dumping FAILED."].map(all);
    for (line, expected) in LINES {
        assert_eq!(cause_of_log(line), *expected, "as criu prints for people: {line}");
        for (form, logged) in all(line).into_iter().enumerate() {
            let after = after.each_ref().map(|lines| lines[form].as_str()).join("\n");
            let log = format!("{}\n{logged}\n{after}\n", all(HARMLESS[0])[form]);
            let follows =
                matches!(expected, Cause::NotReopened | Cause::TaskDied | Cause::Disturbed | Cause::Unknown);
            assert_eq!(cause_of_log(if follows { &logged } else { &log }), *expected, "{log}");
        }
    }
}

#[test]
fn every_stem_has_a_line() {
    let lines: Vec<_> =
        LINES.iter().chain(HINTS).chain(REPEATED).map(|(line, cause)| (*line, *cause)).collect();
    for (stem, expected) in [rules::CAUSES, rules::HINTS, rules::CONSEQUENCES].concat() {
        let met = lines.iter().any(|(line, cause)| rules::says(line, stem) && *cause == expected);
        assert!(met, "no line has {stem:?} for {expected:?}");
    }
}

#[test]
fn a_hint_tells_where_no_error_does() {
    for (line, expected) in HINTS {
        let locks = as_logged("Error", "Some file locks are hold by dumping tasks!");
        for (logged, locks) in as_logged("Warn ", line).into_iter().zip(locks) {
            assert_eq!(cause_of_log(&logged), *expected, "{logged}");
            let later = format!("{logged}\n{locks}\n");
            assert_eq!(cause_of_log(&later), Cause::FileLocks, "{later}");
        }
    }
}

#[test]
fn a_hint_that_is_repeated_tells_where_no_error_does() {
    for (line, expected) in REPEATED {
        for logged in as_logged("Warn ", line) {
            let other = logged.replace("4242 (", "4243 (");
            assert_eq!(cause_of_log(&format!("{logged}\n{other}\n")), Cause::Unknown, "{logged}");
            let repeated = format!("{logged}\n{other}\n{logged}\n{logged}\n");
            let output = Output::parse(&repeated);
            assert_eq!((cause_of_log(&repeated), output.errors), (*expected, vec![(*line).to_owned()]));
            let locks = "Error (criu/some-file.c:1): Some file locks are hold by dumping tasks!";
            let locks = logged.replace(&logged[logged.find("Warn").unwrap()..], locks);
            assert_eq!(cause_of_log(&format!("{repeated}{locks}\n")), Cause::FileLocks);
        }
    }
}

#[test]
fn what_criu_can_do_without_is_no_cause() {
    let errors = HARMLESS.iter().flat_map(|line| as_logged("Error", line));
    let warnings = HARMLESS_WARNINGS.iter().flat_map(|line| as_logged("Warn ", line));
    for logged in errors.chain(warnings) {
        let output = Output::parse(&logged);
        assert_eq!((output.errors.len(), output.other.as_str()), (0, ""), "{logged}");
    }
}

#[test]
fn a_consequence_counts_if_nothing_else_is_known() {
    let died = "Error (criu/x.c:1): 4242 killed by signal 9: Killed\n";
    assert_eq!(cause_of_log(died), Cause::TaskDied);
    assert_eq!(cause(Request::Restore, Some(17), ["4242 exited, status=1"]), Cause::PidInUse);
    let cascade = "\
(00.1) 4242: Error (criu/files-reg.c:1): Can't open file tmp/x on restore: No such file or directory
(00.1) 4242: Error (criu/files.c:2): Unable to open fd=3 id=0x4
(00.1) Error (criu/cr-restore.c:3): 4242 exited, status=1
(00.1) Error (criu/cr-restore.c:4): Restoring FAILED.
";
    assert_eq!(cause_of_log(cascade), Cause::FileChanged);
}

/// Returns the log of a dump that fails because of a large deleted file, at criu's usual level:
/// without times.
fn log_of_ghost(name: &str) -> String {
    format!(
        "Error (criu/util.c:1500): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
         Warn  (criu/apparmor.c:1): something odd\n\
         Error (criu/files-reg.c:1234): Can't dump ghost file {name} of 4194304 size, increase limit\n\
         Error (criu/cr-dump.c:2000): Dumping FAILED.\n"
    )
}

/// Adds times to a log.
fn stamped(log: &str) -> String {
    let lines = log.split_inclusive('\n').enumerate();
    lines
        .map(|(index, line)| if forged(line) { line.into() } else { format!("(00.0{index}0000) {line}") })
        .collect()
}

fn forged(line: &str) -> bool {
    !line.starts_with("Error (criu/") && !line.starts_with("Warn  (criu/")
}

#[test]
fn a_name_with_criu_s_words_tells_nothing() {
    for name in [
        "/tmp/No space left on device",
        "/tmp/x: No space left on device",
        "/tmp/is not a session leader. Consider using --shell-job",
        "/tmp/CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability",
        "/tmp/x failed when initializing kerndat",
        "/tmp/x\n(00.000001) Error (criu/x.c:1): No space left on device",
        "/tmp/x\n(00.000001) Error (criuxc:1): No space left on device",
        "/tmp/x\nRunning as non-root requires '--unprivileged'\n",
        "/tmp/x\ncriu: error while loading shared libraries: x",
        "/tmp/x\nError (x:1): vdso: Can't find vDSO",
    ] {
        let log = log_of_ghost(name);
        assert_eq!(cause_of_log(&log), Cause::GhostFileTooBig, "{log}");
        assert_eq!(cause_of_log(&stamped(&log)), Cause::GhostFileTooBig, "{log}");
        let unknown = log.replace("Can't dump ghost file", "Never heard of");
        assert_eq!(cause_of_log(&unknown), Cause::Unknown, "{unknown}");
        assert_eq!(cause_of_log(&stamped(&unknown)), Cause::Unknown, "{unknown}");
    }
}

#[test]
fn a_name_that_looks_like_a_whole_line_tells_nothing_if_it_is_known() {
    let name = "/tmp/\u{1b}[31mx\nError (criu/files.c:12): No space left on device";
    let log = log_of_ghost(name).replace("Can't dump ghost file", "Never heard of");
    let mut of_tree = OutputContext::new(Some(false));
    of_tree.name(&format!("{name} (deleted)"));
    let mut of_message = OutputContext::new(Some(false));
    of_message.name(&log.lines().skip(2).take(2).collect::<Vec<_>>().join("\n"));
    for known in [of_tree, of_message] {
        let output = Output::parse_with(&log, &known);
        assert_eq!(cause(Request::Dump, None, output.telling()), Cause::Unknown, "{output:?}");
        assert!(output.errors[0].contains("x\\nError (criu/files.c:12)"), "{output:?}");
        assert!(!output.errors.iter().any(|line| line.contains(char::is_control)), "{output:?}");
    }
}
