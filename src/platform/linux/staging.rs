//! [`Staging`]: the private folder that images are in for a while.
//!
//! Its maker holds a lock on it. A folder whose maker was killed has none, and the next capture or
//! restore removes it: it holds memory and file contents of a tree. A lock and not a pid tells,
//! because containers may share the folder above.

use std::{
    collections::HashMap,
    env,
    ffi::{CString, OsStr},
    fs::{self, File, Metadata},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    NixPath,
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, openat},
    sys::stat::{Mode, fstatat, mkdirat},
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

use crate::{Error, Result, lock::Mutex, private_files, sys, unique};

/// A folder that only we can open, removed with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    above: Identity,
    itself: Identity,
    /// The folder above and the folder itself, which is locked.
    held: Option<(File, Flock<File>)>,
}

/// The device and the inode of a folder.
type Identity = (u64, u64);

/// The prefix of the names of these folders.
const PREFIX: &str = "criu-rpc-";

/// A file in a folder whose maker can hold no lock. Such a folder is left over when it is a day
/// old.
const UNLOCKED: &str = "unlocked";
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);

/// The pause between two sweeps of a parent folder, which may have many files.
const PAUSE: Duration = Duration::from_secs(60);

impl Staging {
    /// A new folder in `parent`, or in the system's folder for temporary files.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Staging> {
        let parent = parent.map_or_else(env::temp_dir, Path::to_path_buf);
        let doing = || format!("make a folder for images in {}", parent.display());
        let parent = fs::canonicalize(&parent).map_err(Error::io(doing()))?;
        check_parent(&parent)?;
        let above = File::open(&parent).map_err(Error::io(doing()))?;
        sweep(&above, &parent);
        loop {
            let name = format!("{PREFIX}{}", unique::name());
            match mkdirat(&above, name.as_str(), Mode::S_IRWXU) {
                Err(Errno::EEXIST) => continue,
                made => made.map_err(|errno| Error::io(doing())(errno.into()))?,
            }
            // Another process that sweeps may have taken it for a leftover before we lock it.
            let folder =
                open_folder(&above, name.as_ref()).and_then(|folder| lock(folder).ok_or(Errno::EAGAIN));
            let lock = match folder {
                Ok(lock) => lock,
                Err(Errno::EAGAIN | Errno::ENOENT) => continue,
                Err(errno) => {
                    // An error of the removal tells less than `errno`.
                    let _ = unlinkat(&above, name.as_str(), UnlinkatFlags::RemoveDir);
                    return Err(Error::io(doing())(errno.into()));
                }
            };
            let (itself, outside) = (lock.metadata(), above.metadata());
            let (itself, outside) =
                (itself.map_err(Error::io(doing()))?, outside.map_err(Error::io(doing()))?);
            if itself.nlink() > 0 {
                return Ok(Staging {
                    path: parent.join(name),
                    above: identity(&outside),
                    itself: identity(&itself),
                    held: Some((above, lock)),
                });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path.join(name);
        private_files::create_folder(&folder)
            .map_err(Error::io(format!("make the folder {}", folder.display())))?;
        Ok(folder)
    }

    /// Removes a folder in it, or leaves it to the end.
    pub(crate) fn remove_folder(&self, name: &str) {
        let Some((_, itself)) = &self.held else { return };
        let _ = open_folder(itself, name.as_ref()).and_then(|folder| remove(&**itself, folder, name));
    }

    /// Holds nothing of the folder open: for a process that dumps itself, which criu would refuse
    /// for the lock.
    pub(crate) fn unlock(&mut self) -> Result<()> {
        let path = self.path.join(UNLOCKED);
        private_files::create_file(&path).map_err(Error::io(format!("make the file {}", path.display())))?;
        self.held = None;
        Ok(())
    }

    /// The folder above and the folder itself, opened again if they were closed; none that took
    /// their places.
    fn reopen(&self) -> Option<(File, File)> {
        let above = File::open(self.path.parent()?).ok()?;
        let itself = open_folder(&above, self.path.file_name()?).ok()?;
        let same = |file: &File, known| file.metadata().is_ok_and(|metadata| identity(&metadata) == known);
        (same(&above, self.above) && same(&itself, self.itself)).then_some((above, itself))
    }

    /// Leaves the folder alone: for the revived copy of a process, whose folder it never was.
    pub(crate) fn forget(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else { return };
        let held = self.held.take().and_then(|(above, lock)| Some((above, lock.unlock().ok()?)));
        if let Some((above, itself)) = held.or_else(|| self.reopen()) {
            let _ = remove(&above, itself, name); // there is no caller to tell
        }
    }
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Removes a folder with all that is in it. Names are looked up in open folders, so one that was
/// replaced leads nowhere else.
fn remove(above: impl AsFd, folder: impl Into<OwnedFd>, name: &(impl NixPath + ?Sized)) -> nix::Result<()> {
    let mut folder = Dir::from_fd(folder.into())?;
    let names: Vec<CString> = folder.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
    let mut removed = Ok(());
    for inner in names.iter().filter(|name| ![c".", c".."].contains(&name.as_c_str())) {
        let gone = match unlinkat(&folder, inner.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => {
                let opened = openat(&folder, inner.as_c_str(), FOLDER, Mode::empty());
                opened.and_then(|opened| remove(&folder, opened, inner.as_c_str()))
            }
            gone => gone,
        };
        removed = removed.and(gone);
    }
    removed.and(unlinkat(above, name, UnlinkatFlags::RemoveDir))
}

/// Flags that open a folder, and no link to one.
const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Refuses a folder in which, or above which, others may put something else in the place of ours.
fn check_parent(parent: &Path) -> Result<()> {
    for folder in parent.ancestors() {
        let reading = Error::io(format!("look at the folder {}", folder.display()));
        let metadata = fs::metadata(folder).map_err(reading)?;
        if others_may_rename(metadata.mode(), metadata.uid() == geteuid().as_raw()) {
            let problem = format!(
                "other users may rename what is in {} (its mode is {:o}): remove their permission to write, or set the sticky bit",
                folder.display(),
                metadata.mode() & 0o7777
            );
            return Err(Error::Options { option: "staging", problem });
        }
    }
    Ok(())
}

fn others_may_rename(mode: u32, ours: bool) -> bool {
    let (sticky, group, world) = (mode & 0o1000 != 0, mode & 0o020 != 0, mode & 0o002 != 0);
    // A user's own group is often the user's alone.
    !sticky && (world || group && !ours)
}

fn open_folder(above: &File, name: &OsStr) -> nix::Result<File> {
    let folder = openat(above, name, FOLDER, Mode::empty())?;
    // Not in the place of a standard stream that the program closed.
    let folder = sys::duplicate_above(folder.as_fd(), 3).map_err(|_| Errno::EMFILE)?;
    Ok(File::from(folder))
}

/// Locks the folder, unless another process has.
fn lock(folder: File) -> Option<Flock<File>> {
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes the folders that programs left when they were killed.
fn sweep(above: &File, parent: &Path) {
    static SWEPT: Mutex<Option<HashMap<PathBuf, Instant>>> = Mutex::new(None);
    let mut swept = SWEPT.lock();
    let swept = swept.get_or_insert_default();
    swept.retain(|_, when| when.elapsed() < PAUSE);
    if swept.contains_key(parent) {
        return;
    }
    swept.insert(parent.to_owned(), Instant::now());
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if is_name(&name) {
            remove_if_left(above, &name);
        }
    }
}

/// Returns true if this can be the name of a staging folder.
fn is_name(name: &OsStr) -> bool {
    name.to_str().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(unique::is_name)
}

fn remove_if_left(above: &File, name: &OsStr) {
    let is_ours = |metadata: &Metadata| {
        metadata.uid() == geteuid().as_raw() && metadata.permissions().mode() & 0o7777 == 0o700
    };
    let Ok(folder) = open_folder(above, name) else { return };
    if !folder.metadata().is_ok_and(|metadata| is_ours(&metadata)) {
        return;
    }
    let Some(lock) = lock(folder) else { return };
    if let Ok(marker) = fstatat(&*lock, UNLOCKED, AtFlags::AT_SYMLINK_NOFOLLOW) {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(marker.st_mtime.unsigned_abs());
        if made.elapsed().map_or(true, |age| age < LEFTOVER) {
            return;
        }
    }
    if let Ok(folder) = lock.unlock() {
        let _ = remove(above, folder, name); // what cannot be removed now is for the next one
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Parent(PathBuf);

    impl Parent {
        fn new(name: &str) -> Parent {
            let path = env::temp_dir().join(format!("criu-rpc-staging-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Parent(fs::canonicalize(path).unwrap())
        }

        fn make(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("core-1.img"), "memory").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn folders_of_dead_programs_go_and_all_others_stay() {
        let parent = Parent::new("sweep");
        let dead = parent.make("criu-rpc-1-0123456789abcdef", 0o700);
        let open = parent.make("criu-rpc-1-0123456789abcdea", 0o755);
        let other = parent.make("criu-rpc-test-1-0", 0o700);
        let lives = parent.make("criu-rpc-1-0123456789abcdeb", 0o700);
        let itself = parent.make("criu-rpc-1-0123456789abcdec", 0o700);
        fs::write(itself.join(UNLOCKED), "").unwrap();
        let target = parent.make("target", 0o700);
        symlink(&target, parent.0.join("criu-rpc-1-0123456789abcded")).unwrap();
        let _lock = lock(File::open(&lives).unwrap()).unwrap();
        let staging = Staging::new(Some(&parent.0)).unwrap();
        let (mine, inner) = (staging.path().to_owned(), staging.folder("1").unwrap());
        assert!(!dead.exists());
        for path in [&open, &other, &lives, &itself, &target, &mine, &inner] {
            assert!(path.exists(), "{}", path.display());
        }
        assert!(target.join("core-1.img").exists());
        remove_if_left(&File::open(&parent.0).unwrap(), mine.file_name().unwrap());
        assert!(inner.exists(), "its maker lives");
        drop(staging);
        assert!(!mine.exists());
    }

    #[test]
    fn what_took_the_place_of_a_folder_is_not_removed() {
        for unlocked in [false, true] {
            let parent = Parent::new(if unlocked { "swapped-unlocked" } else { "swapped" });
            let [place, away] = ["place", "away"].map(|name| parent.0.join(name));
            fs::create_dir(&place).unwrap();
            let mut staging = Staging::new(Some(&place)).unwrap();
            let inner = staging.folder("1").unwrap();
            fs::write(inner.join("pages-1.img"), "memory").unwrap();
            symlink(&parent.0, inner.join("link")).unwrap();
            if unlocked {
                staging.unlock().unwrap();
            }
            // Another folder above, with a folder of the same name that holds something dear.
            fs::rename(&place, &away).unwrap();
            let dear = staging.path().join("1/dear");
            fs::create_dir_all(dear.parent().unwrap()).unwrap();
            fs::write(&dear, "dear").unwrap();
            let ours = away.join(staging.path().file_name().unwrap());
            drop(staging);
            assert_eq!(fs::read_to_string(&dear).unwrap(), "dear", "{unlocked}");
            assert!(away.exists() && parent.0.exists());
            // One that could not be held stays for the next sweep.
            assert_eq!(ours.exists(), unlocked);
        }
    }

    #[test]
    fn a_folder_that_is_unlocked_stays_for_a_day() {
        let parent = Parent::new("unlocked");
        let above = File::open(&parent.0).unwrap();
        let mut staging = Staging::new(Some(&parent.0)).unwrap();
        staging.unlock().unwrap();
        let path = staging.path().to_owned();
        remove_if_left(&above, path.file_name().unwrap());
        assert!(path.exists());
        let old = std::time::SystemTime::now() - LEFTOVER * 2;
        File::options().write(true).open(path.join(UNLOCKED)).unwrap().set_modified(old).unwrap();
        remove_if_left(&above, path.file_name().unwrap());
        assert!(!path.exists());
        staging.forget();
    }

    #[test]
    fn a_folder_in_which_others_may_rename_is_refused() {
        let parent = Parent::new("renamed");
        let below = parent.make("below", 0o700);
        for (mode, refused) in [(0o777, true), (0o1777, false), (0o775, false), (0o755, false), (0o702, true)]
        {
            fs::set_permissions(&parent.0, fs::Permissions::from_mode(mode)).unwrap();
            for folder in [&parent.0, &below] {
                let made = Staging::new(Some(folder));
                assert_eq!(made.is_err(), refused, "{mode:o}");
                if let Err(error) = made {
                    assert!(error.to_string().contains("may rename"), "{error}");
                }
            }
        }
        assert!(others_may_rename(0o775, false) && !others_may_rename(0o1775, false));
    }
}
