//! The pids that a tree is to get back: whether they are free, and who has them.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{Error, Result, image::ImageDir, procfs::Stat, proto::images::PstreeEntry};

/// The numbers of all processes and threads of a tree.
pub(super) struct Pids(Vec<i32>);

impl Pids {
    pub(super) fn of(images: &ImageDir) -> Result<Pids> {
        let processes = images.processes()?;
        // Of a zombie the images list arbitrary threads.
        let threads = |process: &PstreeEntry| match process.threads.contains(&process.pid) {
            true => process.threads.clone(),
            false => vec![process.pid],
        };
        let numbers = processes.iter().flat_map(threads);
        let mut numbers: Vec<_> = numbers.filter_map(|number| i32::try_from(number).ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Pids(numbers))
    }

    /// Waits while a number is held by nothing but a zombie: somebody, init for instance, is about to reap it. There is
    /// no use in waiting for a process that lives.
    pub(super) fn wait_for_zombies(&self, patience: Duration) {
        let deadline = Instant::now().checked_add(patience);
        loop {
            let holders: Vec<_> = self.0.iter().filter_map(|pid| Stat::of(*pid).ok()).collect();
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if holders.is_empty() || late || holders.iter().any(|holder| !holder.is_zombie()) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Adds who holds the numbers to an error that says that one is taken.
    pub(super) fn name_holders(&self, error: Error) -> Error {
        match error {
            Error::Criu(mut failure) if failure.cause == crate::Cause::PidInUse => {
                failure.findings.extend(self.0.iter().filter_map(|pid| holder(*pid)));
                Error::Criu(failure)
            }
            error => error,
        }
    }
}

/// Who has the number, for people.
fn holder(pid: i32) -> Option<String> {
    let stat = Stat::of(pid).ok()?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    let name = name.trim_end();
    Some(match stat.is_zombie() {
        true => {
            let parent = stat.parent;
            format!(
                "pid {pid} is held by the zombie of `{name}`, which its parent, process {parent}, has not reaped"
            )
        }
        false => format!("pid {pid} is held by `{name}`, which runs"),
    })
}
