//! Compression of frames, with zstd.

use std::{cell::RefCell, io};

use zstd::bulk::{Compressor, Decompressor};

/// Compresses into `packed`, if the result has at most `limit` bytes.
pub(super) fn compress(raw: &[u8], limit: usize, packed: &mut Vec<u8>) -> bool {
    thread_local! {
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = RefCell::new(Compressor::new(LEVEL).ok());
    }
    packed.clear();
    packed.reserve(limit);
    // What does not fit is an error of the compressor's.
    let fits = COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.as_mut().is_some_and(|compressor| compressor.compress_to_buffer(raw, packed).is_ok())
    });
    fits && packed.len() <= limit && packed.len() < raw.len()
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
