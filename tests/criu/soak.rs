//! A program that captures and collects for long: memory, descriptors and threads stay what they were.
//!
//! `CRIU_SOAK` says how many captures there are of each kind.

use std::{env, fs, time::Duration};

use criu_rpc::{Chunking, FsBlobStore, ProcsCapture};

use crate::{
    harness::tests,
    places::Home,
    tree::{OrExplain, Victim},
};

tests![captures_and_collections_leave_a_program_as_it_was];

const FEWEST: usize = 24;

/// Memory of no file in KiB, descriptors, threads, and areas of memory of this process.
#[derive(Debug, Clone, Copy)]
struct Possessions {
    memory: u64,
    descriptors: usize,
    threads: usize,
    areas: usize,
}

impl Possessions {
    fn now() -> Possessions {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        // Pages of the program's file come and go as the machine has room.
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let memory = line.trim().trim_end_matches(" kB").parse().unwrap();
        let count = |folder| fs::read_dir(folder).unwrap().count();
        let areas = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let (descriptors, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
        Possessions { memory, descriptors, threads, areas }
    }
}

/// Captures and collects, and gives what the process had in the middle and at the end, the most of some captures each.
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
    crate::apart::apart("soak");
}

pub(crate) const APART: &[crate::harness::Test] = &[("soak", soak_all)];

fn soak_all() {
    let rounds = env::var("CRIU_SOAK").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(FEWEST).max(FEWEST);
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&["memory=2"]);
    let kinds = [
        ("archive", home.capture([victim.pid()])),
        ("chunks", home.capture([victim.pid()]).chunked(Chunking::default().buffer(16 << 20))),
    ];
    for (name, capture) in kinds {
        let [middle, end] = soak(&home, &store, &capture, rounds);
        println!("{name}, {rounds} captures: {middle:?}, then {end:?}");
        // The kernel takes memory that was marked as free when it likes. A leak of one capture each round would be more.
        assert!(end.memory <= middle.memory + middle.memory / 10 + (12 << 10), "{name}: {middle:?}, then {end:?}");
        assert!(end.descriptors <= middle.descriptors, "{name}: {middle:?}, then {end:?}");
        assert!(end.areas <= middle.areas + 16, "{name}: {middle:?}, then {end:?}");
        assert!(end.threads <= middle.threads, "{name}: {middle:?}, then {end:?}");
    }
}
