//! No encryption: there are no keys, so nothing here is ever called.

use std::sync::Arc;

use crate::{Digest256, Error, Result};

/// A key that does not exist.
#[derive(Debug, Clone)]
pub(in crate::store) enum Key {}

/// No padding.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct Padding;

/// Keys that do not exist.
#[derive(Debug)]
pub(in crate::store) enum Keys {}

impl Keys {
    pub(in crate::store) fn new(key: &Key, _padding: Padding) -> Arc<Keys> {
        match *key {}
    }

    pub(in crate::store) fn mark(&self) -> &[u8; 32] {
        match *self {}
    }

    pub(in crate::store) fn padded(&self, _length: usize) -> usize {
        match *self {}
    }

    pub(in crate::store) fn padded_part(&self, _place: u64, _length: usize, _part: usize) -> usize {
        match *self {}
    }

    pub(in crate::store) fn name(&self, _digest: &Digest256) -> [u8; 32] {
        match *self {}
    }

    pub(in crate::store) fn seal(&self, _associated: &[u8], _bytes: &mut [u8]) -> Result<[u8; AROUND]> {
        match *self {}
    }

    pub(in crate::store) fn open(
        &self,
        _associated: &[u8],
        _ciphertext: &[u8],
        _around: &[u8; AROUND],
        _plain: &mut [u8],
    ) -> bool {
        match *self {}
    }
}

pub(in crate::store) fn random<const N: usize>() -> Result<[u8; N]> {
    Err(Error::store("get randomness", "this program was built without the feature `encryption` of criu-rpc"))
}

pub(in crate::store) const AROUND: usize = 28;
