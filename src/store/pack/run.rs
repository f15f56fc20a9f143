//! [`run_of`]: groups neighbouring bytes for one read.

use std::ops::Range;

/// Returns how many of the first items to read at once. They are in one pack, with gaps of at most
/// `gap` bytes, and span at most `most` bytes unless a single item is longer. Items are sorted by
/// pack and position.
pub(crate) fn run_of<T, P: PartialEq>(
    wanted: &[T],
    place: impl Fn(&T) -> (P, Range<u64>),
    gap: u64,
    most: u64,
) -> usize {
    let Some((pack, first)) = wanted.first().map(&place) else { return 0 };
    let mut end = first.end;
    let within = |next: &&T| {
        let (of, next) = place(next);
        let near = || next.start <= end.saturating_add(gap) && next.end.saturating_sub(first.start) <= most;
        let fits = of == pack && (next == first || near());
        if fits {
            end = end.max(next.end);
        }
        fits
    };
    wanted.iter().take_while(within).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_a_gap_a_pack_or_the_room_does() {
        let run = |wanted: &[(u8, Range<u64>)]| run_of(wanted, Clone::clone, 2, 10);
        assert_eq!(run(&[]), 0);
        assert_eq!(run(&[(1, 0..3), (1, 0..3), (1, 3..5), (1, 7..10)]), 4);
        assert_eq!(run(&[(1, 0..3), (1, 6..7)]), 1);
        assert_eq!(run(&[(1, 7..9), (2, 0..1)]), 1);
        assert_eq!(run(&[(1, 0..3), (1, 3..11)]), 1);
        assert_eq!(run(&[(1, 0..30), (1, 0..30), (1, 30..31)]), 2);
    }
}
