//! [`Recent`]: a cache of a few values with bytes of captured trees.
//!
//! A program that captures itself must not store secrets of other trees. So [`forget_all`] empties
//! every cache of the process, and values overwrite their bytes when they are dropped
//! ([`Wiped`](crate::wiped::Wiped)).

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
};

use crate::lock::Mutex;

/// The values that were used last, up to a number of them.
pub(crate) struct Recent<K, V> {
    values: Arc<Values<K, V>>,
    most: usize,
}

type Values<K, V> = Mutex<VecDeque<(K, Arc<V>)>>;

impl<K: PartialEq + Send + 'static, V: Send + Sync + 'static> Recent<K, V> {
    /// Makes an empty cache of at most this many values.
    pub(crate) fn new(most: usize) -> Recent<K, V> {
        Recent::listed(&ALL, most)
    }

    fn listed(caches: &Caches, most: usize) -> Recent<K, V> {
        let values = Arc::new(Values::default());
        caches.add(Arc::<Values<K, V>>::downgrade(&values));
        Recent { values, most }
    }

    /// Returns the value of this key.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut values = self.values.lock();
        let place = values.iter().position(|(kept, _)| kept == key)?;
        let found = values.remove(place)?;
        let value = Arc::clone(&found.1);
        values.push_back(found);
        Some(value)
    }

    /// Adds a value. Drops the one that was not used for longest if there are too many.
    pub(crate) fn keep(&self, key: K, value: Arc<V>) {
        let mut values = self.values.lock();
        let twice = values.iter().position(|(kept, _)| *kept == key);
        let oldest = twice.or((values.len() >= self.most).then_some(0));
        let dropped = oldest.and_then(|place| values.remove(place));
        values.push_back((key, value));
        drop(values);
        drop(dropped); // it takes a while to be wiped
    }
}

impl<K, V> Recent<K, V> {
    /// Drops all values.
    pub(crate) fn clear(&self) {
        *self.values.lock() = VecDeque::new();
    }
}

impl<K, V> fmt::Debug for Recent<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} values", self.values.lock().len(), self.most)
    }
}

/// Empties all caches of this process.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) fn forget_all() {
    ALL.forget();
}

/// All caches of this process.
static ALL: Caches = Caches(Mutex::new(Vec::new()));

/// Caches that are emptied together. Some of them may be gone.
struct Caches(Mutex<Vec<Weak<dyn Forget>>>);

impl Caches {
    fn add(&self, cache: Weak<dyn Forget>) {
        let mut caches = self.0.lock();
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(cache);
    }

    fn forget(&self) {
        let caches: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        caches.iter().for_each(|cache| cache.forget());
    }
}

trait Forget: Send + Sync {
    fn forget(&self);
}

impl<K: Send, V: Send + Sync> Forget for Values<K, V> {
    fn forget(&self) {
        *self.lock() = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_was_not_used_for_longest_goes_first() {
        let cache = Recent::new(2);
        cache.keep(1, Arc::new("one"));
        cache.keep(2, Arc::new("two"));
        assert_eq!(cache.get(&1).as_deref(), Some(&"one"));
        cache.keep(3, Arc::new("three"));
        assert_eq!(cache.get(&2), None);
        assert_eq!((cache.get(&1).as_deref(), cache.get(&3).as_deref()), (Some(&"one"), Some(&"three")));
        cache.keep(3, Arc::new("new"));
        assert_eq!((cache.get(&1).as_deref(), cache.get(&3).as_deref()), (Some(&"one"), Some(&"new")));
    }

    #[test]
    fn all_caches_are_emptied_together() {
        // Not those of the process, because other tests rely on theirs.
        let all = Caches(Mutex::default());
        drop(Recent::<u8, u8>::listed(&all, 2));
        let caches = [Recent::listed(&all, 2), Recent::listed(&all, 2)];
        let value = Arc::new(7);
        caches.iter().for_each(|cache| cache.keep(1, Arc::clone(&value)));
        all.forget();
        assert_eq!(caches.each_ref().map(|cache| cache.get(&1)), [None, None]);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
