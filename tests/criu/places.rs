//! [`Home`]: a test's own folder; and what `/proc` tells.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Digest256, FsBlobStore, ProcsCapture, ProcsRestore};

use crate::harness;

/// The time that anything may take. Other programs may be busy beside the tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of the test's own, with a store and a place for images in it; removed at the end.
#[derive(Debug)]
pub(crate) struct Home {
    folder: PathBuf,
    ours: bool,
}

impl Home {
    pub(crate) fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("criu-rpc-test-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder); // of a process that had our number long ago
        fs::create_dir(&folder).unwrap();
        fs::create_dir(folder.join("staging")).unwrap();
        Home { folder, ours: true }
    }

    /// The folder of a test in another process.
    pub(crate) fn of_another(folder: &str) -> Home {
        Home { folder: PathBuf::from(folder), ours: false }
    }

    /// Its own path, as a word of a command.
    pub(crate) fn word(&self) -> String {
        self.folder.display().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A new folder in it.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        folder
    }

    pub(crate) fn store(&self) -> FsBlobStore {
        FsBlobStore::open(self.path("store")).unwrap()
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.path("staging")
    }

    pub(crate) fn capture(&self, pids: impl IntoIterator<Item = i32>) -> ProcsCapture {
        harness::capture(pids).staging(self.staging())
    }

    pub(crate) fn restore(&self) -> ProcsRestore {
        harness::restore().staging(self.staging())
    }

    #[track_caller]
    pub(crate) fn assert_staging_empty(&self) {
        assert_eq!(names(&self.staging()), [""; 0], "something was left in the staging folder");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_dir_all(&self.folder); // no caller is left to tell
        }
    }
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The files in a folder and its folders.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The files in which a store keeps blobs and names: what it notes for its collections does not
/// count.
pub(crate) fn stored_files(store: &Path) -> Vec<PathBuf> {
    ["blobs", "packs", "names", "tmp"].iter().flat_map(|folder| files(&store.join(folder))).collect()
}

/// The file in which a store keeps this blob, whatever its layout.
#[track_caller]
pub(crate) fn file_of(store: &Path, digest: &Digest256) -> PathBuf {
    let holds = |file: &PathBuf| fs::read(file).is_ok_and(|bytes| Digest256::of(&bytes) == *digest);
    files(store).into_iter().find(holds).expect("because it was stored")
}

/// Copies a program that is to be started, or that criu is to make another one's.
///
/// Another process writes the file: in ours, a child that another test starts at the same moment
/// could have it open for writing for a while, and the kernel executes no such file.
#[track_caller]
pub(crate) fn copy_program(from: impl AsRef<Path>, to: &Path) {
    assert!(Command::new("cp").arg(from.as_ref()).arg(to).status().unwrap().success());
}

/// Writes a program of this text, as [`copy_program`] does.
#[track_caller]
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the state of a process, as `/proc` calls it; `None` if the process does not exist.
pub(crate) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns true if the process exists and has not ended.
pub(crate) fn lives(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The children of a process, of all its threads, in order.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    children.sort_unstable();
    children
}

/// A process and its descendants, from the top down.
pub(crate) fn family(pid: i32) -> Vec<i32> {
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        family.extend(children(family[next]));
        next += 1;
    }
    family
}
