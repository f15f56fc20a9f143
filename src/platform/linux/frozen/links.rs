//! Files that are open under a deleted name while they have another: the images get the name that
//! is left.
//!
//! glibc makes each named semaphore so, and Python's `multiprocessing` uses those. criu's link to
//! such a file does not outlive the dump or the first restore, and it is there now.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirEntryExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Frozen;
use crate::{
    Pid, Result, Warning,
    image::{GhostMeta, ImageDir, LinkCure, LinkRemap},
    sys::Statx,
};

/// The most time that a frozen tree waits for a search.
const PATIENCE: Duration = Duration::from_millis(200);
/// The most names that are checked for one file.
const MOST_NAMES: u32 = 50_000;

/// Edits the images of the tree so that no link of criu's is needed, where that can be. Files up to
/// `limit` bytes whose other name is not found go into the images; the warnings tell of those.
pub(super) fn cure(tree: &Frozen, root: Pid, images: &ImageDir, limit: u64) -> Result<Vec<Warning>> {
    let remaps = images.link_remaps()?;
    if remaps.is_empty() {
        return Ok(Vec::new());
    }
    let base = mount_root(root);
    let search = Search { base: &base, until: Instant::now() + PATIENCE };
    let (mut cures, mut warnings) = (Vec::new(), Vec::new());
    let mut known = BTreeMap::<(u64, u64), LinkCure>::new();
    let mut next_ghost = images.next_ghost()?;
    for remap in remaps {
        let Some((held, file)) = tree.held(&base, &remap) else { continue };
        let identity = (file.dev(), file.ino());
        let cure = match (known.get(&identity), search.name_of(&file, &remap)) {
            (Some(cure), _) => cure.clone(),
            (None, Some(name)) => LinkCure::Name(name),
            (None, None) if is_own_user_namespace(root) && ghost(images, next_ghost, &held, limit)? => {
                warnings
                    .push(Warning::Copied { pid: root, path: PathBuf::from(OsStr::from_bytes(&remap.name)) });
                next_ghost += 1;
                LinkCure::Ghost(next_ghost - 1)
            }
            (None, None) => continue, // a look at the images will tell
        };
        known.insert(identity, cure.clone());
        cures.push((remap, cure));
    }
    images.replace_links(&cures)?;
    cures.iter().for_each(|(remap, _)| remove_link(&base, remap));
    Ok(warnings)
}

fn remove_link(base: &Path, remap: &LinkRemap) {
    let link = base.join(relative(&remap.link_name));
    if link.file_name().is_some_and(|name| *name == *format!("link_remap.{}", remap.link)) {
        let _ = fs::remove_file(link); // criu may have removed it
    }
}

/// The path at which this process sees the root of the tree's mount namespace.
fn mount_root(root: Pid) -> PathBuf {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    match namespace(&root.to_string()) == namespace("self") {
        true => PathBuf::from("/"),
        false => PathBuf::from(format!("/proc/{root}/root")),
    }
}

fn is_own_user_namespace(root: Pid) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    namespace(&root.to_string()) == namespace("self")
}

/// A name in the images, without its leading slash.
fn relative(name: &[u8]) -> &Path {
    let name = Path::new(OsStr::from_bytes(name));
    name.strip_prefix("/").unwrap_or(name)
}

impl Frozen {
    /// A path to the file: criu's link, or the descriptor of a process of the tree.
    fn held(&self, base: &Path, remap: &LinkRemap) -> Option<(PathBuf, Statx)> {
        let link = base.join(relative(&remap.link_name));
        if let Ok(file) = Statx::of(&link) {
            return Some((link, file));
        }
        let mut deleted = Path::new("/").join(relative(&remap.name)).into_os_string();
        deleted.push(" (deleted)");
        let deleted = PathBuf::from(deleted);
        let open = self.files.iter().find(|file| file.target == deleted).map(|file| file.path().into());
        let held: PathBuf = open.or_else(|| self.mapped(&deleted))?;
        Statx::of(&held).ok().map(|file| (held, file))
    }

    /// A mapping of this file.
    fn mapped(&self, target: &Path) -> Option<PathBuf> {
        let processes: HashSet<i32> = self.pids.iter().copied().collect();
        let folders = processes.into_iter().map(|pid| format!("/proc/{pid}/map_files"));
        let mut mappings = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        mappings
            .find(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == target))
            .map(|entry| entry.path())
    }
}

/// Takes the contents of a file into the images, unless it is too large or no regular file.
fn ghost(images: &ImageDir, number: u32, held: &Path, limit: u64) -> Result<bool> {
    let Ok(file) = File::open(held) else { return Ok(false) };
    let Ok(metadata) = file.metadata() else { return Ok(false) };
    if !metadata.is_file() || metadata.blocks() * 512 > limit {
        return Ok(false);
    }
    let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
    images.add_ghost(number, file, GhostMeta { uid, gid, mode, size: metadata.len() })?;
    Ok(true)
}

/// A search for the name of a file.
struct Search<'a> {
    base: &'a Path,
    until: Instant,
}

impl Search<'_> {
    /// A name of the file: in the folder of its deleted name, else below that folder's parents, as
    /// far as they are of one file system.
    fn name_of(&self, file: &Statx, remap: &LinkRemap) -> Option<Vec<u8>> {
        let mut seen = HashSet::new();
        let mut left = MOST_NAMES;
        let deleted = self.base.join(relative(&remap.name));
        let mut device = None;
        for top in deleted.ancestors().skip(1).take_while(|folder| folder.starts_with(self.base)) {
            let Ok(here) = Statx::of(top) else { continue }; // deleted as well
            if *device.get_or_insert(here.dev()) != here.dev() {
                break;
            }
            if let Some(found) = self.below(top, here.dev(), file, &mut seen, &mut left) {
                let name = Path::new("/").join(found.strip_prefix(self.base).ok()?);
                return Some(name.into_os_string().into_vec());
            }
        }
        None
    }

    fn below(
        &self,
        top: &Path,
        device: u64,
        file: &Statx,
        seen: &mut HashSet<PathBuf>,
        left: &mut u32,
    ) -> Option<PathBuf> {
        let mut folders = VecDeque::from([top.to_path_buf()]);
        while let Some(folder) = folders.pop_front() {
            if !seen.insert(folder.clone()) || !Statx::of(&folder).is_ok_and(|folder| folder.dev() == device)
            {
                continue;
            }
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                *left = left.checked_sub(1)?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push_back(entry.path());
                } else if entry.ino() == file.ino() && is_name(&entry.path(), file) {
                    return Some(entry.path());
                }
            }
            if Instant::now() > self.until {
                return None;
            }
        }
        None
    }
}

/// Returns true if this is a lasting name of the file.
fn is_name(path: &Path, file: &Statx) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // criu's own, and that of a file on NFS that is deleted while it is open.
    let passes = name.starts_with("link_remap.") || name.starts_with(".nfs");
    !passes && Statx::of(path).is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
}
