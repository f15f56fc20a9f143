//! Files that the tree has mapped shared and writable, such as a database or a named semaphore.
//!
//! criu maps them again and leaves their contents alone, so a revived tree may find other contents
//! than it had. The notes record the old contents, and a restore compares them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
};

use super::{Frozen, settings::inner_number};
use crate::{
    Digest256,
    procfs::{Mapping, each_line},
    proto::images::MappedNote,
    wiped::Wiped,
};

/// The most mappings that are noted of one tree.
const MOST: usize = 10_000;
/// The maximum size of a mapping whose contents are compared, in bytes. For a larger one, the size
/// and the time of the last change are compared.
const LARGE: u64 = 1 << 20;
/// The maximum number of bytes that are read for one tree, which is frozen meanwhile.
const ALL: u64 = 16 << 20;

pub(super) fn look(tree: &Frozen) -> Vec<MappedNote> {
    let (mut notes, mut left) = (Vec::new(), ALL);
    for process in &tree.pids {
        let Some(pid) = inner_number(*process).and_then(|pid| u32::try_from(pid).ok()) else { continue };
        each_line(format!("/proc/{process}/maps"), |line| {
            let permissions = line.split_ascii_whitespace().nth(1).unwrap_or_default();
            let Some(Mapping { start, end, name, .. }) = Mapping::parse(line) else { return };
            let is_shared = permissions.starts_with("rw") && permissions.ends_with('s');
            if !is_shared || !name.starts_with('/') || name.ends_with(" (deleted)") || notes.len() >= MOST {
                return;
            }
            let Some((modified, size)) = file(*process, start, end) else { return };
            let compared = end - start <= LARGE.min(left);
            let digest = if compared { contents(*process, start, end) } else { None };
            left -= if digest.is_some() { end - start } else { 0 };
            let path = name.as_bytes().to_vec();
            notes.push(MappedNote { pid, start, end, path, modified, size, digest });
        });
    }
    notes
}

/// Tells the file if it is not as it was at the capture.
pub(in crate::platform) fn changed(process: i32, note: &MappedNote) -> Option<PathBuf> {
    let MappedNote { start, end, path, modified, size, digest, .. } = note;
    let now = file(process, *start, *end)?;
    let is_same = match digest {
        Some(digest) if end.checked_sub(*start)? <= LARGE => {
            now.1 == *size && contents(process, *start, *end).as_ref() == Some(digest)
        }
        _ => now == (*modified, *size),
    };
    (!is_same).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// The time of the last change and the size of a mapped regular file, which is not opened: to close
/// a file would end locks of this process.
fn file(process: i32, start: u64, end: u64) -> Option<(i64, u64)> {
    let found = fs::metadata(format!("/proc/{process}/map_files/{start:x}-{end:x}")).ok()?;
    let modified = found.mtime().checked_mul(1_000_000_000)?.checked_add(found.mtime_nsec())?;
    found.is_file().then(|| (modified, found.size()))
}

/// The digest of what is mapped, read from the process's memory.
fn contents(process: i32, start: u64, end: u64) -> Option<Vec<u8>> {
    let mut bytes = Wiped::zeroed(usize::try_from(end - start).ok()?);
    let memory = File::open(format!("/proc/{process}/mem")).ok()?;
    // Behind the end of the file there is nothing to read.
    let mut count = 0;
    while count < bytes.len() {
        match memory.read_at(&mut bytes[count..], start + u64::try_from(count).ok()?) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if count > 0 => break,
            Err(_) => return None,
        }
    }
    Some(Digest256::of(&bytes[..count]).hex().into_bytes())
}
