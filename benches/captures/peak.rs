//! The peak memory of a program that makes one capture, beyond the buffer that it may use.

use std::{env, fs, process::Command};

use criu_rpc::BufferPool;

use crate::{
    ours,
    places::Folder,
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    victim::Victim,
};

/// The buffer, and the memory of the smaller tree.
const MIB: usize = 64;

/// The bytes that a tree of many times the memory may add.
const FLAT: f64 = 8.0 * 1024.0 * 1024.0;

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let what = format!("peak beyond a buffer of {MIB} MiB, v2, {} MiB", settings.peak);
    let mut little = Runs::of("peak with a tree of 64 MiB", Unit::MiB);
    let mut much = Runs::of("v2, peak with the largest tree", Unit::MiB);
    measure(MIB, settings, &mut little)?;
    measure(settings.peak, settings, &mut much)?;
    Ok(vec![Line::compare(what, &little, &much, Goal::More(FLAT))])
}

fn measure(mib: usize, settings: &Settings, runs: &mut Runs) -> Result<()> {
    let victim = Victim::with_memory(mib)?;
    for _ in 0..settings.runs.min(3) {
        let store = Folder::temporary()?;
        let mut program = Command::new(env::current_exe()?);
        program.arg("--one-capture").arg(victim.pid().to_string()).arg(store.path());
        let output = program.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        let peak: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        runs.push(peak - (MIB << 20) as f64);
    }
    Ok(())
}

/// `--one-capture PID STORE`: captures, and prints the peak memory of this process.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let [pid, store] = arguments else { return Err("which pid, into which store?".into()) };
    let store = ours::open(store)?;
    let pid: i32 = pid.parse()?;
    ours::v2_by(pid.into(), &BufferPool::new((MIB << 20) as u64), &store)?;
    println!("{}", peak_memory()? << 10);
    Ok(())
}

/// Peak memory in KiB.
fn peak_memory() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
