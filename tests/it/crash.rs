//! A process that dies while it writes loses nothing that was reported as stored, and damages
//! nothing.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, Digest256, FsBlobStore};

use crate::{
    stores::{Folder, files_below},
    stores_packs::{assert_all, blobs, put, total},
};

#[test]
fn what_was_put_survives_the_death_of_the_process() {
    if let Some(root) = env::var_os(CHILD) {
        put_until_killed(&root);
    }
    let folder = Folder::new();
    let reported = lives(&folder, "what_was_put_survives_the_death_of_the_process", SHORT);

    let store = FsBlobStore::open(&*folder).unwrap();
    for digest in &reported {
        store.get(digest).unwrap();
    }
    for file in files_below(&folder.join("blobs")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(Digest256::of(&fs::read(&file).unwrap()).hex(), name, "a damaged blob is visible");
    }
}

#[test]
fn a_batch_survives_the_death_of_the_process_whole_or_not_at_all() {
    if let Some(root) = env::var_os(CHILD) {
        commit_until_killed(&root);
    }
    let folder = Folder::new();
    let kept = blobs(300, 1);
    put(&FsBlobStore::open(&*folder).unwrap(), &kept);
    let reported = lives(&folder, "a_batch_survives_the_death_of_the_process_whole_or_not_at_all", SHORT);
    let store = FsBlobStore::open(&*folder).unwrap();
    assert_all(&store, &kept);
    for seed in reported {
        let seed = u64::from_le_bytes(seed.as_bytes()[..8].try_into().unwrap());
        assert_all(&store, &blobs(BATCH, seed));
    }
    let verified = store.verify().unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
}

#[test]
fn a_collection_that_dies_takes_nothing_that_is_needed() {
    if let Some(root) = env::var_os(CHILD) {
        collect_until_killed(&root);
    }
    let folder = Folder::new();
    let kept = blobs(300, 1);
    put(&FsBlobStore::open(&*folder).unwrap(), &kept);
    lives(&folder, "a_collection_that_dies_takes_nothing_that_is_needed", LONG);
    let store = FsBlobStore::open(&*folder).unwrap();
    assert_all(&store, &kept);
    assert!(store.verify().unwrap().damage.is_empty());
    let keep = kept.keys().copied().collect();
    for _ in 0..3 {
        store.retain(&keep, Duration::ZERO).unwrap();
    }
    // A process that died while it rewrote a pack left copies. A few may stay: a pack is not
    // rewritten for a small part.
    let left = store.usage().unwrap().blobs.bytes;
    assert!(left >= total(&kept) && left * 3 <= total(&kept) * 4, "{left}");
}

/// The child: commits batches and reports their seeds, as if these were digests.
fn commit_until_killed(root: &OsStr) -> ! {
    println!("{READY}");
    let store = FsBlobStore::open(root).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seed = u64::from(std::process::id()) << 20;
    while Instant::now() < deadline {
        seed += 1;
        put(&store, &blobs(BATCH, seed));
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        report(Digest256::from_bytes(bytes));
    }
    std::process::exit(0);
}

/// The child: makes garbage beside needed blobs, and collects it.
fn collect_until_killed(root: &OsStr) -> ! {
    println!("{READY}");
    let store = FsBlobStore::open(root).unwrap();
    let keep = blobs(300, 1);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seed = u64::from(std::process::id()) << 20;
    for turn in (0..).map(|turn| turn * 7 % 200) {
        if Instant::now() > deadline {
            break;
        }
        seed += 1;
        let mut mixed = blobs(40, seed);
        mixed.extend(keep.iter().skip(turn).take(100).map(|(k, v)| (*k, v.clone())));
        put(&store, &mixed);
        store.put(&seed.to_le_bytes()).unwrap();
        store.retain(&keep.keys().copied().collect(), Duration::ZERO).unwrap();
        report(Digest256::of(&seed.to_le_bytes()));
    }
    std::process::exit(0);
}

/// Runs many children of one test in turn, and returns everything that they reported.
fn lives(folder: &Folder, test: &str, longest: u64) -> Vec<Digest256> {
    let (count, end) = match env::var(MORE).map(|count| count.parse()) {
        Ok(count) => (count.expect("a number of lives"), None),
        Err(_) => (LIVES, Some(Instant::now() + PATIENCE)),
    };
    let mut reported = Vec::new();
    for life in 0..count {
        let over = end.is_some_and(|end| Instant::now() >= end);
        if over && !reported.is_empty() {
            break;
        }
        // On a busy machine, no child may have come to its first report. Later ones live longer.
        let moment = if over { Duration::from_micros(longest * 10) } else { moment(life, longest) };
        reported.extend(a_life(folder, test, moment));
    }
    assert!(!reported.is_empty(), "the children did nothing");
    reported
}

/// Starts a child, kills it a little later, and returns the blobs that it reported as stored.
fn a_life(folder: &Folder, test: &str, moment: Duration) -> Vec<Digest256> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("crash::{test}"), "--nocapture"])
        .env(CHILD, folder.as_os_str())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = stdout.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(READY)), "the child did not start");
    let killer = thread::spawn(move || kill_after(child, moment));
    // The last line may be cut short.
    let digests = lines.filter_map(|line| line.parse().ok()).collect();
    killer.join().unwrap();
    digests
}

/// The time until a child is killed: from before the first blob to well among them.
fn moment(life: u32, longest: u64) -> Duration {
    Duration::from_micros(u64::from(life) * 7919 % longest)
}

fn kill_after(mut child: Child, moment: Duration) {
    thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The child: puts blobs of many sizes in both ways, some of them repeatedly.
fn put_until_killed(root: &OsStr) -> ! {
    println!("{READY}");
    let store = FsBlobStore::open(root).unwrap();
    // Ends by itself if the test does not kill it.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut count = u64::from(std::process::id()) << 32;
    while Instant::now() < deadline {
        count += 1;
        let own = count.to_le_bytes().repeat(1 << (count % 14));
        let shared = (count % 50).to_le_bytes().repeat(10_000);
        report(store.put(&own).unwrap());
        report(store.put(&shared).unwrap());
        let mut writer = store.writer().unwrap();
        writer.write_all(&shared).unwrap();
        writer.write_all(&own).unwrap();
        let digest = Digest256::of(&[shared, own].concat());
        writer.commit(&digest).unwrap();
        report(digest);
    }
    std::process::exit(0);
}

/// Reports in one write, so that a line is complete or missing.
fn report(digest: Digest256) {
    std::io::stdout().write_all(format!("{digest}\n").as_bytes()).unwrap();
}

/// Environment variable with the store's folder, for the child.
const CHILD: &str = "CRIU_RPC_CRASH_CHILD";

/// The line that the child writes before it opens the store. From then on it may be killed.
const READY: &str = "ready";

/// The number of blobs in a batch.
const BATCH: usize = 30;

/// The longest life of a child in microseconds: some puts, or some collections.
const SHORT: u64 = 40_000;
const LONG: u64 = 200_000;

/// The number of children, unless starting them takes too long.
const LIVES: u32 = 200;
/// Environment variable with another number of children, however long they take.
const MORE: &str = "CRIU_RPC_TESTS_LIVES";
const PATIENCE: Duration = Duration::from_secs(20);
