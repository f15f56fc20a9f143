//! [`Hooks`] and [`Event`]: criu's notifications during its work, and our answers.

use std::{
    fmt,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{BoxError, Pid};

/// Receives criu's events during its work, and can stop it.
///
/// criu waits for the answer to every event. During a dump, the tree is frozen from
/// [`Event::NetworkLock`] to [`Event::PostDump`], so answer quickly.
///
/// A stopped program (^Z, SIGSTOP) does not answer, so a frozen tree stays frozen until the program
/// continues. criu gets no signals of the program's terminal, so ^C does not end a dump;
/// [`Cancel`](super::Cancel) does.
///
/// An error refuses: criu undoes its work, and the request fails with
/// [`Error::Refused`](crate::Error), with that error as its source. A panic does the same. Each
/// event documents the effect of a refusal.
///
/// A late or cancelled request is refused without the hook, at all later events. The hook is still
/// called at events that ignore a refusal, so that it can undo at [`Event::NetworkUnlock`] its work
/// of [`Event::NetworkLock`].
///
/// A closure is a `Hooks`:
///
/// ```
/// use criu_rpc::rpc::{Event, Hooks};
///
/// let mut seen = Vec::new();
/// let mut hooks = |event: Event<'_>| {
///     seen.push(event.name().to_owned());
///     Ok(())
/// };
/// hooks.on(Event::PreDump).unwrap();
/// assert_eq!(seen, ["pre-dump"]);
/// ```
pub trait Hooks {
    /// Called at every event, while criu waits.
    ///
    /// # Errors
    ///
    /// Any error refuses.
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError>;

    /// Returns true if criu should send events. Called once, before the request is sent.
    fn wanted(&self) -> bool {
        true
    }
}

impl<F: FnMut(Event<'_>) -> Result<(), BoxError>> Hooks for F {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        self(event)
    }
}

/// No hooks: criu sends no events and does not wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn on(&mut self, _event: Event<'_>) -> Result<(), BoxError> {
        Ok(())
    }

    fn wanted(&self) -> bool {
        false
    }
}

/// An event during criu's work: one of its "notify scripts".
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Before images are streamed. criu never sends it over RPC.
    PreStream,
    /// A dump begins; the tree is still untouched. Refused: the dump fails.
    PreDump,
    /// The tree is frozen, and criu asks which resources are external: push them as
    /// [`external`](crate::DumpOptions::external) would name them. criu 3.19.
    QueryExtFiles(&'a mut Vec<String>),
    /// The tree has a network namespace of its own, and its traffic must be stopped.
    NetworkLock,
    /// The traffic may flow again. Sent also after a failed dump, even without a
    /// [`NetworkLock`](Event::NetworkLock). A refusal is ignored.
    NetworkUnlock,
    /// All images but `stats-dump` are written, and the tree is still frozen. Refused: the tree
    /// continues, even if it was to be killed. The images are good.
    PostDump,
    /// A restore begins; nothing exists yet. Refused: the restore fails, nothing was made.
    PreRestore,
    /// The root task sits in its new, empty namespaces.
    #[non_exhaustive]
    SetupNamespaces {
        /// The root task, as criu sees it.
        pid: Pid,
    },
    /// The namespaces are restored.
    PostSetupNamespaces,
    /// A new master for a terminal whose master was not dumped. If it is dropped, the terminal
    /// hangs up.
    OrphanPtsMaster(OwnedFd),
    /// All tasks are built, and stopped. The last event at which a refusal undoes everything.
    #[non_exhaustive]
    PostRestore {
        /// The root task, as criu sees it.
        pid: Pid,
    },
    /// The tasks are about to run. A refusal is ignored.
    PreResume,
    /// The tasks run. A refusal is ignored.
    PostResume,
    /// A page server or a lazy dump is ready for its peer.
    StatusReady,
    /// An event that this version of the crate does not know.
    #[non_exhaustive]
    Unknown {
        /// criu's name for it.
        name: &'a str,
        /// The process that the event names, if any.
        pid: Option<Pid>,
    },
}

impl Event<'_> {
    /// Returns criu's name for the event.
    pub fn name(&self) -> &str {
        match self {
            Event::PreStream => "pre-stream",
            Event::PreDump => "pre-dump",
            Event::QueryExtFiles(_) => "query-ext-files",
            Event::NetworkLock => "network-lock",
            Event::NetworkUnlock => "network-unlock",
            Event::PostDump => "post-dump",
            Event::PreRestore => "pre-restore",
            Event::SetupNamespaces { .. } => "setup-namespaces",
            Event::PostSetupNamespaces => "post-setup-namespaces",
            Event::OrphanPtsMaster(_) => "orphan-pts-master",
            Event::PostRestore { .. } => "post-restore",
            Event::PreResume => "pre-resume",
            Event::PostResume => "post-resume",
            Event::StatusReady => "status-ready",
            Event::Unknown { name, .. } => name,
        }
    }

    /// Returns true if criu ignores a refusal of this event.
    pub(super) fn ignores_refusal(&self) -> bool {
        matches!(self, Event::NetworkUnlock | Event::PreResume | Event::PostResume)
    }

    /// Makes the event that criu calls `name`.
    pub(super) fn named<'a>(
        name: &'a str,
        pid: Option<Pid>,
        descriptor: Option<OwnedFd>,
        external: &'a mut Vec<String>,
    ) -> Event<'a> {
        match (name, pid, descriptor) {
            ("pre-stream", ..) => Event::PreStream,
            ("pre-dump", ..) => Event::PreDump,
            ("query-ext-files", ..) => Event::QueryExtFiles(external),
            ("network-lock", ..) => Event::NetworkLock,
            ("network-unlock", ..) => Event::NetworkUnlock,
            ("post-dump", ..) => Event::PostDump,
            ("pre-restore", ..) => Event::PreRestore,
            ("setup-namespaces", Some(pid), _) => Event::SetupNamespaces { pid },
            ("post-setup-namespaces", ..) => Event::PostSetupNamespaces,
            ("orphan-pts-master", _, Some(master)) => Event::OrphanPtsMaster(master),
            ("post-restore", Some(pid), _) => Event::PostRestore { pid },
            ("pre-resume", ..) => Event::PreResume,
            ("post-resume", ..) => Event::PostResume,
            ("status-ready", ..) => Event::StatusReady,
            (name, pid, _) => Event::Unknown { name, pid },
        }
    }
}

/// Calls the hooks; a panic counts as a refusal.
pub(super) fn run_hook(hooks: &mut dyn Hooks, event: Event<'_>) -> Result<(), BoxError> {
    catch_unwind(AssertUnwindSafe(|| hooks.on(event))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "of a type that has no text".to_owned());
        Err(Box::new(HookPanicked(text)))
    })
}

/// The error for a hook that panicked, which counts as a refusal.
#[derive(Debug)]
struct HookPanicked(String);

impl fmt::Display for HookPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the hook panicked: {}", self.0)
    }
}

impl std::error::Error for HookPanicked {}
