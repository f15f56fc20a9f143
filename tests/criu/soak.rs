//! A program that captures and collects for long: memory, descriptors and threads stay what they
//! were.
//!
//! `CRIU_SOAK` says how many captures there are of each kind.

use std::{env, fs, process::Command, time::Duration};

use criu_rpc::{BufferPool, Chunking, FsBlobStore, ProcsCapture};

use crate::{
    harness::tests,
    places::Home,
    tree::{OrExplain, Victim},
};

tests![captures_and_collections_leave_a_program_as_it_was];

const FEWEST: usize = 24;

/// Memory of no file that is in use in KiB, descriptors, threads, and areas of memory of this
/// process.
#[derive(Debug, Clone, Copy)]
struct Possessions {
    memory: u64,
    descriptors: usize,
    threads: usize,
    areas: usize,
}

impl Possessions {
    fn now() -> Possessions {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let of = |name: &str| -> u64 {
            let found = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
        };
        // The kernel takes pages that were marked as free (`MADV_FREE`) when it likes, and swaps
        // others. Pages of the program's file come and go as the machine has room.
        let memory = of("Anonymous") + of("Swap") - of("LazyFree");
        let count = |folder| fs::read_dir(folder).unwrap().count();
        let areas = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let (descriptors, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
        Possessions { memory, descriptors, threads, areas }
    }
}

/// Captures and collects, and gives what the process had in the middle and at the end, the most of
/// some captures each.
fn soak(home: &Home, store: &FsBlobStore, capture: &ProcsCapture, rounds: usize) -> [Possessions; 2] {
    let mut seen = Vec::new();
    for _ in 0..rounds {
        let digest = capture.capture(store).or_explain();
        let _ = store.gc(&[digest], Duration::ZERO).or_explain();
        seen.push(Possessions::now());
    }
    home.assert_staging_empty();
    [&seen[rounds / 4..rounds / 2], &seen[rounds / 4 * 3..]].map(|part| Possessions {
        memory: part.iter().map(|seen| seen.memory).max().unwrap(),
        descriptors: part.iter().map(|seen| seen.descriptors).max().unwrap(),
        threads: part.iter().map(|seen| seen.threads).max().unwrap(),
        areas: part.iter().map(|seen| seen.areas).max().unwrap(),
    })
}

fn captures_and_collections_leave_a_program_as_it_was() {
    let mut command = Command::new("timeout");
    // What is free goes back to the kernel, always: by default glibc keeps some megabytes of it,
    // now and then.
    command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536");
    crate::apart::apart_by(command, "soak");
}

pub(crate) const APART: &[crate::harness::Test] = &[("soak", soak_all)];

fn soak_all() {
    let rounds = env::var("CRIU_SOAK").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(FEWEST).max(FEWEST);
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["memory=2"]);
    let kinds = [
        ("archive", home.capture([victim.pid()])),
        ("chunks", home.capture([victim.pid()]).chunked(Chunking::default()).buffers(&BufferPool::new(16 << 20))),
    ];
    for (name, capture) in kinds {
        let [middle, end] = soak(&home, &store, &capture, rounds);
        println!("{name}, {rounds} captures: {middle:?}, then {end:?}");
        assert!(end.memory <= middle.memory + (2 << 10), "{name}: {middle:?}, then {end:?}");
        assert!(end.descriptors <= middle.descriptors, "{name}: {middle:?}, then {end:?}");
        assert!(end.areas <= middle.areas + 16, "{name}: {middle:?}, then {end:?}");
        assert!(end.threads <= middle.threads, "{name}: {middle:?}, then {end:?}");
    }
}
