//! [`Error`]: the errors of this crate, sorted by who can act. [`Failure`]: details of a failed
//! request to criu.

mod display;
mod failure;
mod process;

use std::{fmt, io, path::PathBuf};

use serde::Serialize;

pub use self::{failure::Failure, process::ProcessProblem};
use crate::{Digest256, Pid, Request, Version, diagnose};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from the caller's code: a store, a hook.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The error of every fallible call of this crate.
///
/// Each layer reports its own part; the rest is in [`source`](std::error::Error::source). An
/// [`Error::Criu`] carries a [`Failure`], which has a [`Cause`] to match on and advice to follow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// criu tried the request and failed.
    Criu(#[source] Box<Failure>),

    /// criu ended before it answered.
    Gone(#[source] Box<Failure>),

    /// No usable criu binary was found in `PATH` and the usual `sbin` folders, or at the path that
    /// the caller named.
    #[non_exhaustive]
    NoCriu {
        /// The paths that were tried.
        searched: Vec<PathBuf>,
        /// The problem with the first path that exists but is not a program.
        unusable: Option<String>,
    },

    /// No `criu service` could be reached at the socket.
    #[non_exhaustive]
    NoService {
        /// The socket, as the caller named it.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },

    /// This operating system has no criu.
    #[non_exhaustive]
    Unsupported {
        /// The task that failed.
        what: &'static str,
    },

    /// The deadline passed before criu answered.
    TimedOut(#[source] Box<Failure>),

    /// The caller cancelled the request before criu answered.
    Cancelled(#[source] Box<Failure>),

    /// The deadline passed in this crate's own work: with a store, a lock, or images. criu was not
    /// at work.
    #[non_exhaustive]
    Overdue {
        /// The work that was not finished, as a verb phrase.
        doing: String,
    },

    /// The caller cancelled this crate's own work: with a store, a lock, or images. criu was not at
    /// work.
    #[non_exhaustive]
    Stopped {
        /// The work that was not finished, as a verb phrase.
        doing: String,
    },

    /// criu sent a message that its protocol does not allow here.
    #[non_exhaustive]
    Protocol {
        /// The request to criu.
        request: Request,
        /// The problem with the answer.
        problem: String,
    },

    /// A hook refused to continue, and criu has undone its work. A tree to dump continues as
    /// before; nothing of a tree to restore runs.
    #[non_exhaustive]
    Refused {
        /// criu's name of the event that was refused.
        event: String,
        /// The hook's error.
        source: BoxError,
    },

    /// An option or a parameter is invalid. criu was not asked.
    #[non_exhaustive]
    Options {
        /// The invalid option or parameter.
        option: &'static str,
        /// The problem with it.
        problem: String,
    },

    /// This criu is older than an option of the request. criu was not asked to work.
    #[non_exhaustive]
    TooOld {
        /// The option.
        option: &'static str,
        /// The first release of criu that has it.
        needs: Box<Version>,
        /// The release of this criu.
        found: Box<Version>,
    },

    /// Another user holds a lock or a process. Nothing was changed; the same call can succeed
    /// later.
    #[non_exhaustive]
    Busy {
        /// The object that is in use.
        what: String,
        /// Its user.
        by: String,
    },

    /// The conversation with criu is over, and takes no more requests.
    #[non_exhaustive]
    Over {
        /// The reason.
        reason: &'static str,
    },

    /// A process that cannot be captured. Nothing was frozen.
    #[non_exhaustive]
    Process {
        /// The process, as the caller named it.
        pid: Pid,
        /// The problem with it.
        problem: ProcessProblem,
    },

    /// criu could dump the tree, but never restore it. The tree was to end, and goes on instead. No
    /// capture was stored.
    #[non_exhaustive]
    Unrevivable {
        /// The problems that prevent a restore.
        problems: Vec<String>,
    },

    /// This process is the revived copy, in a call that cannot return that as a value; see
    /// [`ProcsCapture::capture`](crate::ProcsCapture::capture).
    Revived,

    /// The store has no such blob.
    Missing {
        /// The digest of the blob.
        digest: Digest256,
    },

    /// Bytes are damaged, cut short or forged. None of them were used.
    #[non_exhaustive]
    Corrupt {
        /// The object that was read.
        what: String,
        /// The damage.
        problem: String,
    },

    /// The manifest or a list of a capture cannot be read.
    #[non_exhaustive]
    Capture {
        /// The capture, by its manifest.
        capture: Digest256,
        /// The problem with its manifest or list.
        source: Box<Error>,
    },

    /// The store is encrypted with another key.
    WrongKey,

    /// A manifest of a kind that this version does not know.
    #[non_exhaustive]
    UnknownKind {
        /// The kind that the manifest names.
        kind: String,
    },

    /// This machine lacks features that the captured processes may use. Nothing was revived.
    #[non_exhaustive]
    Host {
        /// The missing feature.
        problem: String,
    },

    /// A store failed.
    #[non_exhaustive]
    Store {
        /// The operation that failed, as a verb phrase.
        doing: String,
        /// The store's error.
        source: BoxError,
    },

    /// The operating system refused an operation.
    #[non_exhaustive]
    Io {
        /// The operation and its object, as a verb phrase.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// Makes an [`Error::Store`], for authors of stores.
    pub fn store(doing: impl Into<String>, source: impl Into<BoxError>) -> Error {
        Error::Store { doing: doing.into(), source: source.into() }
    }

    /// Makes an [`Error::Corrupt`], for authors of stores.
    pub fn corrupt(what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Corrupt { what: what.into(), problem: problem.into() }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing: doing.into(), source }
    }

    /// Returns all facts about the failed request, if criu was asked.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Criu(failure)
            | Error::Gone(failure)
            | Error::TimedOut(failure)
            | Error::Cancelled(failure) => Some(failure),
            _ => None,
        }
    }

    /// Returns true if a deadline passed, in criu's work or in that of this crate.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::TimedOut(_) | Error::Overdue { .. })
    }

    /// Returns true if the caller cancelled criu's work or that of this crate.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled(_) | Error::Stopped { .. })
    }

    /// Returns advice for people, if there is any.
    pub fn advice(&self) -> Option<&str> {
        match self {
            Error::NoCriu { .. } => Some(diagnose::advice(Cause::NoCriu)),
            Error::NoService { .. } => Some(
                "check that the service runs (`criu service --address SOCKET`), that the path is that of its socket, \
                 and that this user may write to it",
            ),
            Error::Process { problem, .. } => Some(problem.advice()),
            Error::Unrevivable { .. } => Some(
                "remove what the message names before the capture, or start the tree without it: put a namespace around \
                 the whole tree instead of around a child; close a file of a thread (`/proc/<pid>/task/<tid>/…`, \
                 `/proc/thread-self/…`), or open that of its process (`/proc/<pid>/…`)",
            ),
            Error::Unsupported { .. } => Some("use Linux, with criu"),
            Error::Missing { .. } => Some(
                "check that this is the store of the capture, with its key if it is encrypted, and whether the blob was \
                 collected (`gc`, `retain`) or set aside as damaged (`quarantine`)",
            ),
            Error::Corrupt { .. } => Some(
                "remove the damaged blobs (with an `FsBlobStore`: `quarantine` the findings of `verify`), then copy the \
                 capture again from an undamaged store (`copy_capture`); or go back to another capture",
            ),
            Error::Host { .. } => Some(
                "revive it on a machine that has these features; or set `any_host(true)`, if you know that the programs \
                 do not use them",
            ),
            Error::WrongKey => Some("open the store with the key that it was created with"),
            Error::Capture { .. } => Some(
                "leave that capture out of the list; or repair it: remove the damaged blobs (with an `FsBlobStore`: \
                 `quarantine` the findings of `verify`), and copy it again from an undamaged store (`copy_capture`)",
            ),
            Error::UnknownKind { .. } => Some("use a newer version of this crate, which made the capture"),
            Error::TooOld { .. } => Some("install a newer criu, or leave the option out"),
            Error::Busy { .. } => Some("wait until the other one is done, and try again"),
            Error::Over { .. } => {
                Some("begin a new conversation (`Criu::pre_dumps`), or make a new connection (`Criu::over`)")
            }
            Error::Options { .. }
            | Error::Protocol { .. }
            | Error::Refused { .. }
            | Error::Revived
            | Error::Store { .. }
            | Error::Io { .. } => None,
            Error::TimedOut(failure) if failure.request == Request::Restore => Some(
                "allow more time (`deadline`), if it was too little; and check whether the images are complete: criu can \
                 wait for ever for images that are cut short",
            ),
            Error::Overdue { .. } => Some(
                "allow more time (`deadline`), if it was too little; if the error names a process or a lock, wait until it \
                 is done or end it",
            ),
            Error::TimedOut(_) => Some("allow more time (`deadline`), if it was too little"),
            Error::Cancelled(_) | Error::Stopped { .. } => None,
            Error::Criu(failure) | Error::Gone(failure) => Some(failure.advice()),
        }
    }

    /// Returns a report of several lines for people: the error, its causes, criu's messages, and
    /// advice.
    ///
    /// ```
    /// let error = criu_rpc::Error::corrupt("the blob", "it is cut short");
    /// assert!(error.report().to_string().contains("what to do:"));
    /// ```
    pub fn report(&self) -> impl fmt::Display + '_ {
        diagnose::ErrorReport(self)
    }
}

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
    /// criu could not hold packets back while it dumps connections.
    NetworkNotLocked,
    /// An address or a port of a TCP socket is not available.
    TcpNotRestored,
    /// The tree has a unix socket whose other end is outside.
    ExternalUnixSocket,
    /// A unix socket is in a transient state that cannot be dumped.
    UnixSocketBusy,
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
    /// A path leads through a link that was not there at the capture, or to a file of another
    /// owner.
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

/// The state of the process tree after a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Target {
    /// The request involved no tree.
    None,
    /// The tree runs as before.
    Running,
    /// The tree is stopped: by a signal, or as it was before.
    Stopped,
    /// A process of the tree is traced. [`Failure::tracer`] names the tracer, unless it is the criu
    /// of the request.
    Traced,
    /// Processes of the tree ended while criu worked on it; [`Failure::findings`] names them. A
    /// killed criu takes threads with it.
    Damaged,
    /// The tree does not exist.
    Gone,
}
