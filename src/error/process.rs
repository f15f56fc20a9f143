//! [`ProcessProblem`]: a process that cannot be captured.

use std::fmt;

use serde::Serialize;

/// The reason why a process cannot be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum ProcessProblem {
    /// No process can have this number: it is 0 or negative.
    Impossible,
    /// No process has this number.
    Missing,
    /// It has ended and waits to be reaped by its parent.
    Zombie,
    /// It is a thread of another process, not a process.
    Thread,
    /// It is a thread of the kernel.
    Kernel,
    /// It belongs to another user, and the caller is not root.
    NotOurs,
    /// It is the init of the caller's pid namespace, so its tree is every process of the machine or
    /// container.
    Init,
    /// It is this process, or an ancestor of it.
    Ourselves,
}

impl ProcessProblem {
    pub(super) fn advice(self) -> &'static str {
        match self {
            ProcessProblem::Impossible => {
                "name the process by its pid; 0 and -1 have no special meaning here"
            }
            ProcessProblem::Missing => {
                "check that it still runs, and that the pid is the one in this pid namespace"
            }
            ProcessProblem::Zombie => "reap it, and leave it out",
            ProcessProblem::Thread => {
                "name the process that it is a thread of: `Tgid` in its /proc/<pid>/status"
            }
            ProcessProblem::Kernel => "leave it out: only programs can be captured",
            ProcessProblem::NotOurs => "run as root, or as that user",
            ProcessProblem::Init => "name a process below it",
            ProcessProblem::Ourselves => "name another process",
        }
    }
}

impl fmt::Display for ProcessProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ProcessProblem::Impossible => "cannot exist (the numbers of processes begin at 1)",
            ProcessProblem::Missing => "does not exist",
            ProcessProblem::Zombie => "has ended already (it is a zombie until its parent reaps it)",
            ProcessProblem::Thread => "is a thread, not a process",
            ProcessProblem::Kernel => "is a kernel thread",
            ProcessProblem::NotOurs => "belongs to another user",
            ProcessProblem::Init => "is the init of this pid namespace",
            ProcessProblem::Ourselves => "is this process or one that it descends from",
        })
    }
}
