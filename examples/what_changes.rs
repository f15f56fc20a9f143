//! Measures how much of a process tree changes between steps, to choose the chunk size for a
//! program.
//!
//! `what_changes PID [STEPS [SECONDS]]` captures the tree so many times (5), so many seconds (1)
//! apart, for each chunk size in turn. It prints the bytes that a capture stored, on average and
//! without the first. It needs root and criu; the tree goes on.

use std::{env, error::Error, thread, time::Duration};

use criu_rpc::{Chunking, MemBlobStore, ProcsCapture};

const SIZES: [u64; 5] = [4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let pid: i32 = arguments.next().ok_or("usage: what_changes PID [STEPS [SECONDS]]")?.parse()?;
    let steps: u64 = arguments.next().map_or(Ok(5), |steps| steps.parse())?;
    let apart: f64 = arguments.next().map_or(Ok(1.0), |seconds| seconds.parse())?;

    let stores = SIZES.map(|_| MemBlobStore::new());
    let (mut first, mut new) = ([0; SIZES.len()], [0; SIZES.len()]);
    for step in 0..=steps {
        for (place, size) in SIZES.into_iter().enumerate() {
            let capture = ProcsCapture::new([pid]).chunked(Chunking::default().chunk(size));
            let bytes = capture.run(&stores[place])?.bytes;
            if step == 0 {
                first[place] = bytes;
            } else {
                new[place] += bytes;
            }
        }
        if step < steps {
            thread::sleep(Duration::from_secs_f64(apart));
        }
    }
    println!("{:>8}  {:>12}  {:>16}", "chunk", "first", "each step after");
    for (place, size) in SIZES.iter().enumerate() {
        println!(
            "{:>4} KiB  {:>9} kB  {:>13} kB",
            size >> 10,
            first[place] / 1000,
            new[place] / steps.max(1) / 1000
        );
    }
    Ok(())
}
