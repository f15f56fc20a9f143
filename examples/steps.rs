//! Captures a program after each of its steps, and returns to an earlier step with new pipes.
//!
//! ```text
//! cargo run --example steps
//! ```
//!
//! The program is a shell that numbers its input lines. The captures go into a new folder below the
//! system's folder for temporary files. The example removes it at the end. criu needs root.

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::{
        env, fs,
        fs::File,
        io::{self, BufRead, BufReader, Write},
        process::{self, Command, Stdio},
    };

    use criu_rpc::{Chunking, FsBlobStore, ProcsCapture, ProcsRestore};
    use nix::{fcntl::OFlag, unistd::pipe2};

    fn tell(to: &mut impl Write, from: &mut impl BufRead, line: &str) -> io::Result<String> {
        writeln!(to, "{line}")?;
        let mut answer = String::new();
        from.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    let folder = env::temp_dir().join(format!("steps-{}", process::id()));
    let store = FsBlobStore::open(&folder)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "n=0; while read -r line; do n=$((n + 1)); echo \"$n: $line\"; done"]);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both are pipes")
    };
    let mut from = BufReader::new(from);

    let capture = ProcsCapture::new([child.id()]).chunked(Chunking::default());
    let mut steps = Vec::new();
    for line in ["one", "two", "three", "four"] {
        let answer = tell(&mut to, &mut from, line)?;
        let stored = capture.run(&store)?;
        println!("{answer:10} captured, {} new bytes", stored.bytes);
        steps.push(stored.digest);
    }

    // The running tree has the pids that the earlier one needs.
    criu_rpc::kill_tree(child.id())?;
    child.wait()?;

    if let Some(second) = steps.get(1) {
        let (its_input, to) = pipe2(OFlag::O_CLOEXEC)?;
        let (from, its_output) = pipe2(OFlag::O_CLOEXEC)?;
        let (mut to, mut from) = (File::from(to), BufReader::new(File::from(from)));
        let mut restored = ProcsRestore::new().stdin(its_input).stdout(its_output).restore(&store, second)?;
        println!("back after \"two\":");
        println!("{}", tell(&mut to, &mut from, "another three")?);
        drop(to);
        for tree in &mut restored.trees {
            println!("it ended: {}", tree.wait()?);
        }
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("criu is for Linux, and this is {}", std::env::consts::OS);
}
