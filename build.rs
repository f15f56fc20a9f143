//! Compiles criu's interfaces in `proto/` into Rust types.
//!
//! The two folders become two files, because criu's own files name no package and both sides define
//! messages of the same name. `protox` parses them, so no build needs `protoc`.

use std::{env, ffi::OsString, fs, io, path::PathBuf, process::Command};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    for folder in ["rpc", "images"] {
        println!("cargo:rerun-if-changed=proto/{folder}");
        compile(folder)?;
    }
    build_init()
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

/// Compiles the init of copies into `$OUT_DIR/init`: an empty file where there are no copies, or
/// where no linker makes it. The crate then says that copies are not supported.
fn build_init() -> Result<()> {
    const SOURCE: &str = "src/sys/init/program.rs";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let of_target = |name| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let target = PathBuf::from(env::var("OUT_DIR")?).join("init");
    let is_known = matches!(&*of_target("ARCH"), "x86_64" | "aarch64") && of_target("ENDIAN") == "little";
    let has_copies = of_target("OS") == "linux" && is_known && of_target("POINTER_WIDTH") == "64";
    if !has_copies || env::var_os("DOCS_RS").is_some() {
        return Ok(fs::write(target, [])?);
    }
    let compile = |linker: &[OsString]| {
        Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
            .args(["--edition=2024", "--crate-type=bin", "--crate-name=init", SOURCE, "--target"])
            .arg(env::var_os("TARGET").unwrap_or_default())
            .args(["-Cpanic=abort", "-Copt-level=s", "-Ccodegen-units=1", "-Cdebuginfo=0", "-Cstrip=symbols"])
            // Without this, core's panics refer to functions that are not there.
            .arg("-Clto=fat")
            .args(["-Crelocation-model=static", "-Cforce-unwind-tables=no", "-Clink-arg=-static"])
            .args(linker)
            .arg("-o")
            .arg(&target)
            // Flags for sanitizers, coverage or linkers are not for this program.
            .env_remove("RUSTC_WRAPPER")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS")
            .output()
    };
    let mut by_cc: Vec<OsString> =
        ["-nostartfiles", "-nostdlib", "-no-pie", "-Wl,--build-id=none,-z,noseparate-code,-z,norelro"]
            .map(|argument| format!("-Clink-arg={argument}").into())
            .into();
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut chosen = OsString::from("-Clinker=");
        chosen.push(linker);
        by_cc.push(chosen);
    }
    let mut by_lld: Vec<OsString> = [
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Clink-arg=--build-id=none",
        "-Clink-arg=-znoseparate-code",
    ]
    .map(OsString::from)
    .into();
    let ways = match of_target("ENV").as_str() {
        // The C library's own start files would be linked, too.
        "musl" => {
            by_lld.push("-Clink-self-contained=no".into());
            vec![by_lld]
        }
        _ => vec![by_cc, by_lld],
    };
    let mut problems = Vec::new();
    for way in &ways {
        match compile(way) {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => problems.push(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => problems.push(error.to_string()),
        }
    }
    for line in problems.iter().flat_map(|problem| problem.lines()).filter(|line| line.starts_with("error")) {
        println!("cargo:warning=no isolated copies, because their init could not be built: {line}");
    }
    // The next build tries again: there may be a linker by then.
    println!("cargo:rerun-if-changed={}", target.with_extension("missing").display());
    Ok(fs::write(target, [])?)
}
