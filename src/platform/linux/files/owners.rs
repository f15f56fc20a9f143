//! The owners of the tree's files, noted at the capture so that a restore can compare them.

use std::collections::HashSet;

use nix::sys::stat::FileStat;

use super::{
    path,
    walk::{Root, Walked},
};
use crate::{
    Result,
    image::ImageDir,
    proto::images::{FileNote, FileNotes},
};

/// The most bytes of notes. Restores compare less of the files beyond.
const MOST: usize = 4 << 20;
/// The bytes of a note without its path.
const BESIDE: usize = 70;

/// Looks at the files that these images name by path. criu has just seen that the paths lead to
/// them, and the tree stands still. That is far less work than to ask each process for all that it
/// has mapped.
pub(in super::super) fn look(images: &ImageDir) -> Result<FileNotes> {
    let mut notes = FileNotes::default();
    let Ok(root) = Root::open() else { return Ok(notes) };
    // Paths in another mount namespace mean something else here.
    if images.has_own_mounts()? {
        return Ok(notes);
    }
    let (mut seen, mut room) = (HashSet::new(), MOST);
    for file in images.paths()? {
        let Some(left) = room.checked_sub(file.len() + BESIDE) else { break };
        if !seen.insert(file.clone()) {
            continue;
        }
        if let Ok(Walked::File(found)) = root.walk(path(&file), true) {
            room = left;
            notes.files.push(FileNote {
                path: file,
                dev: found.stat.st_dev,
                ino: found.stat.st_ino,
                mode: found.stat.st_mode,
                uid: found.stat.st_uid,
                gid: found.stat.st_gid,
                size: found.stat.st_size.unsigned_abs(),
                born: found.born(),
                modified: Some(modified(&found.stat)),
            });
        }
    }
    Ok(notes)
}

/// The time of the last change of a file's contents, in nanoseconds since 1970.
pub(super) fn modified(of: &FileStat) -> i64 {
    of.st_mtime.saturating_mul(1_000_000_000).saturating_add(of.st_mtime_nsec)
}
