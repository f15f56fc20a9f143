//! Compresses frames with zstd. A context keeps its last data in memory until it is dropped, so
//! each context lives only for one batch or read.

use std::{fmt, io};

use zstd::bulk::{Compressor, Decompressor};

use crate::wiped::Wiped;

/// Compresses frames, one after the other.
#[derive(Default)]
pub(in crate::store) struct Packer(Option<Compressor<'static>>);

impl Packer {
    /// Compresses into `packed` from byte `at` on. Returns the length if it is at most `limit`
    /// bytes.
    pub(in crate::store) fn compress(
        &mut self,
        raw: &[u8],
        limit: usize,
        at: usize,
        packed: &mut Wiped,
    ) -> Option<usize> {
        if packed.len() < at + limit {
            packed.resize(at + limit);
        }
        if self.0.is_none() {
            self.0 = Compressor::new(LEVEL).ok();
        }
        // If the result does not fit, the compressor returns an error.
        let length = self.0.as_mut()?.compress_to_buffer(raw, &mut packed[at..at + limit]).ok()?;
        (length < raw.len()).then_some(length)
    }
}

/// Decompresses frames, one after the other.
#[derive(Default)]
pub(in crate::store) struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    /// Decompresses into `raw`, which gets exactly `length` bytes.
    pub(in crate::store) fn decompress(
        &mut self,
        packed: &[u8],
        length: usize,
        raw: &mut Wiped,
    ) -> io::Result<()> {
        raw.clear();
        raw.reserve(length);
        if self.0.is_none() {
            self.0 = Some(Decompressor::new()?);
        }
        let decompressor = self.0.as_mut().expect("because it was made just now");
        let written = decompressor
            .decompress_to_buffer(packed, raw.vec())
            .map_err(|error| io::Error::other(format!("it cannot be decompressed: {error}")))?;
        if written != length {
            return Err(io::Error::other(format!("it has {written} bytes decompressed, not {length}")));
        }
        Ok(())
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

const LEVEL: i32 = 3;
