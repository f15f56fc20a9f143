//! The cost of an `FsBlobStore` that has many packs already.
//!
//! ```text
//! cargo bench --bench scale [-- PACKS …]     1, 1000 and 10000 packs by default
//! ```
//!
//! Each pack is a commit of 650 new blobs of 64 bytes, as an agent's step has chunks: the index
//! sees the number of blobs and not their size. The commits are durable, so `TMPDIR` should be on
//! the disk in question. A row has:
//!
//! - the next commits in milliseconds: the median, the processor's time, the longest
//! - opening the store and finding a first blob, in milliseconds
//! - a lookup in microseconds of the processor's time: of a blob that is there, of one that is not,
//!   and of one among 650
//! - reading the 650 blobs of the newest and of the oldest commit, in milliseconds of the
//!   processor's time
//! - the memory that this process has more since the store was opened

use std::{
    env, fs,
    hint::black_box,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, FsBlobStore};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let mut sizes = arguments.map(|packs| packs.parse()).collect::<std::result::Result<Vec<u32>, _>>()?;
    if sizes.is_empty() {
        sizes = vec![1, 1000, 10_000];
    }
    println!(
        "{:>7} {:>10} {:>9} {:>8}  {:>8}  {:>8} {:>8} {:>8}  {:>10} {:>8}  {:>8}",
        "packs",
        "commit, ms",
        "processor",
        "longest",
        "open, ms",
        "hit, µs",
        "miss",
        "of many",
        "newest, ms",
        "oldest",
        "KiB more"
    );
    let folder = env::temp_dir().join(format!("criu-rpc-scale-{}", std::process::id()));
    let mut packs = 0;
    for size in sizes {
        let store = FsBlobStore::open(&folder)?;
        while packs < size {
            commit(&store, packs)?;
            packs += 1;
        }
        drop(store);
        measure(&folder, &mut packs)?;
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn measure(folder: &std::path::Path, packs: &mut u32) -> Result<()> {
    let (before, resident) = (*packs, resident());
    let start = Instant::now();
    let store = FsBlobStore::open(folder)?;
    assert!(store.contains(&step(before / 2)[0].0)?);
    let open = start.elapsed();

    let mut commits = Vec::new();
    let worked = self::worked();
    for _ in 0..COMMITS {
        let blobs = step(*packs);
        let start = Instant::now();
        put(&store, &blobs)?;
        commits.push(start.elapsed());
        *packs += 1;
    }
    let processor = (self::worked() - worked) / COMMITS;
    commits.sort();

    let lookup = |digest: &dyn Fn(u32) -> Digest256| -> Result<Duration> {
        let digests: Vec<_> = (0..LOOKUPS).map(digest).collect();
        let worked = self::worked();
        for digest in &digests {
            black_box(store.contains(digest)?);
        }
        Ok((self::worked() - worked) / LOOKUPS)
    };
    let hit = lookup(&|n| step(n.wrapping_mul(7919) % before)[(n % BLOBS) as usize].0)?;
    let miss = lookup(&|n| Digest256::of(&n.to_le_bytes()))?;
    let digests: Vec<_> = step(before / 3).into_iter().map(|(digest, _)| digest).collect();
    let worked = self::worked();
    assert!(store.missing(&digests)?.is_empty());
    let many = (self::worked() - worked) / BLOBS;

    let read = |number: u32| -> Result<Duration> {
        let digests: Vec<_> = step(number).into_iter().map(|(digest, _)| digest).collect();
        let worked = self::worked();
        store.get_many(&digests, &mut |_, bytes| {
            black_box(bytes);
            Ok(())
        })?;
        Ok(self::worked() - worked)
    };
    let (newest, oldest) = (median(|| read(*packs - 1))?, median(|| read(0))?);

    println!(
        "{before:>7} {:>10} {:>9} {:>8}  {:>8}  {:>8} {:>8} {:>8}  {:>10} {:>8}  {:>8}",
        ms(commits[commits.len() / 2]),
        ms(processor),
        ms(commits[commits.len() - 1]),
        ms(open),
        us(hit),
        us(miss),
        us(many),
        ms(newest),
        ms(oldest),
        self::resident().saturating_sub(resident)
    );
    Ok(())
}

fn median(mut run: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..9).map(|_| run()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[times.len() / 2])
}

/// The blobs of a step.
fn step(number: u32) -> Vec<(Digest256, [u8; 64])> {
    let blob = |n: u32| {
        let mut bytes = [7; 64];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[4..8].copy_from_slice(&n.to_le_bytes());
        (Digest256::of(&bytes), bytes)
    };
    (0..BLOBS).map(blob).collect()
}

fn commit(store: &FsBlobStore, number: u32) -> Result<()> {
    put(store, &step(number))
}

fn put(store: &FsBlobStore, blobs: &[(Digest256, [u8; 64])]) -> Result<()> {
    let blobs: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
    let batch = store.batch()?;
    batch.put(&blobs)?;
    batch.commit()?;
    Ok(())
}

/// The processor's time of this thread, which does all the work.
fn worked() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// The resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

fn us(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}

const BLOBS: u32 = 650;
const COMMITS: u32 = 100;
const LOOKUPS: u32 = 1000;
