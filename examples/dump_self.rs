//! A process that captures itself, ends, and goes on from there when it is revived.
//!
//! ```text
//! cargo run --example dump_self                     counts, captures itself, counts on, ends
//! cargo run --example dump_self -- revive DIGEST    the process of that capture goes on
//! ```
//!
//! Captures go into the folder `captures`, or `$CAPTURES`. criu needs root.

use std::{
    env,
    error::Error,
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use criu_rpc::{Digest256, FsBlobStore, ProcsBlob, ProcsCapture, ProcsRestore, SelfCapture, Stored, Stream};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            explain(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let store = FsBlobStore::open(env::var_os("CAPTURES").unwrap_or("captures".into()))?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => count(&store),
        ["revive", digest] => revive(&store, &digest.parse()?),
        _ => Err("usage: dump_self [revive DIGEST]".into()),
    }
}

/// Counts to ten in memory, and captures itself half way.
fn count(store: &FsBlobStore) -> Result<(), Box<dyn Error>> {
    let me = process::id();
    println!("process {me}: I count in memory, and capture myself at 5");
    for number in 1..=10 {
        println!("process {me}: {number}");
        if number == 5 {
            match ProcsCapture::new([me]).placeholder_if_unusable(true).run_self(store)? {
                SelfCapture::Stored(stored) => tell(&stored),
                SelfCapture::Revived => println!("process {me}: I am back, and go on from {number}"),
                _ => {}
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    println!("process {me}: done");
    Ok(())
}

fn tell(stored: &Stored) {
    println!("captured as {}", stored.digest);
    println!("  {} bytes in the store", stored.bytes);
    if let ProcsBlob::Unsupported { unsupported_on, note } = &stored.manifest {
        println!("  a placeholder: unsupported on {unsupported_on}");
        println!("  {note}");
    }
    if let Some(frozen) = stored.frozen {
        println!("  process {} stood still for {:.1} ms", process::id(), frozen.as_secs_f64() * 1e3);
    }
}

/// Brings the process of a capture back, and waits for its end.
fn revive(store: &FsBlobStore, digest: &Digest256) -> Result<(), Box<dyn Error>> {
    println!("reviving {digest}");
    let mut restored = ProcsRestore::new()
        .stdin(Stream::Inherit)
        .stdout(Stream::Inherit)
        .stderr(Stream::Inherit)
        .restore(store, digest)?;
    for warning in &restored.warnings {
        println!("warning: {warning}");
    }
    for tree in &mut restored.trees {
        println!("process {} lives again; what it prints comes out here", tree.pid());
        println!("process {} ended: {}", tree.pid(), tree.wait()?);
    }
    Ok(())
}

/// Says what went wrong, and what to do.
fn explain(error: &(dyn Error + 'static)) {
    match error.downcast_ref::<criu_rpc::Error>() {
        Some(error) => eprint!("error: {}", error.report()),
        None => eprintln!("error: {error}"),
    }
}
