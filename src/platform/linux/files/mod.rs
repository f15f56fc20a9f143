//! The files of a tree that is to be revived, as they are on this machine before criu opens them.
//!
//! criu opens paths as root, follows links, and compares little. What it would get wrong, or say
//! badly, is found here first.

mod after;
mod deleted;
mod grown;
mod leases;
mod listeners;
mod locks;
mod owners;
mod walk;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use nix::sys::stat::{FileStat, SFlag};

use self::walk::{Link, Root, Walked, kind};
pub(super) use self::{after::LastLook, deleted::settle_deleted, grown::Grown, owners::look as owners};
use crate::{
    Cause, Error, Failure, GrownFiles, Request, Result, Warning,
    image::{ImageDir, NamedFile, Place},
    proto::images::FileNote,
};

/// The files that a restore opens or makes by path.
pub(super) struct Files(Vec<File>);

/// A file of the images, and what is there now.
struct File {
    named: NamedFile,
    now: Now,
    /// The time that the file now there was made at, in nanoseconds since 1970.
    born: Option<i64>,
    /// The note that the capture made of it.
    note: Option<FileNote>,
}

/// The finding at a path.
#[derive(Debug, Clone)]
enum Now {
    There(FileStat),
    Missing,
    Link(Link),
    /// It cannot be told, so criu will.
    Unknown,
}

impl Files {
    /// Looks at the files that the tree uses, except for those that are lent. `lent` has their
    /// paths without the leading slash, as criu names them.
    pub(super) fn look(images: &ImageDir, lent: &HashSet<&[u8]>) -> Result<Files> {
        // Paths in a mount namespace that criu has yet to make cannot be walked from here.
        if images.has_own_mounts()? {
            return Ok(Files(Vec::new()));
        }
        let root = Root::open().map_err(Error::io("open the root folder"))?;
        let any_may_be_used = images.has_files_in_flight()?;
        let is_used = |file: &NamedFile| any_may_be_used || file.uses.any();
        let is_lent = |file: &NamedFile| lent.contains(file.path.strip_prefix(b"/").unwrap_or(&file.path));
        let notes = images.notes()?.and_then(|notes| notes.files).unwrap_or_default().files;
        let notes: HashMap<_, _> = notes.into_iter().map(|note| (note.path.clone(), note)).collect();
        let mut walked = HashMap::<_, (Now, Option<i64>)>::new();
        let files = images.named_files()?.into_iter().filter(|file| is_used(file) && !is_lent(file));
        let look = |named: NamedFile| {
            let wanted = named.mode.is_some_and(|mode| kind(mode) == SFlag::S_IFLNK);
            let place = (named.path.clone(), named.place == Place::Opened, wanted);
            let (now, born) = walked.entry(place).or_insert_with(|| look(&root, &named, wanted)).clone();
            let note = notes.get(&named.path).cloned();
            File { named, now, born, note }
        };
        Ok(Files(files.map(look).collect()))
    }

    /// Refuses files that were replaced since the capture, so that the tree would get another's: by
    /// a link, or with another owner.
    pub(super) fn check_replaced(&self) -> Result<()> {
        refuse(Cause::FileReplaced, self.0.iter().filter_map(File::replaced))
    }

    /// Refuses to begin while other programs listen on the sockets that criu has to create: criu
    /// would remove the files of these sockets.
    pub(super) fn check_listeners(&self) -> Result<()> {
        refuse(Cause::FileReplaced, listeners::listening(&self.0).into_iter())
    }

    /// Refuses to begin while files are missing, or of another kind: criu would wait for a named
    /// pipe, and opening a device can have effects.
    pub(super) fn check_missing(&self) -> Result<()> {
        refuse(
            Cause::FileChanged,
            self.0.iter().filter_map(|file| file.missing().or_else(|| file.of_another_kind())),
        )
    }

    /// Refuses to begin while another process has a lock that the tree is to get back.
    pub(super) fn check_locks(&self, images: &ImageDir) -> Result<()> {
        locks::check(images, &self.0)
    }

    /// Refuses to begin while another process has a lease on a file that is to be opened: criu
    /// would wait until the kernel breaks it.
    pub(super) fn check_leases(&self) -> Result<()> {
        refuse(Cause::LockTaken, leases::taken(&self.0).into_iter())
    }

    /// Decides what becomes of files that have another size than at the capture.
    pub(super) fn grown(&self, choice: GrownFiles) -> Grown {
        Grown::decide(&self.0, choice)
    }

    /// Edits the images so that criu takes the files that have another size. The rest is done once
    /// criu has opened them.
    pub(super) fn settle(&self, images: &ImageDir, grown: Grown) -> Result<(LastLook, Vec<Warning>)> {
        images.accept_files(&grown.entries)?;
        let warnings = [grown.warnings, self.changed(images)?].concat();
        Ok((self.last_look(images, grown.cuts)?, warnings))
    }

    /// Warns of files that the tree reads, executes or has mapped, and that were written to or
    /// replaced since the capture, but have the same size. If the capture noted the contents, they
    /// are compared later.
    pub(super) fn changed(&self, images: &ImageDir) -> Result<Vec<Warning>> {
        let noted = images.notes()?.map(|notes| notes.mapped).unwrap_or_default();
        let noted: HashSet<_> = noted.into_iter().map(|note| note.path).collect();
        let changed = self.0.iter().filter(|file| file.is_changed() && !noted.contains(&file.named.path));
        let paths: BTreeSet<_> = changed.map(|file| path(&file.named.path).to_owned()).collect();
        Ok(paths.into_iter().map(|path| Warning::FileChanged { path }).collect())
    }
}

/// Fails for this cause if anything was found.
pub(super) fn refuse(cause: Cause, findings: impl Iterator<Item = String>) -> Result<()> {
    let mut seen = HashSet::new();
    let findings: Vec<_> = findings.filter(|finding| seen.insert(finding.clone())).collect();
    match findings.is_empty() {
        true => Ok(()),
        false => Err(Error::Criu(Failure::foreseen(Request::Restore, cause, findings).into())),
    }
}

/// Looks at a path: at the file if it is to be opened, at its folder if it is to be made. Returns
/// the time of the file's birth, too.
fn look(root: &Root, named: &NamedFile, wanted: bool) -> (Now, Option<i64>) {
    let path = path(&named.path);
    let walked: io::Result<_> = match (named.place, path.parent()) {
        (Place::Opened, _) | (_, None) => root.walk(path, wanted),
        (_, Some(folder)) => root.walk(folder, false),
    };
    match walked {
        Ok(Walked::File(file)) => (Now::There(file.stat), file.born()),
        Ok(Walked::Missing) => (Now::Missing, None),
        Ok(Walked::Link(link)) => (Now::Link(link), None),
        Err(_) => (Now::Unknown, None),
    }
}

impl File {
    /// A description of the replaced file, for people.
    fn replaced(&self) -> Option<String> {
        let path = shown(&self.named.path);
        match (&self.now, &self.note) {
            (Now::Link(link), _) => {
                let [at, target] = [&link.at, &link.target].map(|path| shown(path.as_os_str().as_bytes()));
                Some(format!("{path}: {at} is a link to {target} now, and was none at the capture"))
            }
            (Now::There(now), Some(then)) if self.named.place == Place::Opened => {
                let owned = |kind| matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFIFO);
                let same = (now.st_uid, now.st_gid) == (then.uid, then.gid);
                (owned(kind(now.st_mode)) && !same).then(|| {
                    let FileNote { uid, gid, .. } = then;
                    let FileStat { st_uid, st_gid, .. } = now;
                    format!(
                        "{path}: it belongs to user {st_uid} and group {st_gid} now, and belonged to user {uid} and \
                         group {gid} at the capture"
                    )
                })
            }
            _ => None,
        }
    }

    /// Returns true if the file has the same size but another time of the last change, so that the
    /// tree finds other contents. Does not use the times of the kernel's own file systems, which
    /// mean nothing.
    fn is_changed(&self) -> bool {
        let NamedFile { path, uses, place, flags, .. } = &self.named;
        let Some((Now::There(now), then)) = self.note.as_ref().map(|note| (&self.now, note)) else {
            return false;
        };
        let made_up = [b"/proc/".as_slice(), b"/sys/"].iter().any(|start| path.starts_with(start));
        let reads = i32::from_ne_bytes(flags.to_ne_bytes()) & libc::O_ACCMODE != libc::O_WRONLY;
        *place == Place::Opened
            && kind(now.st_mode) == SFlag::S_IFREG
            && !made_up
            && (uses.other || reads)
            && now.st_size.unsigned_abs() == then.size
            && then.modified.is_some_and(|then| then != owners::modified(now))
    }

    /// A description of the file whose kind is not that of the capture, for people.
    fn of_another_kind(&self) -> Option<String> {
        let NamedFile { path, uses, place, mode, .. } = &self.named;
        let Now::There(now) = &self.now else { return None };
        let then = kind(mode.or(self.note.as_ref().map(|note| note.mode))?);
        let now = kind(now.st_mode);
        if now == then || then.is_empty() || *place != Place::Opened || uses.terminal {
            return None;
        }
        Some(format!("{}: it is {} now, and was {} at the capture", shown(path), named(now), named(then)))
    }

    /// A description of the missing file or folder, for people.
    fn missing(&self) -> Option<String> {
        let NamedFile { path, uses, place, .. } = &self.named;
        // Of terminals and of /proc criu makes the files itself.
        if !matches!(self.now, Now::Missing) || !uses.any() || uses.terminal || path.starts_with(b"/proc/") {
            return None;
        }
        let path = shown(path);
        match place {
            Place::Opened => Some(format!("{path}: there is no such file")),
            Place::Made => Some(format!("{path}: there is no folder to make it in")),
            Place::MadeWithFolders => None,
        }
    }
}

/// The kind of a file in words.
fn named(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a folder",
        SFlag::S_IFIFO => "a named pipe",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFLNK => "a link",
        _ => "of another kind",
    }
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A path for people: on one line, whatever bytes it has.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let escaped =
        |char: char| if char.is_control() { char.escape_default().to_string() } else { char.into() };
    text.chars().map(escaped).collect()
}
