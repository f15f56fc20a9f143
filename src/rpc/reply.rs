//! What criu answers, as values.

use crate::{Pid, Version};

/// A dump that succeeded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Dumped {
    /// The release of criu that made the images, if it could be asked. An older one cannot read them.
    pub version: Option<Version>,
    /// The threads whose system call ended with EINTR, though nobody sent a signal: those that waited in `poll`, `nanosleep`
    /// and others with a time limit. That is so for the thread that goes on, and for what is restored of it. Found in
    /// criu's log, so not where that goes elsewhere, and not on arm64.
    pub interrupted: Vec<Pid>,
}

/// Where [`Criu::dump_self`](super::Criu::dump_self) returned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SelfDump {
    /// In the process that was dumped, and goes on.
    Dumped(Dumped),
    /// In a copy of it, restored from the images.
    Restored,
}

/// What [`Criu::about`](super::Criu::about) tells.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct About {
    /// The release of criu.
    pub version: Version,
    /// What it can use here.
    pub features: Features,
}

/// Features of the kernel that criu can do without. `criu check --feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Changes of memory can be tracked, for incremental dumps.
    pub mem_track: bool,
    /// Memory can be restored when it is touched.
    pub lazy_pages: bool,
    /// Processes can be told from others that got the same pid later.
    pub pidfd_store: bool,
}
