//! [`Until`]: a limit on this crate's own work.

use std::{
    fmt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// A limit on work: no limit, an instant, or a cancellation.
///
/// Captures and restores make one of their deadline and token, and pass it to the store where it
/// may wait ([`BlobStore::batch_until`](crate::BlobStore::batch_until)). Clones are equal.
///
/// ```
/// use std::time::Duration;
///
/// use criu_rpc::{Cancel, Error, Until};
///
/// let cancel = Cancel::new()?;
/// let token = cancel.clone();
/// let until = Until::within(Duration::from_secs(3600)).or_when(move || token.is_cancelled());
/// until.check(|| "copy a blob".to_owned())?;
/// cancel.cancel();
/// assert!(until.check(|| "copy a blob".to_owned()).unwrap_err().is_cancelled());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Until {
    end: Option<Instant>,
    cancelled: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

impl Until {
    /// Sets no limit.
    pub fn forever() -> Until {
        Until::default()
    }

    /// Sets a limit of this time from now.
    pub fn within(time: Duration) -> Until {
        Until { end: Instant::now().checked_add(time), cancelled: None }
    }

    /// Adds a cancellation: the work also ends when `cancelled` returns true. It is called often,
    /// and from any thread.
    #[must_use]
    pub fn or_when(mut self, cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Until {
        self.cancelled = Some(Arc::new(cancelled));
        self
    }

    /// Returns the time that is left; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Returns false if nothing can end the work early.
    pub fn is_bounded(&self) -> bool {
        self.end.is_some() || self.cancelled.is_some()
    }

    /// Fails if the work must end. `doing` is a verb phrase for the error.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if it was cancelled, else [`Error::Overdue`] if the time is over.
    pub fn check(&self, doing: impl FnOnce() -> String) -> Result<()> {
        self.over().map_or(Ok(()), |error| Err(error(doing())))
    }

    /// Returns the kind of error that ends the work, if it must end.
    fn over(&self) -> Option<fn(String) -> Error> {
        if self.cancelled.as_ref().is_some_and(|cancelled| cancelled()) {
            return Some(|doing| Error::Stopped { doing });
        }
        match self.remaining() {
            Some(Duration::ZERO) => Some(|doing| Error::Overdue { doing }),
            _ => None,
        }
    }

    /// Tries until `attempt` returns a value, with pauses of up to 20 ms. It tries at least once.
    ///
    /// # Errors
    ///
    /// Errors of `attempt`; as [`check`](Until::check) if the work must end.
    pub fn wait_for<T>(
        &self,
        doing: impl FnOnce() -> String,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(value) = attempt()? {
                return Ok(value);
            }
            if let Some(error) = self.over() {
                return Err(error(doing()));
            }
            thread::sleep(pause.min(self.remaining().unwrap_or(pause)));
            pause = PAUSE.min(pause * 2);
        }
    }
}

impl fmt::Debug for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Until").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn work_ends_at_its_deadline_and_when_it_is_cancelled() {
        let doing = || "wait".to_owned();
        assert!(Until::forever().check(doing).is_ok() && !Until::forever().is_bounded());
        assert!(Until::within(Duration::MAX).check(doing).is_ok());
        let late = Until::within(Duration::ZERO).check(doing).unwrap_err();
        assert!(matches!(&late, Error::Overdue { doing } if doing == "wait"), "{late}");
        let token = Arc::new(AtomicBool::new(false));
        let asked = token.clone();
        let until = Until::within(Duration::from_secs(3600)).or_when(move || asked.load(Ordering::Relaxed));
        assert!(until.check(doing).is_ok());
        token.store(true, Ordering::Relaxed);
        assert!(matches!(until.check(doing), Err(Error::Stopped { .. })));
        assert!(matches!(until.wait_for(doing, || Ok(None::<()>)), Err(Error::Stopped { .. })));
    }

    #[test]
    fn what_is_there_is_taken_even_if_the_time_is_over() {
        let until = Until::within(Duration::ZERO);
        assert_eq!(until.wait_for(String::new, || Ok(Some(7))).unwrap(), 7);
        assert!(matches!(until.wait_for(String::new, || Ok(None::<()>)), Err(Error::Overdue { .. })));
        let mut tries = 0;
        let found = Until::within(Duration::from_secs(3600)).wait_for(String::new, || {
            tries += 1;
            Ok((tries == 4).then_some(tries))
        });
        assert_eq!(found.unwrap(), 4);
        let failed: Result<()> = Until::forever().wait_for(String::new, || Err(Error::Revived));
        assert!(matches!(failed, Err(Error::Revived)));
    }
}
