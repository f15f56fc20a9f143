//! What the numbers were measured on.

use std::{env, fs, process::Command, thread};

pub(crate) fn describe(criu: &str) -> String {
    let cores = thread::available_parallelism().map_or(0, |count| count.get());
    format!(
        "{}: {}, {cores} cores, {} of memory, Linux {}, criu {criu}; {} is {}; load {}",
        first_line("/proc/sys/kernel/hostname"),
        value_of("/proc/cpuinfo", "model name"),
        value_of("/proc/meminfo", "MemTotal"),
        first_line("/proc/sys/kernel/osrelease"),
        env::temp_dir().display(),
        disk(),
        first_line("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}

/// The kind of file system that temporary files are on.
pub(crate) fn disk() -> String {
    let said = Command::new("df").arg("--output=fstype").arg(env::temp_dir()).output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    said.lines().nth(1).unwrap_or("a disk").to_owned()
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}

fn value_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    value.map_or(String::new(), |(_, value)| value.trim().to_owned())
}
