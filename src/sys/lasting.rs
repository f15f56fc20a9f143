//! Starts processes from threads that last as long as the program.
//!
//! `PR_SET_PDEATHSIG` refers to the thread that started a process. A tree that asked for it would
//! be killed as soon as the thread that revived it ends.

use std::{
    fs, io,
    path::PathBuf,
    process,
    sync::mpsc::{Sender, channel},
    thread,
};

use crate::lock::Mutex;

use nix::{sys::signal::SigSet, unistd::gettid};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that starts processes for other threads.
struct Starter {
    /// The pid of its process: a fork has none of our threads.
    process: u32,
    thread: PathBuf,
    work: Sender<Work>,
}

static STARTERS: Mutex<Vec<Starter>> = Mutex::new(Vec::new());

/// The maximum number of threads, each for one set of inherited attributes. Further callers do
/// their own work.
const MOST: usize = 16;

/// Runs `work` on a lasting thread that has all attributes that a child inherits from the caller.
/// Without such a thread, runs it on the calling thread.
pub(super) fn on_lasting_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = channel();
    let work: Work = Box::new(move || drop(tell.send(work())));
    let unsent = match starter() {
        Some(starter) => starter.send(work).err().map(|unsent| unsent.0),
        None => Some(work),
    };
    if let Some(work) = unsent {
        work();
    }
    told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that starts processes has ended")))
}

fn starter() -> Option<Sender<Work>> {
    let mut starters = STARTERS.lock();
    starters.retain(|starter| starter.process == process::id());
    let ours = inherited_from("/proc/thread-self".into());
    if let Some(starter) = starters.iter().find(|starter| inherited_from(starter.thread.clone()) == ours) {
        return Some(starter.work.clone());
    }
    if starters.len() >= MOST {
        return None;
    }
    let starter = start().ok()?;
    let work = starter.work.clone();
    starters.push(starter);
    Some(work)
}

fn start() -> io::Result<Starter> {
    let (work, works) = channel::<Work>();
    let (tell, told) = channel();
    let run = move || {
        let _ = SigSet::all().thread_block(); // signals are for the program's own threads
        let _ = tell.send(gettid());
        works.into_iter().for_each(|work| work());
    };
    thread::Builder::new().name("criu-rpc starter".into()).stack_size(STACK).spawn(run)?;
    let thread = told.recv().map_err(io::Error::other)?;
    let thread = PathBuf::from(format!("/proc/self/task/{thread}"));
    Ok(Starter { process: process::id(), thread, work })
}

const STACK: usize = 256 << 10;

/// Returns the attributes that a child inherits from a thread rather than its process, as far as
/// `/proc` shows them.
fn inherited_from(thread: PathBuf) -> Vec<String> {
    const FIELDS: [&str; 7] =
        ["Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed"];
    const NAMESPACES: [&str; 9] =
        ["cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts", "pid"];
    let status = fs::read(thread.join("status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    let is_meant = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        FIELDS.contains(&name) || name.starts_with("Cap")
    };
    let mut all: Vec<String> = status.lines().filter(is_meant).map(str::to_owned).collect();
    let namespaces = NAMESPACES.iter().map(|name| thread.join("ns").join(name));
    let links = namespaces.chain(["root", "cwd"].map(|name| thread.join(name)));
    all.extend(links.map(|link| format!("{:?}", fs::read_link(link).ok())));
    all.extend(["cgroup", "attr/current"].map(|name| format!("{:?}", fs::read(thread.join(name)).ok())));
    all
}
