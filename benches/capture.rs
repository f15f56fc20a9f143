//! A whole capture, durable, against what one would do by hand:
//! `criu dump` into a folder, `tar | tee FILE | sha256sum`, `sync`.
//!
//! ```text
//! cargo bench --bench capture [-- MIB …]     as root; 10 and 1024 MiB by default
//! ```
//!
//! Both take turns in one run, on one process with that much memory that does not compress, in the same kind of folder.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use criu_rpc::{Capture, FsBlobStore, ProcsCapture};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, mib] = arguments.as_slice() {
        if mode == "--victim" {
            return victim(mib.parse()?);
        }
    }
    let sizes = arguments.iter().map(|mib| mib.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    let sizes = if sizes.is_empty() { vec![10, 1024] } else { sizes };
    println!(
        "{:>8}  {:>22}  {:>22}  {:>5}  {:>8}",
        "MiB", "by hand, s (min med)", "capture, s (min med)", "ratio", "our KiB"
    );
    for mib in sizes {
        compare(mib)?;
    }
    Ok(())
}

fn compare(mib: usize) -> Result<()> {
    let scratch = env::temp_dir().join(format!("criu-rpc-bench-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let victim = Victim::start(mib)?;
    let runs = if mib < 100 { 15 } else { 5 };
    let (mut hand, mut ours) = (Vec::new(), Vec::new());
    for run in 0..runs {
        hand.push(by_hand(victim.0.id(), &scratch.join(format!("hand-{run}")))?);
        ours.push(capture(victim.0.id(), &scratch.join(format!("ours-{run}")))?);
    }
    fs::remove_dir_all(&scratch)?;
    hand.sort();
    ours.sort();
    let (hand_median, ours_median) = (hand[runs / 2].as_secs_f64(), ours[runs / 2].as_secs_f64());
    println!(
        "{mib:>8}  {:>11.3} {hand_median:>10.3}  {:>11.3} {ours_median:>10.3}  {:>5.2}  {:>8}",
        hand[0].as_secs_f64(),
        ours[0].as_secs_f64(),
        ours_median / hand_median,
        peak_memory()?
    );
    Ok(())
}

fn by_hand(pid: u32, folder: &Path) -> Result<Duration> {
    let start = Instant::now();
    let script = "mkdir -p $1/images && criu dump -t $0 -D $1/images --leave-running --shell-job -v1 && \
                  tar -C $1/images -cf - . | tee $1/archive.tar | sha256sum >$1/digest && sync $1/archive.tar";
    let status = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(pid.to_string())
        .arg(folder)
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err("criu dump failed".into());
    }
    let took = start.elapsed();
    fs::remove_dir_all(folder)?;
    Ok(took)
}

fn capture(pid: u32, folder: &Path) -> Result<Duration> {
    let start = Instant::now();
    let store = FsBlobStore::open(folder)?;
    let Capture::Stored(_) = ProcsCapture::new([pid]).run(&store)? else { return Err("revived?".into()) };
    let took = start.elapsed();
    fs::remove_dir_all(folder)?;
    Ok(took)
}

/// The most memory that this process has had, in KiB.
fn peak_memory() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

struct Victim(Child);

impl Victim {
    fn start(mib: usize) -> Result<Victim> {
        let mut command = Command::new(env::current_exe()?);
        let mut child = command
            .args(["--victim", &mib.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().ok_or("no stdout")?).read_line(&mut ready)?;
        Ok(Victim(child))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fills memory with numbers that do not compress, says so, and waits for the end of its input.
fn victim(mib: usize) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let memory: Vec<u64> = (0..mib << 17)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect();
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    std::hint::black_box(memory);
    Ok(())
}
