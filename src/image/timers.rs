//! Timers that are files (`timerfd`): corrects their images, so that criu restores them exactly.
//!
//! criu restores three kinds of timers wrongly:
//!
//! - A periodic timer whose last expiry was not read. The kernel restarts it only when it is read,
//!   so the images have no remaining time, and criu restores a stopped timer.
//! - An armed timer with an absolute time (`TFD_TIMER_ABSTIME`). criu counts the remaining time
//!   from the last full second, so the timer expires up to a second early.
//! - A timer with an absolute time that is not armed. criu arms it, and it expires at once.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{Edit, ImageDir};
use crate::{
    Result,
    proto::images::{FileEntry, TimerfdEntry},
};

const FILES: &str = "files.img";

impl ImageDir {
    /// Edits the timers so that criu restores them as they were.
    pub(crate) fn mend_timers(&self) -> Result<()> {
        let mut any = false;
        self.each(FILES, |file: FileEntry| any |= file.tfd.is_some_and(|timer| mended(&timer, 0).is_some()))?;
        if !any {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let edit = |file: &FileEntry| {
            let timer = file.tfd.as_ref().and_then(|timer| mended(timer, now.into()));
            timer.map_or(Edit::Keep, |timer| {
                // Only the timer's fields: the type and the number of the file are as they were.
                let (r#type, id) = (file.r#type, file.id);
                let file = FileEntry { r#type, id, tfd: Some(timer), ..FileEntry::default() };
                Edit::Extend(file.encode_to_vec())
            })
        };
        self.rewrite::<FileEntry, FileEntry>(FILES, edit, &[])
    }
}

/// The corrected timer; `None` if it is correct. `fraction` is the part of a second, in
/// nanoseconds, by which the clock is past its last full second.
fn mended(timer: &TimerfdEntry, fraction: u64) -> Option<TimerfdEntry> {
    const ABSOLUTE: u32 = 1; // TFD_TIMER_ABSTIME
    const SECOND: u64 = 1_000_000_000;
    let mut new = *timer;
    let (left, interval) = ((timer.vsec, timer.vnsec), (timer.isec, timer.insec));
    if left == (0, 0) && timer.ticks > 0 && interval != (0, 0) {
        // Assume that it has just expired: otherwise its reader would have read it already.
        (new.vsec, new.vnsec) = interval;
    }
    if timer.settime_flags & ABSOLUTE != 0 {
        let is_armed = (new.vsec, new.vnsec) != (0, 0);
        if is_armed && follows_the_wall_clock(timer.clockid) {
            let nanoseconds = new.vnsec.saturating_add(fraction);
            new.vsec = new.vsec.saturating_add(nanoseconds / SECOND);
            new.vnsec = nanoseconds % SECOND;
        } else {
            // Without the flag, criu uses the remaining time as it is.
            new.settime_flags = 0;
        }
    }
    (new != *timer).then_some(new)
}

/// Returns true for clocks that can be set. If such a clock is set, a timer with an absolute
/// time expires earlier or later, so its time must stay absolute.
fn follows_the_wall_clock(clock: u32) -> bool {
    const REALTIME: u32 = 0;
    const REALTIME_ALARM: u32 = 8;
    matches!(clock, REALTIME | REALTIME_ALARM)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONOTONIC: u32 = 1;
    const HALF: u64 = 500_000_000;

    fn timer(clockid: u32, settime_flags: u32, ticks: u64, left: (u64, u64), interval: u64) -> TimerfdEntry {
        let ((vsec, vnsec), isec) = (left, interval);
        TimerfdEntry { clockid, settime_flags, ticks, vsec, vnsec, isec, ..TimerfdEntry::default() }
    }

    #[test]
    fn a_timer_that_expired_unread_expires_again_after_its_interval() {
        let relative = timer(MONOTONIC, 0, 1, (0, 0), 3);
        assert_eq!(mended(&relative, 7), Some(timer(MONOTONIC, 0, 1, (3, 0), 3)));
        assert_eq!(mended(&timer(MONOTONIC, 1, 1, (0, 0), 3), 7), mended(&relative, 7));
        assert_eq!(mended(&timer(0, 3, 1, (0, 0), 3), 7), Some(timer(0, 3, 1, (3, 7), 3)));
    }

    #[test]
    fn a_timer_with_an_absolute_time_is_not_early() {
        for clock in [MONOTONIC, 7, 9] {
            assert_eq!(
                mended(&timer(clock, 1, 0, (5, HALF), 3), HALF),
                Some(timer(clock, 0, 0, (5, HALF), 3))
            );
        }
        for clock in [0, 8] {
            assert_eq!(mended(&timer(clock, 1, 0, (5, HALF), 3), HALF), Some(timer(clock, 1, 0, (6, 0), 3)));
            assert_eq!(
                mended(&timer(clock, 1, 0, (5, HALF), 3), 1),
                Some(timer(clock, 1, 0, (5, HALF + 1), 3))
            );
        }
    }

    #[test]
    fn a_timer_that_is_not_armed_stays_so() {
        for clock in [0, MONOTONIC] {
            for ticks in [0, 1] {
                let stopped = timer(clock, 0, ticks, (0, 0), 0);
                assert_eq!(mended(&timer(clock, 1, ticks, (0, 0), 0), HALF), Some(stopped));
            }
            assert_eq!(mended(&timer(clock, 1, 0, (0, 0), 3), HALF), Some(timer(clock, 0, 0, (0, 0), 3)));
        }
    }

    #[test]
    fn other_timers_are_left_as_they_are() {
        for other in [
            timer(MONOTONIC, 0, 0, (5, HALF), 3),
            timer(MONOTONIC, 0, 2, (5, HALF), 3),
            timer(MONOTONIC, 0, 0, (0, 0), 3),
            timer(MONOTONIC, 0, 1, (0, 0), 0),
            timer(0, 0, 0, (5, HALF), 0),
        ] {
            assert_eq!(mended(&other, HALF), None, "{other:?}");
        }
    }
}
