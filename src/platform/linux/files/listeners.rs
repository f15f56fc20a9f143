//! Finds programs that listen on sockets which the restore has to create.

use std::collections::HashSet;

use nix::sys::stat::{SFlag, major, minor};

use super::{
    File, path, shown,
    walk::{Root, Walked, kind},
};
use crate::{image::Place, preflight::Peers};

/// Describes each socket that the restore has to create, and on which another program listens now.
/// Programs in other network namespaces are not seen.
pub(super) fn listening(files: &[File]) -> Vec<String> {
    // Sockets have no entry among the files, hence the id 0.
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
            format!("{}: another program listens on this socket, and would lose it", shown(&file.named.path))
        })
        .collect()
}
