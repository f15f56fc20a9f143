//! The store in a folder keeps some promises of its own. `conforms` has those of every store.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Read, Write},
    ops::Deref,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use criu_rpc::{BlobStore, Digest256, Error, FsBlobStore, MemBlobStore, Result, digest::Hasher};

#[test]
fn a_file_is_no_store_and_a_blob_that_is_no_manifest_is_named() {
    use criu_rpc::BlobStoreExt;
    let folder = Folder::new();
    let file = folder.join("file");
    fs::write(&file, "text").unwrap();
    let Err(Error::Io { source, .. }) = FsBlobStore::open(&file) else { panic!("it is none") };
    assert_eq!(source.to_string(), "it is a file, not a folder");
    let store = MemBlobStore::new();
    let digest = store.put(b"text").unwrap();
    let error = store.manifest(&digest).unwrap_err().to_string();
    assert!(error.contains(&format!("the manifest {digest}")) && error.contains("not a capture"), "{error}");
}

#[test]
fn a_pointer_passes_on_what_the_store_betters() {
    bettered(&StreamsOnly);
    bettered(Box::new(StreamsOnly));
    bettered(Arc::new(StreamsOnly) as Arc<dyn BlobStore>);
    bettered(Arc::new(Box::new(StreamsOnly) as Box<dyn BlobStore>));
}

fn bettered(store: impl BlobStore) {
    assert!(matches!(store.writer(), Err(Error::Missing { .. })));
    assert_eq!(store.reader(&Digest256::of(b"")).unwrap().read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_default_writer_refuses_a_digest_that_is_not_the_stores() {
    let store = Minimal::default();
    let mut writer = store.writer().unwrap();
    writer.write_all(b"these bytes").unwrap();
    let error = writer.commit(&Digest256::of(b"those bytes")).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert!(!store.contains(&Digest256::of(b"those bytes")).unwrap());
}

#[test]
fn a_store_that_was_lied_to_finds_out_in_get() {
    let folder = Folder::new();
    let digest = Digest256::of(b"the truth");
    for store in [&MemBlobStore::new() as &dyn BlobStore, &fresh(&folder)] {
        let mut writer = store.writer().unwrap();
        writer.write_all(b"a lie").unwrap();
        writer.commit(&digest).unwrap();
        let error = store.get(&digest).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        store.put(b"the truth").unwrap();
        assert_eq!(store.get(&digest).unwrap(), b"the truth");
    }
}

#[test]
fn a_flipped_bit_is_found_and_put_again_repairs_it() {
    damaged(|bytes| bytes[70_000] ^= 1);
}

#[test]
fn a_truncated_file_is_found_and_put_again_repairs_it() {
    damaged(|bytes| bytes.truncate(70_000));
    damaged(|bytes| bytes.clear());
}

#[test]
fn a_file_that_is_too_long_is_found_and_put_again_repairs_it() {
    damaged(|bytes| bytes.push(0));
}

fn damaged(damage: impl Fn(&mut Vec<u8>)) {
    let folder = Folder::new();
    let store = FsBlobStore::open(&*folder).unwrap();
    let whole = vec![7; 300_000];
    let digest = store.put(&whole).unwrap();
    let file = files_below(&folder).pop().unwrap();
    let mut bytes = whole.clone();
    damage(&mut bytes);

    fs::write(&file, &bytes).unwrap();
    let error = store.get(&digest).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(&digest.hex()), "{error}");
    store.put(&whole).unwrap();
    assert_eq!(store.get(&digest).unwrap(), whole);

    fs::write(&file, &bytes).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write_all(&whole).unwrap();
    writer.commit(&digest).unwrap();
    assert_eq!(store.get(&digest).unwrap(), whole);
    assert_eq!(files_below(&folder), [file]);
}

#[test]
fn a_blob_is_one_file_named_by_its_digest() {
    let folder = Folder::new();
    let digest = FsBlobStore::open(&*folder).unwrap().put(b"hello").unwrap();
    let hex = digest.hex();
    assert_eq!(files_below(&folder), [folder.join("blobs").join("sha256").join(&hex[..2]).join(&hex)]);
    assert_eq!(fs::read(&files_below(&folder)[0]).unwrap(), b"hello");
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_look_into_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;

    let folder = Folder::new();
    let root = folder.join("deep").join("store");
    let store = FsBlobStore::open(&root).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write_all(b"a secret").unwrap();
    assert_eq!(mode(&files_below(&root)[0]), 0o600);
    writer.commit(&Digest256::of(b"a secret")).unwrap();
    for file in files_below(&root) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        for parent in file.ancestors().skip(1).take_while(|parent| **parent != *folder) {
            assert_eq!(mode(parent), 0o700, "{}", parent.display());
        }
    }
    assert_eq!(mode(&root.join("tmp")), 0o700);
}

#[test]
fn two_handles_share_a_folder() {
    let folder = Folder::new();
    let (one, other) = (FsBlobStore::open(&*folder).unwrap(), FsBlobStore::open(&*folder).unwrap());
    let digest = one.put(b"from one").unwrap();
    assert_eq!(other.get(&digest).unwrap(), b"from one");
    thread::scope(|scope| {
        for store in [&one, &other] {
            scope.spawn(|| {
                for n in 0..100_u32 {
                    store.put(&n.to_le_bytes()).unwrap();
                }
            });
        }
    });
    assert_eq!(files_below(&folder).len(), 101);
}

#[test]
fn what_one_handle_stored_the_next_one_finds() {
    let folder = Folder::new();
    let digest = FsBlobStore::open(&*folder).unwrap().put(b"kept").unwrap();
    assert_eq!(FsBlobStore::open(&*folder).unwrap().get(&digest).unwrap(), b"kept");
}

#[test]
fn a_shard_that_somebody_removed_is_made_again() {
    let folder = Folder::new();
    let store = FsBlobStore::open(&*folder).unwrap();
    let digest = store.put(b"kept").unwrap();
    fs::remove_dir_all(folder.join("blobs").join("sha256").join(&digest.hex()[..2])).unwrap();
    assert!(!store.contains(&digest).unwrap());
    store.put(b"kept").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"kept");
}

#[test]
fn a_blob_that_is_synced_while_it_is_written_comes_out_whole() {
    let folder = Folder::new();
    let store = FsBlobStore::open(&*folder).unwrap();
    let (mut writer, mut hasher) = (store.writer().unwrap(), Hasher::new());
    for n in 0..70_u8 {
        let piece = vec![n; 1_000_003];
        writer.write_all(&piece).unwrap();
        hasher.update(&piece);
    }
    let digest = hasher.finish();
    writer.commit(&digest).unwrap();
    assert_eq!(store.get(&digest).unwrap().len(), 70 * 1_000_003);
    assert_eq!(files_below(&folder).len(), 1);
}

#[test]
fn a_writer_dropped_uncommitted_leaves_no_file() {
    let folder = Folder::new();
    let store = FsBlobStore::open(&*folder).unwrap();
    // Beyond the size at which the syncing thread starts.
    let mut writer = store.writer().unwrap();
    for _ in 0..40 {
        writer.write_all(&vec![1; 1024 * 1024]).unwrap();
    }
    assert_eq!(files_below(&folder).len(), 1);
    drop(writer);
    assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
}

#[test]
fn a_commit_that_fails_leaves_no_file() {
    let folder = Folder::new();
    let store = FsBlobStore::open(&*folder).unwrap();
    let digest = Digest256::of(b"unlucky");
    // A folder is in the place of the blob.
    let place = folder.join("blobs").join("sha256").join(&digest.hex()[..2]).join(digest.hex());
    fs::create_dir_all(place.join("in the way")).unwrap();
    let error = store.put(b"unlucky").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains(&digest.hex()), "{error}");
    assert!(!store.contains(&digest).unwrap());
    assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
}

#[test]
fn a_root_that_is_a_file_is_named_in_the_error() {
    let folder = Folder::new();
    let root = folder.join("store");
    fs::write(&root, b"a file").unwrap();
    let error = FsBlobStore::open(&root).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains(&*root.to_string_lossy()), "{error}");
    assert_eq!(fs::read(&root).unwrap(), b"a file");
}

#[test]
fn leftovers_are_removed_after_a_day_and_not_before() {
    let folder = Folder::new();
    FsBlobStore::open(&*folder).unwrap();
    let (old, young) = (folder.join("tmp").join("1-0-old"), folder.join("tmp").join("1-0-young"));
    for (path, hours) in [(&old, 25), (&young, 23)] {
        let file = fs::File::create(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    }
    FsBlobStore::open(&*folder).unwrap();
    assert_eq!(files_below(&folder), [young]);
}

/// A limit on the size of files simulates a full disk, without privileges.
#[cfg(unix)]
#[test]
fn a_disk_that_takes_no_more_is_told_of_and_nothing_is_left() {
    const CHILD: &str = "CRIU_RPC_FULL_DISK_CHILD";
    let Some(root) = env::var_os(CHILD) else {
        let folder = Folder::new();
        let child = process::Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; ulimit -f 256; exec "$0" "$@""#])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "stores::a_disk_that_takes_no_more_is_told_of_and_nothing_is_left"])
            .env(CHILD, folder.as_os_str())
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    };
    let store = FsBlobStore::open(&root).unwrap();
    let large = vec![1; 1024 * 1024];
    let error = store.put(&large).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().starts_with("could not write blob"), "{error}");
    let mut writer = store.writer().unwrap();
    assert!(large.chunks(1000).any(|piece| writer.write_all(piece).is_err()));
    drop(writer);
    assert!(!store.contains(&Digest256::of(&large)).unwrap());
    assert_eq!(files_below(root.as_ref()), Vec::<PathBuf>::new());
    let small = store.put(b"small").unwrap();
    assert_eq!(store.get(&small).unwrap(), b"small");
}

/// Only Linux has `/proc/self/fd`.
#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    #[test]
    fn no_file_is_open_between_calls() {
        let folder = Folder::new();
        let store = FsBlobStore::open(&*folder).unwrap();
        let digest = store.put(b"hello").unwrap();
        store.put(b"hello").unwrap();
        store.get(&digest).unwrap();
        store.reader(&digest).unwrap().read_to_end(&mut Vec::new()).unwrap();
        let mut writer = store.writer().unwrap();
        assert_eq!(open_below(&folder), 1);
        // Beyond the size at which the syncing thread starts.
        let bytes = vec![1; 40 * 1024 * 1024];
        writer.write_all(&bytes).unwrap();
        writer.commit(&Digest256::of(&bytes)).unwrap();
        assert_eq!(open_below(&folder), 0);
        let mut writer = store.writer().unwrap();
        writer.write_all(&bytes).unwrap();
        drop(writer);
        assert_eq!(open_below(&folder), 0);
    }

    fn open_below(folder: &Path) -> usize {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(folder)).count()
    }
}

/// Opens a store with a root of its own inside `folder`.
pub(crate) fn fresh(folder: &Folder) -> FsBlobStore {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    FsBlobStore::open(folder.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string())).unwrap()
}

/// A store with the three required methods alone.
#[derive(Debug, Default)]
pub(crate) struct Minimal(Mutex<BTreeMap<Digest256, Vec<u8>>>);

impl BlobStore for Minimal {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        self.0.lock().unwrap().insert(digest, bytes.to_vec());
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.0.lock().unwrap().get(digest).cloned().ok_or_else(|| Error::missing(digest))
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        Ok(self.0.lock().unwrap().contains_key(digest))
    }
}

/// A store whose streaming methods differ from the defaults.
#[derive(Debug)]
struct StreamsOnly;

impl BlobStore for StreamsOnly {
    fn put(&self, _: &[u8]) -> Result<Digest256> {
        unreachable!("the writer is this store's own")
    }

    fn get(&self, _: &Digest256) -> Result<Vec<u8>> {
        unreachable!("the reader is this store's own")
    }

    fn contains(&self, _: &Digest256) -> Result<bool> {
        Ok(false)
    }

    fn writer(&self) -> Result<Box<dyn criu_rpc::store::BlobWriter + '_>> {
        Err(Error::missing(&Digest256::of(b"")))
    }

    fn reader(&self, _: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(std::io::empty()))
    }
}

/// Returns all files below a folder, sorted.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            // Lock files, and files for collections, contain no blobs.
            false
                if ["lock", "gc.lock", "index.lock", "gc.clock", "gc.room"]
                    .map(Some)
                    .contains(&entry.file_name().to_str()) => {}
            false => files.push(entry.path()),
        }
    }
    files.sort();
    files
}

/// Makes the files of a store. A line of the text has the path of a file and its bytes in hex.
pub(crate) fn unpack(text: &str, folder: &Path) {
    for line in text.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A folder that is removed after the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("criu-rpc-stores-{}-{count}", process::id()));
            match fs::create_dir(&path) {
                // A killed process with our pid left it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.unwrap();
                    return Folder(path);
                }
            }
        }
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
