//! The processes of this program. It reaps its descendants, so that none is left behind.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    failure::{Failure, Result},
    talk::PATIENCE,
};

/// Makes this process the parent of orphaned descendants.
pub(crate) fn adopt_orphans() -> Result {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// True if the process exists and is no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// True if the process waits for something.
pub(crate) fn sleeps(pid: i32) -> bool {
    state(pid) == Some('S')
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The name of the command that a process runs.
pub(crate) fn name(pid: i32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// The seconds of processor time that a process used.
pub(crate) fn processor_time(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

/// The process's children.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The process's descendants.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

fn own() -> i32 {
    i32::try_from(std::process::id()).expect("because the kernel's pids are positive integers")
}

/// Reaps ended processes that we inherited. No other code here may be waiting for a child.
pub(crate) fn reap_orphans() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Kills and reaps all our descendants. No other code here may be waiting for a child.
pub(crate) fn end_descendants() -> Result {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = descendants(own());
        for pid in left.iter().copied().filter(|pid| lives(*pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended
        }
        reap_orphans();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::wrong(format!("processes {left:?} do not end")));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Ends everything and then this process when a signal tells it to end. Call it before other
/// threads exist.
pub(crate) fn clean_up_on_signals(folder: PathBuf) -> Result {
    let mut signals = nix::sys::signal::SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("test-programs: ended by {signal}");
        ENDING.store(true, Ordering::SeqCst);
        // The other thread's pending starts and writes come within this time.
        for _ in 0..10 {
            if let Err(failure) = end_descendants() {
                eprintln!("test-programs: {failure}");
            }
            // The folder may be gone already. Otherwise the next attempt removes it.
            let _ = fs::remove_dir_all(&folder);
            thread::sleep(Duration::from_millis(30));
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// True since a signal told this process to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Returns at once, unless a signal told this process to end. Then another thread ends it.
pub(crate) fn stop_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        thread::sleep(PATIENCE);
    }
}
