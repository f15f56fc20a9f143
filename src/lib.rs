//! Checkpoint live process trees into content-addressed storage, and bring them back.

mod archive;
mod blob;
mod diagnose;
mod digest;
mod error;
#[cfg_attr(unix, path = "private/unix.rs")]
#[cfg_attr(not(unix), path = "private/elsewhere.rs")]
mod private;
mod request;
mod version;

pub use blob::ProcsBlob;
pub use digest::{Digest256, Hasher, ParseDigestError};
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use request::Request;
pub use version::Version;
