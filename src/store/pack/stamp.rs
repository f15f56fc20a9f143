//! [`next_stamp`]: monotonic versions of named entries.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Returns a stamp above `newest`, the highest that the name is known to have, and above all stamps
/// that this process has given it. Between processes the clock decides which is newer. No stamp is
/// above [`LAST`].
pub(crate) fn next_stamp(newest: u64) -> u64 {
    static GIVEN: Given = Given::none();
    GIVEN.next(newest)
}

/// The highest stamps that this process has given.
struct Given {
    likely: AtomicU64,
    /// The last stamp given above forged stamps. Those must not decide over names that have no
    /// forged stamps.
    others: AtomicU64,
}

impl Given {
    const fn none() -> Given {
        Given { likely: AtomicU64::new(0), others: AtomicU64::new(0) }
    }

    fn next(&self, newest: u64) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(0);
        let after = newest.saturating_add(1);
        let (given, least) = match after > now.saturating_add(YEARS) {
            true => (&self.others, after),
            false => (&self.likely, after.max(now)),
        };
        let next = |last: u64| least.max(last.saturating_add(1));
        let last = given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }
}

/// The highest possible stamp. Bytes with this stamp can only be replaced where the location
/// decides.
pub(crate) const LAST: u64 = u64::MAX;

/// The largest expected difference between clocks: ten years in nanoseconds.
const YEARS: u64 = 10 * 365 * 24 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_above_all_before_even_if_clocks_differ() {
        let given = Given::none(); // not the process's own, which other tests use
        let (first, second) = (given.next(0), given.next(0));
        assert!(first < second);
        let ahead = second + (1 << 50);
        assert!(given.next(ahead) > ahead && given.next(0) > ahead);
    }

    #[test]
    fn a_stamp_that_no_clock_gave_counts_for_its_like_alone() {
        let (given, hostile) = (Given::none(), u64::MAX / 2);
        let (first, second) = (given.next(hostile), given.next(hostile));
        assert!(hostile < first && first < second && given.next(0) < hostile);
        assert_eq!((given.next(u64::MAX), given.next(hostile)), (LAST, LAST));
        assert!(given.next(0) < hostile);
    }
}
