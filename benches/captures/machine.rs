//! The machine that the numbers were measured on.

use std::{env, fs, hint::black_box, process::Command, thread};

use crate::{places::succeed, run::Result, victim::PAGE};

pub(crate) fn describe(criu: &str) -> String {
    let cores = thread::available_parallelism().map_or(0, |count| count.get());
    format!(
        "{}: {}, {cores} cores, {} of memory, Linux {}, criu {criu}; {} is {}; load {}; chunks are hashed {}",
        first_line("/proc/sys/kernel/hostname"),
        value_of("/proc/cpuinfo", "model name"),
        value_of("/proc/meminfo", "MemTotal"),
        first_line("/proc/sys/kernel/osrelease"),
        env::temp_dir().display(),
        disk(),
        first_line("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        if cfg!(feature = "multi-buffer") { "several at once" } else { "one by one" },
    )
}

/// Returns the steal time (given to other guests) and the busy time of all processors since boot,
/// in ticks.
pub(crate) fn stolen_and_worked() -> (f64, f64) {
    // cpu  user nice system idle iowait irq softirq steal …
    let times: Vec<f64> =
        first_line("/proc/stat").split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let time = |index: usize| times.get(index).copied().unwrap_or_default();
    (time(7), [0, 1, 2, 5, 6].map(time).iter().sum())
}

/// The kind of file system that temporary files are on.
pub(crate) fn disk() -> String {
    let said = Command::new("df").arg("--output=fstype").arg(env::temp_dir()).output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    said.lines().nth(1).unwrap_or("a disk").to_owned()
}

/// Makes the machine provide so many MiB of free memory. A virtual machine may have to get memory
/// from its host, which takes up to a second a gigabyte. Without this call, the first run that
/// needs memory would pay for all later ones.
pub(crate) fn provide(mib: usize) -> Result<()> {
    succeed(Command::new(env::current_exe()?).arg("--touch").arg(mib.to_string()))
}

/// `--touch MIB`: writes to so much memory.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let mib: usize = arguments.first().ok_or("how much memory?")?.parse()?;
    let mut memory = vec![0_u8; mib << 20];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    black_box(memory);
    Ok(())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}

fn value_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    value.map_or(String::new(), |(_, value)| value.trim().to_owned())
}
