//! A folder of images to a tar archive and back: equal images give equal bytes, and nothing that an
//! archive says can reach outside the folder it is unpacked in.
//!
//! The layout is in `docs/formats.md`. Both ways stream, with one buffer and no list of contents; hashing
//! and storing are the business of the reader or writer that the caller hands in. Start with [`Trees`].

mod header;
mod names;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use std::{collections::BTreeMap, path::PathBuf};

pub(crate) use names::{is_image, tree_folder};
pub(crate) use pack::pack;
pub(crate) use unpack::{Limits, unpack, unpack_without_memory};

/// The folders that images are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trees {
    /// The images of one process tree; they stand at the top of the archive.
    One(PathBuf),
    /// Those of several, by the pid of each tree's root; they stand in `tree-<pid>/`.
    Several(BTreeMap<i32, PathBuf>),
}

/// What is read or written at once.
const BUFFER: usize = 1 << 20;

/// What errors call the archive.
const WHAT: &str = "archive";
