//! [`Rounds`]: pre-dumps of trees that run, so that the dump which ends them has less to send.
//!
//! criu clears the kernel's marks of changed pages in each round, and takes a page without one as
//! known from the round before. So no other process may clear them in between, and the number of
//! the root must stay that process's.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    super::{memory, polls::Polls, staging::Staging},
    Tree,
};
use crate::{
    Criu, DumpOptions, Error, Pid, ProcessProblem, Result, Version,
    platform::Memory,
    procfs::{Stat, lineage},
    rpc::Lend,
    threads::{joined, spawn},
};

/// The first release that takes a pre-dump alone.
const PRE_DUMPS: Version = Version::new(3, 17, 0);

/// Asks criu whether there can be rounds, if there are to be any: none where memory is not tracked.
pub(super) fn possible(criu: &Criu, rounds: u32) -> Result<u32> {
    if rounds == 0 {
        return Ok(0);
    }
    let about = criu.about()?;
    let can = about.features.mem_track && about.version >= PRE_DUMPS;
    Ok(if can { rounds } else { 0 })
}

/// Rounds of pre-dumps.
pub(super) struct Rounds {
    watched: Vec<Watch>,
    count: u32,
    /// The moment by which criu is to be done with all rounds and the dump.
    deadline: Option<Instant>,
}

/// A round that brings less than this is not worth another: what a dump costs besides is more.
const LITTLE: u64 = 1 << 20;

impl Rounds {
    pub(super) fn begin(trees: &[Tree], patience: Option<Duration>) -> Result<Rounds> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let watched = trees.iter().map(|tree| Watch::over(tree.root)).collect::<Result<_>>()?;
        Ok(Rounds { watched, count: 0, deadline })
    }

    /// Pre-dumps the trees up to so many times, as long as that makes the next time shorter.
    pub(super) fn run(
        &mut self,
        criu: &Criu,
        trees: &[Tree],
        most: u32,
        memory: &dyn Memory,
        staging: &Staging,
    ) -> Result<()> {
        let mut before = u64::MAX;
        while self.count < most {
            let round = self.count + 1;
            for tree in trees {
                staging.folder(&name(tree.root, round))?;
            }
            let criu = self.with_remaining_time(criu)?;
            match trees {
                [tree] => self.pre_dump(&criu, tree, round, memory, staging)?,
                trees => thread::scope(|scope| {
                    let pre_dump = |tree| self.pre_dump(&criu, tree, round, memory, staging);
                    let pre_dumps: Vec<_> =
                        trees.iter().map(|tree| spawn(scope, move || pre_dump(tree))).collect();
                    let ends: Vec<Result<()>> =
                        pre_dumps.into_iter().map(|end| joined(end?.join())).collect();
                    ends.into_iter().collect::<Result<()>>()
                })?,
            }
            let brought = memory.end_round()?;
            for tree in trees.iter().filter(|_| self.count > 0) {
                staging.remove_folder(&name(tree.root, self.count));
            }
            self.count = round;
            if brought < LITTLE || brought > before / 4 * 3 {
                break;
            }
            before = brought;
        }
        Ok(())
    }

    fn pre_dump(
        &self,
        criu: &Criu,
        tree: &Tree,
        round: u32,
        memory: &dyn Memory,
        staging: &Staging,
    ) -> Result<()> {
        let path = staging.path().join(name(tree.root, round));
        let folder = File::open(&path).map_err(Error::io(format!("open {}", path.display())))?;
        let options = self.with_parent_images(tree.options.clone(), tree.root).for_pre_dump();
        memory::stream(memory, tree.root, |socket, _| {
            let _polls = Polls::of(tree.root, true);
            criu.pre_dump(tree.root, &options, Lend::images(&folder).page_server(&socket))
        })
    }

    /// Options for what comes after the rounds so far.
    pub(super) fn with_parent_images(&self, options: DumpOptions, root: Pid) -> DumpOptions {
        match self.count {
            0 => options,
            round => options.track_mem(true).parent_img(format!("../{}", name(root, round))),
        }
    }

    /// A criu that has the time that is left, for trees that are what they were.
    pub(super) fn with_remaining_time(&self, criu: &Criu) -> Result<Criu> {
        self.watched.iter().try_for_each(Watch::check)?;
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Ok(left.map_or(criu.clone(), |left| criu.clone().deadline(left)))
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

/// The folder of a round.
fn name(root: Pid, round: u32) -> String {
    format!("{root}-{round}")
}

/// Checks that a root is the same process, and that no other capture clears the marks in its tree.
/// A capture that tracks a tree locks the root's folder in `/proc`, and shares locks on those of
/// its ancestors.
struct Watch {
    root: Pid,
    folder: Flock<File>,
    _ancestors: Vec<Flock<File>>,
}

impl Watch {
    fn over(root: Pid) -> Result<Watch> {
        let line = lineage(root.as_raw());
        let ancestors = line.into_iter().skip(1).filter_map(|pid| {
            // No capture tracks a process that has ended, or that we may not see.
            lock(pid, FlockArg::LockSharedNonblock).map_err(|errno| lock_error(errno, root)).transpose()
        });
        let folder =
            lock(root.as_raw(), FlockArg::LockExclusiveNonblock).map_err(|errno| lock_error(errno, root))?;
        let folder = folder.ok_or(Error::Process { pid: root, problem: ProcessProblem::Missing })?;
        Ok(Watch { root, folder, _ancestors: ancestors.collect::<Result<_>>()? })
    }

    fn check(&self) -> Result<()> {
        let pid = self.root;
        let is_zombie = Stat::of(pid.as_raw()).is_ok_and(|stat| stat.is_zombie());
        // The folder stays that of the process it was opened for, even if another has its number
        // now.
        let problem = match fs::read(format!("/proc/self/fd/{}/stat", self.folder.as_raw_fd())) {
            Ok(_) if !is_zombie => return Ok(()),
            Ok(_) => ProcessProblem::Zombie,
            Err(_) => ProcessProblem::Missing,
        };
        Err(Error::Process { pid, problem })
    }
}

/// Locks a process's folder in `/proc`; `None` if it cannot be opened.
fn lock(pid: i32, how: FlockArg) -> Result<Option<Flock<File>>, Errno> {
    let Ok(folder) = File::open(format!("/proc/{pid}")) else { return Ok(None) };
    Flock::lock(folder, how).map(Some).map_err(|(_, errno)| errno)
}

fn lock_error(errno: Errno, root: Pid) -> Error {
    match errno {
        Errno::EWOULDBLOCK => Error::Busy {
            what: format!("the tree of process {root}"),
            by: "another capture with pre-dumps, which tracks its memory".to_owned(),
        },
        errno => Error::io(format!("lock /proc/{root}"))(io::Error::from(errno)),
    }
}
