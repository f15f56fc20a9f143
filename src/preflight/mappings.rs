//! Mapped memory that is not an ordinary file.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
};

use super::{Obstacle, Place, Process, Severity, View, beyond, descriptors::deleted};
use crate::{
    procfs::{Mapping, each_line},
    sys::Statx,
};

pub(super) fn look(view: &mut View<'_>) {
    for process in view.living() {
        let mut seen = HashSet::new();
        let mut findings = Vec::new();
        each_line(format!("/proc/{}/maps", process.pid), |line| {
            let Some(mapping) = Mapping::parse(line).filter(|mapping| !mapping.name.is_empty()) else {
                return;
            };
            if let Some(obstacle) = obstacle(view, process, &mapping, &mut seen) {
                findings.push((place(&mapping), obstacle));
            }
        });
        for (place, obstacle) in findings {
            view.found(process.pid, place, obstacle, Severity::Blocks);
        }
    }
}

fn place(mapping: &Mapping<'_>) -> Place {
    Place::Mapping { start: mapping.start, end: mapping.end, path: PathBuf::from(mapping.name) }
}

/// Returns true for memory of `memfd_secret`. Nothing but a mapping in the process itself opens it.
fn is_secret_memory(process: &Process, mapping: &Mapping<'_>) -> bool {
    let Mapping { start, end, .. } = mapping;
    let opened = File::open(format!("/proc/{}/map_files/{start:x}-{end:x}", process.pid));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::ENXIO))
}

/// Returns the obstacle of a mapping. `seen` holds the deleted files of this process that were
/// checked before.
fn obstacle(
    view: &View<'_>,
    process: &Process,
    mapping: &Mapping<'_>,
    seen: &mut HashSet<(u64, u64)>,
) -> Option<Obstacle> {
    let name = mapping.name;
    if name == "anon_inode:[io_uring]" {
        return Some(Obstacle::IoUring);
    }
    if name.starts_with("anon_inode:") {
        return Some(Obstacle::UnsupportedMapping);
    }
    if name == "[uprobes]" {
        return Some(Obstacle::Uprobes);
    }
    if name.starts_with("/SYSV") {
        let shared = view.root().spaces.share(view.own_spaces(), "ipc");
        return shared.then_some(Obstacle::SystemVMemory);
    }
    if name.starts_with("/secretmem") && name.ends_with(" (deleted)") {
        return is_secret_memory(process, mapping).then_some(Obstacle::UnsupportedMapping);
    }
    if name.starts_with("/[aio]") {
        return None; // the ring of io_setup, which criu recreates
    }
    if beyond::is_sealed(process.pid, mapping) {
        return Some(Obstacle::SealedMemfd);
    }
    if !name.starts_with("/dev/") && !name.ends_with(" (deleted)") {
        return None;
    }
    let (start, end) = (mapping.start, mapping.end);
    let file = Statx::of(format!("/proc/{}/map_files/{start:x}-{end:x}", process.pid)).ok()?;
    const ZERO: (u32, u32) = (1, 5);
    let is_zero = file.is_char_device() && file.device() == ZERO;
    if !file.is_file() && !is_zero {
        return Some(Obstacle::UnsupportedMapping);
    }
    // A program or a library has several mappings, and needs one check.
    if name.ends_with(" (deleted)") && seen.insert((file.dev(), file.ino())) {
        return deleted(view, Path::new(name), &file);
    }
    None
}
