//! criu's answers, as values.

use serde::Serialize;

use crate::{Pid, Version, proto::rpc::CriuResp};

/// A dump that succeeded.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Dumped {
    /// The release of criu that wrote the images, if it is known. An older one cannot read them.
    pub version: Option<Version>,
    /// The threads whose system call the dump ended with EINTR, without a signal: `poll`,
    /// `nanosleep` and other calls with a time limit. It happens in the tree that goes on and in
    /// the restored one. The source is criu's log, so the list is empty if the log goes elsewhere,
    /// and on arm64.
    pub interrupted: Vec<Pid>,
}

/// The two returns of [`Criu::dump_self`](super::Criu::dump_self).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SelfDump {
    /// In the process that was dumped, and goes on.
    Dumped(Dumped),
    /// In a copy of it, restored from the images.
    Restored,
}

/// The result of [`Criu::about`](super::Criu::about).
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct About {
    /// The release of criu.
    pub version: Version,
    /// The features that it can use here.
    pub features: Features,
}

/// Optional kernel features for criu. `criu check --feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Features {
    /// Changes of memory can be tracked, for incremental dumps.
    pub mem_track: bool,
    /// Memory can be restored when it is touched.
    pub lazy_pages: bool,
    /// Reused pids can be detected.
    pub pidfd_store: bool,
}

/// Returns the version in an answer.
pub(super) fn version(answer: CriuResp) -> Option<Version> {
    let version = answer.version?;
    let number = |number: i32| u32::try_from(number).unwrap_or(0);
    Some(Version {
        git_id: version.gitid,
        name: version.name,
        ..Version::new(
            number(version.major_number),
            number(version.minor_number),
            number(version.sublevel.unwrap_or(0)),
        )
    })
}
