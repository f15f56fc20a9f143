//! Revives a capture from a folder, and waits for its end.
//!
//! ```text
//! cargo run --example restore -- sha256:… [FOLDER]
//! ```
//!
//! The pids of the captured tree must be free: end the original first. If the tree's output went to
//! a terminal or a pipe, it goes to ours now. criu needs root.

use std::{env, error::Error, process::ExitCode};

use criu_rpc::{Digest256, FsBlobStore, ProcsRestore};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let digest: Digest256 = arguments.next().ok_or("usage: restore DIGEST [FOLDER]")?.parse()?;
    let store = FsBlobStore::open(arguments.next().unwrap_or("captures".into()))?;

    let mut restored = match ProcsRestore::new().restore(&store, &digest) {
        Ok(restored) => restored,
        Err(error) => {
            eprint!("error: {}", error.report());
            return Ok(ExitCode::FAILURE);
        }
    };
    for warning in &restored.warnings {
        eprintln!("warning: {warning}");
    }
    for tree in &mut restored.trees {
        eprintln!("process {} lives again", tree.pid());
        eprintln!("process {} ended: {}", tree.pid(), tree.wait()?);
    }
    Ok(ExitCode::SUCCESS)
}
