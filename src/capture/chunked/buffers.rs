//! [`Buffers`]: a bounded queue of memory that waits to be stored.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{BufferPool, owner::OwnerMap};
use crate::{
    Error, Result,
    lock::{Condvar, Mutex, MutexGuard},
    manifest::Window,
    platform::Buffer,
};

/// The size of a buffer in bytes: one huge page of the kernel, and eight windows.
pub(super) const SIZE: usize = 2 << 20;

/// The minimum number of buffers. With fewer, criu and the workers would wait for each other.
const FEWEST: usize = 4;

/// The time after which a stream without data counts as idle, three times as long as filling a
/// buffer takes. Then a processor is free for a worker.
const QUIET: Duration = Duration::from_millis(3);

/// Number of buffers that are still allocated while criu starts (some ten milliseconds): 16 MiB.
const MEANWHILE: usize = 8;

/// Buffers that are filled from streams, emptied by workers, and filled again.
pub(super) struct Buffers {
    pool: BufferPool,
    /// Number of workers that may always run: every processor except criu's and the receiver's.
    always: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The maximum number of buffers.
    most: usize,
    free: Vec<Buffer>,
    /// The number of buffers that exist, free or not.
    made: usize,
    /// The number of expected buffers that have not been filled yet.
    to_come: usize,
    /// The number of buffers still to be allocated before the trees are frozen.
    to_warm: usize,
    warming: usize,
    filled: VecDeque<Arc<Filled>>,
    /// The number of windows of the first filled buffer that workers have taken.
    given: usize,
    working: usize,
    /// The number of open streams.
    streams: usize,
    /// The time at which a stream last filled a buffer.
    brought: Option<Instant>,
    closed: bool,
    failed: bool,
    failure: Option<Error>,
}

/// A filled buffer, and its windows.
pub(super) struct Filled {
    pub(super) buffer: Buffer,
    pub(super) windows: Vec<Part>,
}

/// A window in a buffer.
pub(super) struct Part {
    pub(super) owner: Arc<OwnerMap>,
    /// The position of its leaf.
    pub(super) leaf: usize,
    pub(super) window: Window,
    pub(super) range: Range<usize>,
}

/// A task for a worker.
pub(super) enum Task {
    /// Allocate a buffer before it is needed.
    Warm,
    Store(Share),
}

/// One window of a buffer. All workers can share the last buffer that is left.
pub(super) struct Share {
    filled: Arc<Filled>,
    window: usize,
}

impl Share {
    pub(super) fn part(&self) -> &Part {
        &self.filled.windows[self.window]
    }

    pub(super) fn memory(&self) -> &[u8] {
        &self.filled.buffer[self.part().range.clone()]
    }
}

impl Buffers {
    /// Takes buffers from the pool, within its limit; `processors` is the number of processors.
    pub(super) fn new(pool: &BufferPool, processors: usize) -> Buffers {
        let state = Mutex::new(State { most: that_fit(pool.limit()), ..State::default() });
        let always = processors.saturating_sub(2);
        Buffers { pool: pool.clone(), always, state, changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state)
    }

    /// Expects `bytes` of memory, and leaves up to half of the limit to `reserved` bytes of the
    /// store's index.
    pub(super) fn expect(&self, bytes: u64, reserved: u64) {
        let buffers = usize::try_from(bytes.div_ceil(SIZE as u64)).unwrap_or(usize::MAX);
        let mut state = self.state();
        state.most = that_fit(self.pool.limit() - reserved.min(self.pool.limit() / 2));
        state.to_come = buffers;
        let wanted = buffers.min(state.most).saturating_sub(state.made);
        let spare = self.pool.take(wanted);
        state.made += spare.len();
        state.to_warm = wanted - spare.len();
        state.free.extend(spare);
    }

    /// Waits until all but [`MEANWHILE`] expected buffers are allocated. Fresh memory is slow, and
    /// a tree must not stay frozen for that.
    pub(super) fn wait_until_warm(&self) {
        drop(self.changed.wait_while(self.state(), |state| state.to_warm + state.warming > MEANWHILE));
    }

    /// Allocates a free buffer.
    pub(super) fn warm(&self) {
        let buffer = make();
        let mut state = self.state();
        state.warming -= 1;
        match buffer {
            Ok(buffer) => state.free.push(buffer),
            Err(_) => {
                // Out of memory: continue with the buffers we have.
                state.made -= 1;
                state.to_warm = 0;
            }
        }
        self.changed.notify_all();
    }

    /// Returns an empty buffer; waits until one is free.
    pub(super) fn take(&self) -> Result<Buffer> {
        let mut state = self.state();
        loop {
            if state.failed || state.closed {
                return Err(Error::store("receive memory", "it has failed before"));
            }
            if let Some(buffer) = state.free.pop() {
                if state.is_tight() {
                    self.changed.notify_all(); // more workers may run now
                }
                return Ok(buffer);
            }
            if state.made < state.most {
                state.made += 1;
                state.to_warm = state.to_warm.min(state.most - state.made);
                drop(state);
                let spare = self.pool.take(1).pop();
                return spare.map_or_else(make, Ok).inspect_err(|_| self.state().made -= 1);
            }
            state = self.wait(state);
        }
    }

    /// Hands a filled buffer to the workers.
    pub(super) fn fill(&self, filled: Filled) {
        let mut state = self.state();
        match filled.windows.is_empty() {
            true => state.free.push(filled.buffer),
            false => state.filled.push_back(Arc::new(filled)),
        }
        state.to_come = state.to_come.saturating_sub(1);
        state.brought = Some(Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    /// Returns the next task of this worker; `None` after the end.
    pub(super) fn next(&self, worker: usize) -> Option<Task> {
        let mut state = self.state();
        loop {
            if state.to_warm > 0 {
                state.to_warm -= 1;
                state.warming += 1;
                state.made += 1;
                return Some(Task::Warm);
            }
            if self.may_work(&state, worker) {
                if let Some(share) = state.share() {
                    state.working += 1;
                    return Some(Task::Store(share));
                }
                if state.closed {
                    return None;
                }
            }
            state = match state.filled.is_empty() {
                true => self.wait(state),
                false => self.changed.wait_timeout(state, QUIET),
            };
        }
    }

    /// Decides whether a worker may run now. While a stream is open its tree is frozen, and criu
    /// and the receiver need a processor each. Other workers wait, unless buffers become scarce or
    /// criu sends no memory.
    fn may_work(&self, state: &State, worker: usize) -> bool {
        state.streams == 0
            || state.closed
            || state.is_tight()
            || state.brought.is_some_and(|brought| brought.elapsed() >= QUIET)
            || worker < self.always
    }

    /// Records that a worker has stored a window, or failed.
    pub(super) fn done(&self, share: Share, error: Option<Error>) {
        let mut state = self.state();
        state.working -= 1;
        let emptied = Arc::into_inner(share.filled);
        if emptied.is_none() && error.is_none() && state.working > 0 {
            return; // waiters need a buffer or the end of all work
        }
        state.free.extend(emptied.map(|filled| filled.buffer));
        if let Some(error) = error {
            state.fail(error);
        }
        self.changed.notify_all();
    }

    pub(super) fn open_stream(&self) {
        self.state().streams += 1;
    }

    pub(super) fn close_stream(&self) {
        self.state().streams -= 1;
        self.changed.notify_all();
    }

    /// Waits until all filled buffers are stored.
    pub(super) fn drain(&self) -> Result<()> {
        let mut state = self.state();
        while !state.failed && (state.working > 0 || !state.filled.is_empty()) {
            state = self.wait(state);
        }
        match state.failed {
            true => Err(Error::store("receive memory", "it has failed before")),
            false => Ok(()),
        }
    }

    /// Ends the work: filled buffers are dropped, and workers exit.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.to_warm = 0;
        state.forget_filled();
        self.changed.notify_all();
    }

    /// Returns the error that stopped the workers.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.take()
    }
}

/// Returns the free buffers to the pool, for the next capture.
impl Drop for Buffers {
    fn drop(&mut self) {
        let mut state = self.state();
        self.pool.keep(std::mem::take(&mut state.free), that_fit(self.pool.limit()));
    }
}

impl State {
    /// Returns true if free buffers are scarce: fewer than three quarters of those still expected,
    /// and at most a quarter of the maximum. After the last expected buffer the rest is unknown, so
    /// the quarter alone counts.
    fn is_tight(&self) -> bool {
        let room = self.free.len() + self.most.saturating_sub(self.made);
        let little = self.most / 4 + 1;
        room < if self.to_come > 0 { (self.to_come - self.to_come / 4).min(little) } else { little }
    }

    /// Returns the next window to store.
    fn share(&mut self) -> Option<Share> {
        let filled = self.filled.front()?.clone();
        let window = self.given;
        self.given += 1;
        if self.given == filled.windows.len() {
            self.filled.pop_front();
            self.given = 0;
        }
        Some(Share { filled, window })
    }

    fn fail(&mut self, error: Error) {
        self.failed = true;
        self.failure.get_or_insert(error);
        self.forget_filled();
    }

    fn forget_filled(&mut self) {
        self.filled.clear();
        self.given = 0;
    }
}

/// Returns the number of buffers that fit into `bytes`, at least [`FEWEST`].
fn that_fit(bytes: u64) -> usize {
    usize::try_from(bytes / SIZE as u64).unwrap_or(usize::MAX).max(FEWEST)
}

fn make() -> Result<Buffer> {
    Buffer::new(SIZE).map_err(Error::io("allocate a buffer"))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn what_was_free_at_the_end_serves_the_next_capture() {
        let pool = BufferPool::new(16 << 20);
        let first = Buffers::new(&pool.with_limit(16 << 20), 2);
        first.expect(6 << 20, 0);
        for _ in 0..3 {
            assert!(matches!(first.next(0), Some(Task::Warm)));
            first.warm();
        }
        let (lost, mut kept) = (first.take().unwrap(), first.take().unwrap());
        let place = kept.as_ptr();
        kept.fill(9);
        first.state().free.push(kept);
        drop(lost);
        drop(first);
        assert_eq!(pool.lock().len(), 2);
        assert!(pool.lock().iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)), "memory of a tree");

        let second = Buffers::new(&pool.with_limit(16 << 20), 2);
        second.expect(2 << 20, 0);
        assert_eq!(second.state().to_warm, 0);
        assert_eq!(second.state().made, 1);
        let mut taken = second.take().unwrap();
        taken.fill(7);
        assert!(taken.iter().all(|byte| *byte == 7));
        assert!(taken.as_ptr() == place || second.take().unwrap().as_ptr() == place);
        second.state().free.push(taken);
        // A smaller limit keeps fewer.
        let small = Buffers::new(&pool.with_limit(0), 2);
        small.expect(u64::MAX, u64::MAX);
        assert_eq!(small.state().most, FEWEST);
        let large = Buffers::new(&pool.with_limit(64 << 20), 2);
        large.expect(1 << 40, 4 << 20);
        assert_eq!(large.state().most, 30);
        large.expect(1 << 40, 1 << 32);
        assert_eq!(large.state().most, 16);
        drop((second, small));
        assert!(pool.lock().len() <= FEWEST);
    }

    fn part(leaf: usize) -> Part {
        let window = Window { number: 0, pages: 1, before: 0 };
        Part { owner: Arc::default(), leaf, window, range: leaf * 4096..(leaf + 1) * 4096 }
    }

    #[test]
    fn what_is_made_in_a_hurry_need_not_be_made_beforehand() {
        let buffers = Buffers::new(&BufferPool::new(8 << 20), 2);
        buffers.expect(1 << 30, 0);
        assert!(matches!(buffers.next(0), Some(Task::Warm)));
        let held: Vec<_> = (0..3).map(|_| buffers.take().unwrap()).collect();
        let state = buffers.state();
        assert_eq!((state.made, state.to_warm, held.len()), (4, 0, 3));
    }

    #[test]
    fn each_window_is_stored_once_whatever_threads_do() {
        for round in 0..100_usize {
            let buffers = Buffers::new(&BufferPool::new((round as u64 % 5) << 21), 2 + round % 3);
            let (stored, brought) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let fails_at = (round % 3 == 0).then_some(round % 17);
            buffers.expect((round as u64 % 7) << 21, 0);
            thread::scope(|scope| {
                let (buffers, stored, brought) = (&buffers, &stored, &brought);
                for worker in 0..4 {
                    scope.spawn(move || {
                        while let Some(task) = buffers.next(worker) {
                            let Task::Store(share) = task else {
                                buffers.warm();
                                continue;
                            };
                            let fails = Some(stored.fetch_add(1, Ordering::Relaxed)) == fails_at;
                            buffers.done(share, fails.then(|| Error::store("store it", "it is to fail")));
                        }
                    });
                }
                buffers.wait_until_warm();
                let streams: Vec<_> = (0..=round % 6)
                    .map(|stream| {
                        buffers.open_stream();
                        scope.spawn(move || {
                            for count in (0..6).map(|n| (n + stream) % 9) {
                                let Ok(buffer) = buffers.take() else { break };
                                brought.fetch_add(count, Ordering::Relaxed);
                                buffers.fill(Filled { buffer, windows: (0..count).map(part).collect() });
                            }
                            buffers.close_stream();
                        })
                    })
                    .collect();
                streams.into_iter().for_each(|stream| stream.join().unwrap());
                let drained = buffers.drain();
                assert!(drained.is_ok() || fails_at.is_some(), "{round}");
                if drained.is_ok() {
                    assert_eq!(stored.load(Ordering::Relaxed), brought.load(Ordering::Relaxed), "{round}");
                    let state = buffers.state();
                    assert_eq!(state.free.len(), state.made - state.warming, "{round}");
                    assert!(state.made <= state.most, "{round}: {} of {}", state.made, state.most);
                }
                buffers.close();
            });
        }
    }

    #[test]
    fn workers_share_a_buffer_and_the_last_gives_it_back() {
        let buffers = Buffers::new(&BufferPool::new(16 << 20), 2);
        for windows in [vec![part(0), part(1), part(2)], vec![part(3)], vec![]] {
            let buffer = buffers.take().unwrap();
            buffers.fill(Filled { buffer, windows });
        }
        let next = || match buffers.next(0) {
            Some(Task::Store(share)) => share,
            _ => panic!("there is a window"),
        };
        let mut shares = [next(), next(), next(), next()];
        assert_eq!(shares.each_ref().map(|share| share.part().leaf), [0, 1, 2, 3]);
        assert_eq!(shares[2].memory().len(), 4096);
        assert_eq!(buffers.state().free.len(), 1, "the one that has nothing in it");
        shares.reverse();
        let free = shares.map(|share| {
            buffers.done(share, None);
            buffers.state().free.len()
        });
        assert_eq!(free, [2, 2, 2, 3]);
        buffers.drain().unwrap();
    }

    #[test]
    fn room_is_short_only_if_more_is_to_come_than_it_takes() {
        // Two of eight buffers, and fewer, are scarce.
        let tight = |room: usize, to_come: usize| {
            State { most: 8, made: 8 - room, to_come, ..State::default() }.is_tight()
        };
        assert!(!tight(8, 8) && !tight(3, 100) && !tight(2, 2) && !tight(1, 1));
        assert!(tight(2, 3) && tight(1, 2) && tight(0, 1));
        // Three buffers too few for a hundred: workers may wait until the last dozen.
        let many = |to_come: usize| {
            State { most: 400, made: 400 - (to_come - 3), to_come, ..State::default() }.is_tight()
        };
        assert!(!many(100) && !many(12) && many(11));
        // More came than was expected.
        assert!(tight(2, 0) && tight(0, 0) && !tight(3, 0));
    }
}
