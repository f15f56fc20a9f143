//! [`Request`]: what criu can be asked to do.

use std::fmt;

/// A request of criu's RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Request {
    /// `VERSION`: which criu is this?
    Version,
    /// `CHECK`: can this criu work on this kernel?
    Check,
    /// `FEATURE_CHECK`: which of the kernel's optional features can be used?
    FeatureCheck,
    /// `DUMP`: write the state of a process tree into images.
    Dump,
    /// `RESTORE`: make a process tree from images.
    Restore,
}

impl fmt::Display for Request {
    /// As a verb phrase: "criu could not ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Request::Version => "tell its version",
            Request::Check => "check this kernel",
            Request::FeatureCheck => "check this kernel's features",
            Request::Dump => "dump the process tree",
            Request::Restore => "restore the process tree",
        })
    }
}
