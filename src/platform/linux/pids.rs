//! The pids that a tree is to get back: whether they are free, and which processes hold them.

use std::{
    collections::{BTreeSet, HashMap},
    fs, thread,
    time::{Duration, Instant},
};

use super::files::refuse;
use crate::{
    Cause, Error, Result,
    image::ImageDir,
    plain::plain,
    procfs::{self, Stat},
    proto::images::PstreeEntry,
};

/// The numbers that a tree needs: those of its processes and threads, and of groups and sessions
/// whose leaders are gone. For each of the latter criu makes a process for a while.
pub(super) struct Pids(BTreeSet<i32>);

impl Pids {
    /// The numbers of a tree in a pid namespace of its own: all of them are free.
    pub(super) fn of_copy() -> Pids {
        Pids(BTreeSet::new())
    }

    pub(super) fn of(images: &ImageDir) -> Result<Pids> {
        if images.has_own_pids()? {
            // Its numbers count in a namespace that is made for the tree.
            return Ok(Pids(BTreeSet::new()));
        }
        let processes = images.processes()?;
        // The images list arbitrary threads of a zombie.
        let threads = |process: &PstreeEntry| match process.threads.contains(&process.pid) {
            true => process.threads.clone(),
            false => vec![process.pid],
        };
        // The group and the session of a root that leads none are left to the caller's own.
        let outer =
            processes.first().map(|root| [root.pgid, root.sid].map(|number| (number, number != root.pid)));
        let outer: Vec<_> =
            outer.into_iter().flatten().filter(|(_, outer)| *outer).map(|(number, _)| number).collect();
        let leaders = processes.iter().flat_map(|process| [process.pgid, process.sid]);
        let leaders = leaders.filter(|leader| !outer.contains(leader));
        let numbers = processes.iter().flat_map(threads).chain(leaders);
        let numbers = numbers.filter_map(|number| i32::try_from(number).ok()).filter(|number| *number > 0);
        Ok(Pids(numbers.collect()))
    }

    /// Refuses to begin while a process that lives holds a number.
    pub(super) fn check(&self) -> Result<()> {
        let mut holders = self.holders();
        holders.retain(|holder| !holder.stat.has_ended());
        refuse(Cause::PidInUse, holders.iter().map(Holder::words))
    }

    /// The numbers that only zombies hold, for people.
    pub(super) fn held_by_zombies(&self) -> Vec<String> {
        let mut holders = self.holders();
        holders.retain(|holder| holder.stat.has_ended());
        holders.iter().map(Holder::words).collect()
    }

    /// Waits while only zombies and processes that are ending hold a number: init, for instance, is
    /// about to reap them. A process that lives is not waited for.
    pub(super) fn wait_for_zombies(&self, patience: Duration) {
        let deadline = Instant::now().checked_add(patience);
        loop {
            let holders = self.holders();
            if holders.is_empty() || holders.iter().any(|holder| !holder.stat.has_ended()) {
                return;
            }
            // Looking at those alone is cheap, however many processes the machine has.
            while holders.iter().any(Holder::is_there) {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Adds the holders of the numbers to an error that says that one is taken.
    pub(super) fn name_holders(&self, error: Error) -> Error {
        match error {
            Error::Criu(mut failure) if failure.cause == Cause::PidInUse => {
                failure.findings.extend(self.holders().iter().map(Holder::words));
                Error::Criu(failure)
            }
            error => error,
        }
    }

    /// Restores again, a few times, while criu finds a number taken that no process holds. Linux
    /// 6.15 and later tell a parent that a process has ended before they free the number of its
    /// last thread. No call can see such a number. The zombies that a failed restore left are
    /// waited for as long as `patience` says, in all.
    pub(super) fn retry_until_freed<T>(
        &self,
        patience: Duration,
        restore: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now().checked_add(patience);
        let all_free = || {
            let left = deadline.map_or(patience, |end| end.saturating_duration_since(Instant::now()));
            self.wait_for_zombies(left);
            !self.0.is_empty() && self.holders().is_empty()
        };
        retry(all_free, restore)
    }

    /// The processes that hold a number of these; of those in one session or process group the
    /// first [`MOST`]. The kernel gives none anew that is still the number of a process group or of
    /// a session, although its leader is gone.
    fn holders(&self) -> Vec<Holder> {
        if self.0.is_empty() {
            return Vec::new();
        }
        // Threads have numbers too, which `/proc` knows but does not list.
        let own = |number: &i32| {
            let stat = Stat::of(*number).ok()?;
            Some(Holder { pid: *number, number: *number, uses: Use::Own, stat })
        };
        let mut holders: Vec<_> = self.0.iter().filter_map(own).collect();
        let mut counts = HashMap::<i32, usize>::new();
        for pid in procfs::processes().filter(|pid| !self.0.contains(pid)) {
            let belongs = procfs::belongs_to(pid).into_iter().zip([Use::Session, Use::Group]);
            let mut held = belongs.filter_map(|(number, uses)| Some((number?, uses)));
            let Some((number, uses)) = held.find(|(number, _)| self.0.contains(number)) else { continue };
            let count = counts.entry(number).or_default();
            if *count < MOST {
                let Ok(stat) = Stat::of(pid) else { continue };
                holders.push(Holder { pid, number, uses, stat });
                *count += 1;
            }
        }
        holders
    }
}

/// Restores up to [`TRIES`] times while that fails because a number is taken and `all_free` is
/// true.
fn retry<T>(all_free: impl Fn() -> bool, mut restore: impl FnMut() -> Result<T>) -> Result<T> {
    for tried in 1..TRIES {
        match restore() {
            Err(error) if is_pid_in_use(&error) && all_free() => thread::sleep(PAUSE * tried),
            result => return result,
        }
    }
    restore()
}

fn is_pid_in_use(error: &Error) -> bool {
    error.failure().is_some_and(|failure| failure.cause == Cause::PidInUse)
}

const TRIES: u32 = 6;

/// The most holders of one number that are named.
const MOST: usize = 10;

/// The pause after the first attempt. The next are longer.
const PAUSE: Duration = Duration::from_millis(20);

/// The role of a number for the process that holds it.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Own,
    Group,
    Session,
}

/// A process that holds a number.
struct Holder {
    pid: i32,
    number: i32,
    uses: Use,
    stat: Stat,
}

impl Holder {
    fn is_there(&self) -> bool {
        Stat::of(self.pid).is_ok_and(|stat| match self.uses {
            Use::Own => true,
            Use::Group => stat.group == self.number,
            Use::Session => stat.session == self.number,
        })
    }

    /// The holder, for people.
    fn words(&self) -> String {
        let Holder { pid, number, uses, stat } = self;
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        let name = plain(name.trim_end());
        let holder = match uses {
            Use::Own => "by".to_owned(),
            Use::Group => format!("as a process group by process {pid},"),
            Use::Session => format!("as a session by process {pid},"),
        };
        match stat.has_ended() {
            true => {
                let parent = stat.parent;
                format!(
                    "pid {number} is held {holder} the zombie of `{name}`, which its parent, process {parent}, has \
                     not reaped"
                )
            }
            false => format!("pid {number} is held {holder} `{name}`, which runs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Failure, Request};

    fn taken() -> Error {
        Error::Criu(Box::new(Failure::foreseen(Request::Restore, Cause::PidInUse, Vec::new())))
    }

    /// Fails so many times, and counts the calls.
    fn failing(times: u32, calls: &mut u32) -> impl FnMut() -> Result<&'static str> {
        move || {
            *calls += 1;
            if *calls > times { Ok("revived") } else { Err(taken()) }
        }
    }

    #[test]
    fn a_restore_is_tried_again_while_a_number_is_taken_that_no_process_holds() {
        let mut calls = 0;
        assert_eq!(retry(|| true, failing(2, &mut calls)).unwrap(), "revived");
        assert_eq!(calls, 3);
    }

    #[test]
    fn a_number_that_a_process_holds_fails_the_restore_at_once() {
        let mut calls = 0;
        assert!(is_pid_in_use(&retry(|| false, failing(2, &mut calls)).unwrap_err()));
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_number_that_is_never_freed_fails_the_restore_in_the_end() {
        let mut calls = 0;
        assert!(is_pid_in_use(&retry(|| true, failing(u32::MAX, &mut calls)).unwrap_err()));
        assert_eq!(calls, TRIES);
    }
}
