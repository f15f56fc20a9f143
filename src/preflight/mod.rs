//! [`Preflight`]: obstacles to a dump of a tree, or to its restore, found before anything is
//! frozen. [`Criu::preflight`](crate::Criu::preflight) makes one.
//!
//! Sources are `/proc`, and the kernel's socket diagnosis for the peers of unix sockets. No process
//! is stopped, traced or changed, and processes that end meanwhile are left out. File metadata
//! comes from the kernel's caches, so a dead network mount cannot block the search. The exception
//! is the path of a deleted file, whose look-up can block. For the reasons of a failed dump, see
//! [`Failure`](crate::Failure).
//!
//! # What it cannot see
//!
//! - settings of criu outside the [`DumpOptions`]: its configuration files, plugins, arguments, raw
//!   fields;
//! - privileges of criu's binary by file capabilities, and those of a criu service;
//! - the peers of unix sockets in other network namespaces than the caller's;
//! - rules of Landlock, which no other process can read, and which a restore loses;
//! - file systems that criu does not know, security modules, control groups;
//! - mounts that cover a program or a mapped file; those that cover an open file are found;
//! - changes between the search and the dump.

// Start reading at `look`. Each file beside this one looks at one kind of place.

mod beyond;
mod bound;
mod descriptor;
mod descriptors;
mod guard;
mod inside;
mod limit;
mod mappings;
mod mounts;
mod names;
mod namespaces;
mod obstacle;
mod process;
mod session;
mod sockets;
mod unix;

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Write},
    path::PathBuf,
};

use serde::Serialize;

pub use self::obstacle::Obstacle;
pub(crate) use self::{
    beyond::beyond_restore,
    bound::{Bound, TELL_SENDERS, holds_credentials},
    descriptors::has_message_queue,
    inside::Inside,
    names::broken_names,
    process::{check_number, check_root, tracers},
    session::holders,
    unix::{Peer, Peers},
};
use self::{
    namespaces::Spaces,
    process::{Caller, Process},
};
use crate::{
    DumpOptions, Pid, Result, Version,
    plain::{Plain, path_as_text},
    proto::rpc::CriuOpts,
};

/// The result of [`Criu::preflight`](crate::Criu::preflight).
///
/// ```no_run
/// use criu_rpc::{Criu, DumpOptions, preflight::Obstacle};
///
/// let preflight = Criu::new().preflight(4242, &DumpOptions::default())?;
/// let connected = preflight.findings.iter().any(|finding| finding.obstacle == Obstacle::Tcp);
/// println!("{} processes, connected: {connected}", preflight.processes);
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preflight {
    /// The findings, process by process from the root down, without those that the options cure
    /// already.
    pub findings: Vec<Finding>,
    /// The number of processes of the tree.
    pub processes: usize,
}

impl Preflight {
    /// Returns the findings that make the dump fail, or that no restore can bring back.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Blocks)
    }
}

/// One problem and its place. `Display` is one line for people.
///
/// ```no_run
/// use criu_rpc::{Criu, DumpOptions};
///
/// let mut options = DumpOptions::default();
/// for finding in Criu::new().preflight(4242, &options)?.findings {
///     match finding.obstacle.external() {
///         Some(external) => options = options.external(external),
///         None => println!("process {}: {}; {:?}", finding.pid, finding.obstacle, finding.cure()),
///     }
/// }
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The process with the problem.
    pub pid: Pid,
    /// The place in the process.
    pub place: Place,
    /// The problem.
    pub obstacle: Obstacle,
    /// The severity.
    pub severity: Severity,
}

impl Finding {
    /// Returns the cure, with the name of the option if there is one; `None` if only the program
    /// itself can solve it.
    pub fn cure(&self) -> Option<&'static str> {
        self.obstacle.cure()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}{}: {}", self.pid, self.place, self.obstacle)?;
        match self.cure() {
            Some(cure) => write!(f, " (cure: {cure})"),
            None => Ok(()),
        }
    }
}

/// The place of a problem in a process.
///
/// ```no_run
/// use criu_rpc::{Criu, DumpOptions, preflight::Place};
///
/// for finding in Criu::new().preflight(4242, &DumpOptions::default())?.findings {
///     if let Place::Descriptor { fd, target, .. } = &finding.place {
///         println!("descriptor {fd} is {}", target.display());
///     }
/// }
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Place {
    /// The process as a whole.
    Process,
    /// A file that it has open.
    #[non_exhaustive]
    Descriptor {
        /// The descriptor's number in the process.
        fd: i32,
        /// Its target, as `/proc/<pid>/fd` shows it.
        #[serde(serialize_with = "path_as_text")]
        target: PathBuf,
    },
    /// The program that it runs.
    #[non_exhaustive]
    Program {
        /// Its path, as `/proc/<pid>/exe` shows it.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
    /// A mapping of its memory.
    #[non_exhaustive]
    Mapping {
        /// Its first address.
        start: u64,
        /// The address after its last.
        end: u64,
        /// The mapped file, as `/proc/<pid>/maps` shows it.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut Plain(f);
        match self {
            Place::Process => Ok(()),
            Place::Descriptor { fd, target } => write!(f, ", descriptor {fd} ({})", target.display()),
            Place::Program { path } => write!(f, ", its program ({})", path.display()),
            Place::Mapping { start, end, path } => {
                write!(f, ", mapping {start:x}-{end:x} ({})", path.display())
            }
        }
    }
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Severity {
    /// The dump may fail, or it succeeds and the restore needs care.
    Risk,
    /// criu will refuse the dump, or no restore can ever bring the tree back.
    Blocks,
}

/// Searches the tree. `tracks_memory` is called only if the options need it, and `version`, the
/// release of criu, only if a finding depends on it.
pub(crate) fn look(
    root: Pid,
    options: &DumpOptions,
    tracks_memory: impl FnOnce() -> Result<bool>,
    version: &dyn Fn() -> Option<Version>,
) -> Result<Preflight> {
    process::check_root(root)?;
    let options = options.wire();
    let tree = process::tree(root)?;
    let pids = tree.iter().map(|process| process.pid).collect();
    let (caller, inside) = (Caller::read(), Inside::of(root.as_raw()));
    let mut view =
        View { options: &options, caller, inside, tree: &tree, pids, version, findings: Vec::new() };
    if options.track_mem == Some(true) && !tracks_memory()? {
        view.found(root.as_raw(), Place::Process, Obstacle::NoMemoryTracking, Severity::Blocks);
    }
    process::look(&mut view);
    session::look(&mut view);
    namespaces::look(&mut view);
    descriptors::look(&mut view);
    mappings::look(&mut view);
    let View { mut findings, .. } = view;
    let order: HashMap<_, _> = tree.iter().zip(0..).map(|(process, place)| (process.pid, place)).collect();
    findings.sort_by_key(|finding| order.get(&finding.pid.as_raw()).copied().unwrap_or(i32::MAX));
    Ok(Preflight { findings, processes: tree.len() })
}

/// The tree under search, and the findings.
struct View<'a> {
    options: &'a CriuOpts,
    caller: Caller,
    /// The namespaces of the copy that the tree is in.
    inside: Option<Inside>,
    /// The processes from the root down; never empty.
    tree: &'a [Process],
    pids: HashSet<i32>,
    version: &'a dyn Fn() -> Option<Version>,
    findings: Vec<Finding>,
}

impl<'a> View<'a> {
    fn found(&mut self, pid: i32, place: Place, obstacle: Obstacle, severity: Severity) {
        self.findings.push(Finding { pid: Pid::from(pid), place, obstacle, severity });
    }

    fn root(&self) -> &'a Process {
        &self.tree[0]
    }

    /// Returns the processes that have not ended.
    fn living(&self) -> impl Iterator<Item = &'a Process> + use<'a> {
        self.tree.iter().filter(|process| !process.stat.is_zombie())
    }

    fn has(&self, pid: i32) -> bool {
        self.pids.contains(&pid)
    }

    /// Returns the namespaces that criu will be in.
    fn own_spaces(&self) -> &Spaces {
        self.inside.as_ref().map_or(&self.caller.spaces, |inside| &inside.spaces)
    }

    /// Returns true if the options name this resource as external.
    fn is_external(&self, resource: &str) -> bool {
        self.options.external.iter().any(|external| {
            external.strip_prefix(resource).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_json_with_its_place() {
        let place = Place::Descriptor { fd: 3, target: "pipe:[7]".into() };
        let obstacle = Obstacle::PipeOutside { inode: 7 };
        let finding = Finding { pid: 5.into(), place, obstacle, severity: Severity::Risk };
        let json = serde_json::to_string(&Preflight { findings: vec![finding], processes: 1 }).unwrap();
        let place = r#"{"Descriptor":{"fd":3,"target":"pipe:[7]"}}"#;
        let finding = format!(
            r#"{{"pid":5,"place":{place},"obstacle":{{"PipeOutside":{{"inode":7}}}},"severity":"Risk"}}"#
        );
        assert_eq!(json, format!(r#"{{"findings":[{finding}],"processes":1}}"#));
    }
}
