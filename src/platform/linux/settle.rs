//! Gives the threads of a revived tree the settings that they had, before they run.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
};

use super::frozen::{
    mapped,
    settings::{coredump_filter, covers, group_nice, inner_number, slice, threads, timer_slack},
    sockets, terminals,
};
use crate::{
    BoxError, Pid, Warning,
    image::Notes,
    procfs::{is_in_our_pid_namespace, tree},
    proto::images::{MappedNote, SessionNotes, SocketNotes, TerminalNotes, ThreadNotes},
    rpc::{Event, Hooks},
    sys,
};

/// Sets what was noted, once all tasks are there and none of them runs.
pub(super) struct Settle<H> {
    /// Hears of the same events.
    then: H,
    notes: Vec<ThreadNotes>,
    sessions: Vec<SessionNotes>,
    mapped: Vec<MappedNote>,
    sockets: Vec<SocketNotes>,
    terminals: Vec<TerminalNotes>,
    root: Option<Pid>,
    pub(super) warnings: Vec<Warning>,
}

impl<H: Hooks> Settle<H> {
    pub(super) fn new(notes: Option<Notes>, then: H) -> Settle<H> {
        let Notes { threads: notes, sessions, sockets, mapped, terminals, .. } = notes.unwrap_or_default();
        Settle { then, notes, sessions, sockets, mapped, terminals, root: None, warnings: Vec::new() }
    }

    fn settle(&mut self, root: i32) {
        // Without an answer the root was killed, and its numbers may be those of others.
        let Some(is_ours) = is_in_our_pid_namespace(root) else { return };
        let numbers: Option<HashMap<i32, i32>> = (!is_ours).then(|| {
            let threads = tree(root).into_iter().flat_map(threads);
            threads.filter_map(|thread| Some((inner_number(thread)?, thread))).collect()
        });
        let online = sys::online_processors();
        for note in std::mem::take(&mut self.notes) {
            let Ok(tid) = i32::try_from(note.tid) else { continue };
            let thread = numbers.as_ref().map_or(Some(tid), |numbers| numbers.get(&tid).copied());
            let Some(thread) = thread else { continue };
            self.try_to("CPU affinity", thread, set_affinity(thread, &note.affinity, &online));
            self.try_to("I/O priority", thread, set_io_priority(thread, note.io_priority));
            self.try_to("turns on a processor", thread, set_slice(thread, note.slice));
            self.try_to("timer slack", thread, set_timer_slack(thread, note.timer_slack));
            self.try_to("coredump filter", thread, set_coredump_filter(thread, note.coredump_filter));
        }
    }

    /// Sets what was noted of sockets and sessions.
    fn settle_others(&mut self, root: i32) {
        let numbers = by_inner_number(root);
        for note in std::mem::take(&mut self.sessions) {
            let Some(leader) = numbers.get(&note.sid) else { continue };
            self.try_to("nice value of its session", *leader, set_group_nice(*leader, note.nice));
        }
        let mapped = std::mem::take(&mut self.mapped);
        let changed = mapped.iter().filter_map(|note| mapped::changed(*numbers.get(&note.pid)?, note));
        let changed: BTreeSet<_> = changed.collect();
        self.warnings.extend(changed.into_iter().map(|path| Warning::FileChanged { path }));
        for note in std::mem::take(&mut self.sockets) {
            let Some(process) = numbers.get(&note.pid) else { continue };
            self.try_to("options of its sockets", *process, sockets::set(*process, &note));
        }
        for note in std::mem::take(&mut self.terminals) {
            let Some(process) = numbers.get(&note.pid) else { continue };
            self.try_to("unread bytes of its terminals", *process, terminals::put(*process, &note));
        }
    }

    fn try_to(&mut self, what: &'static str, thread: i32, done: io::Result<()>) {
        let Err(error) = done else { return };
        let told = |warning: &Warning| matches!(warning, Warning::NotSet { what: told, .. } if *told == what);
        if !self.warnings.iter().any(told) {
            let pid = Pid::from(thread);
            self.warnings.push(Warning::NotSet { pid, what, problem: error.to_string() });
        }
    }
}

impl<H: Hooks> Hooks for Settle<H> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        match event {
            Event::PostRestore { pid } => self.root = Some(pid),
            Event::PreResume => {
                if let Some(root) = self.root {
                    self.settle(root.as_raw());
                    self.settle_others(root.as_raw());
                }
            }
            _ => {}
        }
        self.then.on(event)
    }

    fn wanted(&self) -> bool {
        let nothing = self.notes.is_empty()
            && self.mapped.is_empty()
            && self.sessions.is_empty()
            && self.sockets.is_empty()
            && self.terminals.is_empty();
        !nothing || self.then.wanted()
    }
}

/// The processes of a tree by their numbers in its own pid namespace.
pub(super) fn by_inner_number(root: i32) -> HashMap<u32, i32> {
    let number = |pid| u32::try_from(inner_number(pid)?).ok();
    tree(root).into_iter().filter_map(|pid| Some((number(pid)?, pid))).collect()
}

/// An empty mask is all processors, however many there are.
fn set_affinity(thread: i32, wanted: &[u64], online: &[u64]) -> io::Result<()> {
    let now = sys::affinity(thread)?;
    if wanted.is_empty() {
        return if covers(&now, online) {
            Ok(())
        } else {
            sys::set_affinity(thread, &vec![u64::MAX; now.len()])
        };
    }
    if same(&now, wanted) {
        return Ok(());
    }
    sys::set_affinity(thread, wanted)?;
    match same(&sys::affinity(thread)?, wanted) {
        true => Ok(()),
        false => Err(io::Error::other("this machine lacks some of the processors")),
    }
}

fn same(one: &[u64], other: &[u64]) -> bool {
    covers(one, other) && covers(other, one)
}

fn set_io_priority(thread: i32, wanted: Option<u32>) -> io::Result<()> {
    match wanted {
        Some(wanted) if sys::io_priority(thread)? != wanted => sys::set_io_priority(thread, wanted),
        _ => Ok(()),
    }
}

/// Keeps all else that the scheduler knows of the thread.
fn set_slice(thread: i32, wanted: Option<u64>) -> io::Result<()> {
    match wanted {
        Some(wanted) if slice(thread).is_some_and(|slice| slice != wanted) => {
            let now = sys::scheduling(thread)?;
            sys::set_scheduling(thread, &now.with_slice(wanted))
        }
        _ => Ok(()),
    }
}

fn set_group_nice(leader: i32, wanted: i32) -> io::Result<()> {
    match group_nice(leader) {
        Some(now) if now != wanted => fs::write(format!("/proc/{leader}/autogroup"), wanted.to_string()),
        _ => Ok(()),
    }
}

fn set_timer_slack(thread: i32, wanted: Option<u64>) -> io::Result<()> {
    match wanted {
        Some(wanted) if timer_slack(thread) != Some(wanted) => {
            fs::write(format!("/proc/{thread}/timerslack_ns"), wanted.to_string())
        }
        _ => Ok(()),
    }
}

fn set_coredump_filter(process: i32, wanted: Option<u32>) -> io::Result<()> {
    match wanted {
        Some(wanted) if coredump_filter(process) != Some(wanted) => {
            fs::write(format!("/proc/{process}/coredump_filter"), format!("{wanted:#x}"))
        }
        _ => Ok(()),
    }
}
