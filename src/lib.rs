//! Checkpoint live process trees into content-addressed storage, and bring them back.

mod blob;
mod diagnose;
mod digest;
mod error;
mod request;
mod version;

pub use blob::ProcsBlob;
pub use digest::{Digest256, Hasher, ParseDigestError};
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use request::Request;
pub use version::Version;
