//! Finds out what of a capture can never be restored, although criu dumped it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{ImageDir, paths::mapped_file};
use crate::{
    Cause, Result,
    proto::images::{FileEntry, InventoryEntry, MemfdInodeEntry, MmEntry, PstreeEntry, TaskKobjIdsEntry},
};

impl ImageDir {
    /// The reasons why no restore of these images can succeed; empty if one can.
    pub(crate) fn beyond_restore(&self) -> Result<Vec<String>> {
        let mut problems: Vec<_> = self.never_restored()?.into_iter().map(|(_, problem)| problem).collect();
        for remap in self.link_remaps()? {
            let name = String::from_utf8_lossy(&remap.name);
            problems.push(format!("the file {name} was deleted, and no other name of it was found"));
        }
        problems.extend(self.missed_beyond_restore()?);
        problems.extend(self.streams_in_flight()?);
        Ok(problems)
    }

    /// The same with the cause of each failure, as far as a restore fails. Not among them are
    /// deleted files, whose temporary names can still be there, and data that is missing.
    pub(crate) fn never_restored(&self) -> Result<Vec<(Cause, String)>> {
        let processes = self.processes()?;
        let of = |cause| move |problem| (cause, problem);
        let namespaces = self.nested_namespaces(&processes)?.into_iter().map(of(Cause::NamespaceOfChild));
        let files = self.files_of_threads(&processes)?.into_iter().map(of(Cause::ProcFile));
        let unsent = self.unsent_beyond_restore()?.into_iter().map(of(Cause::TcpNotRestored));
        let sockets = self.sockets_beyond_restore()?.into_iter().map(of(Cause::UnixSocketBusy));
        let user = self.user_namespace(&processes)?.into_iter().map(of(Cause::UserNamespace));
        let memfds = self.memfds_beyond_restore(&processes)?;
        let epolls = self.epolls_beyond_restore()?.into_iter().map(of(Cause::EpollElsewhere));
        let replaced = self.replaced_in_flight()?.into_iter().map(of(Cause::UnixSocketBusy));
        let files = files.chain(unsent).chain(sockets).chain(replaced).chain(memfds).chain(epolls);
        Ok(namespaces.chain(user).chain(files).collect())
    }

    /// Returns a problem if a restore replaces a standard stream which is also in flight: there is
    /// nothing to put into the socket.
    fn replaced_in_flight(&self) -> Result<Option<String>> {
        let mut rights = self.in_flight()?;
        if !rights.is_empty() {
            self.each("files.img", |file: FileEntry| {
                rights.remove(&file.id);
            })?;
        }
        let problem = "a standard stream that is replaced is also on its way through a unix socket";
        Ok((!rights.is_empty()).then(|| problem.to_owned()))
    }

    /// Epolls that have a file twice: also by a descriptor that was closed while another one of the
    /// same file stayed open. criu finds the other one for both, and the kernel takes each only
    /// once.
    fn epolls_beyond_restore(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        self.each("files.img", |file: FileEntry| {
            let mut known = BTreeSet::new();
            let targets = file.epfd.into_iter().flat_map(|epoll| epoll.tfd);
            let twice = targets.map(|target| target.tfd).find(|descriptor| !known.insert(*descriptor));
            problems.extend(twice.map(|descriptor| {
                format!(
                    "an epoll waits twice for the file of descriptor {descriptor}, once by another descriptor that was \
                     closed"
                )
            }));
        })?;
        Ok(problems)
    }

    /// A user namespace of the tree's own, while it was in criu's pid and mount namespaces.
    fn user_namespace(&self, processes: &[PstreeEntry]) -> Result<Option<String>> {
        let criu = self.first::<InventoryEntry>("inventory.img")?.and_then(|inventory| inventory.root_ids);
        let root = processes.first().map(|root| format!("ids-{}.img", root.pid));
        let root = root.map_or(Ok(None), |name| self.first::<TaskKobjIdsEntry>(&name))?;
        let (Some(criu), Some(root)) = (criu, root) else { return Ok(None) };
        let different = different(&root, &criu);
        let alone =
            different.contains(&"user") && !["pid", "mount"].iter().any(|kind| different.contains(kind));
        let problem = "the tree has a user namespace without a pid and a mount namespace of its own";
        Ok(alone.then(|| problem.to_owned()))
    }

    /// Programs that run from a memfd, and shared mappings of memfds that are sealed against
    /// writes. criu looks for the programs among regular files. It seals a memfd after it has
    /// mapped it, which the kernel refuses.
    fn memfds_beyond_restore(&self, processes: &[PstreeEntry]) -> Result<Vec<(Cause, String)>> {
        const SEAL_WRITE: u32 = 8;
        const MAP_SHARED: u32 = 1;
        let mut seals = HashMap::new();
        self.each("memfd.img", |memfd: MemfdInodeEntry| seals.extend([(memfd.inode_id, memfd.seals)]))?;
        if seals.is_empty() {
            return Ok(Vec::new());
        }
        // The open files of memfds, and whether those are sealed.
        let mut memfds = HashMap::new();
        self.each("files.img", |file: FileEntry| {
            if let Some(memfd) = file.memfd {
                let seals = seals.get(&u64::from(memfd.inode_id)).copied().unwrap_or(0);
                memfds.insert(file.id, seals & SEAL_WRITE != 0);
            }
        })?;
        let mut problems = Vec::new();
        for PstreeEntry { pid, .. } in processes {
            let Some(mm) = self.first::<MmEntry>(&format!("mm-{pid}.img"))? else { continue };
            if memfds.contains_key(&mm.exe_file_id) {
                problems.push((Cause::MemfdProgram, format!("process {pid} runs from a memfd")));
            }
            let shared = mm.vmas.iter().filter(|area| area.flags & MAP_SHARED != 0);
            let is_sealed = |file| memfds.get(&file) == Some(&true);
            if shared.filter_map(mapped_file).any(is_sealed) {
                let problem = format!(
                    "process {pid} has a memfd mapped as shared memory, and it is sealed against writes"
                );
                problems.push((Cause::SealedMemfd, problem));
            }
        }
        Ok(problems)
    }

    /// Processes in namespaces that criu does not make again. It makes those of the root, and of
    /// its descendants only mount and network namespaces, if the root has its own of that kind.
    fn nested_namespaces(&self, processes: &[PstreeEntry]) -> Result<Vec<String>> {
        let criu = self.first::<InventoryEntry>("inventory.img")?.and_then(|inventory| inventory.root_ids);
        let mut all = BTreeMap::new();
        for process in processes {
            if let Some(ids) = self.first::<TaskKobjIdsEntry>(&format!("ids-{}.img", process.pid))? {
                all.insert(process.pid, ids);
            }
        }
        let Some(root) = processes.first().and_then(|root| all.get(&root.pid)) else { return Ok(Vec::new()) };
        let own: BTreeSet<_> = criu.iter().flat_map(|criu| different(root, criu)).collect();
        let mut problems = Vec::new();
        for process in &processes[1..] {
            let (Some(ids), Some(parent)) = (all.get(&process.pid), all.get(&process.ppid)) else { continue };
            for kind in different(ids, parent) {
                if !(matches!(kind, "mount" | "network") && own.contains(kind)) {
                    problems.push(format!("process {} has a {kind} namespace of its own", process.pid));
                }
            }
        }
        Ok(problems)
    }

    /// Open files in `/proc` of threads: criu opens files before it makes threads.
    fn files_of_threads(&self, processes: &[PstreeEntry]) -> Result<Vec<String>> {
        let leaders: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
        let threads: BTreeSet<u32> = processes
            .iter()
            .flat_map(|process| &process.threads)
            .copied()
            .filter(|id| !leaders.contains(id))
            .collect();
        let mut problems = Vec::new();
        self.each_file_of_proc(|name, process, task| {
            if threads.contains(&process) || task.is_some_and(|task| threads.contains(&task)) {
                problems.push(format!("{name} is open, and is of a thread"));
            }
        })?;
        Ok(problems)
    }

    /// The open files in `/proc` of processes outside the tree. They can be opened again while
    /// those live.
    pub(crate) fn files_of_other_processes(&self) -> Result<BTreeSet<String>> {
        let processes = self.processes()?;
        let own = processes.iter().flat_map(|process| process.threads.iter().chain([&process.pid]));
        let own: BTreeSet<u32> = own.copied().collect();
        let mut names = BTreeSet::new();
        self.each_file_of_proc(|name, process, _| {
            if !own.contains(&process) {
                names.insert(name.to_owned());
            }
        })?;
        Ok(names)
    }

    /// Shows the name of each open file such as `/proc/17/task/18/stat`, the number of the process,
    /// and that of the task if there is one.
    fn each_file_of_proc(&self, mut look: impl FnMut(&str, u32, Option<u32>)) -> Result<()> {
        self.each("files.img", |file: FileEntry| {
            let Some(name) = file.reg.map(|file| String::from_utf8_lossy(&file.name).into_owned()) else {
                return;
            };
            let mut words = name.trim_start_matches('/').split('/');
            if words.next() != Some("proc") {
                return;
            }
            let number = |word: Option<&str>| word.and_then(|word| word.parse::<u32>().ok());
            let Some(process) = number(words.next()) else { return };
            let task = words.next().filter(|word| *word == "task").and_then(|_| number(words.next()));
            look(&name, process, task);
        })
    }
}

/// The kinds of namespaces that differ.
fn different(one: &TaskKobjIdsEntry, other: &TaskKobjIdsEntry) -> Vec<&'static str> {
    let kinds = [
        ("pid", one.pid_ns_id, other.pid_ns_id),
        ("network", one.net_ns_id, other.net_ns_id),
        ("ipc", one.ipc_ns_id, other.ipc_ns_id),
        ("uts", one.uts_ns_id, other.uts_ns_id),
        ("mount", one.mnt_ns_id, other.mnt_ns_id),
        ("user", one.user_ns_id, other.user_ns_id),
        ("time", one.time_ns_id, other.time_ns_id),
    ];
    kinds.into_iter().filter(|(_, one, other)| one != other).map(|(kind, ..)| kind).collect()
}
