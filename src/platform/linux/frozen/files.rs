//! The files that the tree uses: which they are and whom they belong to, so that a restore knows them again.

use std::{collections::HashSet, fs, os::unix::ffi::OsStrExt, path::PathBuf};

use super::Frozen;
use crate::{
    procfs::Mapping,
    proto::images::{FileNote, FileNotes},
    sys::Known,
};

/// The most bytes of paths that are noted. Restores compare less of the files beyond.
const MOST: usize = 2 << 20;

/// Looks at the files behind descriptors, mappings and links of the tree.
pub(super) fn look(tree: &Frozen) -> FileNotes {
    let (mut seen, mut room) = (HashSet::new(), MOST);
    let mut files = Vec::new();
    let open = tree.files.iter().map(|file| (file.target.clone(), file.path()));
    let others = tree.pids.iter().flat_map(|pid| links(*pid).into_iter().chain(mapped(*pid)));
    for (path, file) in open.chain(others) {
        if path.is_absolute() && !seen.contains(&path) {
            // Each note has some fifty bytes beside the path.
            let Some(left) = room.checked_sub(path.as_os_str().len() + 50) else { break };
            room = left;
            files.extend(note(&path, &file));
            seen.insert(path);
        }
    }
    FileNotes { files }
}

/// The note of a file with this path, which is reached by way of `/proc`.
fn note(path: &std::path::Path, file: &str) -> Option<FileNote> {
    let known = Known::of(file).ok()?;
    let is_owned = known.is_file() || known.is_dir() || known.is_fifo();
    is_owned.then(|| FileNote {
        path: path.as_os_str().as_bytes().to_vec(),
        dev: known.dev(),
        ino: known.ino(),
        mode: known.mode(),
        uid: known.uid(),
        gid: known.gid(),
        size: known.size(),
    })
}

fn links(pid: i32) -> Vec<(PathBuf, String)> {
    let links = ["exe", "cwd", "root"].map(|name| format!("/proc/{pid}/{name}"));
    links.into_iter().filter_map(|link| Some((fs::read_link(&link).ok()?, link))).collect()
}

/// The mapped files of a process.
fn mapped(pid: i32) -> Vec<(PathBuf, String)> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let files = maps.lines().filter_map(Mapping::parse).filter(|mapping| mapping.name.starts_with('/'));
    let mut files: Vec<_> = files.collect();
    files.dedup_by(|one, other| one.name == other.name);
    let way = |Mapping { start, end, .. }: &Mapping<'_>| format!("/proc/{pid}/map_files/{start:x}-{end:x}");
    files.iter().map(|mapping| (PathBuf::from(mapping.name), way(mapping))).collect()
}
