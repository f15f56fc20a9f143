//! [`PageSink`]: who takes the memory of a tree in, run of pages by run of pages, as criu sends it.

use std::io::Read;

use crate::{Error, Result};

/// The size of a page in all that is about pages here, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// Whose memory it is. In the images each has a map of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PageOwner {
    /// The process with this pid, as the images call it: the pid inside its pid namespace.
    Task(u32),
    /// The segment of shared memory that criu gave this number. Its addresses are offsets.
    Shared(u64),
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageRun {
    /// The address of the first one, in bytes.
    pub address: u64,
    /// How many pages.
    pub pages: u64,
    /// criu's bits: 1, the pages are those of the parent; 2, they may be restored late; 4, they are here.
    pub flags: u32,
}

/// Takes memory in. Runs of one owner come in the order of their addresses, and owners come one after the other.
///
/// An error from any method makes the dump fail, and the tree goes on.
pub trait PageSink: Send {
    /// Whether the memory of this owner is here already, from the dump before. criu asks before it reads memory; pages that
    /// did not change since come as runs with the bit 1 then, without their bytes. It does so only where memory is
    /// [tracked](crate::DumpOptions::track_mem) and the folder of the dump before is
    /// [named](crate::DumpOptions::parent_img).
    ///
    /// A sink that keeps nothing from one dump to the next says no, as this does by default. criu's numbers for shared memory
    /// are worth nothing in the next dump.
    fn has_parent(&mut self, owner: PageOwner) -> bool {
        let _ = owner;
        false
    }

    /// Memory of this owner follows.
    ///
    /// # Errors
    ///
    /// Whatever keeps the sink from taking it.
    fn open(&mut self, owner: PageOwner) -> Result<()>;

    /// A run of the owner that was opened last. If its pages are [here](PageRun::is_present), `memory` has exactly
    /// [`bytes`](PageRun::bytes) bytes, and all must be read.
    ///
    /// # Errors
    ///
    /// Whatever keeps the sink from taking it.
    fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()>;

    /// All was sent. The tree stands still until this returns.
    ///
    /// # Errors
    ///
    /// What makes the memory that was taken in worthless after all.
    fn close(&mut self) -> Result<()>;
}

impl PageOwner {
    /// The image that tells which pages the owner has.
    pub fn map_name(self) -> String {
        match self {
            PageOwner::Task(pid) => format!("pagemap-{pid}.img"),
            PageOwner::Shared(id) => format!("pagemap-shmem-{id}.img"),
        }
    }

    /// The owner whose map has this name, written the one way there is to write it.
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
    /// The bit of a run whose pages are those of the dump before.
    pub(crate) const PARENT: u32 = 1;

    /// The bit of a run whose pages may be restored late.
    pub(crate) const LAZY: u32 = 2;

    /// The bit of a run whose pages are here.
    pub(crate) const PRESENT: u32 = 4;

    /// A run whose end can be told, and that starts where a page does.
    pub(crate) fn new(address: u64, pages: u64, flags: u32) -> Result<PageRun> {
        let run = PageRun { address, pages, flags };
        let end = pages.checked_mul(PAGE_SIZE as u64).and_then(|bytes| bytes.checked_add(address));
        if !address.is_multiple_of(PAGE_SIZE as u64) || pages == 0 || end.is_none() {
            return Err(Error::corrupt("a map of pages", format!("{pages} pages at {address:#x}")));
        }
        Ok(run)
    }

    /// How many bytes the pages have.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }

    /// Whether the pages are those of the dump before: they have not changed since, and do not come.
    pub fn is_in_parent(&self) -> bool {
        self.flags & (PageRun::PARENT | PageRun::PRESENT) == PageRun::PARENT
    }

    /// Whether the pages come with the run.
    pub fn is_present(&self) -> bool {
        self.flags & PageRun::PRESENT != 0
    }
}
