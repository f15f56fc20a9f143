//! Checkpoint live process trees into content-addressed storage, and bring them back.

mod archive;
mod blob;
mod capture;
mod diagnose;
mod digest;
mod error;
mod image;
pub mod options;
mod pid;
mod platform;
#[cfg_attr(unix, path = "private/unix.rs")]
#[cfg_attr(not(unix), path = "private/elsewhere.rs")]
mod private;
#[cfg(target_os = "linux")]
mod procfs;
mod proto;
mod request;
mod restore;
#[cfg(target_os = "linux")]
pub mod rpc;
mod store;
#[cfg(target_os = "linux")]
mod sys;
mod version;

pub use blob::ProcsBlob;
pub use capture::{Capture, ProcsCapture, Stored};
pub use digest::{Digest256, Hasher, ParseDigestError};
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use options::{DumpOptions, RestoreOptions};
pub use pid::Pid;
pub use platform::Tree;
pub use request::Request;
pub use restore::{ProcsRestore, Restored, Warning};
#[cfg(target_os = "linux")]
pub use rpc::Criu;
#[cfg(feature = "conformance")]
pub use store::conformance;
pub use store::{BlobStore, BlobWriter, FsBlobStore, MemBlobStore};
pub use version::Version;
