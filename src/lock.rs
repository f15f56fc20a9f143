//! Locks that stay usable after a panic.
//!
//! A lock of the standard library is poisoned when a thread panics while it holds it. In this crate
//! a panic comes from a caller's store or hook, and ends the call that it happens in. Others must
//! go on: they may have a frozen tree to release. Holders change the state in steps that cannot
//! panic, so a panic leaves a valid state.

pub(crate) use std::sync::MutexGuard;
use std::{
    sync::{self, LockResult, PoisonError, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

/// A [`std::sync::Mutex`] that ignores poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        usable(self.0.lock())
    }

    pub(crate) fn into_inner(self) -> T {
        usable(self.0.into_inner())
    }
}

/// A [`std::sync::RwLock`] that ignores poison.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        usable(self.0.read())
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        usable(self.0.write())
    }
}

/// A [`std::sync::Condvar`] that ignores poison.
#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        usable(self.0.wait(guard))
    }

    /// Waits as long as `condition` holds.
    pub(crate) fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        usable(self.0.wait_while(guard, condition))
    }

    /// Waits at most so long.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        longest: Duration,
    ) -> MutexGuard<'a, T> {
        usable(self.0.wait_timeout(guard, longest)).0
    }
}

fn usable<T>(locked: LockResult<T>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        thread,
    };

    use super::*;

    #[test]
    fn a_lock_is_usable_after_a_panic() {
        let (mutex, rw_lock) = (Mutex::new(1), RwLock::new(1));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let (_mutex, _rw_lock) = (mutex.lock(), rw_lock.write());
            panic!("it holds the locks");
        }));
        assert!(panicked.is_err() && mutex.0.is_poisoned() && rw_lock.0.is_poisoned());
        *mutex.lock() += 1;
        *rw_lock.write() += 1;
        assert_eq!((*rw_lock.read(), mutex.into_inner()), (2, 2));
    }

    #[test]
    fn a_waiter_is_woken_after_a_panic() {
        let (mutex, changed) = (Mutex::new(false), Condvar::new());
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let mut done = mutex.lock();
                *done = true;
                changed.notify_all();
                panic!("it holds the lock");
            });
            assert!(*changed.wait_while(mutex.lock(), |done| !*done));
            assert!(panics.join().is_err());
        });
        assert!(*changed.wait_timeout(mutex.lock(), Duration::from_nanos(1)));
    }
}
