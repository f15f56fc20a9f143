//! The index with several processes, on a full disk, and against a model.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::tests::{Folder, blobs, commit};
use crate::{BlobStore, Digest256, FsBlobStore};

/// Names the folder for the child processes of a test.
const CHILD: &str = "CRIU_RPC_INDEX_CHILD";

/// Starts this test again as a process that works on the folder. A shell sets its limit, if any.
fn child(test: &str, folder: &Folder, shell: Option<&str>) -> Child {
    let program = env::current_exe().unwrap();
    let mut command = match shell {
        Some(limit) => {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{limit} exec \"$0\" \"$@\"")]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(["--exact", "--nocapture", "--test-threads=1", &format!("store::fs::index::trials::{test}")])
        .env(CHILD, &folder.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn processes_that_merge_at_once_lose_nothing() {
    if let Some(root) = env::var_os(CHILD) {
        let store = Folder::open(root.as_ref());
        let first = std::process::id().wrapping_mul(1000);
        for turn in first..first.wrapping_add(25) {
            commit(&store, turn, 4);
            // A line of its own: the harness prints, too.
            println!("\ncommitted {turn}");
        }
        return;
    }
    let folder = Folder::new();
    let (old, collector) = (folder.store(), folder.store());
    let children: Vec<_> =
        (0..3).map(|_| child("processes_that_merge_at_once_lose_nothing", &folder, None)).collect();
    let mut turns = Vec::new();
    let mut lines: Vec<_> = Vec::new();
    let mut ended = Vec::new();
    for mut child in children {
        lines.push(BufReader::new(child.stdout.take().unwrap()).lines());
        ended.push(child);
    }
    while !lines.is_empty() {
        lines.retain_mut(|lines| {
            let Some(line) = lines.next() else { return false };
            if let Some(turn) = line.unwrap().strip_prefix("committed ") {
                turns.push(turn.parse().unwrap());
            }
            true
        });
        // A catalog from the beginning, while others join, settle, merge and collect.
        if let Some(turn) = turns.get(turns.len() / 2) {
            for (digest, bytes) in blobs(*turn, 4) {
                assert_eq!(old.get(&digest).unwrap(), bytes);
            }
        }
        if turns.len() % 20 == 7 {
            // What it marks is still there, and is marked no more once it is put again.
            collector.retain(&HashSet::new(), Duration::from_secs(9999)).unwrap();
        }
    }
    ended.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    assert_eq!(turns.len(), 75);
    let new = folder.store();
    assert!(new.verify().unwrap().damage.is_empty() && new.catalog.index.refresh(true).is_ok());
    for store in [&old, &new] {
        for (digest, bytes) in turns.iter().flat_map(|turn| blobs(*turn, 4)) {
            assert_eq!(store.get(&digest).unwrap(), bytes);
        }
    }
}

/// A limit on the size of files simulates a full disk, without privileges.
#[test]
fn a_merge_without_space_costs_no_commit() {
    const TURNS: u32 = 60;
    if env::consts::FAMILY != "unix" {
        eprintln!("skipped: only a shell of Unix can limit the size of files");
        return;
    }
    if let Some(root) = env::var_os(CHILD) {
        let store = Folder::open(root.as_ref());
        (0..TURNS).for_each(|turn| drop(commit(&store, turn, 30)));
        return;
    }
    let folder = Folder::new();
    // In units of 512 bytes: a segment of 500 records is larger.
    let limited =
        child("a_merge_without_space_costs_no_commit", &folder, Some("trap '' XFSZ; ulimit -f 40;"));
    let output = limited.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let all: Vec<_> = (0..TURNS).flat_map(|turn| blobs(turn, 30)).collect();
    let store = folder.store();
    let intact = |store: &FsBlobStore| {
        for (digest, bytes) in &all {
            assert_eq!(store.get(digest).unwrap(), *bytes);
        }
        assert!(store.verify().unwrap().damage.is_empty());
    };
    intact(&store);
    let before = store.catalog.index.segments();
    // There is space again.
    (TURNS..TURNS + 12).for_each(|turn| drop(commit(&store, turn, 30)));
    assert!(store.catalog.index.segments() < before, "{before} segments");
    assert!(store.catalog.index.records() >= u64::from(TURNS * 30));
    intact(&store);
    intact(&folder.store());
}

/// `CRIU_RPC_TESTS_OPERATIONS=1000000` runs it for hours.
#[test]
fn random_operations_agree_with_a_model() {
    let operations = env::var("CRIU_RPC_TESTS_OPERATIONS").map_or(250, |count| count.parse().unwrap());
    let folder = Folder::new();
    let mut stores = [folder.store(), folder.store(), folder.store()];
    let mut random = 7_u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    // Blobs that the store must have, by turn. Others are marked or gone.
    let mut kept: BTreeMap<Digest256, Vec<u8>> = BTreeMap::new();
    let mut marked: HashSet<Digest256> = HashSet::new();
    for operation in 0..operations {
        let at = usize::try_from(below(3)).unwrap();
        let what = below(100);
        let store = &stores[at];
        match what {
            // Blobs of an earlier turn, too: some are there, some are not.
            0..55 => {
                let turn = u32::try_from(below(40 + operation / 4)).unwrap();
                for (digest, bytes) in commit(store, turn, 3) {
                    marked.remove(&digest);
                    kept.insert(digest, bytes);
                }
            }
            55..75 => {
                let (digests, bytes): (Vec<_>, Vec<_>) =
                    kept.iter().map(|(digest, bytes)| (*digest, bytes)).unzip();
                let mut count = 0;
                let each = &mut |place: usize, found: &[u8]| {
                    assert_eq!(found, *bytes[place], "operation {operation}");
                    count += 1;
                    Ok(())
                };
                store.get_many(&digests, each).unwrap();
                assert_eq!(count, digests.len());
                assert!(store.missing(&digests).unwrap().is_empty());
            }
            75..85 => {
                let marked: Vec<_> = marked.iter().copied().collect();
                assert_eq!(store.missing(&marked).unwrap(), marked, "operation {operation}");
            }
            85..95 => {
                let keep: HashSet<_> = kept.keys().copied().filter(|_| below(10) > 0).collect();
                store.retain(&keep, Duration::ZERO).unwrap();
                marked.extend(kept.keys().filter(|digest| !keep.contains(digest)));
                kept.retain(|digest, _| keep.contains(digest));
            }
            95 => {
                store.purge_all_but(&kept.keys().copied().collect()).unwrap();
                assert!(marked.drain().all(|digest| store.get(&digest).is_err()), "operation {operation}");
            }
            96 => assert!(store.verify().unwrap().damage.is_empty(), "operation {operation}"),
            97 => drop(fs::remove_file(folder.path.join("index/current"))),
            _ => stores[at] = folder.store(),
        }
    }
}
