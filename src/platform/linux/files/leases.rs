//! Leases that other processes have on files of the tree. Opening such a file waits until its
//! holder gives the lease up, or until the kernel takes it away, after
//! `/proc/sys/fs/lease-break-time`.

use std::{collections::HashMap, fs};

use nix::{
    fcntl::OFlag,
    sys::stat::{major, minor},
};

use super::{File, Now, shown};
use crate::image::Place;

/// The leases that stand in the way, for people.
pub(super) fn taken(files: &[File]) -> Vec<String> {
    let Ok(locks) = fs::read_to_string("/proc/locks") else { return Vec::new() };
    let leases: HashMap<_, _> = locks.lines().filter_map(parse).map(|lease| (lease.file, lease)).collect();
    if leases.is_empty() {
        return Vec::new();
    }
    let in_the_way = |file: &File| {
        let Now::There(stat) = &file.now else { return None };
        let id = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        let lease = leases.get(id.as_str()).filter(|_| file.named.place == Place::Opened)?;
        lease.is_broken_by(file.named.flags).then(|| {
            let path = shown(&file.named.path);
            format!("{path}: process {} has a lease on it, which opening it would break", lease.holder)
        })
    };
    files.iter().filter_map(in_the_way).collect()
}

/// A lease that is held, as a line of `/proc/locks` has it.
#[derive(Debug, PartialEq)]
struct Lease<'a> {
    file: &'a str,
    holder: i32,
    /// True for a read lease, which other readers don't break.
    shared: bool,
}

/// A lease, from `1: LEASE  ACTIVE    READ  4242 fe:00:131 0 EOF`. One that is being given up is
/// waited for, too.
fn parse(line: &str) -> Option<Lease<'_>> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "LEASE" || words.next()? == "BREAKER" {
        return None;
    }
    let shared = words.next()? == "READ";
    let holder = words.next()?.parse().ok()?;
    Some(Lease { holder, file: words.next()?, shared })
}

impl Lease<'_> {
    fn is_broken_by(&self, flags: u32) -> bool {
        let mode = flags.cast_signed() & OFlag::O_ACCMODE.bits();
        let only_names = flags.cast_signed() & OFlag::O_PATH.bits() != 0;
        !only_names && (!self.shared || mode != OFlag::O_RDONLY.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_told_from_locks_and_shared_ones_let_others_read() {
        let read = parse("1: LEASE  ACTIVE    READ  4242 fe:00:131 0 EOF").unwrap();
        assert_eq!(read, Lease { file: "fe:00:131", holder: 4242, shared: true });
        let write = parse("12: LEASE  BREAKING  WRITE 7 08:11:9 0 EOF").unwrap();
        assert_eq!((write.holder, write.shared), (7, false));
        let flags = |flag: OFlag| flag.bits().cast_unsigned();
        for (lease, flags, breaks) in [
            (&read, flags(OFlag::O_RDONLY), false),
            (&read, flags(OFlag::O_WRONLY), true),
            (&read, flags(OFlag::O_RDWR | OFlag::O_APPEND), true),
            (&write, flags(OFlag::O_RDONLY), true),
            (&write, flags(OFlag::O_PATH), false),
        ] {
            assert_eq!(lease.is_broken_by(flags), breaks, "{lease:?} {flags:o}");
        }
        for line in [
            "2: FLOCK  ADVISORY  WRITE 1 fe:00:131 0 EOF",
            "2: DELEG  ACTIVE    READ 1 fe:00:1 0 EOF",
            "",
            "1:",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
