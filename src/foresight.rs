//! [`Foresight`]: what a capture would meet, in words.

use serde::Serialize;

/// What [`ProcsCapture::preflight`](crate::ProcsCapture::preflight) found.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, ProcsCapture};
///
/// let capture = ProcsCapture::new([4242]).leave_running(false);
/// let foresight = capture.preflight()?;
/// if foresight.is_clear() {
///     capture.capture(&FsBlobStore::open("captures")?)?;
/// } else {
///     foresight.blocks.iter().for_each(|finding| eprintln!("{finding}"));
/// }
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Foresight {
    /// What would make the capture fail, or its restore for ever: a line each, with the cure if there is one.
    pub blocks: Vec<String>,
    /// What may fail, or needs care at the restore: a line each.
    pub risks: Vec<String>,
    /// The number of processes that would be captured; 0 where nothing can be captured.
    pub processes: usize,
}

impl Foresight {
    /// Whether nothing is known that would make the capture fail.
    pub fn is_clear(&self) -> bool {
        self.blocks.is_empty()
    }
}
