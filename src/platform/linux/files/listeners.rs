//! Finds programs that listen where the tree is to listen.

use std::collections::HashSet;

use nix::sys::stat::{SFlag, major, minor};

use super::{
    File, path, shown,
    walk::{Root, Walked, kind},
};
use crate::{image::Place, preflight::Peers};

/// Describes each socket that is to be made, and that another program has now. Programs in other
/// network namespaces are not seen.
pub(super) fn listening(files: &[File]) -> Vec<String> {
    // A socket has no entry among the files.
    let sockets = files.iter().filter(|file| file.named.place == Place::Made && file.named.id == 0);
    let Ok(root) = Root::open() else { return Vec::new() };
    let there = sockets.filter_map(|file| match root.walk(path(&file.named.path), false) {
        Ok(Walked::File(found)) if kind(found.stat.st_mode) == SFlag::S_IFSOCK => Some((file, found.stat)),
        _ => None,
    });
    let there: Vec<_> = there.collect();
    let Some(all) = (!there.is_empty()).then(|| Peers::ask(&HashSet::new())).flatten() else {
        return Vec::new();
    };
    let taken = there
        .iter()
        .filter(|(_, stat)| all.listens_at(stat.st_ino, (major(stat.st_dev), minor(stat.st_dev))));
    taken
        .map(|(file, _)| {
            format!("{}: another program has this socket now, and would be cut off", shown(&file.named.path))
        })
        .collect()
}
