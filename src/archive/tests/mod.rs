//! Tests that archives round-trip, and that hostile archives do no harm.

mod hostile;
mod packing;
mod unpacking;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{BUFFER, Limits, Trees, header::BLOCK, pack, unpack, unpack_without_memory};
use crate::{Digest256, Error, Result};

/// Returns the object and the problem of an [`Error::Corrupt`].
#[track_caller]
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[track_caller]
fn packed(trees: &Trees) -> Vec<u8> {
    let mut archive = Vec::new();
    let count = pack(trees, &mut archive).unwrap();
    assert_eq!(count, archive.len() as u64);
    archive
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(name.as_bytes(), b'0', content)
}

/// Makes an entry like the tar crate, also one that the crate itself refuses.
fn entry(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

/// Corrects the checksum.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// Returns all files and folders below a folder, with the contents of the files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
                all.insert(name, None);
            } else {
                all.insert(name, Some(fs::read(path).unwrap()));
            }
        }
    }
    all
}

/// Random numbers that are the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn trees(&mut self, scratch: &Scratch) -> Trees {
        match self.below(4) {
            0 => Trees::One(self.images(scratch, 1)),
            count => Trees::Several(
                (0..count)
                    .map(|_| 1 + self.below(1 << 22))
                    .map(|pid| i32::try_from(pid).unwrap())
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|pid| (pid, self.images(scratch, pid)))
                    .collect(),
            ),
        }
    }

    fn images(&mut self, scratch: &Scratch, pid: i32) -> PathBuf {
        let folder = scratch.images(&format!("images-{pid}"), &[("inventory.img", b"i")]);
        for _ in 0..self.below(12) {
            let name = format!("core-{}.img", self.below(99));
            let size =
                [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4096, self.below(9000), BUFFER + self.below(BUFFER)];
            let size = size[self.below(size.len())];
            let content: Vec<u8> = (0..size).map(|_| self.next().to_le_bytes()[0]).collect();
            fs::write(folder.join(name), content).unwrap();
        }
        folder
    }
}

/// A folder that is removed on drop.
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

const GOLDEN: &[(&str, &[u8])] = &[
    ("inventory.img", b"the inventory"),
    ("core-4242.img", &[0xc0; 600]),
    ("pages-1.img", &[0x5a; BLOCK]),
    ("seccomp.img", b""),
    ("stats-dump", b"the statistics"),
    ("tmpfs-17.tar.gz.img", b"a tmpfs"),
];

const GOLDEN_DIGEST: &str = "sha256:598b7ab43365cc923148ab639794b5507b37b66f44746b5cced1de8a04712e14";
const GOLDEN_TREES_DIGEST: &str = "sha256:597ffdc166be5dc75ae6d31827f349a95542e21059c597a31dfd6b69c96fb474";
