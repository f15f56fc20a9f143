//! Finds state that a revived tree will lack, as far as it is visible from outside.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
};

use super::{Frozen, OpenFile, settings::threads};
use crate::{
    Pid, Warning,
    procfs::{Stat, fdinfo_number, read_start},
    sys,
};

/// Finds state of each process that criu does not carry along and that cannot be set from outside.
pub(super) fn look(tree: &Frozen) -> Vec<Warning> {
    let mut lost = Vec::new();
    let caller_gains_nothing = status_of("self").is_some_and(|text| gains_no_privileges(&text));
    for process in &tree.pids {
        let mut found = |what| lost.push(Warning::Lost { pid: Pid::from(*process), what });
        if read_start(format!("/proc/{process}/personality")).is_some_and(|text| is_personality(&text)) {
            found("personality");
        }
        if first_mapping(*process).is_some_and(|text| has_memory_policy(&text)) {
            found("NUMA memory policy");
        }
        let status = status_of(process).unwrap_or_default();
        if has_speculation_control(&status) {
            found("speculation control");
        }
        // The kernel shows a sandbox of Landlock to no process. A program without privileges needs
        // this flag to make one.
        if gains_no_privileges(&status) && !caller_gains_nothing {
            found("sandbox of Landlock, if it has one");
        }
        if Stat::of(*process).is_ok_and(|stat| inherited_terminal(*process, &stat, &tree.pids)) {
            found("controlling terminal");
        }
        if Some(process) != tree.pids.first()
            && Stat::of(*process).is_ok_and(|stat| has_own_exit_signal(&stat))
        {
            found("exit signal other than SIGCHLD");
        }
        if has_thread_apart(*process) {
            found("separate descriptors, folder or network of a thread");
        }
        if read_start(format!("/proc/{process}/ksm_stat")).is_some_and(|text| merges_memory(&text)) {
            found("setting to merge equal memory (PR_SET_MEMORY_MERGE)");
        }
    }
    let what = tree.files.iter().filter_map(|file| Some((file.pid, what_a_file_lacks(file)?)));
    let what: BTreeSet<_> = what.collect();
    lost.extend(what.into_iter().map(|(pid, what)| Warning::Lost { pid: Pid::from(pid), what }));
    lost
}

/// Returns true if the process inherited its controlling terminal. It gets none at the restore:
/// criu forks all processes before it gives the leader of a session its terminal.
fn inherited_terminal(process: i32, stat: &Stat, tree: &[i32]) -> bool {
    !stat.is_zombie() && stat.has_terminal() && stat.session != process && tree.contains(&stat.session)
}

/// Returns true if the parent is told of its end by another signal, or by none (`clone`). Its
/// `wait` passes over such a process.
fn has_own_exit_signal(stat: &Stat) -> bool {
    !stat.is_zombie() && stat.exit_signal != libc::SIGCHLD
}

/// Returns true if a thread has other descriptors, folders or another network than the first
/// thread. criu looks only at the first one.
fn has_thread_apart(process: i32) -> bool {
    let network = |thread| fs::read_link(format!("/proc/{process}/task/{thread}/ns/net")).ok();
    let mut others = threads(process).filter(|thread| *thread != process).peekable();
    let Some(own) = others.peek().and_then(|_| network(process)) else { return false };
    others.any(|thread| {
        let apart = |shared: io::Result<bool>| shared.is_ok_and(|shared| !shared);
        apart(sys::shares_files(process, thread))
            || apart(sys::shares_folders(process, thread))
            || network(thread).is_some_and(|other| other != own)
    })
}

fn merges_memory(ksm: &str) -> bool {
    ksm.lines().any(|line| line.split_ascii_whitespace().eq(["ksm_merge_any:", "yes"]))
}

/// Tells of a mode that criu does not write down.
fn what_a_file_lacks(file: &OpenFile) -> Option<&'static str> {
    let info = || read_start(format!("/proc/{}/fdinfo/{}", file.pid, file.fd)).unwrap_or_default();
    match file.target.to_str()? {
        "anon_inode:[eventfd]" => (fdinfo_number(&info(), "eventfd-semaphore") == Some(1))
            .then_some("semaphore mode of an eventfd (EFD_SEMAPHORE)"),
        "anon_inode:[eventpoll]" => info()
            .lines()
            .any(is_disarmed)
            .then_some("disarmed entries of an epoll (EPOLLONESHOT): those tell of errors and hangups"),
        "anon_inode:inotify" | "anon_inode:[inotify]" => {
            info().lines().any(tells_once).then_some("mode of a watch that tells once (IN_ONESHOT)")
        }
        name if name.starts_with('/') && name.ends_with(" (deleted)") => {
            has_attributes(file).then_some("extended attributes of a deleted file")
        }
        _ => None,
    }
}

/// True of a watch that ends with its first event. The kernel shows that since Linux 5.19.
fn tells_once(line: &str) -> bool {
    const ONE_SHOT: u32 = 1 << 31;
    let mask = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("mask:"));
    let mask = mask.and_then(|mask| u32::from_str_radix(mask, 16).ok());
    line.starts_with("inotify wd:") && mask.is_some_and(|mask| mask & ONE_SHOT != 0)
}

/// Returns true if a file has attributes that a program has set. A security module sets others.
fn has_attributes(file: &OpenFile) -> bool {
    let names = sys::attributes(file.path()).unwrap_or_default();
    let is_set =
        |name: &[u8]| !name.is_empty() && (!name.starts_with(b"security.") || name == b"security.capability");
    names.split(|byte| *byte == 0).any(is_set)
}

/// True of an entry of epoll whose only event was told already. criu adds the entry anew, and the
/// kernel tells of errors and hangups at each entry that is added.
fn is_disarmed(line: &str) -> bool {
    const MODES: u32 = 0xf << 28;
    const ONE_SHOT: u32 = 1 << 30;
    let mut words = line.split_ascii_whitespace();
    let events = words.find(|word| *word == "events:").and_then(|_| words.next());
    let events = events.and_then(|events| u32::from_str_radix(events, 16).ok());
    events.is_some_and(|events| events & ONE_SHOT != 0 && events & !MODES == 0)
}

fn is_personality(text: &str) -> bool {
    u32::from_str_radix(text.trim(), 16).is_ok_and(|personality| personality != 0)
}

/// The start of the list of mappings with their policies. All of it takes the kernel as long as
/// reading the memory.
fn first_mapping(process: i32) -> Option<String> {
    let mut start = [0; 256];
    let count = File::open(format!("/proc/{process}/numa_maps")).ok()?.read(&mut start).ok()?;
    Some(String::from_utf8_lossy(&start[..count]).into_owned())
}

/// Returns true if the process has a memory policy of its own. The kernel shows it for each mapping
/// without one.
fn has_memory_policy(text: &str) -> bool {
    text.split_ascii_whitespace().nth(1).is_some_and(|policy| policy != "default")
}

fn status_of(process: impl std::fmt::Display) -> Option<String> {
    read_start(format!("/proc/{process}/status"))
}

/// Returns true if the process gave up gaining privileges (PR_SET_NO_NEW_PRIVS).
fn gains_no_privileges(status: &str) -> bool {
    status.lines().any(|line| line.split_ascii_whitespace().eq(["NoNewPrivs:", "1"]))
}

/// Returns true if the program asked for a protection that is not the kernel's default.
fn has_speculation_control(text: &str) -> bool {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let by_itself = value("Seccomp").is_some_and(|mode| mode != "0");
    let asked =
        |name| value(name).is_some_and(|value| value.starts_with("thread") && value.contains("mitigated"));
    !by_itself && asked("Speculation_Store_Bypass")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_is_not_lost() {
        assert!(!is_personality("00000000\n") && !is_personality("") && is_personality("00040000\n"));
        assert!(!has_memory_policy("7f00 default file=/x") && !has_memory_policy(""));
        assert!(has_memory_policy("7f00 prefer:0 anon=1"));
        let status = |store, seccomp| format!("Seccomp:\t{seccomp}\nSpeculation_Store_Bypass:\t{store}\n");
        assert!(has_speculation_control(&status("thread force mitigated", 0)));
        assert!(!has_speculation_control(&status("thread force mitigated", 2)));
        assert!(!has_speculation_control(&status("thread vulnerable", 0)));
        assert!(!has_speculation_control(""));
        assert!(
            gains_no_privileges("Name:\tx\nNoNewPrivs:\t1\n") && !gains_no_privileges("NoNewPrivs:\t0\n")
        );
        assert!(is_disarmed("tfd:       20 events: 40000000 data:     7f2d00000014  pos:0 ino:71d852"));
        assert!(!is_disarmed("tfd:       20 events: 40000019 data:     7f2d00000014  pos:0 ino:71d852"));
        assert!(!is_disarmed("tfd:       20 events: 19 data:     7f2d00000014  pos:0 ino:71d852"));
        assert!(tells_once("inotify wd:1 ino:9b sdev:fe mask:80000100 ignored_mask:0"));
        assert!(!tells_once("inotify wd:1 ino:9b sdev:fe mask:100 ignored_mask:80000000"));
        assert!(
            merges_memory("ksm_rmap_items 0\nksm_merge_any: yes\n") && !merges_memory("ksm_merge_any: no")
        );
    }
}
