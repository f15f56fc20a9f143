//! [`Options`]: what a request can be told. `table` has a row for every field of criu's; start there.
//!
//! The wire message is the storage, and a marker type says which request may use a row. What is lent for one
//! request (files) is not here, but in [`Lend`](crate::rpc::Lend).

mod choices;
mod table;

use std::{fmt, marker::PhantomData};

use prost::Message;

pub use self::choices::{CgroupMode, LogLevel, NetworkLock};
use crate::proto::rpc::CriuOpts;

/// What a request can be told: plain data, which can be defaulted, copied and compared.
///
/// The names are criu's own, so its manual applies: `tcp_established` is `criu dump --tcp-established`.
/// [`DumpOptions`] and [`RestoreOptions`] have the methods.
///
/// ```
/// use criu_rpc::{DumpOptions, options::NetworkLock};
///
/// let options = DumpOptions::default().tcp_established(true).network_lock(NetworkLock::Skip);
/// assert_ne!(options, DumpOptions::default());
/// ```
pub struct Options<For> {
    wire: CriuOpts,
    request: PhantomData<For>,
}

/// What a dump can be told. See [`Options`].
pub type DumpOptions = Options<Dump>;

/// What a restore can be told. See [`Options`].
pub type RestoreOptions = Options<Restore>;

/// Marks the options of a dump.
#[derive(Debug)]
pub enum Dump {}

/// Marks the options of a restore.
#[derive(Debug)]
pub enum Restore {}

impl<For> Options<For> {
    /// The message as it goes over the wire; the client adds what it lends.
    pub(crate) fn wire(&self) -> CriuOpts {
        self.wire.clone()
    }
}

impl<For> Default for Options<For> {
    /// Everything as criu does it by itself; criu logs errors and warnings.
    fn default() -> Options<For> {
        let wire = CriuOpts { images_dir_fd: -1, ..CriuOpts::default() };
        Options { wire, request: PhantomData }
    }
}

impl<For> Clone for Options<For> {
    fn clone(&self) -> Options<For> {
        Options { wire: self.wire.clone(), request: PhantomData }
    }
}

impl<For> PartialEq for Options<For> {
    fn eq(&self, other: &Options<For>) -> bool {
        self.wire == other.wire
    }
}

impl<For> fmt::Debug for Options<For> {
    /// The fields that were set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wire.encoded_len() == Self::default().wire.encoded_len() {
            return f.write_str("Options(default)");
        }
        write!(f, "Options({:?})", self.wire)
    }
}

impl<For> Options<For> {
    /// Whether the caller has said anything about it.
    pub(crate) fn names_shell_job(&self) -> bool {
        self.wire.shell_job.is_some()
    }

    /// Whether the caller has said anything about TCP connections.
    pub(crate) fn names_tcp(&self) -> bool {
        self.wire.tcp_close.is_some() || self.wire.tcp_established.is_some()
    }

    /// Whether the caller has said anything about file locks.
    pub(crate) fn names_file_locks(&self) -> bool {
        self.wire.file_locks.is_some()
    }
}
