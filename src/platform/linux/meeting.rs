//! [`Meeting`]: a barrier for several dumps. It has pipes and sockets between their trees dumped as
//! they were at one moment.

use std::sync::MutexGuard;

use crate::lock::{Condvar, Mutex};

/// The dumps of one capture.
#[derive(Default)]
pub(super) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The dumps that have not ended.
    parties: usize,
    /// The number of dumps that wait.
    waiting: usize,
    /// The number of completed meetings.
    met: usize,
    /// One ended before all had met for the last time.
    broken: bool,
}

/// A dump's place in the meeting, which it leaves when this is dropped.
pub(super) struct Party<'a> {
    meeting: &'a Meeting,
    /// The number of meetings that it still has to attend.
    left: usize,
}

impl Meeting {
    /// A place for a dump that is to meet the others so many times. All places are taken before the
    /// first dump begins.
    pub(super) fn join(&self, times: usize) -> Party<'_> {
        self.state().parties += 1;
        Party { meeting: self, left: times }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Party<'_> {
    /// Meets the others once more and no more, whatever came before.
    pub(super) fn meet_last(&mut self) -> bool {
        self.left = 1;
        self.meet()
    }

    /// Waits until the others are here, too; false if one of them will not come.
    pub(super) fn meet(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let mut state = self.meeting.state();
        // One that will not come has left, so those who are here may be all that there are.
        if state.broken {
            return false;
        }
        state.waiting += 1;
        if state.waiting == state.parties {
            (state.waiting, state.met) = (0, state.met + 1);
            self.meeting.changed.notify_all();
            return true;
        }
        let before = state.met;
        while state.met == before && !state.broken {
            state = self.meeting.changed.wait(state);
        }
        state.met != before
    }
}

impl Drop for Party<'_> {
    fn drop(&mut self) {
        let mut state = self.meeting.state();
        state.parties -= 1;
        state.broken |= self.left > 0;
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn all_wait_for_the_last() {
        let (meeting, there) = (Meeting::default(), AtomicUsize::new(0));
        let parties: Vec<_> = (0..4).map(|_| meeting.join(2)).collect();
        thread::scope(|scope| {
            for mut party in parties {
                let there = &there;
                scope.spawn(move || {
                    for round in 1..=2 {
                        there.fetch_add(1, Ordering::SeqCst);
                        assert!(party.meet());
                        assert!(there.load(Ordering::SeqCst) >= 4 * round);
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_one_that_failed() {
        let meeting = Meeting::default();
        let [mut first, mut second, third] = [(); 3].map(|()| meeting.join(2));
        thread::scope(|scope| {
            scope.spawn(|| assert!(!first.meet()));
            scope.spawn(|| assert!(!second.meet()));
            drop(third);
        });
        assert!(!first.meet());
    }
}
