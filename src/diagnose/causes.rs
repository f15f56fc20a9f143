//! The table of causes: for each a summary for people who don't know criu, advice, and the options
//! that cure it.
//!
//! A new cause needs a variant of [`Cause`], a row here, and criu's messages in
//! [`rules`](super::rules). `docs/failures.md` is made from both.

use crate::Cause;

/// The texts about a cause.
#[derive(Debug)]
pub(super) struct Row {
    /// The name of the variant.
    pub(super) name: &'static str,
    /// The problem in one line, lower case, no full stop.
    pub(super) summary: &'static str,
    /// The advice for people.
    pub(super) advice: &'static str,
    /// Options that cure it: methods of the options, `Lend::…`, `Criu::…`, or arguments of criu
    /// (`--…`).
    pub(super) cure: &'static [&'static str],
}

macro_rules! causes {
    ($( $title:literal { $( $cause:ident: $summary:literal, $advice:literal, [$($cure:literal),*]; )* } )*) => {
        /// Returns the row of a cause.
        pub(super) fn row(cause: Cause) -> &'static Row {
            match cause {
                $( $( Cause::$cause => &Row {
                    name: stringify!($cause), summary: $summary, advice: $advice, cure: &[$($cure),*],
                }, )* )*
            }
        }

        /// All causes, in chapters.
        pub(super) const CHAPTERS: &[(&str, &[Cause])] = &[$( ($title, &[$(Cause::$cause),*]) ),*];
    };
}

causes! {
    "criu and this machine" {
        Unknown:
            "criu did not say why",
            "try again with `log_level(LogLevel::Debug)` and read criu's log from its end",
            ["log_level"];
        NoCriu:
            "there is no criu",
            "install criu (most systems have the package `criu`), or name it with `criu(path)` or `Criu::at`",
            [];
        NotCriu:
            "the program that was started is not criu, or cannot run",
            "run it with `--version`: it may be another program, lack libraries, or be older than criu 3.11; name \
             another with `criu(path)` or `Criu::at`",
            [];
        TooOldForKernel:
            "this criu is too old for this kernel",
            "install a newer criu: each release supports the kernels up to its time. If criu is the newest, check \
             whether a sandbox (seccomp, AppArmor, SELinux) blocks its system calls",
            [];
        NotPrivileged:
            "criu lacks a privilege",
            "run as root, in a container with `--privileged` or the capabilities that docs/containers.md lists. Other \
             users can capture their own processes with `unprivileged(true)`, after \
             `setcap cap_checkpoint_restore+eip` on the criu binary; `setcap` has no effect on a script that \
             starts criu, such as that of `scripts/install-criu`",
            ["unprivileged"];
        OtherUser:
            "a process belongs to another user, and criu lacks CAP_SYS_RESOURCE",
            "run criu with CAP_SYS_RESOURCE (in a container: `--cap-add SYS_RESOURCE`), or capture as the user who \
             owns all processes of the tree",
            [];
        OptionsRefused:
            "criu refuses an option",
            "read criu's line: it names the option or the argument. It can also be in a configuration file \
             (`config_file`, or /etc/criu/default.conf)",
            [];
        MemoryTracking:
            "this kernel cannot track changes of memory",
            "dump without pre-dumps, `track_mem` and `parent_img`, which stores all memory each time; or boot a \
             kernel that was built with CONFIG_MEM_SOFT_DIRTY",
            [];
        FolderNotReachable:
            "criu cannot open its work folder or images folder",
            "lend folders that exist and that criu can see: a criu in another pid or mount namespace sees other \
             folders than the caller does",
            [];
        NoSpace:
            "there is no space left",
            "free space for the images, and for the log if it goes to a file; or choose another folder, with \
             `Lend::images` or `ProcsCapture::staging`. The kernel gives the same error for more watches or \
             namespaces than /proc/sys/user allows",
            ["Lend::images"];
        ChildrenIgnored:
            "criu cannot wait for its children",
            "in the program that starts criu, set SIGCHLD to its default: criu inherits it if it is ignored",
            [];
        PipesTooSmall:
            "criu may not make its pipes as large as it needs",
            "run criu with CAP_SYS_RESOURCE, or raise /proc/sys/fs/pipe-max-size; or dump without `lazy_pages`",
            [];
        ConversationBroken:
            "the connection between criu and its caller broke",
            "check whether the caller was killed or closed the connection, and whether both use the same protocol",
            [];
        CriuFault:
            "criu reports an internal error",
            "try the newest release of criu. If the tree has a mount namespace of its own, set `root` at the \
             restore; damaged images can be the reason, too",
            ["root"];
        CriuKilled:
            "a signal killed criu before it was done",
            "find the sender of the signal: a person, a supervisor, or the kernel when it ran out of memory (see its \
             log). A criu that is killed during a dump can damage the tree: then end the tree (`kill_tree`) and \
             go back to an earlier capture",
            [];
    }

    "The tree as a whole" {
        NoSuchProcess:
            "the process does not exist, or another process traces or dumps it",
            "check the pid as criu sees it (in its pid namespace) and that the process has not ended (a zombie has \
             ended); detach debuggers from it, and wait until other dumps of it have ended",
            [];
        Untraceable:
            "criu cannot take control of a process of the tree",
            "if a criu traces it, another dump of it is under way: wait until it has ended, and never kill that \
             criu. End any other tracer (a debugger, strace) and try again. Without a tracer, criu lacks \
             CAP_SYS_PTRACE, or a security module forbids it",
            [];
        CriuInsideTree:
            "criu itself is part of the tree",
            "capture from outside the tree; a process that captures itself must not be pid 1 or criu's subreaper",
            [];
        ShellJob:
            "the tree depends on a session or terminal outside it",
            "start the program with `setsid` and without a terminal, or set `shell_job(true)` at the dump and at \
             the restore; a restore then takes the terminal that is lent to it with `Lend::terminal`",
            ["shell_job", "Lend::terminal"];
        SessionOutsidePidNamespace:
            "a process in a pid namespace belongs to a session from outside",
            "start the program by `setsid`, in a session of its own (such as `unshare --pid --fork setsid \
             program`)",
            [];
        DeadRoot:
            "the root of the tree has ended",
            "dump it while it runs; a process that has ended only waits for its parent to reap it",
            [];
        UnsupportedThreads:
            "a process has threads that ended or were stopped one by one",
            "dump it when its first thread runs, and when no debugger has stopped some of its threads",
            [];
        StoppedJob:
            "a job of the tree is stopped because it used its terminal in the background",
            "capture with `ProcsCapture`, which takes such jobs, except at the moment when one stops; or bring the \
             job to the foreground (`fg`) or end it, and dump again",
            [];
        SharedState:
            "processes of the tree share their current folder or their memory, and are no threads",
            "start them by fork or as threads, not by `clone` with CLONE_FS or CLONE_VM; or dump a smaller tree \
             with only one of them",
            [];
        PendingTrap:
            "a thread has a pending SIGTRAP",
            "let the program run until it has handled the signal (usually of its own breakpoint), and dump it then",
            [];
        FreezeTimeout:
            "criu could not stop the whole tree in time",
            "allow more time with `timeout`, and check whether a process hangs in the kernel (state D: a vfork whose \
             child has not executed yet, a dead network disk, a broken device) or whether the tree starts \
             processes faster than criu stops them",
            ["timeout"];
        NoFreezer:
            "the control group that was to stop the tree cannot do so",
            "name a folder of a control group with a freezer in `freeze_cgroup` (a file freezer.state or \
             cgroup.freeze is in it), or leave that option out",
            ["freeze_cgroup"];
        NestedNamespaces:
            "processes of the tree live in different namespaces",
            "start the whole tree in one set of namespaces, or dump a smaller tree that has only one",
            [];
        NamespaceOfChild:
            "a process below the root has a network or mount namespace of its own",
            "capture again, with the whole tree in one network namespace and one mount namespace (started by one \
             `unshare`, or without a sandbox of its own), or capture the process inside by itself: these images \
             cannot be restored",
            [];
        PidNamespaceWithoutInit:
            "the tree is in a pid namespace whose first process is outside the tree",
            "dump the process that is pid 1 in that namespace, or run criu inside the namespace, or name it with \
             `external(\"pid[inode]:label\")`",
            ["external"];
        UserNamespace:
            "the tree has a user namespace that cannot be made again by itself",
            "start the tree in pid and mount namespaces of its own beside the user namespace",
            [];
    }

    "Connections" {
        EstablishedTcp:
            "the tree has an established TCP connection to a process outside",
            "if the tree goes on after the dump, set `tcp_close(true)`: it keeps its connection, and what is revived \
             finds that connection closed and can make another; if the tree ends with the dump, \
             `tcp_established(true)` carries the connection along, and the other side must wait until the restore",
            ["tcp_established", "tcp_close"];
        InFlightTcp:
            "a TCP connection to the tree is being established",
            "set `tcp_skip_in_flight(true)` to leave out connections not accepted yet; the other side connects anew",
            ["tcp_skip_in_flight"];
        TcpMoved:
            "an acknowledgement arrived while criu read a TCP socket",
            "dump again: the timing was chance, and the tree is unchanged",
            [];
        NetworkNotLocked:
            "criu could not hold network traffic back",
            "install iptables, or choose another way with `network_lock`: `NetworkLock::Nftables`, or \
             `NetworkLock::Skip` if the other side may see its connection reset",
            ["network_lock"];
        TcpNotRestored:
            "a network address or port of the tree is not available here",
            "give this machine the addresses of the tree and end programs that use its ports, or wait a minute, until \
             old connections have left TIME_WAIT; or restore into another network namespace with `join_ns`. \
             `tcp_close(true)` at the dump and at the restore drops connections",
            ["tcp_close", "join_ns"];
        ExternalUnixSocket:
            "the tree has a unix socket whose other end is outside",
            "close it before the dump; or name the tree's end with `external(\"unix[inode]\")`, and lend a \
             replacement at the restore with `Lend::inherit` as `socket:[inode]`. For a datagram socket whose other \
             end has a name, `ext_unix_sk(true)` is enough",
            ["external", "ext_unix_sk", "Lend::inherit"];
        UnixSocketBusy:
            "a unix socket is in a state that cannot be dumped",
            "let the program finish what it is sending or connecting, and dump again",
            [];
        QueuedCredentials:
            "messages wait in a unix socket that tells its program who sent them",
            "capture with `ProcsCapture`, which takes such messages without their senders; or let the program read \
             them, and dump again",
            [];
        SocketPath:
            "a unix socket was bound to a relative path that is not the end of its file's path",
            "let the program bind it to an absolute path, or to a name in its current folder; if the file or its \
             folder was renamed since, give it its old name for the dump",
            [];
        CorkedSocket:
            "a UDP socket holds a datagram back",
            "let the program send it (clear UDP_CORK, or send without MSG_MORE), and dump then",
            [];
        Mptcp:
            "the tree has a socket of Multipath TCP",
            "make the program use plain TCP; programs in Go do so with GODEBUG=multipathtcp=0 in their environment",
            [];
        UnsupportedSocket:
            "the tree has a socket of a kind that criu does not know",
            "close it before the dump (criu knows TCP, UDP, raw, unix, packet and netlink sockets)",
            [];
        NetlinkSocket:
            "a netlink socket of the tree has unread messages, or is in a state that criu does not know",
            "let the program read what waits in its netlink sockets, and dump again; of groups that such a socket \
             has joined, criu knows the first 32",
            [];
        SocketModules:
            "the kernel cannot list sockets for criu",
            "load the kernel's modules for that: unix_diag, tcp_diag, udp_diag, inet_diag, netlink_diag, \
             af_packet_diag",
            [];
        NetworkNamespace:
            "the network of the tree's namespace could not be restored",
            "install iproute2 and iptables here; lend an external network namespace under its label with \
             `Lend::inherit`, or start with an empty one by `empty_ns`",
            ["Lend::inherit", "empty_ns"];
        MacvlanParent:
            "the tree has a macvlan device, and its parent was not named",
            "name the parent network device with `external(\"macvlan[inner]:outer\")` at the restore, or \
             start with an empty network namespace by `empty_ns`",
            ["external", "empty_ns"];
        TunOutside:
            "the tree has a TUN or TAP device, and no network namespace of its own",
            "start the tree in a network namespace of its own, as with `unshare --net`, or close the device",
            [];
        TunDevice:
            "criu cannot open /dev/net/tun",
            "load the kernel's module tun, and let criu open /dev/net/tun (in a container: `--device /dev/net/tun`)",
            [];
    }

    "Files" {
        FileLocks:
            "the tree holds file locks",
            "set `file_locks(true)` at the dump and at the restore to carry the locks along",
            ["file_locks"];
        ForeignFileLock:
            "a file of the tree is locked through a process outside it",
            "dump a larger tree that includes the process with the lock, or let that process release it",
            [];
        LockTaken:
            "another process holds a lock or a lease on a file of the tree",
            "wait until that process releases it, or end the process: criu would wait for it. With \
             `file_locks(false)` the tree is revived without its locks; that does not help with a lease",
            ["file_locks"];
        GhostFileTooBig:
            "the tree has a large file open that was deleted",
            "allow it with `ghost_limit`, in bytes: such a file exists nowhere else and goes into the images; or let \
             the program close it",
            ["ghost_limit"];
        LinkRemap:
            "the tree has a file open whose name was deleted while others remain",
            "use `ProcsCapture`, which finds the other name; or set `link_remap(true)`: criu then makes a link, which \
             lasts for one restore, and for none if the tree goes on after the dump. If the file was not \
             deleted, a mount covers it: unmount that",
            ["link_remap"];
        LinkRemapFailed:
            "criu could not give a deleted file a temporary name",
            "make the folder of the deleted file writable for criu, on the same file system; remove leftovers of a \
             killed restore there (names that end in .ghost), and restore copies one after the other; or let \
             the program close the file before the dump",
            [];
        LinkRemapGone:
            "the temporary name of a deleted file is gone",
            "capture again: with `link_remap(true)` criu keeps the file beside its old place as link_remap.N, and \
             removes it when the tree goes on or was restored once. Let the tree end with the dump and keep \
             that file until the restore, or let the program close the file before the dump",
            ["link_remap"];
        FileOutsideMounts:
            "the tree has a file open on a mount that it cannot see",
            "start the program so that it opens its files in its own mount namespace: after `unshare --mount`, not \
             before",
            [];
        Overmounted:
            "the tree has a file open that a later mount covers",
            "unmount what was mounted over it",
            [];
        UnsupportedPath:
            "the path of an open file leads somewhere else now",
            "restore the path as it was when the program opened it; for devices set `evasive_devices(true)`, or name the \
             file with `external(\"file[mount:inode]\")`",
            ["evasive_devices", "external"];
        UnsupportedFile:
            "the tree has a file of a kind open that criu does not know",
            "let the program close it before the dump; criu's line has its kind in brackets (usually userfaultfd, \
             perf_event or a bpf object; a path such as /name without a folder is a POSIX message queue). Some \
             devices have a plugin for criu",
            [];
        PacketPipe:
            "the tree has a pipe that keeps packets apart (O_DIRECT)",
            "let the program close it before the dump; a pair of sockets (SOCK_SEQPACKET) keeps packets apart, too",
            [];
        AlarmTimer:
            "the tree has a timer that can wake the machine up (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)",
            "let the program close it before the dump, or use CLOCK_REALTIME or CLOCK_BOOTTIME",
            [];
        PidfdOutside:
            "the tree has a pidfd of a process outside",
            "let the program close it before the dump, or dump a tree that has that process in it",
            [];
        IoUring:
            "the tree uses io_uring, which criu does not know",
            "turn io_uring off in the program (many have a setting: UV_USE_IO_URING=0 for node), or close its ring \
             before the dump",
            [];
        DescriptorLimit:
            "a process of the tree may have no more files open, and criu needs some in it",
            "raise its limit before the dump (prlimit --nofile): five numbers that are not in use are enough",
            [];
        WatchedFile:
            "the tree watches a file that criu cannot find",
            "set `force_irmap(true)`, and name the folders to search with `irmap_scan_paths`. In a container, give \
             criu CAP_DAC_READ_SEARCH",
            ["force_irmap", "irmap_scan_paths"];
        EpollElsewhere:
            "an epoll waits for a file that its process has closed",
            "close the epoll in the process that closed the file, or remove the file from it (EPOLL_CTL_DEL) before \
             closing it; most servers that fork workers have a setting to create the event loop after the fork",
            [];
        EpollOnFile:
            "an epoll waits for a file of a kind that epoll does not support",
            "give the tree a pipe, a socket or a terminal where it had one: an event loop cannot wait for a regular \
             file or /dev/null. For a capture use `ProcsRestore::stdin`, `ProcsRestore::stdout` or \
             `ProcsRestore::stderr`; with the client, `Lend::inherit`",
            ["Lend::inherit"];
        FileChanged:
            "a file or folder is missing, or differs from what it was at the dump",
            "put it back as it was at the dump (name and kind; of a file also the size and, for programs, the \
             contents). If a file grew since, as logs do, choose with `ProcsRestore::grown_files`. To give the tree another file, use \
             `ProcsRestore::stdin`, `ProcsRestore::stdout` or `ProcsRestore::stderr` for a standard stream, else \
             `ProcsRestore::inherit` with the path without its leading slash; with the client, `Lend::inherit`",
            ["ProcsRestore::grown_files", "Lend::inherit"];
        FileReplaced:
            "a file was replaced since the capture by a link, by a file of another owner or by another program's socket",
            "find out why it was replaced: the tree would get a file that it may have no right to, or the other program \
             would lose its socket. Put the file back, or set `ProcsRestore::replaced_files(true)` if the tree may \
             have the new file",
            ["ProcsRestore::replaced_files"];
        ProcFile:
            "the tree had a file of /proc open whose process or thread is gone",
            "capture again when the program has closed it: files of /proc belong to one process or thread, and those of \
             threads and of processes outside the tree cannot be opened again. Profilers and monitors keep them open",
            [];
        ProgramChanged:
            "a program or library is of another build than at the dump",
            "put the same build back; a tree cannot continue in another one. If only the check is wrong, give criu \
             `--file-validation filesize` through `Criu::argument`",
            ["--file-validation"];
        ModeChanged:
            "the permissions of a file differ from those at the dump",
            "put them back with chmod, or set `skip_file_rwx_check(true)`",
            ["skip_file_rwx_check"];
        InheritedFile:
            "a file that must be lent for the restore is missing",
            "lend an open file with `Lend::inherit`; a criu that another program started cannot inherit files",
            ["Lend::inherit"];
    }

    "Memory and processes" {
        UnsupportedMapping:
            "the tree has memory of a kind that criu does not know",
            "let the program unmap it before the dump; memory of devices (graphics cards, network adapters) needs a \
             plugin for criu, and the mapping that uprobes (perf, bpftrace, bcc) leave behind needs criu 4.2",
            [];
        MemfdProgram:
            "a process runs a program from a memfd, which criu cannot start again",
            "start the program from a file on a disk or a tmpfs; some packers and launchers copy it into a memfd \
             first, and many have a setting against it",
            [];
        SealedMemfd:
            "a memfd that is sealed against writes is mapped as shared memory, and criu cannot seal it after mapping it",
            "let the program unmap it before the dump, map it with MAP_PRIVATE, or seal it with F_SEAL_FUTURE_WRITE \
             instead of F_SEAL_WRITE",
            [];
        Uprobes:
            "the tree's functions are probed with uprobes",
            "end the tool that does so (perf, bpftrace, bcc); or give criu `--allow-uprobes` through `Criu::argument` \
             at the dump and at the restore, with criu 4.2",
            ["--allow-uprobes"];
        SysvShm:
            "the tree has System V shared memory that belongs to the whole machine",
            "start the tree in an IPC namespace of its own (`unshare --ipc program`)",
            [];
        UnsupportedProgram:
            "a process runs in a mode of the processor that criu cannot dump",
            "run a 64-bit build of the program; 32-bit mode and local descriptor tables (old games and emulators) \
             cannot be dumped",
            [];
        Seccomp:
            "criu may not read or set the tree's seccomp filters",
            "run criu as root, with a kernel that was built with CONFIG_CHECKPOINT_RESTORE and CONFIG_SECCOMP_FILTER. \
             Start a container with `--security-opt seccomp=unconfined`: criu cannot suspend filters if it has one \
             itself. Or start the program without a seccomp filter",
            [];
        RestartableSequences:
            "the tree uses restartable sequences, and this kernel cannot report them to criu",
            "use Linux 5.13 or newer, or start the program with GLIBC_TUNABLES=glibc.pthread.rseq=0",
            [];
        SecurityProfile:
            "the security profile (AppArmor, SELinux) of a process cannot be read or set",
            "restore on a machine with the same security module and profile, or name another with `lsm_profile`",
            ["lsm_profile"];
        Credentials:
            "criu may not set the users, groups or capabilities of a process",
            "run criu with at least the privileges of the tree, in a user namespace that has all of its users and \
             groups",
            [];
        TimeNamespace:
            "criu could not set the tree's clocks",
            "use Linux 5.6 or newer, and give criu CAP_SYS_TIME and CAP_SYS_ADMIN",
            [];
        MemoryLimit:
            "a process of the tree may not map more memory, and criu needs some in it",
            "raise its limit before the dump (prlimit --as): a MiB more than it has mapped is enough. If it has no \
             such limit, look at its number of mappings (vm.max_map_count) and at vm.overcommit_memory",
            [];
        NotEnoughMemory:
            "there is not enough memory for the tree",
            "free memory, raise the limits (of the control group, `ulimit -v`, vm.overcommit_memory), and check \
             whether the images are complete",
            [];
        CpuMismatch:
            "this processor lacks features of the tree's, or has others",
            "restore on the same or a newer processor, or ask for fewer checks with `cpu_cap` at the dump and at \
             the restore",
            ["cpu_cap"];
        Plugin:
            "the images need a plugin of criu that is not installed",
            "install the plugin that criu's line names (Debian, Fedora: packages such as criu-amdgpu-plugin)",
            [];
        TaskDied:
            "a process died while criu worked on it",
            "read the lines before this one. Without any, check whether an image is missing, whether the kernel \
             killed it because memory ran out (dmesg), or whether a restored program with threads has a reason \
             to end at once",
            [];
        Disturbed:
            "a signal reached a process while criu worked on it",
            "capture again. Keep signals from the tree meanwhile: start it in a process group other than that of the program \
             which captures it, so that SIGCONT from a shell or a supervisor does not reach it",
            [];
    }

    "Mounts and control groups" {
        UnsupportedFileSystem:
            "the tree has a file system mounted that criu does not know",
            "allow it with `enable_fs`, name the mount with `external(\"mnt[/path]:label\")`, or leave it out with \
             `skip_mnt`",
            ["enable_fs", "external", "skip_mnt"];
        ExternalMount:
            "the tree has a mount from outside",
            "name it with `external(\"mnt[/path]:label\")` at the dump and `external(\"mnt[label]:/path\")` at the \
             restore; or let criu find such mounts by `auto_ext_mnt(true)`, with `ext_sharing` and \
             `ext_masters`",
            ["external", "auto_ext_mnt", "ext_sharing", "ext_masters"];
        ChangedRoot:
            "the root of the tree has another root folder than its mount namespace",
            "dump a tree whose root did not call chroot, or whose mount namespace has that folder as its root \
             (pivot_root)",
            [];
        RootFolderNeeded:
            "the tree has a mount namespace, and its root folder was not set",
            "set `root` to a folder that is a mount point and has the tree's files",
            ["root"];
        Cgroups:
            "the tree's control groups cannot be restored",
            "leave them alone with `manage_cgroups_mode(CgroupMode::Ignore)`, or create only missing ones with \
             `CgroupMode::Soft`; or put them elsewhere with `cg_root`",
            ["manage_cgroups_mode", "cg_root"];
    }

    "Dumps on top of others, and memory sent elsewhere" {
        ParentImages:
            "the images that this dump builds on are missing or do not fit",
            "name the earlier images with `parent_img`, relative to the folder of the new ones, and keep all their \
             files; or dump without it, with all memory",
            ["parent_img"];
        PageServer:
            "criu cannot send memory to the page server",
            "check that the server runs, listens at the address of `ps`, and stays until the dump is done; or dump \
             into the folder, without a server",
            ["ps"];
        LazyPages:
            "criu cannot reach the server that has the tree's memory",
            "let a server listen on lazy-pages.socket in the work folder (`Lend::work`) before the restore, as \
             root; or restore without `lazy_pages`",
            ["lazy_pages", "Lend::work"];
    }

    "Restores" {
        PidInUse:
            "a pid of the tree is in use",
            "end the tree that has these pids (`kill_tree`; after a dump with `leave_running` it is the original), or \
             what is left of its session (`kill_session`), and wait until it is reaped: a zombie still holds its pid. Or restore in a new pid namespace, by a program \
             in `unshare --pid --fork --mount-proc`",
            [];
        NewPidNamespace:
            "the tree needs a new pid namespace, or another one than this",
            "restore a tree that had pid 1 from images of its whole pid namespace; a pid namespace to restore into \
             must have its first process running",
            [];
        TerminalTaken:
            "the number of a terminal of the tree is taken, or no hook takes the terminal",
            "restore where that /dev/pts number is free, with `orphan_pts_master(true)` and a hook that takes the \
             terminal",
            ["orphan_pts_master"];
        SessionNumbers:
            "a session or process group of the tree cannot be restored here",
            "dump a tree whose root leads its session (start it with `setsid`), or restore it in a new pid \
             namespace",
            [];
        NotReopened:
            "a file or mapping of the tree cannot be opened again",
            "read the lines before this one: they name the file or mapping, and the reason",
            [];
        DamagedImages:
            "the images are damaged, incomplete or mixed",
            "take an undamaged copy, with all files of one dump and of no other, or dump again",
            [];
        NoImages:
            "the folder has no images",
            "lend the folder (`Lend::images`) with the images of a dump, among them inventory.img, and check that no \
             program has removed it; for a check of the processor, lend the folder into which \
             `Criu::cpuinfo_dump` wrote cpuinfo.img",
            ["Lend::images"];
        ImagesVersion:
            "the images are of a newer release of criu",
            "restore with the criu that wrote them, or a newer one",
            [];
        Deprecated:
            "the images need a deprecated feature of criu",
            "restore with `Criu::argument` and `--deprecated`. If criu's line names a terminal (TTY), give the tree a \
             terminal for all descriptors that led to its own",
            ["--deprecated"];
    }

    "Refusals" {
        RefusedByClient:
            "the caller's hook refused to go on, or a script of criu's failed",
            "check why the hook refused; criu has undone its work",
            [];
        GivenUp:
            "aborted: the deadline passed, or the caller cancelled",
            "allow more time, if it was too little",
            [];
    }
}
