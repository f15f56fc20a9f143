//! [`Extra`]: options that a program needs beyond the defaults. The goal is that no program needs
//! one.

use criu_rpc::{Cause, DumpOptions, Error, RestoreOptions};

/// An option that the crate's advice names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    TcpEstablished,
    FileLocks,
    LinkRemap,
    GhostLimit,
    ExtUnixSk,
}

impl Extra {
    /// Returns the option that cures this error, according to its cause.
    pub(crate) fn cure(error: &Error) -> Option<Extra> {
        Some(match error.failure()?.cause {
            Cause::EstablishedTcp => Extra::TcpEstablished,
            Cause::FileLocks => Extra::FileLocks,
            Cause::LinkRemap => Extra::LinkRemap,
            Cause::GhostFileTooBig => Extra::GhostLimit,
            Cause::ExternalUnixSocket => Extra::ExtUnixSk,
            _ => return None,
        })
    }

    /// Returns the option's name, for the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Extra::TcpEstablished => "`tcp_established`",
            Extra::FileLocks => "`file_locks`",
            Extra::LinkRemap => "`link_remap`",
            Extra::GhostLimit => "`ghost_limit`",
            Extra::ExtUnixSk => "`ext_unix_sk`",
        }
    }

    pub(crate) fn at_dump(self, options: DumpOptions) -> DumpOptions {
        match self {
            Extra::TcpEstablished => options.tcp_established(true),
            Extra::FileLocks => options.file_locks(true),
            Extra::LinkRemap => options.link_remap(true),
            Extra::GhostLimit => options.ghost_limit(256_u32 << 20),
            Extra::ExtUnixSk => options.ext_unix_sk(true),
        }
    }

    pub(crate) fn at_restore(self, options: RestoreOptions) -> RestoreOptions {
        match self {
            Extra::ExtUnixSk => options.ext_unix_sk(true),
            // The restore takes these from the images.
            Extra::TcpEstablished | Extra::FileLocks | Extra::LinkRemap | Extra::GhostLimit => options,
        }
    }
}
