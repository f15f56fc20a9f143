//! [`next_stamp`]: what tells the newest of all bytes that a name was given.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// A stamp above `newest`, the highest that the name is known to have, and above all that this process has given. Across
/// processes the time tells which is newer.
pub(crate) fn next_stamp(newest: u64) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let least = u64::try_from(now).unwrap_or(0).max(newest.saturating_add(1));
    let next = |last: u64| Some(least.max(last.saturating_add(1)));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
    least.max(last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_above_all_before_even_if_clocks_differ() {
        // Not the highest of all: no other test of this process would get a higher one.
        let (first, second) = (next_stamp(0), next_stamp(0));
        assert!(first < second);
        let ahead = second + (1 << 50);
        assert!(next_stamp(ahead) > ahead && next_stamp(0) > ahead);
    }
}
