//! Gives the threads of a revived tree the settings that they had, before they run.

use std::{collections::HashMap, fs, io};

use super::frozen::settings::{coredump_filter, covers, inner_number, threads, timer_slack};
use crate::{
    BoxError, Pid, Warning,
    image::Notes,
    procfs::{is_in_our_pid_namespace, tree},
    proto::images::ThreadNotes,
    rpc::{Event, Hooks},
    sys,
};

/// Sets what was noted, once all tasks are there and none of them runs.
pub(super) struct Settle<H> {
    /// Hears of the same events.
    then: H,
    notes: Vec<ThreadNotes>,
    root: Option<Pid>,
    pub(super) warnings: Vec<Warning>,
}

impl<H: Hooks> Settle<H> {
    pub(super) fn new(notes: Option<Notes>, then: H) -> Settle<H> {
        let notes = notes.map(|notes| notes.threads).unwrap_or_default();
        Settle { then, notes, root: None, warnings: Vec::new() }
    }

    fn settle(&mut self, root: i32) {
        let numbers: Option<HashMap<i32, i32>> = (is_in_our_pid_namespace(root) == Some(false)).then(|| {
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
            self.try_to("timer slack", thread, set_timer_slack(thread, note.timer_slack));
            self.try_to("coredump filter", thread, set_coredump_filter(thread, note.coredump_filter));
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
                }
            }
            _ => {}
        }
        self.then.on(event)
    }

    fn wanted(&self) -> bool {
        !self.notes.is_empty() || self.then.wanted()
    }
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
