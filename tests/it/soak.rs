//! A program that captures and collects for days: its resources do not grow.

use std::{collections::HashSet, env, fs, path::Path, process::Command, thread, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, FsBlobStore};

use crate::{
    stores::Folder,
    stores_packs::{blobs, digests, pairs},
};

/// The resources of this process: kilobytes of memory, descriptors, threads.
#[derive(Debug, Clone, Copy)]
struct Held {
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn now() -> Held {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let count = |folder| fs::read_dir(folder).unwrap().count();
        Held {
            memory: rss.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }
}

#[test]
fn many_batches_and_collections_hold_no_more_than_few() {
    const TEST: &str = "soak::many_batches_and_collections_hold_no_more_than_few";
    if let Some(root) = env::var_os(CHILD) {
        return live(Path::new(&root));
    }
    // In a process of its own, because the other tests allocate memory too.
    let folder = Folder::new();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
        .env(CHILD, folder.as_os_str())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(String::from_utf8_lossy(&child.stdout).contains("flat"), "the child did nothing");
}

fn live(root: &Path) {
    let store = FsBlobStore::open(root).unwrap();
    let mut kept: Vec<Vec<Digest256>> = Vec::new();
    let mut held = Vec::new();
    for turn in 0..TURNS {
        let blobs = blobs(40, 1000 + turn);
        let batch = store.batch().unwrap();
        // Each thread has a frame of its own.
        let pairs = pairs(&blobs);
        thread::scope(|scope| {
            for some in pairs.chunks(10) {
                let batch = &batch;
                scope.spawn(move || batch.put(some).unwrap());
            }
        });
        batch.commit().unwrap();
        store.put(&turn.to_le_bytes()).unwrap();
        kept.push(digests(&blobs));
        if kept.len() > 5 {
            kept.remove(0);
        }
        if turn % 4 == 3 {
            let keep: HashSet<_> = kept.iter().flatten().copied().collect();
            store.retain(&keep, Duration::ZERO).unwrap();
            assert!(kept.iter().flatten().all(|digest| store.get(digest).is_ok()));
        }
        held.push(Held::now());
    }
    // The first quarter is for what is allocated once.
    let (start, middle) = (held.len() / 4, held.len() * 5 / 8);
    let most = |of: &[Held], what: fn(&Held) -> u64| of.iter().map(what).max().unwrap();
    let (first, second) = (&held[start..middle], &held[middle..]);
    let memory = [first, second].map(|half| most(half, |held| held.memory));
    let descriptors = [first, second].map(|half| most(half, |held| held.descriptors as u64));
    let threads = [first, second].map(|half| most(half, |held| held.threads as u64));
    assert!(memory[1] <= memory[0] + memory[0] / 8 + 1024, "memory {memory:?} kB");
    // A joined thread is still listed for a moment.
    assert!(threads[1] <= threads[0] + 4, "threads {threads:?}");
    assert!(descriptors[1] <= descriptors[0] + 4, "descriptors {descriptors:?}");
    println!("flat: {memory:?} kB, {descriptors:?} descriptors, {threads:?} threads");
}

const TURNS: u64 = 600;
const CHILD: &str = "CRIU_RPC_SOAK_CHILD";
