//! Checkpoint live process trees into content-addressed storage, and bring them back.

mod diagnose;
mod digest;
mod error;
mod proto;
mod request;
mod store;
mod version;

pub use digest::{Digest256, Hasher, ParseDigestError};
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use request::Request;
#[cfg(feature = "conformance")]
pub use store::conformance;
pub use store::{BlobStore, BlobWriter, FsBlobStore, MemBlobStore};
pub use version::Version;
