//! No compression: frames are stored as they are, and compressed ones cannot be read.

use std::io;

use crate::wiped::Wiped;

/// A compressor that compresses nothing.
#[derive(Debug, Default)]
pub(in crate::store) struct Packer {}

impl Packer {
    pub(in crate::store) fn compress(
        &mut self,
        _raw: &[u8],
        _limit: usize,
        _at: usize,
        _packed: &mut Wiped,
    ) -> Option<usize> {
        None
    }
}

/// A decompressor that only reports the missing feature.
#[derive(Debug, Default)]
pub(in crate::store) struct Unpacker {}

impl Unpacker {
    pub(in crate::store) fn decompress(
        &mut self,
        _packed: &[u8],
        _length: usize,
        _raw: &mut Wiped,
    ) -> io::Result<()> {
        let problem =
            "it is compressed, and this program was built without the feature `compression` of criu-rpc";
        Err(io::Error::new(io::ErrorKind::Unsupported, problem))
    }
}
