//! [`next_stamp`]: what tells the newest of all bytes that a name was given.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{Digest256, Error, Result};

/// A stamp above `newest`, the highest that the name is known to have, and above all that this process has given. Across
/// processes the time tells which is newer.
pub(crate) fn next_stamp(name: &Digest256, newest: u64) -> Result<u64> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    stamp_after(&LAST, newest)
        .ok_or_else(|| Error::corrupt(format!("the name {name}"), "nothing can be newer than its stamp"))
}

fn stamp_after(given: &AtomicU64, newest: u64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let now = u64::try_from(now).unwrap_or(0);
    let after = newest.checked_add(1)?;
    if after > now.saturating_add(YEARS) {
        return Some(after); // whoever made that up shall not decide over other names
    }
    let least = now.max(after);
    let next = |last: u64| Some(least.max(last.saturating_add(1)));
    let last = given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
    Some(least.max(last.saturating_add(1)))
}

/// Clocks are not further apart: ten years in nanoseconds.
const YEARS: u64 = 10 * 365 * 24 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_above_all_before_even_if_clocks_differ() {
        let given = AtomicU64::new(0);
        let stamp = |newest| stamp_after(&given, newest).unwrap();
        let (first, second) = (stamp(0), stamp(0));
        assert!(first < second);
        let ahead = second + (1 << 50);
        assert!(stamp(ahead) > ahead && stamp(0) > ahead);
    }

    #[test]
    fn a_stamp_that_no_clock_gave_counts_for_its_name_alone() {
        let given = AtomicU64::new(0);
        for hostile in [u64::MAX - 1, u64::MAX / 2] {
            assert_eq!(stamp_after(&given, hostile), Some(hostile + 1));
            assert!(stamp_after(&given, 0) < Some(hostile));
        }
        assert_eq!(stamp_after(&given, u64::MAX), None);
    }
}
