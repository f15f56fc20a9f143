//! Threads that work for one call: they start in its scope, and are joined before it returns.

use std::{
    panic::resume_unwind,
    thread::{self, Scope, ScopedJoinHandle},
};

use crate::{Error, Result};

/// Starts a thread; fails if the system refuses.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().spawn_scoped(scope, work).map_err(Error::io("start a thread"))
}

/// Returns the result of a joined thread. Resumes its panic, if it panicked.
pub(crate) fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_panic_goes_on_where_the_thread_is_joined() {
        assert_eq!(thread::scope(|scope| joined(spawn(scope, || 7).unwrap().join())), 7);
        let panicked = catch_unwind(|| {
            thread::scope(|scope| joined(spawn(scope, || -> () { panic!("in the thread") }).unwrap().join()))
        });
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"in the thread"));
    }
}
