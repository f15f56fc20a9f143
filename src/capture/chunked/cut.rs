//! [`Cutter`]: cuts a stream of memory into windows, in buffers.

use std::{io::Read, sync::Arc};

use super::{
    buffers::{Buffers, Filled, Part, SIZE},
    owner::OwnerMap,
};
use crate::{
    Error, Result,
    manifest::{WINDOW_BYTES, Window, window_pages},
    pages::{PageOwner, PageRun, PageSink},
};

/// Keeps the maps of one tree.
pub(super) trait Maps: Send {
    /// Returns true if the previous round had memory of this owner; `None` without rounds.
    fn knows(&self, owner: PageOwner) -> Option<bool>;

    /// Notes the map of an owner; `false` if the owner has one.
    fn note(&self, owner: PageOwner, map: Arc<OwnerMap>) -> bool;
}

/// Cuts a stream into windows.
pub(super) struct Cutter<'a> {
    buffers: &'a Buffers,
    maps: Box<dyn Maps + 'a>,
    /// The owner of the memory that is being received, and the number of its windows so far.
    owner: Option<(Arc<OwnerMap>, usize)>,
    buffer: Option<Filled>,
    used: usize,
    /// The number of the window that is being filled, and a bit for each of its pages.
    window: Option<(u64, u64)>,
    /// The start of the window in the buffer.
    start: usize,
    open: bool,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(buffers: &'a Buffers, maps: Box<dyn Maps + 'a>) -> Cutter<'a> {
        buffers.open_stream();
        Cutter { buffers, maps, owner: None, buffer: None, used: 0, window: None, start: 0, open: true }
    }

    /// Ends the window that is being filled.
    fn end_window(&mut self) {
        let Some((number, pages)) = self.window.take() else { return };
        let (Some((owner, windows)), Some(filled)) = (&mut self.owner, &mut self.buffer) else { return };
        let window = Window { number, pages, before: 0 };
        filled.windows.push(Part {
            owner: owner.clone(),
            leaf: *windows,
            window,
            range: self.start..self.used,
        });
        *windows += 1;
    }

    /// Hands the buffer to the workers.
    fn end_buffer(&mut self) {
        if let Some(filled) = self.buffer.take() {
            self.buffers.fill(filled);
        }
        self.used = 0;
    }

    /// Begins a window, in a buffer with enough room for it.
    fn begin_window(&mut self, number: u64) -> Result<()> {
        self.end_window();
        if self.used + WINDOW_BYTES > SIZE {
            self.end_buffer();
        }
        if self.buffer.is_none() {
            self.buffer = Some(Filled { buffer: self.buffers.take()?, windows: Vec::new() });
        }
        self.start = self.used;
        self.window = Some((number, 0));
        Ok(())
    }

    fn take(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()> {
        let in_window = window_pages(run.page_size);
        let (mut page, mut left) = (run.first(), run.pages);
        while left > 0 {
            let number = page / in_window;
            if self.window.is_none_or(|(current, _)| current != number) {
                self.begin_window(number)?;
            }
            let first = page % in_window;
            let here = left.min(in_window - first);
            let (Some((_, pages)), Some(filled)) = (&mut self.window, &mut self.buffer) else {
                return Ok(());
            };
            *pages |= (u64::MAX >> (64 - here)) << first;
            let bytes = usize::try_from(here).unwrap_or(0) * run.page_size.length();
            let room = &mut filled.buffer[self.used..self.used + bytes];
            memory.read_exact(room).map_err(Error::io("receive memory"))?;
            self.used += bytes;
            page += here;
            left -= here;
        }
        Ok(())
    }
}

impl PageSink for Cutter<'_> {
    fn has_parent(&mut self, owner: PageOwner) -> bool {
        self.maps.knows(owner).unwrap_or(false)
    }

    fn open(&mut self, owner: PageOwner) -> Result<()> {
        self.end_window();
        let map = Arc::new(OwnerMap::new(self.maps.knows(owner).is_some()));
        if !self.maps.note(owner, map.clone()) {
            return Err(Error::corrupt("criu's stream of memory", format!("{owner:?} comes twice")));
        }
        self.owner = Some((map, 0));
        Ok(())
    }

    fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()> {
        let Some((owner, _)) = &self.owner else {
            return Err(Error::corrupt("criu's stream of memory", "it has pages without an owner"));
        };
        if run.is_in_parent() && !owner.tracked {
            return Err(Error::corrupt("criu's stream of memory", "it has pages of an earlier dump"));
        }
        let mut runs = owner.runs.lock();
        if runs.last().is_some_and(|last| last.address + last.bytes() > run.address) {
            return Err(Error::corrupt("criu's stream of memory", "its pages are not in order"));
        }
        runs.push(run);
        drop(runs);
        if run.is_present() { self.take(run, memory) } else { Ok(()) }
    }

    fn close(&mut self) -> Result<()> {
        self.end_window();
        self.end_buffer();
        if std::mem::take(&mut self.open) {
            self.buffers.close_stream();
        }
        Ok(())
    }
}

impl Drop for Cutter<'_> {
    fn drop(&mut self) {
        if self.open {
            self.buffers.close_stream();
        }
    }
}
