//! Calls about other processes and threads.

use std::{cmp::Ordering, io};

/// Returns true if two descriptors, each of a process, are the same open file.
pub(crate) fn is_same_file(one: (i32, i32), other: (i32, i32)) -> io::Result<bool> {
    const KCMP_FILE: libc::c_int = 0;
    compare(KCMP_FILE, one, other).map(Ordering::is_eq)
}

/// Returns true if two threads share their descriptors.
pub(crate) fn shares_files(one: i32, other: i32) -> io::Result<bool> {
    const KCMP_FILES: libc::c_int = 2;
    compare(KCMP_FILES, (one, 0), (other, 0)).map(Ordering::is_eq)
}

/// Returns true if two threads share their current folder, root folder and umask.
pub(crate) fn shares_folders(one: i32, other: i32) -> io::Result<bool> {
    compare_folders(one, other).map(Ordering::is_eq)
}

/// Compares two threads by their current folder, root folder and umask: equal if they share those.
pub(crate) fn compare_folders(one: i32, other: i32) -> io::Result<Ordering> {
    const KCMP_FS: libc::c_int = 3;
    compare(KCMP_FS, (one, 0), (other, 0))
}

/// Compares two threads by their memory: equal if they share it.
pub(crate) fn compare_memory(one: i32, other: i32) -> io::Result<Ordering> {
    const KCMP_VM: libc::c_int = 1;
    compare(KCMP_VM, (one, 0), (other, 0))
}

/// Asks the kernel if two threads share something of this kind. Otherwise the order is that of the
/// kernel's objects, and lasts as long as they do.
fn compare(kind: libc::c_int, one: (i32, i32), other: (i32, i32)) -> io::Result<Ordering> {
    // SAFETY: the call takes five numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, kind, one.1, other.1) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2.. => Ok(Ordering::Greater),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the processors that the thread may run on, as the kernel's mask: 64 in a word, lowest
/// first.
pub(crate) fn affinity(thread: i32) -> io::Result<Vec<u64>> {
    let mut mask = vec![0_u64; MOST_PROCESSORS / 64];
    let (size, start) = (mask.len() * size_of::<u64>(), mask.as_mut_ptr());
    // SAFETY: the kernel writes no more than `size` bytes into `mask`.
    let written = unsafe { libc::syscall(libc::SYS_sched_getaffinity, thread, size, start) };
    let written = usize::try_from(written).map_err(|_| io::Error::last_os_error())?;
    mask.truncate(written.div_ceil(size_of::<u64>()));
    Ok(mask)
}

/// Lets the thread run on these processors only.
pub(crate) fn set_affinity(thread: i32, mask: &[u64]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `mask` has.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, thread, size_of_val(mask), mask.as_ptr()) };
    succeeded(done)
}

/// The maximum number of processors of any kernel.
const MOST_PROCESSORS: usize = 8192;

/// Returns the processors of this machine, as the same mask; empty if unknown.
pub(crate) fn online_processors() -> Vec<u64> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let mut mask = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { continue };
        for processor in first..=last.min(MOST_PROCESSORS - 1) {
            mask.resize(mask.len().max(processor / 64 + 1), 0);
            mask[processor / 64] |= 1 << (processor % 64);
        }
    }
    mask
}

/// Returns the I/O priority of the thread in the kernel's form: the class, and the priority in it.
pub(crate) fn io_priority(thread: i32) -> io::Result<u32> {
    // SAFETY: the call takes only numbers.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, thread) };
    u32::try_from(priority).map_err(|_| io::Error::last_os_error())
}

/// Sets the I/O priority of the thread.
pub(crate) fn set_io_priority(thread: i32, priority: u32) -> io::Result<()> {
    // SAFETY: the call takes only numbers.
    succeeded(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, thread, priority) })
}

/// The first version of the kernel's `sched_attr`: the scheduling of a thread.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    size: u32,
    pub(crate) policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// In nanoseconds: the time slice, unless the policy is SCHED_DEADLINE.
    pub(crate) runtime: u64,
    deadline: u64,
    period: u64,
}

impl Scheduling {
    /// Returns the same settings with this time slice.
    pub(crate) fn with_slice(mut self, nanoseconds: u64) -> Scheduling {
        self.runtime = nanoseconds;
        self
    }
}

/// Reads the scheduling of a thread; 0 is the calling one.
pub(crate) fn scheduling(thread: i32) -> io::Result<Scheduling> {
    let mut told = Scheduling::default();
    let (size, place) = (size_of_val(&told), &raw mut told);
    // SAFETY: the kernel writes no more than `told`, whose size it gets.
    succeeded(unsafe { libc::syscall(libc::SYS_sched_getattr, thread, place, size, 0) })?;
    Ok(told)
}

/// Sets the scheduling of a thread.
pub(crate) fn set_scheduling(thread: i32, wanted: &Scheduling) -> io::Result<()> {
    // SAFETY: the kernel reads the number of bytes that the structure states.
    succeeded(unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const *wanted, 0) })
}

const IOPRIO_WHO_PROCESS: libc::c_int = 1;

fn succeeded(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
