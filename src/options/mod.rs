//! Options of criu's requests: [`DumpOptions`], [`RestoreOptions`] and others, all
//! of them [`Options`].
//!
//! Files that are lent for one request are in [`Lend`](crate::rpc::Lend).

// `table` has a row for every field of criu's: start reading there. The wire message is the
// storage, and a marker type says which request may use a row.

mod choices;
mod raw;
mod resource;
mod table;

use std::{fmt, marker::PhantomData};

pub(crate) use self::table::{field_with_zero_byte, younger_fields};
pub use self::{
    choices::{
        CgroupMode, CgroupRoot, CpuCap, EmptyNamespace, JoinNamespace, LogLevel, NetworkLock,
        PageServerAddress, PreDumpMode,
    },
    raw::RawValue,
    resource::External,
};
use crate::proto::rpc::CriuOpts;

/// Options of a request: plain data, which can be defaulted, copied and compared.
///
/// The names are criu's own, so its manual applies: `tcp_established` is
/// `criu dump --tcp-established`. [`DumpOptions`] and [`RestoreOptions`] have the methods.
///
/// ```
/// use criu_rpc::{DumpOptions, options::NetworkLock};
///
/// let options = DumpOptions::default().tcp_established(true).network_lock(NetworkLock::Skip);
/// assert_ne!(options, DumpOptions::default());
/// ```
pub struct Options<For> {
    wire: CriuOpts,
    /// Fields that the message does not have, encoded.
    raw: Vec<u8>,
    request: PhantomData<For>,
}

/// Options of a dump. See [`Options`].
pub type DumpOptions = Options<Dump>;

/// Options of a restore. See [`Options`].
pub type RestoreOptions = Options<Restore>;

/// Options of a pre-dump. See [`Options`].
pub type PreDumpOptions = Options<PreDump>;

/// Options of a page server. See [`Options`].
pub type PageServerOptions = Options<Serve>;

/// Options of a request about the processor's features. See [`Options`].
pub type CpuInfoOptions = Options<Cpu>;

/// Marks the options of a dump.
#[derive(Debug)]
pub enum Dump {}

/// Marks the options of a restore.
#[derive(Debug)]
pub enum Restore {}

/// Marks the options of a pre-dump.
#[derive(Debug)]
pub enum PreDump {}

/// Marks the options of a page server.
#[derive(Debug)]
pub enum Serve {}

/// Marks the options of a request about the processor.
#[derive(Debug)]
pub enum Cpu {}

/// A request that has options: [`Dump`], [`Restore`], [`PreDump`], [`Serve`] or [`Cpu`].
pub trait RequestKind: sealed::Rows {}

/// Keeps other crates from adding requests.
mod sealed {
    use crate::proto::rpc::CriuOpts;

    pub trait Rows {
        /// Keeps the fields that this request may use, and drops all others.
        fn rows_of(opts: &CriuOpts) -> CriuOpts;
    }
}

/// Makes a message without any field.
fn unset() -> CriuOpts {
    CriuOpts { images_dir_fd: -1, ..CriuOpts::default() }
}

impl<For> Options<For> {
    /// Converts to options of another request. Keeps the fields that both requests may use. All
    /// other fields are dropped, also those that [`raw_field`](Options::raw_field) set.
    ///
    /// Some fields have another meaning there. `auto_dedup` makes a restore remove pages from the
    /// images that it reads. `lazy_pages` makes a dump serve memory, and a restore fetch it. `ps`
    /// is the address to which a dump sends memory, and on which a page server listens.
    ///
    /// ```
    /// use criu_rpc::{DumpOptions, RestoreOptions, options::PreDumpOptions};
    ///
    /// let dump = DumpOptions::default().tcp_established(true).track_mem(true).parent_img("../1");
    /// let pre_dump: PreDumpOptions = dump.shared_with();
    /// assert_eq!(pre_dump, PreDumpOptions::default().parent_img("../1"));
    /// let restore: RestoreOptions = dump.shared_with();
    /// assert_eq!(restore, RestoreOptions::default().tcp_established(true));
    /// ```
    #[must_use]
    pub fn shared_with<Other: RequestKind>(&self) -> Options<Other> {
        Options { wire: Other::rows_of(&self.wire), raw: Vec::new(), request: PhantomData }
    }

    /// Returns the message for the wire; the client adds the lent files.
    pub(crate) fn wire(&self) -> CriuOpts {
        self.wire.clone()
    }

    /// Returns the fields that [`raw_field`](Options::raw_field) added to the message.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }
}

impl DumpOptions {
    /// Converts to options of a pre-dump. criu ignores fields that have no use there.
    pub(crate) fn for_pre_dump(&self) -> PreDumpOptions {
        Options { wire: self.wire.clone(), raw: self.raw.clone(), request: PhantomData }
    }
}

impl<For> Default for Options<For> {
    /// Returns criu's own defaults; criu logs errors and warnings.
    fn default() -> Options<For> {
        Options { wire: unset(), raw: Vec::new(), request: PhantomData }
    }
}

impl<For> Clone for Options<For> {
    fn clone(&self) -> Options<For> {
        Options { wire: self.wire.clone(), raw: self.raw.clone(), request: PhantomData }
    }
}

impl<For> PartialEq for Options<For> {
    fn eq(&self, other: &Options<For>) -> bool {
        self.wire == other.wire && self.raw == other.raw
    }
}

impl<For> Eq for Options<For> {}

impl<For> fmt::Debug for Options<For> {
    /// Writes the fields that are set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Options::default() {
            return f.write_str("Options(default)");
        }
        f.debug_tuple("Options").field(&self.wire).finish()
    }
}

impl<For> Options<For> {
    /// Returns true if the caller has set the field.
    pub(crate) fn names_shell_job(&self) -> bool {
        self.wire.shell_job.is_some()
    }

    /// Returns true if a restore needs its images in a real folder: because it changes them, or
    /// because another process reads them.
    pub(crate) fn needs_files(&self) -> bool {
        self.wire.auto_dedup == Some(true) || self.wire.lazy_pages == Some(true)
    }

    /// Returns true if criu can make a mount namespace: it has a root folder or a namespace to
    /// join. In its older mode it needs neither.
    pub(crate) fn can_make_mounts(&self) -> bool {
        let joins = self.wire.join_ns.iter().any(|join| join.ns == "mnt");
        joins || self.wire.root.is_some() || self.wire.mntns_compat_mode == Some(true)
    }

    /// Returns true if the caller has set an option for TCP connections.
    pub(crate) fn names_tcp(&self) -> bool {
        self.wire.tcp_close.is_some() || self.wire.tcp_established.is_some()
    }

    /// Returns true if TCP connections are restored as closed.
    pub(crate) fn closes_tcp(&self) -> bool {
        self.wire.tcp_close == Some(true)
    }

    /// Returns true if file locks are dumped.
    pub(crate) fn carries_file_locks(&self) -> bool {
        self.wire.file_locks == Some(true)
    }

    /// Returns true if the tree is to be left stopped.
    pub(crate) fn leaves_stopped(&self) -> bool {
        self.wire.leave_stopped == Some(true)
    }

    pub(crate) fn leaves_running(&self) -> bool {
        self.wire.leave_running == Some(true)
    }

    /// Returns true if a resource of this name belongs to processes outside.
    pub(crate) fn is_external(&self, resource: &str) -> bool {
        self.wire.external.iter().any(|external| external == resource)
    }

    /// Returns the size limit for deleted files in bytes, or `other` if it is not set.
    pub(crate) fn ghost_limit_or(&self, other: u32) -> u32 {
        self.wire.ghost_limit.unwrap_or(other)
    }

    /// Returns true if the caller has set an option for files with deleted names.
    pub(crate) fn names_link_remap(&self) -> bool {
        self.wire.link_remap.is_some()
    }

    /// Returns true if the caller has set the way to block network traffic.
    pub(crate) fn names_network_lock(&self) -> bool {
        self.wire.network_lock.is_some()
    }

    /// Returns true if the caller has set the option for file locks.
    pub(crate) fn names_file_locks(&self) -> bool {
        self.wire.file_locks.is_some()
    }

    /// Returns true if the caller has set the size limit for deleted files.
    pub(crate) fn names_ghost_limit(&self) -> bool {
        self.wire.ghost_limit.is_some()
    }
}
