//! [`Adoption`] makes this process the parent of orphans for a while.
//! [`NoAdoption`] keeps it from adopting what a failed restore leaves.
//!
//! Being a subreaper is one setting for all threads of a process, so users of this module take
//! turns.

use std::{io, sync::MutexGuard};

use crate::lock::{Condvar, Mutex};

use nix::sys::prctl;

/// While this exists, descendants of this process whose parents end become its children.
#[derive(Debug)]
pub(crate) struct Adoption {
    /// True if the program was a subreaper before.
    always: bool,
}

#[derive(Debug)]
struct Turns {
    /// The number of [`Adoption`]s.
    adoptions: u32,
    /// The program's own setting before the first one.
    before: bool,
    /// The number of [`NoAdoption`]s.
    barred: u32,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { adoptions: 0, before: false, barred: 0 });
static OVER: Condvar = Condvar::new();

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock()
}

impl Adoption {
    /// Starts to adopt orphans.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] while there is a [`NoAdoption`], unless the program adopts
    /// orphans by itself.
    pub(crate) fn begin() -> io::Result<Adoption> {
        let mut turns = turns();
        if turns.barred > 0 && !prctl::get_child_subreaper()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if turns.adoptions == 0 {
            turns.before = prctl::get_child_subreaper()?;
            prctl::set_child_subreaper(true)?;
        }
        turns.adoptions += 1;
        Ok(Adoption { always: turns.before })
    }

    /// Returns true if the program adopts orphans by itself.
    pub(crate) fn is_usual(&self) -> bool {
        self.always
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let mut turns = turns();
        turns.adoptions -= 1;
        if turns.adoptions == 0 {
            if !turns.before {
                let _ = prctl::set_child_subreaper(false); // it could be set, so it can be reset
            }
            OVER.notify_all();
        }
    }
}

/// While this exists, this process adopts no orphans, unless the program does so anyway. Otherwise
/// the remains of a failed restore would become its children, like those that the program started.
#[derive(Debug)]
pub(crate) struct NoAdoption(());

impl NoAdoption {
    /// Waits for the end of the last [`Adoption`], which lasts until a killed tree has ended.
    pub(crate) fn begin() -> NoAdoption {
        let turns = turns();
        let mut turns = OVER.wait_while(turns, |turns| turns.adoptions > 0);
        turns.barred += 1;
        NoAdoption(())
    }
}

impl Drop for NoAdoption {
    fn drop(&mut self) {
        turns().barred -= 1;
    }
}

/// Runs `work` while this process adopts no orphans, even if the program usually does.
pub(crate) fn without_adoption<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let turns = turns();
    let _turn = OVER.wait_while(turns, |turns| turns.adoptions > 0);
    let adopts = prctl::get_child_subreaper().unwrap_or(false);
    if adopts {
        prctl::set_child_subreaper(false)?;
    }
    let result = work();
    if adopts {
        prctl::set_child_subreaper(true)?;
    }
    Ok(result)
}
