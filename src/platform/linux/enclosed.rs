//! TCP connections and file locks that no process outside a tree shares, so criu can carry them
//! along without an option of the caller's.
//!
//! criu refuses both by default, because it cannot know who else relies on them. Here that is
//! looked up, before anything is frozen. In doubt the answer is no, and criu's error says what to
//! do.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
};

use crate::{
    Pid,
    procfs::{Endpoint, TcpLine, each_line, read_start, tree},
    sys,
};

/// The open files of a tree.
pub(super) struct Enclosed {
    processes: Vec<i32>,
    files: Vec<OpenFile>,
}

struct OpenFile {
    pid: i32,
    fd: i32,
    /// The target of the link in `/proc`, such as `socket:[4711]`.
    target: PathBuf,
}

impl Enclosed {
    /// The tree with this root.
    pub(super) fn of(root: Pid) -> Enclosed {
        let processes = tree(root.as_raw());
        let files = processes.iter().flat_map(|pid| open_files(*pid)).collect();
        Enclosed { processes, files }
    }

    /// Returns true if there are TCP connections, and the tree has both ends of each.
    pub(super) fn has_own_connections(&self) -> bool {
        let sockets: HashMap<u64, i32> =
            self.files.iter().filter_map(|file| Some((file.socket()?, file.pid))).collect();
        if sockets.is_empty() {
            return false;
        }
        let mut found = false;
        let mut namespaces = HashSet::new();
        for pid in &self.processes {
            let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
            if !namespaces.insert(namespace) {
                continue;
            }
            match own_connections(*pid, &sockets) {
                Some(count) => found |= count > 0,
                None => return false,
            }
        }
        found
    }

    /// Returns true if there are file locks, and each belongs to the tree alone. A lock of `flock`
    /// or of an open file description is shared with a process outside that has the same
    /// description, by `fork` for instance.
    pub(super) fn has_own_locks(&self) -> bool {
        let mut found = false;
        let mut shared = Vec::new();
        for file in self.files.iter().filter(|file| file.target.is_absolute()) {
            for kind in file.locks() {
                found = true;
                if !matches!(kind, Lock::OfProcess) {
                    shared.push(file);
                }
            }
        }
        found && (shared.is_empty() || !self.is_held_outside(&shared))
    }

    /// Returns true if a process outside has one of these descriptions open, too.
    fn is_held_outside(&self, files: &[&OpenFile]) -> bool {
        let inside: HashSet<i32> = self.processes.iter().copied().collect();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let outside = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        outside.filter(|pid| !inside.contains(pid)).any(|pid| {
            open_files(pid).any(|other| {
                let mut same = files.iter().filter(|file| file.target == other.target);
                // One that has ended meanwhile holds nothing.
                same.any(|file| {
                    sys::is_same_file((file.pid, file.fd), (other.pid, other.fd)).unwrap_or(false)
                })
            })
        })
    }
}

fn open_files(pid: i32) -> impl Iterator<Item = OpenFile> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some(OpenFile { pid, fd, target: fs::read_link(entry.path()).ok()? })
    })
}

/// The owner of a lock.
enum Lock {
    /// A process (`fcntl`).
    OfProcess,
    /// An open file description (`flock`, OFD locks, leases).
    OfDescription,
}

impl OpenFile {
    fn socket(&self) -> Option<u64> {
        self.target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    fn locks(&self) -> Vec<Lock> {
        let info = read_start(format!("/proc/{}/fdinfo/{}", self.pid, self.fd)).unwrap_or_default();
        let lines = info.lines().filter_map(|line| line.strip_prefix("lock:"));
        let kinds = lines.map(|line| match line.split_ascii_whitespace().nth(1) {
            Some("POSIX") => Lock::OfProcess,
            _ => Lock::OfDescription,
        });
        kinds.collect()
    }
}

/// The number of connections of these sockets in the network namespace of the process; `None` if
/// one of them leads out.
fn own_connections(pid: i32, sockets: &HashMap<u64, i32>) -> Option<usize> {
    let mut ends = HashMap::<(Endpoint, Endpoint), TcpLine>::new();
    for table in ["tcp", "tcp6"] {
        each_line(format!("/proc/{pid}/net/{table}"), |line| {
            ends.extend(TcpLine::parse(line).map(|line| ((line.local, line.remote), line)));
        });
    }
    let connected = ends.values().filter(|end| end.is_connection() && sockets.contains_key(&end.inode));
    let mut count = 0;
    for end in connected {
        let other = ends.get(&(end.remote, end.local));
        let inside = match other {
            Some(other) if other.inode != 0 => sockets.contains_key(&other.inode),
            // Closed by its last process: no process has the other end.
            _ => end.state == TcpLine::CLOSE_WAIT && end.is_local(),
        };
        if !inside {
            return None;
        }
        count += 1;
    }
    Some(count)
}
