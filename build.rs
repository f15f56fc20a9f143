//! Compiles criu's interfaces in `proto/` into Rust types.
//!
//! The two folders become two files, because criu's own files name no package and both sides define
//! messages of the same name. `protox` parses them, so no build needs `protoc`.

use std::{env, fs, io, path::PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    for folder in ["rpc", "images"] {
        println!("cargo:rerun-if-changed=proto/{folder}");
        compile(folder)?;
    }
    Ok(())
}

/// Compiles all of `proto/<folder>/*.proto` into `$OUT_DIR/<folder>/_.rs`.
fn compile(folder: &str) -> Result<()> {
    let source = PathBuf::from("proto").join(folder);
    let target = PathBuf::from(env::var("OUT_DIR")?).join(folder);
    fs::create_dir_all(&target)?;

    let mut files = fs::read_dir(&source)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "proto"));
    files.sort();

    prost_build::Config::new()
        .out_dir(&target)
        .disable_comments(["."]) // a comment on one field must not surface on another
        .compile_fds(protox::compile(files, [source])?)?;
    Ok(())
}
