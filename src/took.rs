//! [`RestoreTimes`]: the time of a restore, by phase. A [`Clock`] measures it.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde::Serialize;

/// The time of a restore by phase: [`Restored::took`](crate::Restored::took). With several trees,
/// each phase is the sum over all of them.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, ProcsRestore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let digest: criu_rpc::Digest256 = "".parse()?;
/// let store = FsBlobStore::open("captures")?;
/// let took = ProcsRestore::new().restore(&store, &digest)?.took;
/// println!("{:?}, of which {:?} waiting for pids, and {:?} by criu", took.total(), took.wait, took.criu);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RestoreTimes {
    /// The time to read, verify and stage the capture. The memory of a
    /// [chunked](crate::ProcsCapture::chunked) capture is read while criu works. It counts as
    /// [`criu`](RestoreTimes::criu), unless it has to be [staged](crate::ProcsRestore::staging).
    pub read: Duration,
    /// The time to check images and files, and to edit images for the new standard streams.
    pub prepare: Duration,
    /// The wait for pids that zombies hold, and for TCP connections and terminals in use.
    pub wait: Duration,
    /// The time of criu, from its start until the tree exists, over all attempts.
    pub criu: Duration,
    /// The part of [`criu`](RestoreTimes::criu) in which the root's descendants were forked, if
    /// criu reports it.
    pub criu_forking: Option<Duration>,
    /// The part of [`criu`](RestoreTimes::criu) from the fork of the root until all processes were
    /// restored, if criu reports it. It includes [`criu_forking`](RestoreTimes::criu_forking).
    pub criu_restoring: Option<Duration>,
    /// The time to take locks again that criu cannot restore, and to remove the staging folder.
    pub finish: Duration,
}

impl RestoreTimes {
    /// Returns the sum of the phases: the time of the whole call.
    pub fn total(&self) -> Duration {
        self.read + self.prepare + self.wait + self.criu + self.finish
    }
}

/// A phase of a restore.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) enum Phase {
    Read,
    Prepare,
    Wait,
    Criu,
    Finish,
}

/// Measures the phases of a restore. Each lap begins at the end of the last one, so that no time is
/// lost between phases.
#[derive(Debug)]
pub(crate) struct Clock {
    lap: Cell<Instant>,
    times: Cell<RestoreTimes>,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { lap: Cell::new(Instant::now()), times: Cell::default() }
    }

    /// Adds the time since the last lap to this phase.
    pub(crate) fn lap(&self, phase: Phase) {
        let now = Instant::now();
        let lap = now - self.lap.replace(now);
        let mut times = self.times.get();
        *match phase {
            Phase::Read => &mut times.read,
            Phase::Prepare => &mut times.prepare,
            Phase::Wait => &mut times.wait,
            Phase::Criu => &mut times.criu,
            Phase::Finish => &mut times.finish,
        } += lap;
        self.times.set(times);
    }

    /// Adds the times that criu reports of its own work on a tree.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn criu_told(&self, forking: Duration, restoring: Duration) {
        let mut times = self.times.get();
        *times.criu_forking.get_or_insert_default() += forking;
        *times.criu_restoring.get_or_insert_default() += restoring;
        self.times.set(times);
    }

    pub(crate) fn times(&self) -> RestoreTimes {
        self.times.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_are_all_of_the_time() {
        let begun = Instant::now();
        let clock = Clock::start();
        let phases = [Phase::Read, Phase::Prepare, Phase::Wait, Phase::Criu, Phase::Finish, Phase::Criu];
        for phase in phases {
            let lap = Instant::now();
            while lap.elapsed().is_zero() {}
            clock.lap(phase);
        }
        let ended = clock.lap.get();
        clock.criu_told(Duration::from_micros(1), Duration::from_micros(3));
        clock.criu_told(Duration::from_micros(1), Duration::from_micros(3));
        let times = clock.times();
        assert!(times.total() <= ended - begun);
        let parts = [times.read, times.prepare, times.wait, times.criu, times.finish];
        assert!(parts.iter().all(|part| !part.is_zero()), "{times:?}");
        assert_eq!(times.criu_forking, Some(Duration::from_micros(2)));
        assert_eq!(times.criu_restoring, Some(Duration::from_micros(6)));
    }
}
