//! The queue of buffers of a chunked capture: a receiver fills them, workers empty them.

#[path = "../../src/capture/chunked/buffers.rs"]
mod buffers;
#[path = "../../src/capture/chunked/pool.rs"]
mod pool;

mod owner {
    /// The map of an owner, which the queue only passes on.
    #[derive(Debug, Default)]
    pub struct OwnerMap;
}

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shuttle::thread;

use self::{
    buffers::{Buffers, Filled, Part, SIZE, Task},
    pool::BufferPool,
};
use crate::{Error, manifest::Window};

/// Sends more buffers through the queue than may exist. All arrive, unless a worker fails: that
/// ends the receiver and all workers.
pub fn go_round(workers: usize, failing: Option<usize>) {
    const SENT: usize = 6;
    const WINDOWS: usize = 2;
    let pool = BufferPool::new(4 * SIZE as u64);
    let buffers = Arc::new(Buffers::new(&pool, workers + 1));
    buffers.expect((SENT * SIZE) as u64, 0);
    let stored = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..workers)
        .map(|worker| {
            let (buffers, stored) = (buffers.clone(), stored.clone());
            thread::spawn(move || {
                while let Some(task) = buffers.next(worker) {
                    match task {
                        Task::Warm => buffers.warm(),
                        Task::Store(share) => {
                            let number = stored.fetch_add(1, Ordering::Relaxed);
                            assert!(
                                share.memory().iter().all(|byte| usize::from(*byte) == share.part().leaf)
                            );
                            buffers.done(share, (failing == Some(number)).then_some(Error::Store));
                        }
                    }
                }
            })
        })
        .collect();

    buffers.wait_until_warm();
    buffers.open_stream();
    let mut received = Ok(());
    for leaf in 0..SENT {
        let mut buffer = match buffers.take() {
            Ok(buffer) => buffer,
            Err(error) => {
                received = Err(error);
                break;
            }
        };
        buffer.fill(u8::try_from(leaf).unwrap());
        let part = |number| Part { owner: Arc::default(), leaf, window: Window(number), range: 0..4 };
        buffers.fill(Filled { buffer, windows: (0..WINDOWS).map(part).collect() });
    }
    buffers.close_stream();
    let outcome = received.and(buffers.drain());
    buffers.close();
    workers.into_iter().for_each(|worker| worker.join().unwrap());

    match failing {
        None => {
            assert_eq!(outcome, Ok(()));
            assert_eq!(stored.load(Ordering::Relaxed), SENT * WINDOWS);
        }
        Some(_) => assert_eq!(buffers.failure(), Some(Error::Store)),
    }
    drop(buffers);
    assert!(pool.lock().len() <= 4, "the pool keeps more than its limit");
    assert!(pool.lock().iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)), "a buffer is not wiped");
}
