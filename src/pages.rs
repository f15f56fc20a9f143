//! Pages of memory on their way: [`PageSink`] receives those of a tree, run by run, as criu sends
//! them; [`PageFiles`] gives them back as criu's files.

use std::{io::Read, ops::Range};

use crate::{Error, Result};

/// The size of a kernel's pages: a power of two from 4096 to 65536 bytes.
///
/// Kernels for x86-64 have pages of 4096 bytes. Those for aarch64 may have 4096, 16384 or 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

/// The owner of memory. In the images each owner has a map of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PageOwner {
    /// The process with this pid, as in the images: the pid inside its pid namespace.
    Task(u32),
    /// The segment of shared memory that criu gave this number. Its addresses are offsets.
    Shared(u64),
}

/// A run of adjacent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageRun {
    /// The size of each page.
    pub page_size: PageSize,
    /// The address of the first page, in bytes.
    pub address: u64,
    /// The number of pages.
    pub pages: u64,
    /// criu's bits: 1, the pages are those of the parent; 2, they may be restored lazily; 4, they
    /// are present.
    pub flags: u32,
}

/// Receives memory. Runs of one owner come in the order of their addresses, and owners come one
/// after the other.
///
/// An error from any method makes the dump fail, and the tree goes on.
pub trait PageSink: Send {
    /// Returns true if the memory of this owner is here already, from the previous dump. criu asks
    /// before it reads memory. Then unchanged pages come as runs with bit 1, without their bytes.
    /// criu asks only if memory is [tracked](crate::DumpOptions::track_mem) and the folder of the
    /// previous dump is [named](crate::DumpOptions::parent_img).
    ///
    /// The default is false, for a sink that keeps nothing between dumps. criu's numbers for shared
    /// memory mean nothing in the next dump.
    fn has_parent(&mut self, owner: PageOwner) -> bool {
        let _ = owner;
        false
    }

    /// Begins the memory of an owner.
    ///
    /// # Errors
    ///
    /// Any error that keeps the sink from receiving it.
    fn open(&mut self, owner: PageOwner) -> Result<()>;

    /// Receives a run of the current owner. If its pages are [present](PageRun::is_present),
    /// `memory` has exactly [`bytes`](PageRun::bytes) bytes, and all must be read.
    ///
    /// # Errors
    ///
    /// Any error that keeps the sink from receiving it.
    fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()>;

    /// Ends the stream. The tree is frozen until this returns.
    ///
    /// # Errors
    ///
    /// Any error that makes the received memory useless.
    fn close(&mut self) -> Result<()>;
}

impl PageSize {
    /// The smallest pages: 4096 bytes.
    pub const SMALLEST: PageSize = PageSize(4096);

    const LARGEST: u32 = 65536;

    /// The sizes that tests try.
    #[cfg(test)]
    pub(crate) const TESTED: [PageSize; 3] = [PageSize(4096), PageSize(16384), PageSize(65536)];

    /// Returns the size; `None` if kernels that criu supports have no pages of this size.
    ///
    /// ```
    /// use criu_rpc::rpc::PageSize;
    ///
    /// assert_eq!(PageSize::new(16384).map(PageSize::bytes), Some(16384));
    /// assert_eq!(PageSize::new(5000), None);
    /// ```
    pub fn new(bytes: u64) -> Option<PageSize> {
        let size = u32::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two())?;
        (PageSize::SMALLEST.0..=PageSize::LARGEST).contains(&size).then_some(PageSize(size))
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Returns the number of bytes, as the length of memory of this program.
    pub(crate) const fn length(self) -> usize {
        self.0 as usize
    }
}

impl PageOwner {
    /// Returns the name of the image that maps the owner's pages.
    pub fn map_name(self) -> String {
        match self {
            PageOwner::Task(pid) => format!("pagemap-{pid}.img"),
            PageOwner::Shared(id) => format!("pagemap-shmem-{id}.img"),
        }
    }

    /// Parses the owner in the name of a map; only its canonical form is accepted.
    pub(crate) fn of_map(name: &str) -> Option<PageOwner> {
        let number = name.strip_prefix("pagemap-")?.strip_suffix(".img")?;
        let owner = match number.strip_prefix("shmem-") {
            Some(id) => PageOwner::Shared(id.parse().ok()?),
            None => PageOwner::Task(number.parse().ok()?),
        };
        (owner.map_name() == name).then_some(owner)
    }
}

impl PageRun {
    /// The bit of a run whose pages are in the previous dump.
    pub(crate) const PARENT: u32 = 1;

    /// The bit of a run whose pages may be restored lazily.
    pub(crate) const LAZY: u32 = 2;

    /// The bit of a run whose pages are present.
    pub(crate) const PRESENT: u32 = 4;

    /// Makes a run; fails if it does not start at a page, or its end overflows.
    pub(crate) fn new(page_size: PageSize, address: u64, pages: u64, flags: u32) -> Result<PageRun> {
        let run = PageRun { page_size, address, pages, flags };
        let end = pages.checked_mul(page_size.bytes()).and_then(|bytes| bytes.checked_add(address));
        if !address.is_multiple_of(page_size.bytes()) || pages == 0 || end.is_none() {
            return Err(Error::corrupt("a map of pages", format!("{pages} pages at {address:#x}")));
        }
        Ok(run)
    }

    /// Returns the number of the first page: its address in pages.
    pub(crate) fn first(&self) -> u64 {
        self.address / self.page_size.bytes()
    }

    /// Returns the size of all pages, in bytes.
    pub fn bytes(&self) -> u64 {
        self.pages * self.page_size.bytes()
    }

    /// Returns true if the pages are unchanged since the previous dump and are not sent.
    pub fn is_in_parent(&self) -> bool {
        self.flags & (PageRun::PARENT | PageRun::PRESENT) == PageRun::PARENT
    }

    /// Returns true if the pages come with the run.
    pub fn is_present(&self) -> bool {
        self.flags & PageRun::PRESENT != 0
    }
}

/// The page files of a folder of images. They need not exist in the folder.
pub(crate) trait PageFiles: Sync {
    /// Returns the files.
    fn files(&self) -> &[PageFile];

    /// Returns the size of the pages; `None` if there are no pages.
    fn page_size(&self) -> Option<PageSize>;

    /// Reads a whole piece. `into` has its length.
    fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> Result<()>;
}

/// A page file, in pieces.
#[derive(Debug)]
pub(crate) struct PageFile {
    /// The name that criu gives it.
    pub(crate) name: String,
    /// The end of each piece, in bytes; no piece is larger than [`PIECE`].
    pub(crate) ends: Vec<u64>,
}

impl PageFile {
    /// Returns the number of bytes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the range of a piece in the file.
    pub(crate) fn range(&self, piece: usize) -> Range<u64> {
        piece.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[piece]
    }

    /// Returns the number of bytes in a piece.
    pub(crate) fn length(&self, piece: usize) -> usize {
        let range = self.range(piece);
        usize::try_from(range.end - range.start).unwrap_or(0)
    }
}

/// The maximum size of a piece, in bytes.
pub(crate) const PIECE: usize = 1 << 20;
