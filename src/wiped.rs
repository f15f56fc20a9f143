//! [`Wiped`]: bytes of a captured tree, which are overwritten before their memory is freed.
//!
//! A program can capture itself after it has captured other trees. Its own capture includes its
//! free memory, which must not hold secrets of others.

use std::{
    hint::black_box,
    ops::{Deref, DerefMut},
};

/// Overwrites the stack below the caller's frame, which has data of finished functions. Stacks of
/// threads are reused.
#[inline(never)]
pub(crate) fn wipe_stack() {
    const DEEP: usize = 16 << 10;
    black_box(&mut [0_u8; DEEP]);
}

/// A vector of bytes that is overwritten when it is moved or dropped.
#[derive(Debug, Default)]
pub(crate) struct Wiped(Vec<u8>);

impl Wiped {
    pub(crate) fn with_capacity(bytes: usize) -> Wiped {
        Wiped(Vec::with_capacity(bytes))
    }

    pub(crate) fn zeroed(bytes: usize) -> Wiped {
        Wiped(vec![0; bytes])
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// Changes the length; new bytes are zeros.
    pub(crate) fn resize(&mut self, length: usize) {
        self.reserve(length.saturating_sub(self.0.len()));
        self.0.resize(length, 0);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Reserves room for `more` bytes. The vector itself would leave a copy behind.
    pub(crate) fn reserve(&mut self, more: usize) {
        let wanted = self.0.len() + more;
        if wanted > self.0.capacity() {
            let mut roomy = Vec::with_capacity(wanted.max(2 * self.0.capacity()));
            roomy.extend_from_slice(&self.0);
            drop(Wiped(std::mem::replace(&mut self.0, roomy)));
        }
    }

    /// Returns the vector, for code that fills it within its capacity.
    pub(crate) fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl From<Vec<u8>> for Wiped {
    fn from(bytes: Vec<u8>) -> Wiped {
        Wiped(bytes)
    }
}

impl Deref for Wiped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        let length = self.0.capacity();
        self.0.clear();
        self.0.resize(length, 0);
        black_box(&mut self.0); // otherwise the compiler may remove the write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_vector_that_grows() {
        let mut bytes = Wiped::with_capacity(4);
        for part in 0..100 {
            bytes.extend_from_slice(&[part; 7]);
        }
        assert_eq!(bytes.len(), 700);
        assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 7));
        bytes.resize(800);
        assert_eq!((bytes[699], bytes[700], bytes[799]), (99, 0, 0));
        bytes.truncate(3);
        assert_eq!(*bytes, [0; 3]);
        let place = bytes.as_ptr();
        bytes.clear();
        bytes.resize(800);
        assert_eq!(bytes.as_ptr(), place, "it keeps its memory");
    }
}
