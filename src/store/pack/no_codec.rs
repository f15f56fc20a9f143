//! No compression: frames are stored as they are, and compressed ones cannot be read.

use std::io;

/// Compresses nothing.
pub(super) fn compress(_raw: &[u8], _limit: usize, _at: usize, _packed: &mut Vec<u8>) -> Option<usize> {
    None
}

/// Says what is missing.
pub(super) fn decompress(_packed: &[u8], _length: usize, _raw: &mut Vec<u8>) -> io::Result<()> {
    let problem =
        "it is compressed, and this program was built without the feature `compression` of criu-rpc";
    Err(io::Error::new(io::ErrorKind::Unsupported, problem))
}
