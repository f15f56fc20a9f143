//! The blobs of a chunked capture into `FsBlobStore`, durable, and out again.
//!
//! ```text
//! cargo bench --bench store [-- MIB …]     10 and 1024 MiB by default
//! ```
//!
//! With the features `compression` and `encryption` there is a row for each kind of store that they
//! offer.
//!
//! Chunks of 4 KiB, half of which compress, in calls of 64 by two threads. Their digests are
//! computed beforehand, so that a put measures the store alone. A get verifies all of them.

use std::{
    env, fs, thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, FsBlobStore, store::StoreOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let sizes = arguments.map(|mib| mib.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    let sizes = if sizes.is_empty() { vec![10, 1024] } else { sizes };
    println!(
        "{:>6} {:>12}  {:>9} {:>9} {:>9}  {:>9} {:>9} {:>9}  {:>9} {:>9}  {:>9} {:>9}",
        "MiB",
        "store",
        "open, ms",
        "put",
        "commit",
        "dup put",
        "commit",
        "load",
        "get 1 thr",
        "get 2 thr",
        "each, µs",
        "in order"
    );
    for mib in sizes {
        for _ in 0..if mib < 100 { 7 } else { 3 } {
            for (name, options) in kinds() {
                measure(mib, name, &options)?;
            }
        }
    }
    Ok(())
}

/// The kinds of stores that this build has.
fn kinds() -> Vec<(&'static str, StoreOptions)> {
    #[allow(unused_mut, reason = "some builds have one kind only")]
    let mut kinds = vec![("plain", StoreOptions::new())];
    #[cfg(feature = "compression")]
    kinds.push(("compressed", StoreOptions::new().compression(true)));
    #[cfg(feature = "encryption")]
    {
        let sealed = StoreOptions::new().encryption(criu_rpc::store::Key::from_bytes([7; 32]));
        kinds.push(("encrypted", sealed.clone()));
        #[cfg(feature = "compression")]
        kinds.push(("both", sealed.compression(true)));
    }
    kinds
}

fn measure(mib: usize, name: &str, options: &StoreOptions) -> Result<()> {
    let folder = env::temp_dir().join(format!("criu-rpc-bench-store-{}", std::process::id()));
    let memory = memory(mib << 20);
    let chunks: Vec<(Digest256, &[u8])> =
        memory.chunks(CHUNK).map(|chunk| (Digest256::of(chunk), chunk)).collect();
    let store = options.open(&folder)?;
    let (open, put, commit) = capture(&store, &chunks)?;
    let (_, again, again_commit) = capture(&store, &chunks)?;

    let store = options.open(&folder)?;
    let digests: Vec<_> = chunks.iter().map(|(digest, _)| *digest).collect();
    let start = Instant::now();
    store.get(&digests[0])?;
    let load = start.elapsed();
    let start = Instant::now();
    get(&store, &digests)?;
    let one = start.elapsed();
    let start = Instant::now();
    thread::scope(|scope| {
        let halves = digests.chunks(digests.len().div_ceil(2)).map(|half| scope.spawn(|| get(&store, half)));
        halves
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    let two = start.elapsed();
    // One by one, at random places.
    let start = Instant::now();
    for n in 0..SINGLE {
        store.get(&digests[n * 7919 % digests.len()])?;
    }
    let each = start.elapsed() / u32::try_from(SINGLE)?;
    // One by one, as they were put.
    let start = Instant::now();
    for digest in digests.iter().take(SINGLE) {
        store.get(digest)?;
    }
    let in_order = start.elapsed() / u32::try_from(SINGLE)?;
    let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    println!(
        "{mib:>6} {name:>12}  {:>9} {:>9} {:>9}  {:>9} {:>9} {:>9}  {:>9} {:>9}  {:>9.1} {:>9.1}",
        ms(open),
        ms(put),
        ms(commit),
        ms(again),
        ms(again_commit),
        ms(load),
        ms(one),
        ms(two),
        each.as_secs_f64() * 1e6,
        in_order.as_secs_f64() * 1e6
    );
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn capture(store: &FsBlobStore, chunks: &[(Digest256, &[u8])]) -> Result<(Duration, Duration, Duration)> {
    let start = Instant::now();
    let batch = store.batch()?;
    let open = start.elapsed();
    let start = Instant::now();
    thread::scope(|scope| {
        let put =
            |chunks: &[(Digest256, &[u8])]| chunks.chunks(64).try_for_each(|call| batch.put(call).map(drop));
        let halves = chunks.chunks(chunks.len().div_ceil(2)).map(|half| scope.spawn(move || put(half)));
        halves
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    let put = start.elapsed();
    let start = Instant::now();
    batch.commit()?;
    Ok((open, put, start.elapsed()))
}

fn get(store: &FsBlobStore, digests: &[Digest256]) -> Result<()> {
    for call in digests.chunks(4096) {
        let mut bytes = 0;
        store.get_many(call, &mut |_, blob| {
            bytes += blob.len();
            Ok(())
        })?;
        assert_eq!(bytes, call.len() * CHUNK);
    }
    Ok(())
}

/// Every other 64 KiB are noise, the rest are words.
fn memory(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut memory = Vec::with_capacity(length);
    while memory.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = if memory.len() & 0x10000 == 0 { state } else { state & 0x3f3f };
        memory.extend_from_slice(&word.to_le_bytes());
    }
    memory
}

const CHUNK: usize = 4096;

/// The number of blobs that are read one by one.
const SINGLE: usize = 500;
