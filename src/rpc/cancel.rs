//! [`Cancel`]: a way to stop a request from another thread.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{Arc, OnceLock},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Error, Result};

/// Stops requests from another thread, or from a hook; see
/// [`Criu::cancelled_by`](super::Criu::cancelled_by).
///
/// Cancelling is final: later requests with the same token are cancelled at once. Clones are the
/// same token.
///
/// ```
/// use criu_rpc::Cancel;
///
/// let cancel = Cancel::new()?;
/// let remote = cancel.clone();
/// std::thread::spawn(move || remote.cancel()).join().unwrap();
/// assert!(cancel.is_cancelled());
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Clone)]
pub struct Cancel(Arc<Token>);

struct Token {
    event: EventFd,
    cancelled: OnceLock<()>,
}

impl Cancel {
    /// Makes a token that is not cancelled.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the process has too many files open.
    pub fn new() -> Result<Cancel> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event =
            EventFd::from_flags(flags).map_err(|errno| Error::io("make a cancel token")(errno.into()))?;
        Ok(Cancel(Arc::new(Token { event, cancelled: OnceLock::new() })))
    }

    /// Cancels every request that was given this token, now or later.
    pub fn cancel(&self) {
        if self.0.cancelled.set(()).is_ok() {
            let _ = self.0.event.write(1); // cannot overflow: this runs once
        }
    }

    /// Returns true if the token was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.get().is_some()
    }
}

impl AsFd for Cancel {
    /// Returns a descriptor that is readable once the token is cancelled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl AsRawFd for Cancel {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("cancelled", &self.is_cancelled()).finish()
    }
}
