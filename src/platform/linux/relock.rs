//! Takes the locks again that criu has lost, in the processes that had them, while the tree is
//! stopped.
//!
//! A lock belongs to the process that takes it, so the process itself has to: it is traced and
//! makes the system call, and then is as it was. criu is asked to leave the tree stopped for that,
//! and here it is let go on.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::frozen::settings::{inner_number, threads};
use crate::{
    Cause, Error, Failure, Pid, Request, Result, Until, Warning,
    image::{ImageDir, LostLock},
    procfs::{Mapping, Stat, Status, each_line, tree},
    sys::{self, Registers, Stand, Statx, Traced},
    wiped::Wiped,
};

/// The locks of a tree that are to be taken again.
pub(super) struct Relock {
    locks: Vec<LostLock>,
    /// Processes that are to stay stopped, in the tree's pid namespace.
    stopped: HashSet<u32>,
}

/// The longest that it may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Relock {
    /// `None` if criu loses none.
    pub(super) fn of(images: &ImageDir) -> Result<Option<Relock>> {
        let own_mounts = images.has_own_mounts()?;
        let same = |one: &[u8], other: &[u8]| {
            !own_mounts && identity(one).is_some_and(|one| identity(other) == Some(one))
        };
        let locks = images.lost_locks(same)?;
        if locks.is_empty() {
            return Ok(None);
        }
        Ok(Some(Relock { locks, stopped: images.stopped()? }))
    }

    /// Takes the locks in a tree that criu has left stopped, and lets it go on, unless it is to
    /// `stay`.
    pub(super) fn finish(&self, root: Pid, stay: bool, until: &Until) -> Result<Vec<Warning>> {
        let until = Instant::now() + until.remaining().map_or(PATIENCE, |left| left.min(PATIENCE));
        let processes = tree(root.as_raw());
        let numbers: HashMap<u32, i32> =
            processes.iter().filter_map(|pid| Some((inner_number(*pid)?.try_into().ok()?, *pid))).collect();
        let lost =
            |lock: &LostLock, process| Warning::LockLost { pid: process, path: path(&lock.path).into() };
        let nobodys = self.locks.iter().filter(|lock| !numbers.contains_key(&lock.pid));
        let mut warnings: Vec<_> =
            nobodys.map(|lock| lost(lock, Pid::from(i32::try_from(lock.pid).unwrap_or(i32::MAX)))).collect();
        for (number, process) in &numbers {
            let locks: Vec<_> = self.locks.iter().filter(|lock| lock.pid == *number).collect();
            if locks.is_empty() {
                continue;
            }
            match take(*process, &locks, until) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                    warnings.extend(locks.iter().map(|lock| lost(lock, Pid::from(*process))));
                }
                taken => taken?,
            }
        }
        if !stay {
            self.go_on(&processes, &numbers)?;
        }
        Ok(warnings)
    }

    /// Lets the processes go on that were not stopped at the capture: children first, so that no
    /// parent sees a stopped one.
    fn go_on(&self, processes: &[i32], numbers: &HashMap<u32, i32>) -> Result<()> {
        let stay =
            |pid: i32| numbers.iter().any(|(number, other)| *other == pid && self.stopped.contains(number));
        for pid in processes.iter().copied().rev().filter(|pid| !stay(*pid)) {
            let sent = sys::pidfd_open(pid).and_then(|process| sys::pidfd_signal(process, Signal::SIGCONT));
            match sent {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {} // it has ended
                sent => sent.map_err(Error::io(format!("let process {pid} go on")))?,
            }
        }
        Ok(())
    }
}

fn path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// The device and inode of the file at a path of the images.
fn identity(name: &[u8]) -> Option<(u64, u64)> {
    let file = Statx::of(Path::new("/").join(path(name))).ok()?;
    Some((file.dev(), file.ino()))
}

/// Has the process take its locks.
fn take(process: i32, locks: &[&LostLock], until: Instant) -> Result<()> {
    let doing = || Error::io(format!("take the locks of process {process} again"));
    wait_until_stopped(process, until).map_err(doing())?;
    let borrowed = Borrowed::new(process, until).map_err(doing())?;
    let mut taken = Ok(());
    for lock in locks {
        taken = borrowed.lock(lock, until).map_err(doing()).and_then(|errno| match errno {
            0 => Ok(()),
            libc::EAGAIN | libc::EACCES => Err(lock_taken(lock)),
            errno => Err(doing()(io::Error::from_raw_os_error(errno))),
        });
        if taken.is_err() {
            break;
        }
    }
    borrowed.give_back().map_err(doing()).and(taken)
}

fn lock_taken(lock: &LostLock) -> Error {
    let finding = format!("{}: another process has locked it meanwhile", path(&lock.path).display());
    Error::Criu(Failure::foreseen(Request::Restore, Cause::LockTaken, vec![finding]).into())
}

/// Waits until no thread of the process runs.
fn wait_until_stopped(process: i32, until: Instant) -> io::Result<()> {
    wait(until, || {
        let mut states =
            threads(process).map(|thread| Stat::of_thread(process, thread).map(|stat| stat.state));
        Ok(states.all(|state| matches!(state, Ok('T' | 't' | 'Z' | 'X') | Err(_))).then_some(()))
    })
}

fn wait<T>(until: Instant, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// Numbers of the calls to the kernel, on 64 bits.
const FCNTL: u64 = if cfg!(target_arch = "x86_64") { 72 } else { 25 };
const F_SETLK: u64 = 6;

/// A thread of a stopped process that works for us. Nothing else in that process runs meanwhile.
///
/// If it is not given back, its process ends.
struct Borrowed {
    process: i32,
    thread: Traced,
    memory: File,
    registers: Registers,
    blocked: u64,
    /// The address of a system call instruction.
    instruction: u64,
    /// Memory to put a lock into, and what was there.
    room: (u64, [u8; SIZE]),
    given_back: bool,
}

const SIZE: usize = 32;

impl Borrowed {
    fn new(process: i32, until: Instant) -> io::Result<Borrowed> {
        let memory = File::options().read(true).write(true).open(format!("/proc/{process}/mem"))?;
        let (instruction, room) = places(process, &memory)?;
        let mut saved = [0; SIZE];
        memory.read_exact_at(&mut saved, room)?;
        let mut living = threads(process)
            .filter(|thread| Stat::of_thread(process, *thread).is_ok_and(|stat| stat.state == 'T'));
        let tid = living.next().ok_or_else(|| io::Error::other("no thread of it is stopped"))?;
        let filtered = Status::read(format!("/proc/{tid}/status")).is_none_or(|status| status.seccomp != 0);
        let thread = Traced::seize(tid, filtered)?;
        let prepared = wait(until, || Ok((thread.stand()? != Stand::Running).then_some(())))
            .and_then(|()| Ok((thread.registers()?, thread.blocked()?)));
        let (registers, blocked) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = thread.detach(); // nothing was changed, and the tree ends
                return Err(error);
            }
        };
        let room = (room, saved);
        Ok(Borrowed { process, thread, memory, registers, blocked, instruction, room, given_back: false })
    }

    /// Takes a lock. Gives the error number, or 0.
    fn lock(&self, lock: &LostLock, until: Instant) -> io::Result<i32> {
        let (room, _) = self.room;
        self.memory.write_all_at(&flock(lock), room)?;
        self.thread.block(u64::MAX)?;
        let arguments = [lock.descriptor.into(), F_SETLK, room];
        self.thread.set_registers(&self.registers.before_call(self.instruction, FCNTL, arguments))?;
        self.go_on_to(until, |stand| (stand == Stand::Entry).then_some(()))?;
        let result = self.go_on_to(until, |stand| match stand {
            Stand::Exit(result) => Some(result),
            _ => None,
        })?;
        i32::try_from(-result).map_err(io::Error::other)
    }

    fn go_on_to<T>(&self, until: Instant, is_there: impl Fn(Stand) -> Option<T>) -> io::Result<T> {
        loop {
            self.thread.go_on()?;
            let stand = wait(until, || match self.thread.stand()? {
                Stand::Running if Stat::of(self.process).is_ok_and(|stat| !stat.is_zombie()) => Ok(None),
                stand => Ok(Some(stand)),
            })?;
            match (is_there(stand), stand) {
                (Some(found), _) => return Ok(found),
                // SIGSTOP cannot be blocked, and its process is stopped anyway.
                (None, Stand::Other) => {}
                (None, stand) => return Err(io::Error::other(format!("the process is {stand:?}"))),
            }
        }
    }

    /// Makes it what it was.
    fn give_back(mut self) -> io::Result<()> {
        let (room, saved) = self.room;
        self.memory.write_all_at(&saved, room)?;
        self.thread.set_registers(&self.registers)?;
        self.thread.block(self.blocked)?;
        self.thread.detach()?;
        self.given_back = true;
        Ok(())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if !self.given_back {
            // It cannot have become another: its tracer would have to reap it.
            let process = nix::unistd::Pid::from_raw(self.process);
            let _ = nix::sys::signal::kill(process, Signal::SIGKILL); // it may have ended
            let _ = self.thread.detach(); // so that its parent can reap it
        }
    }
}

/// An instruction for system calls, and private memory that can be written.
fn places(process: i32, memory: &File) -> io::Result<(u64, u64)> {
    let (mut executable, mut room) = (Vec::new(), None);
    each_line(format!("/proc/{process}/maps"), |line| {
        let Some(mapping) = Mapping::parse(line) else { return };
        let permissions = line.split_ascii_whitespace().nth(1).unwrap_or_default();
        if permissions.starts_with("r-x") && mapping.name != "[vsyscall]" {
            let place = if mapping.name == "[vdso]" { 0 } else { executable.len() };
            executable.insert(place, (mapping.start, mapping.end));
        } else if permissions == "rw-p" && (room.is_none() || mapping.name == "[stack]") {
            room =
                Some(mapping.start + (mapping.end - mapping.start - ROOM.min(mapping.end - mapping.start)));
        }
    });
    let found = executable.iter().find_map(|(start, end)| instruction(memory, *start, *end));
    let lacks = |what: &str| io::Error::other(format!("it has no {what}"));
    Ok((
        found.ok_or_else(|| lacks("instruction for system calls"))?,
        room.ok_or_else(|| lacks("memory to write"))?,
    ))
}

/// The size of the memory to write: no more than the smallest page.
const ROOM: u64 = 4096;

/// Finds an instruction for system calls between two addresses, if not too far from the first.
fn instruction(memory: &File, start: u64, end: u64) -> Option<u64> {
    const MOST: u64 = 4 << 20;
    let wanted = Registers::INSTRUCTION;
    let mut code = Wiped::zeroed((end - start).min(MOST).try_into().ok()?);
    let count = memory.read_at(&mut code, start).ok()?;
    // Where all instructions are as long as this one, they are aligned so.
    let step = if wanted.len() == 4 { 4 } else { 1 };
    let place =
        (0..count.saturating_sub(wanted.len())).step_by(step).find(|at| code[*at..].starts_with(wanted))?;
    Some(start + place as u64)
}

/// The lock in the form that the kernel reads: of a program of 64 bits.
fn flock(lock: &LostLock) -> [u8; SIZE] {
    // The kind is 0 or 1, or the kernel refuses it.
    let kind = i16::try_from(lock.kind).unwrap_or(i16::MAX);
    let mut bytes = [0; SIZE]; // from the start of the file; of no process
    bytes[..2].copy_from_slice(&kind.to_ne_bytes());
    bytes[8..16].copy_from_slice(&lock.start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&lock.length.to_ne_bytes());
    bytes
}
