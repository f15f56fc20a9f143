//! Compression of frames, with zstd.

use std::{cell::RefCell, io};

use zstd::bulk::{Compressor, Decompressor};

/// Compresses to what begins `at` bytes into `packed`, and tells how long it is, if that is `limit` bytes at most.
pub(super) fn compress(raw: &[u8], limit: usize, at: usize, packed: &mut Vec<u8>) -> Option<usize> {
    thread_local! {
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = RefCell::new(Compressor::new(LEVEL).ok());
    }
    if packed.len() < at + limit {
        packed.resize(at + limit, 0);
    }
    // What does not fit is an error of the compressor's.
    let length = COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.as_mut()?.compress_to_buffer(raw, &mut packed[at..at + limit]).ok()
    })?;
    (length < raw.len()).then_some(length)
}

/// Decompresses into `raw`, which gets exactly `length` bytes.
pub(super) fn decompress(packed: &[u8], length: usize, raw: &mut Vec<u8>) -> io::Result<()> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = RefCell::new(Decompressor::new().ok());
    }
    raw.clear();
    raw.reserve(length);
    let written = DECOMPRESSOR.with_borrow_mut(|decompressor| match decompressor {
        Some(decompressor) => decompressor
            .decompress_to_buffer(packed, raw)
            .map_err(|error| io::Error::other(format!("it cannot be decompressed: {error}"))),
        None => Err(io::Error::other("there is no memory to decompress it")),
    })?;
    if written != length {
        return Err(io::Error::other(format!("it has {written} bytes decompressed, not {length}")));
    }
    Ok(())
}

const LEVEL: i32 = 3;
