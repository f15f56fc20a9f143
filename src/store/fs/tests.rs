//! Simulates a power cut after every single change to the folder: everything that was reported as
//! stored is still there.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs, mem,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    FsBlobStore,
    disk::{Disk, Step, Watch},
    tend::Upkeep,
};
use crate::{BlobStore, BlobStoreExt, Digest256, store::StoreOptions};

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_reported() {
    cut_at_moments("life", &StoreOptions::new(), 1);
}

#[cfg(feature = "encryption")]
#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_is_encrypted() {
    let key = crate::store::Key::from_bytes([7; 32]);
    // Builds for tests encrypt slowly.
    cut_at_moments("sealed", &StoreOptions::new().encryption(key), 5);
}

/// Cuts the power after the first changes and after every so many of the others.
fn cut_at_moments(what: &str, options: &StoreOptions, every: usize) {
    let folder = Folder::new(what);
    let journal = Arc::new(Journal::default());
    let mut store = FsBlobStore::open_on(&folder.0, Disk::watched(journal.clone()), options).unwrap();
    // Packs move to the index, and its segments are merged.
    store.upkeep = Upkeep { many: 4, little: 1000 };
    live(&store, &journal);

    let events = mem::take(&mut *journal.0.lock().unwrap());
    assert!(events.len() > 150, "only {} changes were watched", events.len());
    let mut model = Model::new(&folder.0);
    let mut expected = BTreeMap::new();
    for (count, event) in events.into_iter().enumerate() {
        match event {
            Event::Stored(digest, bytes) => drop(expected.insert(digest, bytes)),
            Event::Unneeded(digest) => drop(expected.remove(&digest)),
            Event::Changed(change) => {
                let lost_anyway =
                    matches!(change, Change::Write(..) | Change::Create(_) | Change::MakeFolder(_));
                model.apply(change);
                if lost_anyway {
                    continue;
                }
            }
        }
        if count > 60 && count % every != 0 {
            continue;
        }
        for names_last in [false, true] {
            let rest = Folder::new(&format!("{what}-rest"));
            model.materialize(&rest.0, names_last);
            let store = options.open(&rest.0).unwrap();
            let (digests, bytes): (Vec<_>, Vec<_>) =
                expected.iter().map(|(digest, bytes)| (*digest, bytes)).unzip();
            let found = store.get_many(&digests, &mut |place, found| {
                assert!(found == *bytes[place], "after {count} changes {} has other bytes", digests[place]);
                Ok(())
            });
            found.unwrap_or_else(|error| panic!("after {count} changes: {error:?}"));
            let damage = store.verify().unwrap().damage;
            assert!(damage.is_empty(), "after {count} changes: {damage:?}");
        }
    }
}

#[test]
fn the_catalog_shrinks_when_packs_go() {
    let folder = Folder::new("shrinks");
    let (store, other) = (FsBlobStore::open(&folder.0).unwrap(), FsBlobStore::open(&folder.0).unwrap());
    for turn in 0..200_u32 {
        let batch = store.batch().unwrap();
        let blobs: Vec<_> =
            (0..20_u32).map(|n| [turn, n].map(u32::to_le_bytes).concat().repeat(50)).collect();
        for bytes in &blobs {
            batch.put(&[(Digest256::of(bytes), bytes)]).unwrap();
        }
        batch.commit().unwrap();
        assert_eq!(other.get(&Digest256::of(&blobs[7])).unwrap(), blobs[7]);
        if turn % 3 == 0 {
            store.retain(&HashSet::new(), Duration::ZERO).unwrap();
        }
        assert!(store.batch().unwrap().commit().is_ok());
    }
    for store in [&store, &other] {
        let (packs, frames) = store.catalog.room();
        assert!(packs < 30 && frames < 60, "room for {packs} packs and {frames} frames");
    }
}

/// Makes every kind of change to the folder, and reports each stored item.
fn live(store: &FsBlobStore, journal: &Journal) {
    let mut keep = HashSet::new();
    let blob = |seed: u32, n: u32| [seed.to_le_bytes(), n.to_le_bytes()].concat().repeat(1 + n as usize * 9);
    let mut stored = |bytes: Vec<u8>| {
        keep.insert(Digest256::of(&bytes));
        journal.push(Event::Stored(Digest256::of(&bytes), bytes));
    };
    store.put(b"loose").unwrap();
    stored(b"loose".to_vec());
    for seed in 0..3 {
        let blobs: Vec<_> = (0..40).map(|n| blob(seed, n)).collect();
        let batch = store.batch().unwrap();
        for bytes in &blobs {
            batch.put(&[(Digest256::of(bytes), bytes)]).unwrap();
        }
        batch.put(&[(Digest256::of(b"loose"), b"loose")]).unwrap();
        batch.commit().unwrap();
        blobs.into_iter().for_each(&mut stored);
    }
    // Half of a pack becomes unneeded, and then partly needed again.
    let unneeded: Vec<_> = (0..25).map(|n| Digest256::of(&blob(1, 39 - n))).collect();
    let fewer: HashSet<_> = keep.iter().filter(|digest| !unneeded.contains(digest)).copied().collect();
    store.retain(&fewer, Duration::from_secs(3600)).unwrap();
    let mut some = fewer.clone();
    some.extend(&unneeded[20..]);
    unneeded[..20].iter().for_each(|digest| journal.push(Event::Unneeded(*digest)));
    store.retain(&some, Duration::ZERO).unwrap();
    store.retain(&some, Duration::ZERO).unwrap();
    journal.push(Event::Unneeded(Digest256::of(b"loose")));
    some.remove(&Digest256::of(b"loose"));
    store.retain(&some, Duration::ZERO).unwrap();
    store.retain(&some, Duration::ZERO).unwrap();
    // Small packs are merged.
    for seed in 10..28 {
        let bytes = blob(seed, 3);
        let batch = store.batch().unwrap();
        batch.put(&[(Digest256::of(&bytes), &bytes)]).unwrap();
        batch.commit().unwrap();
        some.insert(Digest256::of(&bytes));
        journal.push(Event::Stored(Digest256::of(&bytes), bytes));
    }
    store.retain(&some, Duration::ZERO).unwrap();
    assert!(store.catalog.files.list().unwrap().len() < 12);
}

enum Event {
    Changed(Change),
    Stored(Digest256, Vec<u8>),
    Unneeded(Digest256),
}

enum Change {
    Create(PathBuf),
    Write(PathBuf, usize, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeFolder(PathBuf),
    SyncFolder(PathBuf),
}

#[derive(Default)]
struct Journal(Mutex<Vec<Event>>);

impl Journal {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Watch for Journal {
    fn done(&self, step: Step<'_>) {
        self.push(Event::Changed(match step {
            Step::Create(path) => Change::Create(path.into()),
            Step::Write(path, at, bytes) => {
                Change::Write(path.into(), usize::try_from(at).unwrap(), bytes.into())
            }
            Step::Sync(path) => Change::Sync(path.into()),
            Step::Rename(from, to) => Change::Rename(from.into(), to.into()),
            Step::Remove(path) => Change::Remove(path.into()),
            Step::MakeFolder(path) => Change::MakeFolder(path.into()),
            Step::SyncFolder(path) => Change::SyncFolder(path.into()),
        }));
    }
}

/// A file system that keeps synced names and bytes, and knows which changes were not synced.
///
/// Renames are atomic: a file is at one place or the other.
struct Model {
    nodes: Vec<Node>,
    /// The nodes, by the name that a file was created with.
    created: BTreeMap<PathBuf, usize>,
}

struct Node {
    is_folder: bool,
    /// The folder and the name: now, and after a power cut.
    now: Option<(usize, String)>,
    kept: Option<(usize, String)>,
    bytes: Vec<u8>,
    kept_bytes: Vec<u8>,
}

impl Model {
    /// Makes a model with the root folder; its first node stands for the root of all paths.
    fn new(root: &Path) -> Model {
        let node = |place: Option<(usize, String)>| Node {
            is_folder: true,
            now: place.clone(),
            kept: place,
            bytes: Vec::new(),
            kept_bytes: Vec::new(),
        };
        let root = root.to_str().unwrap().to_owned();
        Model { nodes: vec![node(None), node(Some((0, root)))], created: BTreeMap::new() }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        if Some(path.to_str().unwrap()) == self.nodes[1].now.as_ref().map(|(_, name)| name.as_str()) {
            return Some(1);
        }
        let place = (self.find(path.parent()?)?, path.file_name()?.to_str()?.to_owned());
        self.nodes.iter().position(|node| node.now.as_ref() == Some(&place))
    }

    fn place(&self, path: &Path) -> (usize, String) {
        let folder = self.find(path.parent().unwrap()).unwrap();
        (folder, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn add(&mut self, path: &Path, is_folder: bool) -> usize {
        let now = Some(self.place(path));
        self.nodes.push(Node { is_folder, now, kept: None, bytes: Vec::new(), kept_bytes: Vec::new() });
        self.nodes.len() - 1
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Create(path) => {
                let node = self.add(&path, false);
                self.created.insert(path, node);
            }
            Change::Write(path, at, written) => {
                let bytes = &mut self.nodes[self.created[&path]].bytes;
                bytes.resize(bytes.len().max(at + written.len()), 0);
                bytes[at..at + written.len()].copy_from_slice(&written);
            }
            Change::Sync(path) => {
                let node = &mut self.nodes[self.created[&path]];
                node.kept_bytes = node.bytes.clone();
            }
            Change::Rename(from, to) => {
                if let Some(replaced) = self.find(&to) {
                    self.nodes[replaced].now = None;
                }
                let node = self.find(&from).unwrap();
                self.nodes[node].now = Some(self.place(&to));
            }
            Change::Remove(path) => {
                let node = self.find(&path).unwrap();
                self.nodes[node].now = None;
            }
            Change::MakeFolder(path) => {
                if self.find(&path).is_none() {
                    self.add(&path, true);
                }
            }
            Change::SyncFolder(path) => {
                let Some(folder) = self.find(&path) else { return };
                let inside =
                    |place: &Option<(usize, String)>| place.as_ref().is_some_and(|(at, _)| *at == folder);
                for node in &mut self.nodes {
                    if inside(&node.now) || inside(&node.kept) {
                        node.kept = node.now.clone();
                    }
                }
            }
        }
    }

    /// Recreates the folder after a power cut. Either synced names and synced bytes survive, or
    /// current names with synced bytes.
    fn materialize(&self, root: &Path, names_last: bool) {
        let place = |node: &Node| if names_last { node.now.clone() } else { node.kept.clone() };
        let mut folders = vec![(1, root.to_owned())];
        while let Some((folder, path)) = folders.pop() {
            for (number, node) in self.nodes.iter().enumerate() {
                let Some((_, name)) = place(node).filter(|(at, _)| *at == folder) else { continue };
                let path = path.join(name);
                if node.is_folder {
                    fs::create_dir_all(&path).unwrap();
                    folders.push((number, path));
                } else {
                    fs::write(&path, &node.kept_bytes).unwrap();
                }
            }
        }
        // Make the folders, so that opening the store needs no sync.
        for folder in ["blobs/sha256", "tmp", "packs", "names"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(what: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("criu-rpc-power-{what}-{}-{count}", process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(feature = "encryption")]
#[test]
fn a_frame_that_was_opened_is_read_once() {
    let folder = Folder::new("recent");
    let options = StoreOptions::new().encryption(crate::store::Key::from_bytes([7; 32]));
    let store = options.open(&folder.0).unwrap();
    let blobs: Vec<_> = (0..3_u8).map(|n| vec![n; 4096]).collect();
    let blobs: Vec<_> = blobs.iter().map(|blob| (Digest256::of(blob), blob.as_slice())).collect();
    let batch = store.batch().unwrap();
    batch.put(&blobs).unwrap();
    batch.commit().unwrap();
    assert_eq!(store.get(&blobs[0].0).unwrap(), blobs[0].1);

    // The frame is damaged now, which only a reader of the disk sees.
    let pack = fs::read_dir(folder.0.join("packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    assert_eq!(store.get(&blobs[1].0).unwrap(), blobs[1].1);
    assert!(options.open(&folder.0).unwrap().get(&blobs[1].0).is_err());
    store.recent.clear();
    assert!(store.get(&blobs[1].0).is_err());

    // A deleted pack has no blobs, whatever is in memory.
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    assert_eq!(store.get(&blobs[1].0).unwrap(), blobs[1].1);
    fs::remove_file(&pack).unwrap();
    assert!(store.get(&blobs[2].0).is_err());
}

#[cfg(feature = "encryption")]
#[test]
fn putting_a_blob_again_mends_a_copy_that_was_damaged_after_it_was_read() {
    let folder = Folder::new("mended");
    let options = StoreOptions::new().encryption(crate::store::Key::from_bytes([7; 32]));
    let store = options.open(&folder.0).unwrap();
    let blob = vec![1; 4096];
    let batch = store.batch().unwrap();
    batch.put(&[(Digest256::of(&blob), &blob)]).unwrap();
    batch.commit().unwrap();
    let digest = Digest256::of(&blob);
    store.get(&digest).unwrap();

    let pack = fs::read_dir(folder.0.join("packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    store.put(&blob).unwrap();
    assert_eq!(options.open(&folder.0).unwrap().get(&digest).unwrap(), blob);
}
