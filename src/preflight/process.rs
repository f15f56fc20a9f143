//! Obstacles of whole processes: their owner, their tracer, their session.

use std::{
    cmp::Ordering,
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

use super::{Obstacle, Place, Severity, View, beyond, guard, limit, namespaces::Spaces};
use crate::{
    Error, Pid, ProcessProblem, Result,
    procfs::{Stat, Status, descendants, lineage, status_number},
    sys,
};

/// A process of the tree.
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) stat: Stat,
    pub(super) status: Status,
    pub(super) spaces: Spaces,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let status = Status::read(format!("/proc/{pid}/status"))?;
        Some(Process { pid, stat: Stat::of(pid).ok()?, status, spaces: Spaces::of(pid) })
    }
}

/// The caller, whose privileges a criu that it starts will have.
pub(super) struct Caller {
    capabilities: u64,
    uid: u32,
    gid: u32,
    effective_uid: u32,
    seccomp: bool,
    pub(super) spaces: Spaces,
}

impl Caller {
    pub(super) fn read() -> Caller {
        // The calling thread starts criu, so its status counts.
        let status = Status::read("/proc/thread-self/status").unwrap_or_default();
        let is_root = status.uids[1] == 0;
        Caller {
            // A program started by root gets its whole bounding set.
            capabilities: if is_root { status.bounding } else { status.effective },
            uid: status.uids[0],
            gid: status.gids[0],
            effective_uid: status.uids[1],
            seccomp: status.seccomp != 0,
            spaces: Spaces::own(),
        }
    }

    /// Returns true if the process is in a user namespace that the caller made, or beneath one.
    /// There its user has all capabilities.
    fn rules_over(&self, pid: i32) -> bool {
        const NESTED: usize = 32; // the kernel's limit
        let Ok(mut space) = File::open(format!("/proc/{pid}/ns/user")) else { return false };
        for _ in 0..NESTED {
            let Ok(parent) = sys::parent_namespace(&space) else { return false };
            if parent.metadata().is_ok_and(|file| file.ino() == self.spaces.inode("user")) {
                return sys::namespace_owner(&space).is_ok_and(|owner| owner == self.effective_uid);
            }
            space = parent;
        }
        false
    }

    fn can(&self, capability: Capability) -> bool {
        self.capabilities & (1 << capability as u64) != 0
    }
}

/// The capabilities that criu needs, by the kernel's numbers.
#[derive(Clone, Copy)]
enum Capability {
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    CheckpointRestore = 40,
}

/// Checks that the number is a valid pid.
pub(crate) fn check_number(pid: Pid) -> Result<()> {
    match pid.as_raw() {
        1.. => Ok(()),
        _ => Err(Error::Process { pid, problem: ProcessProblem::Impossible }),
    }
}

/// Checks that criu can be asked to dump the process. If only its main thread has ended, criu
/// itself reports that.
pub(crate) fn check_root(root: Pid) -> Result<()> {
    check_number(root)?;
    let refuse = |problem| Err(Error::Process { pid: root, problem });
    let stat = match Stat::of(root.as_raw()) {
        Ok(stat) => stat,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return refuse(ProcessProblem::Missing),
        Err(error) => return Err(Error::io(format!("look at process {root}"))(error)),
    };
    if stat.is_kernel_thread() {
        return refuse(ProcessProblem::Kernel);
    }
    let threads = status_number(root.as_raw(), "Threads").unwrap_or(0);
    if stat.is_zombie() && threads <= 1 {
        return refuse(ProcessProblem::Zombie);
    }
    match status_number(root.as_raw(), "Tgid") {
        // The kernel is about to remove the process.
        Some(0) => refuse(ProcessProblem::Missing),
        Some(group) if group != root.as_raw() => refuse(ProcessProblem::Thread),
        _ => Ok(()),
    }
}

/// Returns the process and its descendants, from the top down; never empty. Processes that end
/// meanwhile are left out.
pub(super) fn tree(root: Pid) -> Result<Vec<Process>> {
    let gone = || Error::Process { pid: root, problem: ProcessProblem::Missing };
    let mut tree = vec![Process::read(root.as_raw()).ok_or_else(gone)?];
    tree.extend(descendants(root.as_raw()).into_iter().filter_map(Process::read));
    Ok(tree)
}

pub(super) fn look(view: &mut View<'_>) {
    look_at_own(view);
    look_at_session(view);
    look_at_sharing(view);
    for process in view.tree {
        look_at(view, process);
    }
}

fn look_at_own(view: &mut View<'_>) {
    let root = view.root().pid;
    let caller = &view.caller;
    let unprivileged = view.options.unprivileged == Some(true);
    let mut lacks = Vec::new();
    // A criu without root's capabilities must be told so.
    let restorer = unprivileged && caller.can(Capability::CheckpointRestore);
    if !caller.can(Capability::SysAdmin) && !restorer {
        lacks.push("CAP_SYS_ADMIN");
    }
    if !caller.can(Capability::SysPtrace) && !unprivileged {
        lacks.push("CAP_SYS_PTRACE");
    }
    for name in lacks {
        view.found(root, Place::Process, Obstacle::Capability { name }, Severity::Blocks);
    }
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    if lineage(own).contains(&root) {
        view.found(root, Place::Process, Obstacle::CallerInside, Severity::Blocks);
    }
}

fn look_at_session(view: &mut View<'_>) {
    let root = view.root();
    if root.status.inner_pid != 0 && root.status.inner_session == 0 {
        return; // look_at says so, of every process
    }
    if root.stat.session != root.pid && view.options.shell_job != Some(true) {
        let leader = Pid::from(root.stat.session);
        view.found(root.pid, Place::Process, Obstacle::NoSession { leader }, Severity::Blocks);
    }
}

/// Finds processes that share their folders or their memory.
fn look_at_sharing(view: &mut View<'_>) {
    let living: Vec<i32> = view.living().map(|process| process.pid).collect();
    for compare in [sys::compare_folders, sys::compare_memory] {
        // Sorted as the kernel compares them, because there may be many.
        let mut different: Vec<i32> = Vec::new();
        for pid in &living {
            // It fails if one has ended.
            let order = |other: &i32| compare(*other, *pid).unwrap_or(Ordering::Less);
            match different.binary_search_by(order) {
                Ok(at) => {
                    let with = Pid::from(different[at]);
                    view.found(*pid, Place::Process, Obstacle::SharedState { with }, Severity::Blocks);
                }
                Err(at) => different.insert(at, *pid),
            }
        }
    }
}

fn look_at(view: &mut View<'_>, process: &Process) {
    let Process { pid, stat, status, .. } = process;
    let mut found = |obstacle| view.found(*pid, Place::Process, obstacle, Severity::Blocks);
    let threads = thread_statuses(process);
    if let Some(by) = tracer(process, &threads) {
        found(Obstacle::Traced { by: Pid::from(by) });
    }
    if status.inner_pid != 0 && status.inner_session == 0 {
        found(Obstacle::SessionOutside);
    }
    if threads.iter().any(|status| status.pending & TRAP != 0) {
        found(Obstacle::PendingTrap);
    }
    if stat.is_zombie() {
        if status.threads > 1 {
            found(Obstacle::DeadLeader);
        }
        return;
    }
    if is_stopped_job(stat) {
        view.found(*pid, Place::Process, Obstacle::StoppedJob, Severity::Risk);
    }
    if let Some(severity) = limit::severity(*pid) {
        view.found(*pid, Place::Process, Obstacle::MemoryLimit, severity);
    }
    let caller = &view.caller;
    let same = status.uids == [caller.uid; 3] && status.gids == [caller.gid; 3];
    // criu reads the resource limits of each process, which the kernel restricts.
    let other = !same && !caller.can(Capability::SysResource) && !caller.rules_over(*pid);
    let filtered = status.seccomp != 0 && (caller.seccomp || !caller.can(Capability::SysAdmin));
    if other {
        view.found(*pid, Place::Process, Obstacle::OtherUser { uid: status.uids[0] }, Severity::Blocks);
    }
    if status.threads > 1 && guard::is_unseen(*pid) {
        view.found(*pid, Place::Process, Obstacle::GuardPages, Severity::Risk);
    }
    if let Some(path) = beyond::memfd_program(*pid) {
        view.found(*pid, Place::Program { path }, Obstacle::MemfdProgram, Severity::Blocks);
    }
    if filtered {
        view.found(*pid, Place::Process, Obstacle::Seccomp, Severity::Blocks);
    }
}

/// Returns true for a stopped process in the background of its terminal.
fn is_stopped_job(stat: &Stat) -> bool {
    stat.state == 'T' && stat.has_terminal() && stat.group != stat.foreground
}

/// SIGTRAP, as a bit in a mask of signals.
const TRAP: u64 = 1 << (5 - 1);

/// Returns the statuses of all threads. For a process with one thread, that is its own status.
fn thread_statuses(process: &Process) -> Vec<Status> {
    if process.status.threads <= 1 {
        return vec![process.status.clone()];
    }
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten();
    threads.filter_map(|thread| Status::read(thread.path().join("status"))).collect()
}

/// Returns the process that traces this one, or one of its threads.
fn tracer(process: &Process, threads: &[Status]) -> Option<i32> {
    let tracer = process.status.tracer().or_else(|| threads.iter().find_map(Status::tracer))?;
    // The kernel names the tracing thread.
    Some(status_number(tracer, "Tgid").filter(|group| *group > 0).unwrap_or(tracer))
}

/// Returns the tracers of the tree's processes, from the root down.
pub(crate) fn tracers(root: Pid) -> impl Iterator<Item = i32> {
    let tree = tree(root).unwrap_or_default().into_iter();
    tree.filter_map(|process| tracer(&process, &thread_statuses(&process)))
}
