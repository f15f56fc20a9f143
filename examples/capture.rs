//! Captures a process and its descendants into a folder, and prints the digest to restore it by.
//! The process goes on.
//!
//! ```text
//! sleep 1000 & cargo run --example capture -- $! [FOLDER]
//! ```
//!
//! The folder is `captures` unless one is named. criu needs root.

use std::{env, error::Error, process::ExitCode};

use criu_rpc::{FsBlobStore, ProcsCapture};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let pid: i32 = arguments.next().ok_or("usage: capture PID [FOLDER]")?.parse()?;
    let store = FsBlobStore::open(arguments.next().unwrap_or("captures".into()))?;

    let stored = match ProcsCapture::new([pid]).run(&store) {
        Ok(stored) => stored,
        Err(error) => {
            eprint!("error: {}", error.report());
            return Ok(ExitCode::FAILURE);
        }
    };
    for warning in &stored.warnings {
        eprintln!("warning: {warning}");
    }
    eprintln!("{} bytes; the tree was frozen for {:.1?}", stored.bytes, stored.frozen.unwrap_or_default());
    println!("{}", stored.digest);
    Ok(ExitCode::SUCCESS)
}
