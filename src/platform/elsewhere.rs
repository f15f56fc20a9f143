//! Systems without criu: every function answers that it is not supported here.

use std::{
    convert::Infallible,
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    path::Path,
    process::ExitStatus,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Job, Keep, Memory, Outcome, Revival, Revived, ToRevive};
use crate::{
    Error, Foreseen, Foresight, Isolation, Pid, Result, Until, manifest::Host, pages::PageSize,
    stream::Chosen, took::Clock,
};

/// Dumps nothing.
pub(crate) fn checkpoint<T>(
    _job: &Job,
    _memory: Option<&dyn Memory>,
    _keep: Keep<'_, T>,
) -> Result<Outcome<T>> {
    Err(Error::Unsupported { what: "capture processes" })
}

/// The findings of a capture's preflight: a capture would store a placeholder.
pub(crate) fn foresee(_job: &Job) -> Result<Foresight> {
    let mut foresight = Foresight::default();
    foresight.blocks.push(Foreseen::new("criu, which captures processes, is for Linux"));
    Ok(foresight)
}

/// Returns true if criu can dump nothing here. Always false: other systems report that earlier.
pub(crate) fn cannot_work(_job: &Job) -> bool {
    false
}

/// The page size of captures, which this system never makes.
pub(crate) fn page_size() -> PageSize {
    PageSize::SMALLEST
}

/// Memory for what is never captured here.
#[derive(Debug)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn new(length: usize) -> io::Result<Buffer> {
        Ok(Buffer(vec![0; length]))
    }

    pub(crate) fn mark_reclaimable(&mut self) {}
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Returns an empty host: nothing is captured or revived on this system.
pub(crate) fn host() -> Host {
    Host::default()
}

/// Revives nothing.
#[derive(Debug)]
pub(crate) struct Reviver<'a>(Infallible, PhantomData<&'a ()>);

impl<'a> Reviver<'a> {
    pub(crate) fn new(
        _revival: &'a Revival,
        _chosen: &'a [Option<Chosen>; 3],
        _until: &Until,
        _clock: &'a Clock,
    ) -> Result<Reviver<'a>> {
        Err(Error::Unsupported { what: "revive processes" })
    }

    pub(crate) fn criu(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn folder(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) fn foresee(&self, _trees: &[ToRevive<'_>], _foresight: &mut Foresight) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn revive(&self, _trees: &[ToRevive<'_>]) -> Result<Revived> {
        match self.0 {}
    }
}

/// Kills a process and all its descendants: on Linux only.
///
/// # Errors
///
/// [`Error::Unsupported`] on this system.
pub fn kill_tree(_pid: impl Into<Pid>) -> Result<()> {
    Err(Error::Unsupported { what: "kill process trees" })
}

/// Kills all processes of a session: on Linux only.
///
/// # Errors
///
/// [`Error::Unsupported`] on this system.
pub fn kill_session(_session: impl Into<Pid>) -> Result<()> {
    Err(Error::Unsupported { what: "kill sessions" })
}

/// Cancels what was given it; there is nothing to cancel on this system. Clones are the same token.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<OnceLock<()>>);

impl Cancel {
    /// A token that cancels nothing yet.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn new() -> Result<Cancel> {
        Ok(Cancel(Arc::default()))
    }

    /// Cancels everything that was given this token, now or later.
    pub fn cancel(&self) {
        let _ = self.0.set(()); // it is cancelled already, then
    }

    /// Returns true if this token was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.get().is_some()
    }
}

/// A process tree that was revived. It never exists on this system.
#[derive(Debug)]
pub struct Tree(Infallible);

impl Tree {
    /// The root process.
    pub fn pid(&self) -> Pid {
        match self.0 {}
    }

    pub(crate) fn has_ended(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn isolation(&self) -> Isolation {
        match self.0 {}
    }

    /// Waits until the root process ends, and gives its exit status.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        match self.0 {}
    }

    /// Waits for the root process, but no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn wait_timeout(&mut self, _timeout: Duration) -> Result<Option<ExitStatus>> {
        match self.0 {}
    }

    /// Kills the root process and all its descendants.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn kill(&self) -> Result<()> {
        match self.0 {}
    }

    /// Gives up the ownership.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn detach(self) -> Result<()> {
        match self.0 {}
    }

    /// Kills the tree and reaps its root.
    ///
    /// # Errors
    ///
    /// None on this system.
    pub fn kill_and_wait(&mut self) -> Result<ExitStatus> {
        match self.0 {}
    }
}
