//! [`Rest`]: the other trees of a capture, revived while the first stands still.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::{Duration, Instant},
};

use crate::{
    BoxError, Error, Result,
    rpc::{Event, Hooks},
    took::{Clock, Phase},
};

/// Trees that must exist before another tree runs.
pub(super) trait All {
    /// Revives them. First ends the trees of an earlier call.
    fn revive(&self) -> Result<(), BoxError>;

    /// Returns the time of all calls of `revive` since the last call of this method.
    fn took(&self) -> Duration;
}

/// The result of `revive`, made once for each attempt to restore the first tree.
pub(super) struct Rest<T, F> {
    revive: F,
    /// The outer result is an error if the caller's store panicked.
    made: RefCell<Option<thread::Result<Result<T>>>>,
    took: Cell<Duration>,
}

impl<T, F: Fn() -> Result<T>> Rest<T, F> {
    pub(super) fn new(revive: F) -> Rest<T, F> {
        Rest { revive, made: RefCell::new(None), took: Cell::default() }
    }

    /// Returns the error of `revive`, if it failed: `error` is only its consequence. If `revive`
    /// panicked, the panic continues here.
    pub(super) fn own_error(&self, error: Error) -> Error {
        match self.made.take() {
            Some(Ok(Err(own))) => own,
            Some(Err(panic)) => resume_unwind(panic),
            _ => error,
        }
    }

    /// Returns the result, if there is one.
    pub(super) fn take(&self) -> Option<T> {
        self.made.take()?.ok()?.ok()
    }
}

impl<T, F: Fn() -> Result<T>> All for Rest<T, F> {
    fn revive(&self) -> Result<(), BoxError> {
        drop(self.made.take());
        let begun = Instant::now();
        // The panic of a hook would become a refusal.
        let made = catch_unwind(AssertUnwindSafe(&self.revive));
        self.took.set(self.took.get() + begun.elapsed());
        // Not the error itself: some errors would cause another attempt at the first tree.
        let is_made = matches!(made, Ok(Ok(_)));
        self.made.replace(Some(made));
        if is_made { Ok(()) } else { Err("another tree of the capture could not be revived".into()) }
    }

    fn took(&self) -> Duration {
        self.took.take()
    }
}

/// Revives the rest when criu has built the first tree, before that tree runs. If the rest fails,
/// criu ends the tree.
pub(super) struct Standing<'a, H> {
    pub(super) rest: Option<&'a dyn All>,
    pub(super) clock: &'a Clock,
    /// Gets each event first.
    pub(super) then: H,
}

impl<H: Hooks> Hooks for Standing<'_, H> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        let stands = matches!(event, Event::PostRestore { .. });
        self.then.on(event)?;
        match self.rest {
            Some(rest) if stands => {
                self.clock.lap(Phase::Criu);
                let revived = rest.revive();
                self.clock.lap(Phase::Finish);
                revived
            }
            _ => Ok(()),
        }
    }

    fn wanted(&self) -> bool {
        self.rest.is_some() || self.then.wanted()
    }
}
