//! A process that captures itself, ends, and goes on from there when it is revived.
//!
//! ```text
//! cargo run --example dump_self                     counts, captures itself, counts on, ends
//! cargo run --example dump_self -- revive DIGEST    the process of that capture goes on
//! ```
//!
//! Captures go into the folder `captures`, or `$CAPTURES`. criu needs root; with `$PLACEHOLDER` set, a criu that
//! cannot work here makes a placeholder instead of an error.

use std::{env, error::Error, process, thread, time::Duration};

use criu_rpc::{Capture, Digest256, FsBlobStore, ProcsCapture, ProcsRestore};

fn main() -> Result<(), Box<dyn Error>> {
    let store = FsBlobStore::open(env::var_os("CAPTURES").unwrap_or("captures".into()))?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match &arguments[..] {
        [] => count(&store),
        [word, digest] if word == "revive" => revive(&store, &digest.parse()?),
        _ => Err("usage: dump_self [revive DIGEST]".into()),
    };
    if let Err(error) = &result {
        explain(&**error);
    }
    result.map_err(|_| "see above".into())
}

/// Counts to ten in memory, and captures itself half way.
fn count(store: &FsBlobStore) -> Result<(), Box<dyn Error>> {
    let placeholder = env::var_os("PLACEHOLDER").is_some();
    let capture = ProcsCapture::new([process::id()]).placeholder_if_unusable(placeholder);
    println!("process {}: I count in memory, and capture myself at 5", process::id());
    for number in 1..=10 {
        println!("process {}: {number}", process::id());
        if number == 5 {
            match capture.run(store)? {
                Capture::Stored(stored) => {
                    println!("process {}: captured as {}", process::id(), stored.digest);
                    println!("    {} bytes in the store", stored.bytes);
                    match stored.frozen {
                        Some(frozen) => println!("    I stood still for {frozen:.1?}"),
                        None => println!("    a placeholder: {:?}", stored.manifest),
                    }
                }
                Capture::Revived => println!("process {}: I am back, and go on from {number}", process::id()),
                _ => {}
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    println!("process {}: done", process::id());
    Ok(())
}

/// Brings the process of a capture back, and waits for its end.
fn revive(store: &FsBlobStore, digest: &Digest256) -> Result<(), Box<dyn Error>> {
    println!("reviving {digest}");
    let mut restored = ProcsRestore::new().inherit_streams().restore(store, digest)?;
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
    eprintln!("error: {error}");
    let Some(error) = error.downcast_ref::<criu_rpc::Error>() else { return };
    match (error.failure(), error.advice()) {
        (Some(failure), _) => eprint!("{}", failure.report()),
        (None, Some(advice)) => eprintln!("  what to do: {advice}"),
        (None, None) => {}
    }
}
