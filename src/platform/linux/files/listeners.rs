//! Finds programs that listen on sockets which the restore has to create.

use std::collections::HashSet;

use nix::sys::stat::{FileStat, SFlag, major, minor};

use super::{
    File, path, shown,
    walk::{Root, Walked, kind},
};
use crate::{image::Place, preflight::Peers};

/// Describes each socket that the restore has to create, and that another program has now.
pub(super) fn listening(files: &[File]) -> Vec<String> {
    // Sockets have no entry among the files, hence the id 0.
    let sockets = files.iter().filter(|file| file.named.place == Place::Made && file.named.id == 0);
    let Ok(root) = Root::open() else { return Vec::new() };
    let there = sockets.filter_map(|file| match root.walk(path(&file.named.path), false) {
        Ok(Walked::File(found)) if kind(found.stat.st_mode) == SFlag::S_IFSOCK => Some((file, found)),
        _ => None,
    });
    let there: Vec<_> = there.collect();
    // They are all of this network namespace.
    let all = (!there.is_empty()).then(|| Peers::ask(&HashSet::new())).flatten();
    let listens = |stat: &FileStat| {
        let device = (major(stat.st_dev), minor(stat.st_dev));
        all.as_ref().is_some_and(|all| all.listens_at(stat.st_ino, device))
    };
    let taken = there.iter().filter(|(_, found)| listens(&found.stat) || found.is_bound());
    taken
        .map(|(file, _)| {
            format!("{}: another program listens on this socket, and would lose it", shown(&file.named.path))
        })
        .collect()
}
