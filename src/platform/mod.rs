//! The one place that knows the platform: how a process tree becomes a folder of images and back.
//! On Linux by criu; elsewhere not at all.

use std::{fs::File, path::Path, time::Duration};

use serde::Serialize;

use crate::{
    DumpOptions, Isolation, Pid, RestoreOptions, Result, Stream, Until, Version, Warning,
    archive::Trees,
    pages::{PageFiles, PageSink},
};

#[cfg_attr(target_os = "linux", path = "linux/mod.rs")]
#[cfg_attr(not(target_os = "linux"), path = "elsewhere.rs")]
mod here;
mod means;

pub(crate) use self::here::{Buffer, Reviver, cannot_work, checkpoint, foresee, host, page_size};
pub use self::here::{Cancel, Tree, kill_session, kill_tree};
pub(crate) use self::means::{Means, means};

/// The trees to dump, and the options.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) pids: Vec<Pid>,
    pub(crate) options: DumpOptions,
    pub(crate) leave_running: bool,
    /// criu's names of what the trees were started with as standard streams, as far as the caller
    /// told.
    pub(crate) streams: [Option<String>; 3],
    pub(crate) means: Means,
    /// The deadline and the token, from the moment on at which the work began.
    pub(crate) until: Until,
}

/// The options of a revival.
#[derive(Debug, Default)]
pub(crate) struct Revival {
    pub(crate) options: RestoreOptions,
    pub(crate) means: Means,
    /// The time to wait for zombies that hold pids of the tree; `None` for the default.
    pub(crate) patience: Option<Duration>,
    /// The caller's choices for the standard streams.
    pub(crate) streams: [Option<Stream>; 3],
    /// The choice for files that have another size than at the capture.
    pub(crate) grown_files: GrownFiles,
    /// True if files that were replaced since the capture are accepted.
    pub(crate) replaced_files: bool,
    /// The files that it lends in the place of others, by criu's names.
    pub(crate) inherit: Vec<(String, File)>,
    /// The namespaces to revive the tree in, if they are not ours.
    pub(crate) isolation: Option<Isolation>,
}

/// Choices of a restore for files whose size differs from that at the capture, such as a log that
/// grew.
///
/// Only [`Keep`](GrownFiles::Keep) accepts a file that shrank. No choice accepts another size of a
/// file that the tree executes or has mapped, nor another mode. Files that the caller gives in the
/// place of others are not checked, nor are files in a mount namespace of the tree's own.
///
/// | The tree had the file open for | [`Continue`] | [`CutBack`] | [`Keep`] |
/// |---|---|---|---|
/// | writing, at its end (`> log`) | goes on at the new end | is cut back | goes on where it was |
/// | appending (`>> log`, `a+`) | goes on at the new end | is cut back | goes on at the new end |
/// | reading only (a script, `tail -f`) | goes on, if the same file | as `Continue` | goes on |
/// | reading and writing, or writing in its middle | refused | is cut back | goes on where it was |
///
/// A revived tree has its own position in a file. If it shared the position with another process
/// ([`Warning::FileShared`](crate::Warning::FileShared)), the two overwrite each other's data, or
/// both read the same data. Open the file for appending, or give it at the restore, to avoid that.
///
/// [`Continue`]: GrownFiles::Continue
/// [`CutBack`]: GrownFiles::CutBack
/// [`Keep`]: GrownFiles::Keep
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrownFiles {
    /// Continues where no data written since the capture is lost, and refuses the rest. It cannot
    /// prevent that another process, which writes to the same file without appending, overwrites
    /// data after the restore.
    ///
    /// A tree that writes at the end of a file continues at its new end. A
    /// [`Warning`](crate::Warning) names each such file.
    #[default]
    Continue,
    /// Refuses all of them, except files that are open for appending and writing only (`>>`): criu
    /// does not compare their size.
    Refuse,
    /// Cuts files that the tree can write to back to their old size: **data written since is
    /// lost**. It happens when the tree is built and before it runs, so a restore that fails has
    /// cut nothing.
    CutBack,
    /// Takes all files as they are. The tree may overwrite data that was written since the capture.
    Keep,
}

/// The outcome of a dump. `T` is the caller's result of keeping the images.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// The images were made, and kept.
    Kept(T, Facts),
    /// This is the revived copy of a process that dumped itself.
    Revived,
}

/// Facts about a dump.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The roots of the trees.
    pub(crate) roots: Vec<Pid>,
    /// The time that the tree was frozen; with several trees, the longest.
    pub(crate) frozen: Option<Duration>,
    /// The number of pre-dumps before the dump.
    pub(crate) pre_dumps: u32,
    /// Warnings for the caller's user.
    pub(crate) warnings: Vec<Warning>,
}

/// Trees that were revived.
#[derive(Debug, Default)]
pub(crate) struct Revived {
    pub(crate) trees: Vec<Tree>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) unread: Vec<Unread>,
}

/// Input that a tree had not read when it was captured. It was in a pipe or socket that the restore
/// replaced, so the tree does not have it any more; [`Restored::unread`](crate::Restored::unread)
/// hands it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// The root of the tree.
    pub tree: Pid,
    /// The number of the descriptor: 0 for the standard input.
    pub descriptor: u32,
    /// The bytes, in order.
    pub bytes: Vec<u8>,
}

/// The images of a dump.
#[derive(Debug)]
pub(crate) struct Images<'a> {
    pub(crate) trees: &'a Trees,
    /// The roots of the trees.
    pub(crate) roots: &'a [Pid],
    /// The version of the criu that made them.
    pub(crate) criu: Option<Version>,
}

/// Makes the images into something that lasts.
pub(crate) type Keep<'a, T> = &'a mut dyn FnMut(&Images<'_>) -> Result<T>;

/// Takes memory in while trees are dumped, so that it need not go through the folder. A tree that
/// this process is a part of cannot be dumped so, and then no other is.
pub(crate) trait Memory: Sync {
    /// Returns how many rounds of pre-dumps may come before the dump.
    fn pre_dumps(&self) -> u32;

    /// Memory will come, about so many bytes; the trees run still. It comes in rounds if it is
    /// `tracked`.
    fn prepare(&self, bytes: u64, tracked: bool) -> Result<()>;

    /// A round of pre-dumps has ended, and another or the dump follows, of which everything is new
    /// that has not ended before. Gives how many bytes of the processes' own memory came.
    fn end_round(&self) -> Result<u64>;

    /// Returns the sink for the memory of the tree with this root.
    fn sink(&self, root: Pid) -> Box<dyn PageSink + '_>;
}

/// A folder of images that is to become a process tree.
#[derive(Clone, Copy)]
pub(crate) struct ToRevive<'a> {
    pub(crate) folder: &'a Path,
    /// Its memory, where that is not in the folder.
    pub(crate) pages: Option<&'a dyn PageFiles>,
}
