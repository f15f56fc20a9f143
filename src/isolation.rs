//! [`Isolation`]: the namespaces of a copy.

/// The namespaces of a tree that is revived as a [copy](crate::ProcsRestore::isolated).
///
/// A copy always has a pid namespace and a mount namespace of its own, with its own `/proc`. It
/// shares everything else with this program, except for the namespaces that are added here:
///
/// | shared | consequence |
/// |---|---|
/// | files | copies that write to the same file overwrite each other |
/// | locks on files | only one tree can have a lock, the original counts; others fail |
/// | unix sockets with a path | only one process can listen; the restore of another fails |
/// | network | only one copy can have a port or an abstract unix socket: add `network` |
/// | terminals inside the tree | only one copy can have the number of a terminal: add `terminals` |
/// | message queues, semaphores and shared memory of System V and POSIX | as for the original |
/// | host name, control group | as for the original |
///
/// A file that changed after the capture is treated as in any restore:
/// [`GrownFiles`](crate::GrownFiles).
///
/// The clocks of a copy go on from the capture, as those of any revived tree do. Copies also have
/// the same random state, session tickets and keys in their memory: a program that must not repeat
/// them has to be told that it is a copy.
///
/// ```
/// use criu_rpc::Isolation;
///
/// let isolation = Isolation::new().network(true);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Isolation {
    pub(crate) network: bool,
    pub(crate) terminals: bool,
}

impl Isolation {
    /// Describes a copy in a pid namespace and a mount namespace.
    pub fn new() -> Isolation {
        Isolation::default()
    }

    /// Adds a network namespace, which has nothing but a loopback interface. Connections within the
    /// tree go on in each copy. The copy reaches no other machine.
    pub fn network(mut self, on: bool) -> Isolation {
        self.network = on;
        self
    }

    /// Adds a `/dev/pts`, in which the numbers of all terminals are free, for trees that made
    /// terminals themselves (`script`, `tmux`, `expect`).
    pub fn terminals(mut self, on: bool) -> Isolation {
        self.terminals = on;
        self
    }
}
