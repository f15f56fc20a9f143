//! The one place that knows the platform: how a process tree becomes a folder of images and back. On Linux by
//! criu; elsewhere not at all.

use std::{fs::File, path::PathBuf, time::Duration};

use crate::{DumpOptions, Pid, Result, archive::Trees};

#[cfg_attr(target_os = "linux", path = "linux/mod.rs")]
#[cfg_attr(not(target_os = "linux"), path = "elsewhere.rs")]
mod here;

pub use self::here::Tree;
pub(crate) use self::here::{Reviver, checkpoint};

/// What to dump, and how.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) pids: Vec<Pid>,
    pub(crate) options: DumpOptions,
    pub(crate) leave_running: bool,
    pub(crate) criu: Option<PathBuf>,
    pub(crate) staging: Option<PathBuf>,
    pub(crate) deadline: Option<Duration>,
}

/// What the caller says of standard streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The files that it chose.
    pub(crate) chosen: [Option<File>; 3],
    /// Whether it wants its own for the others, whatever the tree's were.
    pub(crate) inherited: bool,
}

/// What became of a dump. `T` is what the caller made of the images.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// The images were made, and kept.
    Kept(T, Facts),
    /// This is the revived copy of a process that dumped itself.
    Revived,
    /// There is nothing here to dump with.
    Unsupported(Unsupported),
}

/// What is known of a dump.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The roots of the trees.
    pub(crate) roots: Vec<Pid>,
    /// How long the tree stood still; of several trees, the one that did longest.
    pub(crate) frozen: Option<Duration>,
}

/// Why there is nothing to dump with.
#[derive(Debug, Clone)]
pub(crate) struct Unsupported {
    /// As the manifest names it: an operating system, or `linux-no-criu`.
    pub(crate) on: &'static str,
    /// For people.
    pub(crate) why: String,
}

/// Makes the images into something that lasts.
pub(crate) type Keep<'a, T> = &'a mut dyn FnMut(&Trees) -> Result<T>;
