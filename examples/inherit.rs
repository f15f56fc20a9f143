//! Dumps a program that talks through pipes, and revives it with new pipes in their place.
//!
//! ```text
//! cargo run --example inherit
//! ```
//!
//! The program is `cat`. The images go into a new folder below the system's folder for temporary
//! files. The example removes it at the end. criu needs root.

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::{
        env, fs,
        fs::File,
        io::{BufRead, BufReader, Write},
        os::unix::fs::DirBuilderExt,
        process::{self, Command, Stdio},
    };

    use criu_rpc::{
        Criu, DumpOptions, RestoreOptions,
        rpc::{Key, Lend, NoHooks},
    };
    use nix::{fcntl::OFlag, unistd::pipe2};

    // Images hold the memory of the tree, so no other user may read them.
    let folder = env::temp_dir().join(format!("images-{}", process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let images = File::open(&folder)?;

    let mut command = Command::new("cat");
    let mut cat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // criu's names of its pipes, which must be read while they exist.
    let (stdin, stdout) = (Key::of_process(cat.id(), 0)?, Key::of_process(cat.id(), 1)?);

    let options = DumpOptions::default().shell_job(true); // it leads no session
    Criu::new().dump(cat.id(), &options, Lend::images(&images), &mut NoHooks)?;
    println!("{} was dumped, and ended: {}", cat.id(), cat.wait()?);

    let (their_input, input) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, their_output) = pipe2(OFlag::O_CLOEXEC)?;
    let lend = Lend::images(&images).inherit(stdin, &their_input).inherit(stdout, &their_output);
    let options = RestoreOptions::default().shell_job(true).rst_sibling(true);
    let mut tree = Criu::new().restore(&options, lend, &mut NoHooks)?;
    drop((their_input, their_output));

    let mut input = File::from(input);
    input.write_all(b"hello through a new pipe\n")?;
    let mut line = String::new();
    BufReader::new(File::from(output)).read_line(&mut line)?;
    print!("{} was revived, and says: {line}", tree.pid());
    drop(input);
    println!("it ended: {}", tree.wait()?);
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("criu is for Linux, and this is {}", std::env::consts::OS);
}
