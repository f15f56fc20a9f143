//! [`Request`]: the requests that criu takes.

use std::fmt;

use serde::Serialize;

/// A request of criu's RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Request {
    /// `VERSION`: get criu's version.
    Version,
    /// `CHECK`: check that criu can work on this kernel.
    Check,
    /// `FEATURE_CHECK`: get the optional kernel features that criu can use.
    FeatureCheck,
    /// `DUMP`: write the state of a process tree into images.
    Dump,
    /// `RESTORE`: make a process tree from images.
    Restore,
    /// `PRE_DUMP`: write the memory of a running tree into images, and wait for the next request.
    PreDump,
    /// `SINGLE_PRE_DUMP`: write the memory of a running tree into images.
    SinglePreDump,
    /// `PAGE_SERVER`: receive the memory of dumps, as a daemon.
    PageServer,
    /// `PAGE_SERVER_CHLD`: receive the memory of one dump, as a child of criu.
    PageServerChild,
    /// `WAIT_PID`: wait for such a child.
    WaitPid,
    /// `CPUINFO_DUMP`: write the processor's features into an image.
    CpuinfoDump,
    /// `CPUINFO_CHECK`: compare the processor's features with an image.
    CpuinfoCheck,
}

impl fmt::Display for Request {
    /// Writes a verb phrase: "criu could not ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Request::Version => "tell its version",
            Request::Check => "check this kernel",
            Request::FeatureCheck => "check this kernel's features",
            Request::Dump => "dump the process tree",
            Request::Restore => "restore the process tree",
            Request::PreDump | Request::SinglePreDump => "dump the memory of the running process tree",
            Request::PageServer | Request::PageServerChild => "start a page server",
            Request::WaitPid => "complete the work of the page server",
            Request::CpuinfoDump => "write down the processor's features",
            Request::CpuinfoCheck => "check the processor's features",
        })
    }
}
