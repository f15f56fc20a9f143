//! A process that dies in the middle of writing loses nothing that it was told is stored, and damages nothing.

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

use crate::stores::{Folder, files_below};

#[test]
fn what_was_put_survives_the_death_of_the_process() {
    if let Some(root) = env::var_os(CHILD) {
        put_until_killed(&root);
    }
    let folder = Folder::new();
    let end = Instant::now() + PATIENCE;
    let lives = (0..LIVES).take_while(|_| Instant::now() < end);
    let reported: Vec<_> = lives.flat_map(|life| a_life(&folder, life)).collect();
    assert!(!reported.is_empty(), "the children did nothing");

    let store = FsBlobStore::open(&*folder).unwrap();
    for digest in &reported {
        store.get(digest).unwrap();
    }
    for file in files_below(&folder.join("blobs")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(Digest256::of(&fs::read(&file).unwrap()).hex(), name, "a damaged blob is visible");
    }
}

/// Starts a child, kills it a little later, and tells what it had been told is stored.
fn a_life(folder: &Folder, life: u32) -> Vec<Digest256> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "crash::what_was_put_survives_the_death_of_the_process", "--nocapture"])
        .env(CHILD, folder.as_os_str())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = stdout.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(READY)), "the child did not start");
    let killer = thread::spawn(move || kill_after(child, moment(life)));
    // The last line may be cut short.
    let digests = lines.filter_map(|line| line.parse().ok()).collect();
    killer.join().unwrap();
    digests
}

/// Up to forty milliseconds: from before the first blob to well among them.
fn moment(life: u32) -> Duration {
    Duration::from_micros(u64::from(life) * 7919 % 40_000)
}

fn kill_after(mut child: Child, moment: Duration) {
    thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The child: puts blobs of many sizes, by both ways, some of them again and again.
fn put_until_killed(root: &OsStr) -> ! {
    println!("{READY}");
    let store = FsBlobStore::open(root).unwrap();
    // Should nobody kill it.
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

/// One write, so that a line is there or not.
fn report(digest: Digest256) {
    std::io::stdout().write_all(format!("{digest}\n").as_bytes()).unwrap();
}

/// Where the child finds the store's folder.
const CHILD: &str = "CRIU_RPC_CRASH_CHILD";

/// What the child says before it opens the store. From then on it may be killed.
const READY: &str = "ready";

/// How many children live, unless starting them takes too long.
const LIVES: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(20);
