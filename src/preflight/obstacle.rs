//! [`Obstacle`]: problems for criu, and the cure of each.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::{Cause, Pid, options::External, plain::Plain};

/// A problem for a dump or a restore.
///
/// ```
/// use criu_rpc::preflight::Obstacle;
///
/// assert_eq!(Obstacle::FileLock.cure(), Some("DumpOptions::file_locks, at the restore as well"));
/// assert_eq!(Obstacle::IoUring.cure(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Obstacle {
    /// The caller lacks a capability that criu needs.
    #[non_exhaustive]
    Capability {
        /// Its name.
        name: &'static str,
    },
    /// The process belongs to another user or group, and the caller lacks `CAP_SYS_RESOURCE`.
    #[non_exhaustive]
    OtherUser {
        /// Its user.
        uid: u32,
    },
    /// A debugger or another criu traces the process.
    #[non_exhaustive]
    Traced {
        /// The tracer.
        by: Pid,
    },
    /// A stopped job of a terminal. criu takes it if a user stopped it (^Z), and refuses it if it
    /// stopped because it used the terminal in the background; the kernel shows that only to the
    /// parent. [`ProcsCapture`](crate::ProcsCapture) takes either.
    StoppedJob,
    /// A process that shares its current folder or its memory with another process.
    #[non_exhaustive]
    SharedState {
        /// The other process.
        with: Pid,
    },
    /// A process that may not map as much memory as criu needs in it.
    MemoryLimit,
    /// A pending SIGTRAP: criu needs this signal for itself.
    PendingTrap,
    /// Threads, on a kernel and a C library with which criu cannot detect guard pages: Linux 6.13
    /// to 6.15, and glibc 2.42 or later.
    GuardPages,
    /// A seccomp filter, which criu can dump with `CAP_SYS_ADMIN` only.
    Seccomp,
    /// Its first thread has ended, while others go on.
    DeadLeader,
    /// The caller is in the tree, and so would its criu be.
    CallerInside,
    /// The root leads no session.
    #[non_exhaustive]
    NoSession {
        /// The leader of its session.
        leader: Pid,
    },
    /// A process outside the tree is in the session or the process group that this process leads.
    /// Until it ends, the number is taken, and a restore fails.
    #[non_exhaustive]
    Shared {
        /// That process.
        by: Pid,
    },
    /// The leader of its session is outside its pid namespace.
    SessionOutside,
    /// The kernel cannot track changes of memory.
    NoMemoryTracking,
    /// A namespace of a kind that the whole tree must share with its root.
    #[non_exhaustive]
    NestedNamespace {
        /// The kernel's name of the kind.
        kind: &'static str,
    },
    /// The tree is in a pid namespace of its own, whose first process is not the root.
    #[non_exhaustive]
    NoInit {
        /// The namespace's inode.
        namespace: u64,
    },
    /// A user namespace without users, or without pid and mount namespace of its own.
    UserNamespace,
    /// The tree has a mount namespace of its own, for which a restore needs a root folder.
    MountNamespace,
    /// A file from a mount that is not in the process's mount namespace.
    #[non_exhaustive]
    UnseenMount {
        /// The mount's number.
        mount: i32,
    },
    /// An open file that a later mount covers.
    Overmounted,
    /// An io_uring.
    IoUring,
    /// A pipe that keeps packets apart (`O_DIRECT`).
    PacketPipe,
    /// A timer that can wake the machine up.
    AlarmTimer,
    /// A kind of file that criu cannot dump.
    UnsupportedFile,
    /// A POSIX message queue.
    MessageQueue,
    /// An epoll that waits for a file that its process has closed.
    #[non_exhaustive]
    EpollElsewhere {
        /// The descriptor of the file when it was added to the epoll.
        target: i32,
    },
    /// A file of `/proc` of a thread.
    ProcFile,
    /// A file of `/proc` of a process that has ended.
    #[non_exhaustive]
    ProcGone {
        /// That process.
        of: Pid,
    },
    /// A file of `/proc` of a process outside the tree. A restore opens it again while that process
    /// lives.
    #[non_exhaustive]
    ProcOutside {
        /// That process.
        of: Pid,
    },
    /// A socket of a protocol that criu cannot dump, such as `MPTCP` or `AF_VSOCK`.
    #[non_exhaustive]
    UnsupportedSocket {
        /// The kernel's name of the protocol.
        protocol: String,
    },
    /// A netlink socket with messages that the program has not read.
    NetlinkUnread,
    /// A TUN or TAP device, and the tree has no network namespace of its own.
    Tun,
    /// A pidfd of a process outside the tree.
    #[non_exhaustive]
    PidfdOutside {
        /// That process.
        of: Pid,
    },
    /// A TCP connection.
    Tcp,
    /// A TCP listener with connections that were not accepted yet.
    TcpInFlight,
    /// A unix socket with unread messages, which tells its program who sent them.
    /// [`ProcsCapture`](crate::ProcsCapture) takes the messages without their senders.
    QueuedCredentials,
    /// A unix socket that was bound to a relative path, which is not the end of its file's path:
    /// the file was renamed, or the path had a link, `.` or `..` in it.
    SocketPath,
    /// A UDP socket that holds a datagram back (`UDP_CORK`).
    CorkedSocket,
    /// A unix socket with a connection that was not accepted yet. criu dumps a listener without the
    /// connections from outside the tree. It refuses a connection that data was sent on already,
    /// and one that was closed before it was accepted.
    UnixInFlight,
    /// A unix socket whose other end is outside the tree.
    #[non_exhaustive]
    UnixOutside {
        /// The inode of the tree's own end.
        inode: u64,
    },
    /// A pipe with only one end in the tree, so a restored program has no peer. It is not visible
    /// whether a process has the other end now. Standard streams are excluded:
    /// [`ProcsRestore`](crate::ProcsRestore) replaces them.
    #[non_exhaustive]
    PipeOutside {
        /// Its inode, for [`Key::Pipe`](crate::rpc::Key::Pipe).
        inode: u64,
    },
    /// A terminal whose other side is outside the tree.
    #[non_exhaustive]
    Terminal {
        /// The device number of the terminal (`st_rdev`).
        rdev: u64,
        /// The device number of the file system it is on (`st_dev`).
        dev: u64,
    },
    /// A terminal whose other side was closed. criu dumps it. Its own restore brings it back only
    /// as a standard stream; [`ProcsRestore`](crate::ProcsRestore) always does.
    HungTerminal,
    /// A file lock, or a lease.
    FileLock,
    /// A deleted file, too large to be stored in the images.
    #[non_exhaustive]
    GhostTooLarge {
        /// Its size, in bytes of allocated blocks.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A file whose name was deleted, and that has other names.
    DeletedName,
    /// A watch on a file that criu may not find again.
    #[non_exhaustive]
    Watch {
        /// The kind of the file's file system, if known.
        on: String,
    },
    /// A mapping of a device, or of another object that is not a file.
    UnsupportedMapping,
    /// A program that runs from a memfd. criu dumps it, and can never start it again.
    MemfdProgram,
    /// A shared mapping of a memfd that is sealed against writes. criu dumps it, and can never
    /// restore it.
    SealedMemfd,
    /// A mapping that the kernel made for uprobes.
    Uprobes,
    /// System V shared memory, and the tree has no IPC namespace of its own.
    SystemVMemory,
}

impl Obstacle {
    /// Returns the cause of the failure that it leads to. The [advice](Cause::advice) of the cause
    /// says more than [`cure`](Obstacle::cure).
    ///
    /// ```
    /// use criu_rpc::{Cause, preflight::Obstacle};
    ///
    /// assert_eq!(Obstacle::FileLock.cause(), Cause::FileLocks);
    /// ```
    pub fn cause(&self) -> Cause {
        match self {
            Obstacle::Capability { .. } => Cause::NotPrivileged,
            Obstacle::OtherUser { .. } => Cause::OtherUser,
            Obstacle::Traced { .. } => Cause::Untraceable,
            Obstacle::StoppedJob => Cause::StoppedJob,
            Obstacle::SharedState { .. } => Cause::SharedState,
            Obstacle::MemoryLimit => Cause::MemoryLimit,
            Obstacle::PacketPipe => Cause::PacketPipe,
            Obstacle::AlarmTimer => Cause::AlarmTimer,
            Obstacle::QueuedCredentials => Cause::QueuedCredentials,
            Obstacle::SocketPath => Cause::SocketPath,
            Obstacle::PendingTrap => Cause::PendingTrap,
            Obstacle::GuardPages => Cause::TooOldForKernel,
            Obstacle::Seccomp => Cause::Seccomp,
            Obstacle::DeadLeader => Cause::UnsupportedThreads,
            Obstacle::CallerInside => Cause::CriuInsideTree,
            Obstacle::NoSession { .. } | Obstacle::Terminal { .. } => Cause::ShellJob,
            Obstacle::Shared { .. } => Cause::PidInUse,
            Obstacle::SessionOutside => Cause::SessionOutsidePidNamespace,
            Obstacle::NoMemoryTracking => Cause::MemoryTracking,
            Obstacle::NestedNamespace { .. } => Cause::NestedNamespaces,
            Obstacle::NoInit { .. } => Cause::PidNamespaceWithoutInit,
            Obstacle::UserNamespace => Cause::UserNamespace,
            Obstacle::MountNamespace => Cause::RootFolderNeeded,
            Obstacle::UnseenMount { .. } => Cause::FileOutsideMounts,
            Obstacle::Overmounted => Cause::Overmounted,
            Obstacle::IoUring => Cause::IoUring,
            Obstacle::UnsupportedFile | Obstacle::MessageQueue => Cause::UnsupportedFile,
            Obstacle::PidfdOutside { .. } => Cause::PidfdOutside,
            Obstacle::EpollElsewhere { .. } => Cause::EpollElsewhere,
            Obstacle::ProcFile | Obstacle::ProcGone { .. } | Obstacle::ProcOutside { .. } => Cause::ProcFile,
            Obstacle::UnsupportedSocket { protocol } if protocol.contains("MPTCP") => Cause::Mptcp,
            Obstacle::UnsupportedSocket { .. } => Cause::UnsupportedSocket,
            Obstacle::NetlinkUnread => Cause::NetlinkSocket,
            Obstacle::Tun => Cause::TunOutside,
            Obstacle::Tcp => Cause::EstablishedTcp,
            Obstacle::TcpInFlight => Cause::InFlightTcp,
            Obstacle::CorkedSocket => Cause::CorkedSocket,
            Obstacle::UnixInFlight => Cause::UnixSocketBusy,
            Obstacle::UnixOutside { .. } => Cause::ExternalUnixSocket,
            Obstacle::PipeOutside { .. } | Obstacle::HungTerminal => Cause::InheritedFile,
            Obstacle::FileLock => Cause::FileLocks,
            Obstacle::GhostTooLarge { .. } => Cause::GhostFileTooBig,
            Obstacle::DeletedName => Cause::LinkRemap,
            Obstacle::Watch { .. } => Cause::WatchedFile,
            Obstacle::UnsupportedMapping => Cause::UnsupportedMapping,
            Obstacle::MemfdProgram => Cause::MemfdProgram,
            Obstacle::SealedMemfd => Cause::SealedMemfd,
            Obstacle::Uprobes => Cause::Uprobes,
            Obstacle::SystemVMemory => Cause::SysvShm,
        }
    }

    /// Returns the cure, with the name of the option if there is one; `None` if only the program
    /// itself can solve it.
    pub fn cure(&self) -> Option<&'static str> {
        Some(match self {
            Obstacle::Capability { .. } => "run as root, with that capability",
            Obstacle::OtherUser { .. } => "run with CAP_SYS_RESOURCE",
            Obstacle::Traced { .. } => "detach the debugger",
            Obstacle::StoppedJob => "ProcsCapture; or continue the job in the foreground",
            Obstacle::QueuedCredentials => "ProcsCapture; or dump again when the program has read them",
            Obstacle::SocketPath => "bind it to an absolute path; or give its file its old name for the dump",
            Obstacle::MemoryLimit => "raise its limit (prlimit --as) before the dump",
            Obstacle::GuardPages => "Linux 6.16",
            Obstacle::Shared { .. } => "end what is left of the session by kill_session, before the restore",
            Obstacle::Seccomp => "run with CAP_SYS_ADMIN",
            Obstacle::CallerInside => "Criu::dump_around_self",
            Obstacle::NoSession { .. } => "DumpOptions::shell_job, at the restore as well",
            Obstacle::NoMemoryTracking => "no DumpOptions::track_mem, or a kernel with CONFIG_MEM_SOFT_DIRTY",
            Obstacle::NoInit { .. } => {
                "dump from the namespace's first process, or DumpOptions::external with its inode"
            }
            Obstacle::MountNamespace => "RestoreOptions::root",
            Obstacle::Tcp => "DumpOptions::tcp_established or DumpOptions::tcp_close, at the restore as well",
            Obstacle::TcpInFlight => "DumpOptions::tcp_skip_in_flight",
            Obstacle::UnixInFlight => "dump again when the program has accepted the connection",
            Obstacle::Overmounted => "unmount what covers the file",
            Obstacle::UnixOutside { .. } => "DumpOptions::external, and Lend::inherit at the restore",
            Obstacle::PipeOutside { .. } => {
                "Lend::inherit or ProcsRestore::inherit at the restore, with Key::of_process at the dump"
            }
            Obstacle::Terminal { .. } => {
                "DumpOptions::shell_job, and RestoreOptions::shell_job with Lend::terminal at the restore; or \
                 DumpOptions::external, and Lend::inherit at the restore"
            }
            Obstacle::FileLock => "DumpOptions::file_locks, at the restore as well",
            Obstacle::GhostTooLarge { .. } => "DumpOptions::ghost_limit",
            Obstacle::DeletedName => "DumpOptions::link_remap",
            Obstacle::Uprobes => "Criu::argument with --allow-uprobes, at the restore as well",
            Obstacle::SystemVMemory => "an IPC namespace of the tree's own",
            Obstacle::UserNamespace => "a pid and a mount namespace of the tree's own",
            Obstacle::Tun => "a network namespace of the tree's own",
            Obstacle::SessionOutside => {
                "start the program by setsid, in a session of its own, as in unshare --pid --fork setsid program"
            }
            Obstacle::NestedNamespace { .. } => {
                "start the whole tree in one set of namespaces, or dump a smaller tree that has only one"
            }
            Obstacle::UnseenMount { .. } => {
                "start the program so that it opens its files, and is opened, inside its mount namespace: after \
                 unshare --mount, not before"
            }
            Obstacle::DeadLeader
            | Obstacle::PendingTrap
            | Obstacle::CorkedSocket
            | Obstacle::NetlinkUnread
            | Obstacle::HungTerminal
            | Obstacle::IoUring
            | Obstacle::MessageQueue
            | Obstacle::SharedState { .. }
            | Obstacle::PacketPipe
            | Obstacle::AlarmTimer
            | Obstacle::ProcGone { .. }
            | Obstacle::EpollElsewhere { .. }
            | Obstacle::ProcFile
            | Obstacle::ProcOutside { .. }
            | Obstacle::UnsupportedFile
            | Obstacle::UnsupportedSocket { .. }
            | Obstacle::PidfdOutside { .. }
            | Obstacle::Watch { .. }
            | Obstacle::MemfdProgram
            | Obstacle::SealedMemfd
            | Obstacle::UnsupportedMapping => return None,
        })
    }

    /// Returns the value for [`DumpOptions::external`](crate::DumpOptions::external), if that cures
    /// it.
    pub fn external(&self) -> Option<External> {
        match self {
            Obstacle::UnixOutside { inode } => Some(External::Unix { inode: *inode }),
            Obstacle::Terminal { rdev, dev } => Some(External::Terminal { rdev: *rdev, dev: *dev }),
            _ => None,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut Plain(f);
        match self {
            Obstacle::Capability { name } => write!(f, "criu would have to run without {name}"),
            Obstacle::OtherUser { uid } => {
                write!(f, "belongs to user {uid}, and the caller has no CAP_SYS_RESOURCE")
            }
            Obstacle::Traced { by } => write!(f, "is traced by process {by}"),
            Obstacle::Seccomp => f.write_str("has a seccomp filter, and the caller has no CAP_SYS_ADMIN"),
            Obstacle::StoppedJob => {
                f.write_str("a stopped job, which criu refuses if it used its terminal in the background")
            }
            Obstacle::SharedState { with } => {
                write!(f, "shares its current folder or its memory with process {with}")
            }
            Obstacle::MemoryLimit => f.write_str("may not map the memory that criu needs in it (RLIMIT_AS)"),
            Obstacle::PacketPipe => f.write_str("a pipe that keeps packets apart (O_DIRECT)"),
            Obstacle::AlarmTimer => f.write_str("a timer that can wake the machine up"),
            Obstacle::ProcGone { of } => {
                write!(f, "a file of /proc of process {of}, which has ended: no restore can open it")
            }
            Obstacle::QueuedCredentials => {
                f.write_str("a unix socket with unread messages, which tells who sent them")
            }
            Obstacle::SocketPath => {
                f.write_str("a unix socket whose relative path is not the end of its file's path")
            }
            Obstacle::PendingTrap => f.write_str("a SIGTRAP waits to be delivered"),
            Obstacle::GuardPages => {
                f.write_str("has threads, whose guard pages criu cannot tell from memory on this kernel")
            }
            Obstacle::Shared { by } => {
                write!(f, "process {by}, which is not in the tree, is in its session or process group")
            }
            Obstacle::DeadLeader => f.write_str("its first thread has ended, and others go on"),
            Obstacle::CallerInside => f.write_str("the caller is a part of this tree"),
            Obstacle::NoSession { leader } => write!(f, "leads no session; {leader} leads its session"),
            Obstacle::SessionOutside => f.write_str("the leader of its session is outside its pid namespace"),
            Obstacle::NoMemoryTracking => f.write_str("this kernel cannot track changes of memory"),
            Obstacle::NestedNamespace { kind } => write!(f, "has another {kind} namespace than the root"),
            Obstacle::NoInit { namespace } => {
                write!(f, "is not the first process of its pid namespace {namespace}")
            }
            Obstacle::UserNamespace => f.write_str("is in a user namespace that cannot be restored"),
            Obstacle::MountNamespace => {
                f.write_str("has a mount namespace of its own, which needs a root to restore in")
            }
            Obstacle::UnseenMount { mount } => write!(f, "mount {mount} is not in its mount namespace"),
            Obstacle::Overmounted => f.write_str("a file that a later mount covers"),
            Obstacle::MemfdProgram => f.write_str("runs from a memfd, which no restore can start again"),
            Obstacle::SealedMemfd => f.write_str(
                "is of a memfd that is sealed against writes, which no restore can map as shared memory",
            ),
            Obstacle::IoUring => f.write_str("an io_uring"),
            Obstacle::UnsupportedFile => f.write_str("a kind of file that criu cannot dump"),
            Obstacle::MessageQueue => f.write_str("a POSIX message queue, which criu cannot dump"),
            Obstacle::EpollElsewhere { target } => {
                write!(f, "an epoll that waits for descriptor {target}, which the process has not open")
            }
            Obstacle::ProcFile => f.write_str("a file of /proc of a thread, which no restore can open"),
            Obstacle::ProcOutside { of } => write!(
                f,
                "a file of /proc of process {of}, which is not in the tree: a restore can open it only while that process lives"
            ),
            Obstacle::UnsupportedSocket { protocol } => {
                write!(f, "a socket that criu cannot dump: {protocol}")
            }
            Obstacle::NetlinkUnread => f.write_str("a netlink socket with unread messages"),
            Obstacle::Tun => f.write_str("a TUN device, without a network namespace of the tree's own"),
            Obstacle::PidfdOutside { of } => write!(f, "a pidfd of process {of}, which is not in the tree"),
            Obstacle::Tcp => f.write_str("a TCP connection"),
            Obstacle::TcpInFlight => f.write_str("a TCP listener with connections that nobody has accepted"),
            Obstacle::CorkedSocket => f.write_str("a UDP socket that holds a datagram back"),
            Obstacle::UnixInFlight => {
                f.write_str("a unix socket with a connection that was not accepted yet")
            }
            Obstacle::UnixOutside { .. } => f.write_str("a unix socket whose other end is outside the tree"),
            Obstacle::PipeOutside { .. } => f.write_str("a pipe whose other end is not in the tree"),
            Obstacle::Terminal { .. } => f.write_str("a terminal whose other side is outside the tree"),
            Obstacle::HungTerminal => f.write_str("a terminal whose other side was closed"),
            Obstacle::FileLock => f.write_str("a file lock"),
            Obstacle::GhostTooLarge { size, limit } => {
                write!(f, "a deleted file of {size} bytes, more than the {limit} that may be stored")
            }
            Obstacle::DeletedName => f.write_str("a deleted name of a file that has others"),
            Obstacle::Watch { on } => write!(f, "watches a file that criu may not find again, on {on}"),
            Obstacle::UnsupportedMapping => f.write_str("a mapping that criu cannot dump"),
            Obstacle::Uprobes => f.write_str("a mapping for uprobes"),
            Obstacle::SystemVMemory => {
                f.write_str("System V shared memory, without an IPC namespace of the tree's own")
            }
        }
    }
}
