//! Keeps a capture in pf-core's store in a folder, and reads it back.
//!
//! ```text
//! cargo run --manifest-path examples/pf-core-adapter/Cargo.toml [-- FOLDER]       as root, if there is a criu
//! ```
//!
//! Without criu it stores a placeholder. `--keeper FOLDER` is for `scripts/bench`. `--conformance
//! FOLDER` runs the whole contract suite, which takes some minutes: level 19 of zstd prepares tens
//! of megabytes for each blob.

use std::{
    cell::Cell,
    env,
    error::Error,
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use criu_rpc::{
    BlobStore, Chunking, MemBlobStore, ProcsCapture, Stored,
    store::conformance,
    stored::{copy_capture, reachable},
};
use pf_core::cas::{BlobStore as _, FsBlobStore};
use pf_core_adapter::PfStore;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--keeper", folder] => keep(&open(folder)?),
        ["--conformance", folder] => {
            let count = Cell::new(0);
            conformance::check(|| {
                count.set(count.get() + 1);
                open(Path::new(folder).join(count.get().to_string())).expect("the folder takes a store")
            });
            println!("the contract is kept");
            Ok(())
        }
        [folder] => show(&open(folder)?),
        [] => {
            let folder = env::temp_dir().join(format!("pf-core-adapter-{}", std::process::id()));
            let shown = show(&open(&folder)?);
            fs::remove_dir_all(&folder)?;
            shown
        }
        _ => Err("usage: pf-core-adapter [--conformance] [FOLDER]".into()),
    }
}

fn open(folder: impl AsRef<Path>) -> Result<PfStore<FsBlobStore>, Box<dyn Error>> {
    Ok(PfStore(FsBlobStore::open(folder)?))
}

fn show(store: &PfStore<FsBlobStore>) -> Result<(), Box<dyn Error>> {
    let digest = store.put(b"a blob")?;
    assert_eq!(store.get(&digest)?, b"a blob");
    println!("{digest} was put and is there");

    // criu dumps no tree whose session is from outside its pid namespace. So the child leads a
    // session of its own, which exists once it writes a line.
    let mut command = Command::new("setsid");
    let mut sleeper = command.args(["sh", "-c", "echo; exec sleep 1000"]).stdout(Stdio::piped()).spawn()?;
    BufReader::new(sleeper.stdout.as_mut().ok_or("it has no output")?).read_line(&mut String::new())?;
    let captured = capture(i32::try_from(sleeper.id())?, store);
    sleeper.kill()?;
    sleeper.wait()?;
    let stored = captured?;
    println!("{} is the capture: {:?}", stored.digest, stored.manifest);
    let blobs = reachable(store, &[stored.digest])?.len();
    println!("its {blobs} blobs, and the other one, take {} bytes on the disk", store.0.physical_bytes()?);

    // A copy to another store verifies every byte.
    let elsewhere = MemBlobStore::new();
    copy_capture(store, &elsewhere, &stored.digest)?;
    println!("all of it was read back");
    Ok(())
}

/// Captures each pid that a line names, and answers with a line.
fn keep(store: &PfStore<FsBlobStore>) -> Result<(), Box<dyn Error>> {
    for pid in io::stdin().lines() {
        println!("{}", capture(pid?.parse()?, store)?.digest);
    }
    Ok(())
}

fn capture(pid: i32, store: &PfStore<FsBlobStore>) -> Result<Stored, Box<dyn Error>> {
    Ok(ProcsCapture::new([pid]).chunked(Chunking::default()).placeholder(true).run(store)?)
}
