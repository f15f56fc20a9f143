//! [`Buffer`]: memory that is allocated at once, in huge pages if possible.

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

/// Zeroed memory of a fixed size, outside the heap. The kernel backs it by huge pages if it can, so
/// that the first write to it is cheap.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    length: usize,
}

/// The size of a huge page, to which a buffer is aligned.
const HUGE: usize = 2 << 20;

impl Buffer {
    /// Allocates `length` bytes, which must be a multiple of 2 MiB and not 0.
    pub(crate) fn new(length: usize) -> io::Result<Buffer> {
        let wide = length.checked_add(HUGE).filter(|_| length > 0 && length.is_multiple_of(HUGE));
        let wide = wide.ok_or(io::ErrorKind::InvalidInput)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), wide, access, kind, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first: *mut u8 = mapped.cast();
        let before = first.align_offset(HUGE).min(HUGE);
        let start = first.wrapping_add(before);
        unmap(first, before);
        unmap(start.wrapping_add(length), HUGE - before);
        // SAFETY: the call only gives advice, about memory that is ours. Kernels without huge pages
        // refuse it, which does no harm.
        unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) };
        let mut buffer = Buffer { start: NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?, length };
        // A write to each page makes the kernel provide it.
        buffer.iter_mut().step_by(super::page_size().length()).for_each(|byte| *byte = 0);
        Ok(buffer)
    }

    /// Lets the kernel reclaim the memory until the next write. Reading returns the old bytes or
    /// zeros.
    pub(crate) fn mark_reclaimable(&mut self) {
        // SAFETY: the range is ours, and any bytes are valid. If the kernel refuses, nothing
        // changes.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_FREE) };
    }
}

/// Unmaps memory to which nothing refers any more.
fn unmap(start: *mut u8, length: usize) {
    if length > 0 {
        // SAFETY: the range lies in a mapping that `Buffer::new` made, and nothing refers to it.
        unsafe { libc::munmap(start.cast(), length) };
    }
}

// SAFETY: it owns its memory, as a vector does.
unsafe impl Send for Buffer {}

// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for Buffer {}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has this length, was zeroed by the kernel, and lives as long as
        // `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        unmap(self.start.as_ptr(), self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zeroed_aligned_and_ours_alone() {
        let mut buffers: Vec<_> = (0..4).map(|_| Buffer::new(2 * HUGE).unwrap()).collect();
        for (number, buffer) in (1_u8..).zip(&mut buffers) {
            assert!(buffer.len() == 2 * HUGE && (buffer.as_ptr() as usize).is_multiple_of(HUGE));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(number);
        }
        for (number, buffer) in (1_u8..).zip(&buffers) {
            assert!(buffer.iter().all(|byte| *byte == number));
        }
        for length in [0, 1, HUGE + 1, usize::MAX / HUGE * HUGE] {
            assert!(Buffer::new(length).is_err(), "{length}");
        }
    }
}
