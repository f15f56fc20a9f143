//! [`Cause`]: the cause of a failed request to criu.

use std::fmt;

use serde::Serialize;

use crate::diagnose;

/// The cause of a failure, found in criu's answer, its log and its output.
///
/// Each cause has one cure, which [`advice`](Cause::advice) describes. `docs/failures.md` lists
/// them all, with criu's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Cause {
    /// The cause is unknown.
    Unknown,
    /// There is no criu here.
    NoCriu,
    /// The program that was started as criu is not criu.
    NotCriu,
    /// criu is too old for this kernel.
    TooOldForKernel,
    /// criu lacks a privilege, without which it can do nothing.
    NotPrivileged,
    /// A process belongs to another user than criu runs as, and criu lacks `CAP_SYS_RESOURCE`.
    OtherUser,
    /// criu refuses an option, an argument or a configuration file.
    OptionsRefused,
    /// The kernel does not track changes of memory.
    MemoryTracking,
    /// criu cannot open the folder of the images or of its work.
    FolderNotReachable,
    /// A file system is full, usually that of the images.
    NoSpace,
    /// criu was started with SIGCHLD ignored.
    ChildrenIgnored,
    /// criu may not enlarge its pipes.
    PipesTooSmall,
    /// The connection between criu and its caller broke.
    ConversationBroken,
    /// criu reports an internal error.
    CriuFault,
    /// A signal killed criu before it was done.
    CriuKilled,
    /// The process does not exist, is traced, or is being dumped by another criu.
    NoSuchProcess,
    /// criu cannot seize a task: another process traces it, or criu lacks a privilege.
    Untraceable,
    /// criu itself is a part of the tree.
    CriuInsideTree,
    /// The root of the tree leads no session, or the tree uses a terminal that is not part of it.
    ShellJob,
    /// A task in a pid namespace has a session whose leader is outside.
    SessionOutsidePidNamespace,
    /// The root of the tree is a zombie.
    DeadRoot,
    /// A process has threads that ended before it, or were stopped one by one.
    UnsupportedThreads,
    /// A job is stopped because it used its terminal in the background.
    StoppedJob,
    /// Processes share their current folder or their memory, and are no threads.
    SharedState,
    /// A thread has a SIGTRAP that it has not taken yet.
    PendingTrap,
    /// The tree could not be frozen in time.
    FreezeTimeout,
    /// The named control group has no freezer.
    NoFreezer,
    /// Tasks of the tree are in different namespaces, of a kind of which criu allows only one.
    NestedNamespaces,
    /// A task below the root has a network or mount namespace of its own, which no restore can
    /// create.
    NamespaceOfChild,
    /// The tree lives in a pid namespace whose pid 1 is not part of it.
    PidNamespaceWithoutInit,
    /// The tree has a user namespace without the other namespaces that it needs at restore.
    UserNamespace,
    /// The tree has an established TCP connection.
    EstablishedTcp,
    /// A TCP connection to the tree is being established.
    InFlightTcp,
    /// Data of a TCP connection moved on while criu read the socket.
    TcpMoved,
    /// criu could not hold packets back while it dumps connections.
    NetworkNotLocked,
    /// An address or a port of a TCP socket is not available.
    TcpNotRestored,
    /// The tree has a unix socket whose other end is outside.
    ExternalUnixSocket,
    /// A unix socket is in a transient state that cannot be dumped.
    UnixSocketBusy,
    /// Messages wait in a unix socket that tells its program who sent them (`SO_PASSCRED`).
    QueuedCredentials,
    /// The relative path that a unix socket was bound to is not the end of its file's path, as
    /// after a rename.
    SocketPath,
    /// A UDP socket holds a datagram back (`UDP_CORK`).
    CorkedSocket,
    /// The tree has a socket of Multipath TCP.
    Mptcp,
    /// The tree has a socket of a family or protocol that criu does not know.
    UnsupportedSocket,
    /// A netlink socket has unread messages, or is in another state that cannot be dumped.
    NetlinkSocket,
    /// The kernel lacks the modules that list sockets.
    SocketModules,
    /// The contents of the tree's network namespace could not be restored.
    NetworkNamespace,
    /// The tree has a macvlan device, whose parent was not named for the restore.
    MacvlanParent,
    /// The tree has a TUN or TAP device without a network namespace of its own.
    TunOutside,
    /// criu cannot open `/dev/net/tun`.
    TunDevice,
    /// The tree holds file locks.
    FileLocks,
    /// A file of the tree is locked through a process outside.
    ForeignFileLock,
    /// Another process holds a lock that the tree had.
    LockTaken,
    /// A deleted file that the tree has open is larger than the limit.
    GhostFileTooBig,
    /// The tree has a file open by a deleted name, which has other names left.
    LinkRemap,
    /// criu could not make a temporary name for a deleted file.
    LinkRemapFailed,
    /// The temporary name of a deleted file is gone.
    LinkRemapGone,
    /// The tree has a file open on a mount that is not in its mount namespace.
    FileOutsideMounts,
    /// The tree has a file open that a later mount covers.
    Overmounted,
    /// The path of an open file leads to something else.
    UnsupportedPath,
    /// The tree has a file of an unsupported kind open, such as a userfaultfd.
    UnsupportedFile,
    /// The tree has a pipe that keeps packets apart (`O_DIRECT`).
    PacketPipe,
    /// The tree has a timer that can wake the machine up.
    AlarmTimer,
    /// The tree has a pidfd of a process outside.
    PidfdOutside,
    /// The tree has an io_uring.
    IoUring,
    /// A process of the tree may not open the few files that criu needs in it.
    DescriptorLimit,
    /// criu cannot find the path of a file that is watched by inotify or fanotify.
    WatchedFile,
    /// An epoll waits for a file that its process has closed.
    EpollElsewhere,
    /// An epoll is to wait for a file of a kind that epoll does not support.
    EpollOnFile,
    /// A file is missing, or its size differs from that at the dump.
    FileChanged,
    /// A path leads through a link that was not there at the capture, to a file of another owner,
    /// or to a socket of another program.
    FileReplaced,
    /// The tree had a file of `/proc` open, of a thread or of a process that is not there at the
    /// restore.
    ProcFile,
    /// A program or library is of another build than at the dump.
    ProgramChanged,
    /// The permissions of a file changed since the dump.
    ModeChanged,
    /// A file that was lent for the restore is not there.
    InheritedFile,
    /// The tree has memory of an unsupported kind, such as a device's.
    UnsupportedMapping,
    /// A process runs a program from a memfd.
    MemfdProgram,
    /// A memfd that is sealed against writes is mapped as shared memory.
    SealedMemfd,
    /// The tree is probed with uprobes.
    Uprobes,
    /// The tree has System V shared memory and no IPC namespace of its own.
    SysvShm,
    /// A task runs in 32-bit mode or has local descriptor tables.
    UnsupportedProgram,
    /// criu may not read or set seccomp filters.
    Seccomp,
    /// The tree uses restartable sequences, which this kernel cannot report.
    RestartableSequences,
    /// A profile of AppArmor or SELinux cannot be read or set.
    SecurityProfile,
    /// criu may not set users, groups or capabilities as they were.
    Credentials,
    /// criu could not make a time namespace or set its clocks.
    TimeNamespace,
    /// A process of the tree may not map the memory that criu needs in it.
    MemoryLimit,
    /// There is not enough memory.
    NotEnoughMemory,
    /// The processor lacks features of the one at the dump.
    CpuMismatch,
    /// A plugin of criu's is missing.
    Plugin,
    /// A task died while criu worked on it; criu did not say why.
    TaskDied,
    /// A signal such as SIGCONT reached a task while criu worked on it.
    Disturbed,
    /// A mount of the tree has a file system that criu does not know.
    UnsupportedFileSystem,
    /// A mount of the tree comes from outside.
    ExternalMount,
    /// The root task has another root folder than its mount namespace.
    ChangedRoot,
    /// A restore of a mount namespace was not told its root folder.
    RootFolderNeeded,
    /// The tree's control groups could not be restored.
    Cgroups,
    /// The images of the dump before are missing or do not fit.
    ParentImages,
    /// The page server cannot be reached, or left.
    PageServer,
    /// The server of a lazy restore cannot be reached, or memory cannot be served.
    LazyPages,
    /// A pid of the images is taken.
    PidInUse,
    /// The tree needs a pid namespace of its own, or another one.
    NewPidNamespace,
    /// The number of a terminal is taken.
    TerminalTaken,
    /// A session or process group of the tree cannot be restored here.
    SessionNumbers,
    /// Something that was open cannot be opened again; criu did not say why.
    NotReopened,
    /// The images are damaged, incomplete or of several dumps.
    DamagedImages,
    /// The folder has no images, or lacks `inventory.img`.
    NoImages,
    /// The images are of a newer criu.
    ImagesVersion,
    /// The images need a deprecated feature of criu, which an option enables.
    Deprecated,
    /// The caller's hook refused, or a script of criu's failed.
    RefusedByClient,
    /// The request was aborted: the deadline passed, or the caller cancelled.
    GivenUp,
}

impl Cause {
    /// All causes, in the order of `docs/failures.md`.
    pub fn all() -> impl Iterator<Item = Cause> {
        diagnose::causes()
    }

    /// Returns the stable name, for metrics and logs: the name of the variant, such as `PidInUse`.
    /// In JSON a cause is this name.
    ///
    /// ```
    /// use criu_rpc::Cause;
    ///
    /// assert_eq!(Cause::PidInUse.name(), "PidInUse");
    /// assert!(Cause::all().all(|cause| Cause::from_name(cause.name()) == Some(cause)));
    /// ```
    pub fn name(self) -> &'static str {
        diagnose::name(self)
    }

    /// Returns the cause with this [name](Cause::name).
    pub fn from_name(name: &str) -> Option<Cause> {
        Cause::all().find(|cause| cause.name() == name)
    }

    /// Returns advice for the user.
    pub fn advice(self) -> &'static str {
        diagnose::advice(self)
    }

    /// Returns the options that cure it: methods of [`DumpOptions`](crate::DumpOptions) and
    /// [`RestoreOptions`](crate::RestoreOptions), `Lend::…`, or arguments of criu, which begin with
    /// `--`.
    pub fn options(self) -> &'static [&'static str] {
        diagnose::options(self)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(diagnose::summary(*self))
    }
}
