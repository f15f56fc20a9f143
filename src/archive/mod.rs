//! Converts folders of images to tar archives and back. Equal images give equal bytes, and an
//! archive cannot write outside the folder that it is unpacked in.
//!
//! The layout is in `docs/formats.md`. Both directions stream, with one buffer and no list of
//! contents. The caller's reader or writer hashes and stores. Start with [`Trees`].

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

/// The folders of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trees {
    /// The images of one process tree, at the top of the archive.
    One(PathBuf),
    /// The images of several trees, by the pid of each root, in `tree-<pid>/`.
    Several(BTreeMap<i32, PathBuf>),
}

/// Size of the buffer that reads and writes go through.
const BUFFER: usize = 1 << 20;

/// The name of the archive in errors.
const WHAT: &str = "archive";
