//! What comes out of an archive is what went in, and a hostile one gets nowhere.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Limits, Trees, header::Header, pack, unpack};
use crate::{Digest256, Error, Result};

#[test]
fn what_was_packed_is_unpacked() {
    let scratch = Scratch::new();
    let one = scratch.images("images", &[("inventory.img", b"i"), ("core-1.img", b""), ("stats-dump", b"s")]);
    fs::write(one.join("dump.log"), b"x").unwrap();
    let archive = packed(&Trees::One(one));
    let into = scratch.folder("into");
    assert_eq!(unpack(&archive[..], &into, &Limits::default()).unwrap(), Trees::One(into.clone()));
    assert_eq!(fs::read(into.join("inventory.img")).unwrap(), b"i");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 3);
    assert_eq!(packed(&Trees::One(into)), archive);
}

#[track_caller]
fn packed(trees: &Trees) -> Vec<u8> {
    let mut archive = Vec::new();
    let count = pack(trees, &mut archive).unwrap();
    assert_eq!(count, archive.len() as u64);
    archive
}

/// A folder that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("criu-rpc-archive-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn images(&self, folder: &str, images: &[(&str, &[u8])]) -> PathBuf {
        let path = self.folder(folder);
        for (name, content) in images {
            fs::write(path.join(name), content).unwrap();
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
