//! The structures under test, from the sources of the crate, and what they need of the rest of it.

#![allow(dead_code, unreachable_pub)]

#[path = "../../src/serve/ahead.rs"]
mod ahead;
mod chunked;
mod claims;
mod explore;
mod lock;

pub use explore::{
    a_failing_store_ends_all_readers, buffers_go_round, each_blob_is_claimed_once, readers_get_their_bytes,
};

/// The error of the crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    Io,
    Store,
}

impl Error {
    fn io<E>(_: &str) -> impl Fn(E) -> Error {
        |_| Error::Io
    }

    fn store(_: &str, _: &str) -> Error {
        Error::Store
    }
}

type Result<T> = std::result::Result<T, Error>;

mod pages {
    pub use super::page_files::*;
}

mod page_files {
    use std::ops::Range;

    /// The page files of a folder, as in `src/pages.rs`.
    pub trait PageFiles: Sync {
        fn files(&self) -> &[PageFile];
        fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> crate::Result<()>;
    }

    pub struct PageFile {
        pub ends: Vec<u64>,
    }

    impl PageFile {
        pub fn bytes(&self) -> u64 {
            self.ends.last().copied().unwrap_or(0)
        }

        pub fn range(&self, piece: usize) -> Range<u64> {
            piece.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[piece]
        }

        pub fn length(&self, piece: usize) -> usize {
            let range = self.range(piece);
            usize::try_from(range.end - range.start).unwrap_or(0)
        }
    }
}

mod wiped {
    use std::ops::{Deref, DerefMut};

    /// Memory that is not wiped: the crate's own type wipes it.
    #[derive(Debug, Default)]
    pub struct Wiped(Vec<u8>);

    impl Wiped {
        pub fn resize(&mut self, length: usize) {
            self.0.resize(length, 0);
        }
    }

    impl Deref for Wiped {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &self.0
        }
    }

    impl DerefMut for Wiped {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }
}

mod store {
    pub mod name {
        /// The name of a blob.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct Name(pub [u8; 32]);
    }
}

mod manifest {
    /// A part of a leaf, which is only its number here.
    #[derive(Debug)]
    pub struct Window(pub usize);
}

mod platform {
    use std::ops::{Deref, DerefMut};

    /// A small buffer: the crate's own has 2 MiB of fresh memory.
    #[derive(Debug, Default)]
    pub struct Buffer(Vec<u8>);

    impl Buffer {
        pub fn new(_: usize) -> std::io::Result<Buffer> {
            Ok(Buffer(vec![0; 4]))
        }

        pub fn mark_reclaimable(&mut self) {}
    }

    impl Deref for Buffer {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &self.0
        }
    }

    impl DerefMut for Buffer {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }
}
