//! Terminals within the tree, before criu looks at them.
//!
//! If the tree has both sides of a terminal, criu reads the unread data of the terminal, and writes
//! it back through the other side. So the modes of the terminal change it a second time, and data
//! that does not fit is dropped. This also happens in the tree that goes on. A terminal whose slave
//! was closed by all processes comes back as one whose slave was never opened.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Frozen, OpenFile};
use crate::{
    Pid, Warning,
    procfs::{fdinfo_value, read_start},
    sys::{self, Statx},
};

/// Finds terminals with unread bytes, and terminals whose program has ended. Returns one warning
/// for each terminal.
pub(super) fn look(tree: &Frozen) -> Vec<Warning> {
    let mut slaves = Vec::new();
    let mut masters = Vec::new();
    for file in tree.files.iter().filter(|file| file.target.starts_with("/dev")) {
        let Ok(found) = Statx::of(file.path()) else { continue };
        match found.slave() {
            Some(index) => slaves.push((index, file)),
            None if found.is_master() => masters.extend(index(file).map(|index| (index, file))),
            None => {}
        }
    }
    let mut seen = HashSet::new();
    let mut lost = Vec::new();
    for (index, master) in masters {
        if !seen.insert(index) {
            continue;
        }
        let slave = slaves.iter().find(|(slave, _)| *slave == index).map(|(_, file)| file);
        let Some(taken) = master.taken() else { continue };
        let what = match slave {
            Some(slave) if waits(&taken) || slave.taken().is_some_and(|slave| waits(&slave)) => {
                "exact input and output that waits in a terminal, and so will the tree that goes on"
            }
            None if has_hung_up(&taken) => {
                "hang-up of a terminal whose program has ended, and its unread output: a reader waits for ever"
            }
            _ => continue,
        };
        lost.push(Warning::Lost { pid: Pid::from(master.pid), what });
    }
    lost
}

fn index(master: &OpenFile) -> Option<u64> {
    fdinfo_value(&read_start(format!("/proc/{}/fdinfo/{}", master.pid, master.fd))?, "tty-index")
}

fn waits(side: &OwnedFd) -> bool {
    sys::waiting_bytes(side).is_ok_and(|bytes| bytes > 0)
}

/// Returns true if no process has the slave open any more.
fn has_hung_up(master: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(master.as_fd(), PollFlags::empty())];
    let asked = poll(&mut asked, PollTimeout::ZERO).ok().and_then(|_| asked[0].revents());
    asked.is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
}
