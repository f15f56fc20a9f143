//! [`next_stamp`]: what tells the newest of all bytes that a name was given.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// A stamp above `newest`, the highest that the name is known to have, and above all that this process has given it. Across
/// processes the time tells which is newer. There is none above [`LAST`].
pub(crate) fn next_stamp(newest: u64) -> u64 {
    static GIVEN: Given = Given::none();
    GIVEN.next(newest)
}

/// The highest stamps that were given.
struct Given {
    likely: AtomicU64,
    /// Above stamps that no clock can have given: whoever made those up shall not decide over names that have none.
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

/// The highest stamp there is. What has it can only be replaced where the place decides, not the stamp.
pub(crate) const LAST: u64 = u64::MAX;

/// Clocks are not further apart: ten years in nanoseconds.
const YEARS: u64 = 10 * 365 * 24 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_above_all_before_even_if_clocks_differ() {
        let given = Given::none(); // not those of this process, in which other tests store names
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
