//! Several restores side by side.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::Restored;
use crate::{Result, lock::Mutex, threads::spawn};

/// Runs `count` restores, as many at a time as there are processors. If a store panics, the others
/// finish, their copies are killed, and the panic goes on.
pub(super) fn many(count: usize, restore: impl Fn() -> Result<Restored> + Sync) -> Vec<Result<Restored>> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let result = catch_unwind(AssertUnwindSafe(&restore));
            results.lock().push(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..processors.min(count) {
            // Without a thread this one does its work.
            let _ = spawn(scope, work);
        }
        work();
    });
    let (results, panics): (Vec<_>, Vec<_>) =
        results.into_inner().into_iter().partition(thread::Result::is_ok);
    let results = results.into_iter().flatten().collect();
    match panics.into_iter().find_map(thread::Result::err) {
        None => results,
        Some(panic) => {
            end(results);
            resume_unwind(panic)
        }
    }
}

fn end(results: Vec<Result<Restored>>) {
    for tree in results.into_iter().flatten().flat_map(|restored| restored.trees) {
        let _ = tree.kill(); // the panic matters more
    }
}
