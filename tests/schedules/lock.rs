//! `src/lock.rs` with the locks of shuttle.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use shuttle::sync;

#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { guard: self.0.lock().unwrap(), lock: self }
    }
}

/// A guard that knows its lock: see [`Condvar::wait_timeout`].
pub struct MutexGuard<'a, T> {
    guard: sync::MutexGuard<'a, T>,
    lock: &'a Mutex<T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    pub fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { guard, lock } = guard;
        MutexGuard { guard: self.0.wait(guard).unwrap(), lock }
    }

    /// Waits as long as `condition` holds.
    pub fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let MutexGuard { guard, lock } = guard;
        MutexGuard { guard: self.0.wait_while(guard, condition).unwrap(), lock }
    }

    /// Lets other threads run, and then returns as after the time limit. Shuttle has no clock.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, _: Duration) -> MutexGuard<'a, T> {
        let MutexGuard { guard, lock } = guard;
        drop(guard);
        shuttle::thread::yield_now();
        lock.lock()
    }
}
