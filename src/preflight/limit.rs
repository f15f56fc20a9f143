//! The limit of a process's address space: criu maps memory of its own in each process of a tree.

use std::fs;

use super::Severity;
use crate::{procfs::read_start, sys};

/// The memory that criu maps in the smallest process, in bytes.
const LEAST: u64 = 96 << 10;
/// The memory that is enough for a process with many mappings and descriptors.
const ENOUGH: u64 = 1 << 20;

/// Returns a severity if a process may not map as much memory as criu needs in it.
pub(super) fn severity(pid: i32) -> Option<Severity> {
    let limit = read_start(format!("/proc/{pid}/limits")).and_then(|text| address_space(&text))?;
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = pages.split_ascii_whitespace().next()?.parse().ok()?;
    match limit.saturating_sub(pages * sys::page_size().bytes()) {
        ..LEAST => Some(Severity::Blocks),
        LEAST..ENOUGH => Some(Severity::Risk),
        _ => None,
    }
}

/// Returns the limit in bytes; `None` if it is "unlimited".
fn address_space(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_from_the_table() {
        let table =
            |limit| format!("Max locked memory  1  2  bytes\nMax address space  {limit}  unlimited  bytes\n");
        assert_eq!(address_space(&table("83886080")), Some(83_886_080));
        assert_eq!((address_space(&table("unlimited")), address_space("")), (None, None));
    }
}
