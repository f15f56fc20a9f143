//! [`next_stamp`]: what tells the newest of all bytes that a name was given.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// A stamp above `newest`, the highest that the name is known to have, and above all that this process has given. Across
/// processes the time tells which is newer.
pub(crate) fn next_stamp(newest: u64) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    stamp_after(&LAST, newest)
}

fn stamp_after(given: &AtomicU64, newest: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let least = u64::try_from(now).unwrap_or(0).max(newest.saturating_add(1));
    let next = |last: u64| Some(least.max(last.saturating_add(1)));
    let last = given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
    least.max(last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_above_all_before_even_if_clocks_differ() {
        // Not those of this process: after the highest of all, no other test would get a higher one.
        let given = AtomicU64::new(0);
        let stamp = |newest| stamp_after(&given, newest);
        let (first, second) = (stamp(0), stamp(0));
        assert!(first < second);
        let ahead = second + (1 << 50);
        assert!(stamp(ahead) > ahead && stamp(0) > ahead);
        assert_eq!(stamp(u64::MAX), u64::MAX);
    }
}
