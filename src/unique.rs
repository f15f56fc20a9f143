//! Names and numbers that no other process makes, for files that are temporary.

use std::{
    hash::{BuildHasher as _, RandomState},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// Returns a random number, and the number of calls before.
///
/// A process that was restored twice exists twice, with equal pids, counts and random numbers. So
/// callers create what they name, and try again if it exists.
pub(crate) fn number() -> (u64, u64) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    (RandomState::new().hash_one(count), count)
}

/// Returns a name: the pid, and 16 hexadecimal digits.
pub(crate) fn name() -> String {
    format!("{}-{:016x}", process::id(), number().0)
}

/// Returns true if [`name`] can have made this text.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) fn is_name(text: &str) -> bool {
    text.split_once('-').is_some_and(|(pid, random)| {
        let hex = random.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        pid.parse::<u32>().is_ok() && random.len() == 16 && hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_differs_from_others_and_is_known() {
        let (one, other) = (name(), name());
        assert_ne!(one, other);
        assert!(is_name(&one) && is_name(&other));
        for odd in ["", "1", "1-", "1-0123456789ABCDEF", "1-0123456789abcde", "x-0123456789abcdef"] {
            assert!(!is_name(odd), "{odd}");
        }
    }
}
