//! [`Turn`]: lets restores of copies that would disturb each other run one at a time.

use std::time::Duration;

use super::Reviver;
use crate::{
    Result,
    image::{ImageDir, Place},
    lock::{Condvar, Mutex},
};

/// The right to check and to make what only one copy can have: a lock, a socket with a path, the
/// name that criu gives a deleted file for a moment. Two restores at once would both find it free.
pub(super) struct Turn(());

static TAKEN: Mutex<bool> = Mutex::new(false);
static FREED: Condvar = Condvar::new();

/// The interval at which a waiter checks the deadline.
const LOOK: Duration = Duration::from_millis(20);

impl Turn {
    /// Takes the turn for a copy that needs it, after waiting for other restores of this program.
    /// `None` for any other restore.
    pub(super) fn for_copy(reviver: &Reviver<'_>, images: &ImageDir) -> Result<Option<Turn>> {
        if reviver.revival.isolation.is_none() {
            return Ok(None);
        }
        let makes_files = || Ok(images.named_files()?.iter().any(|file| file.place != Place::Opened));
        if !images.has_file_locks()? && !makes_files()? {
            return Ok(None);
        }
        let mut taken = TAKEN.lock();
        while *taken {
            reviver.until.check(|| "wait for the restore of another copy".to_owned())?;
            taken = FREED.wait_timeout(taken, LOOK);
        }
        *taken = true;
        Ok(Some(Turn(())))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock() = false;
        FREED.notify_all();
    }
}
