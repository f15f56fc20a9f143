//! Checkpoint live process trees into content-addressed storage, and bring them back.

mod digest;
mod error;
mod request;

pub use digest::{Digest256, Hasher, ParseDigestError};
