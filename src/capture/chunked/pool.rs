//! [`BufferPool`]: memory that chunked captures reuse.

use std::sync::Arc;

use crate::{
    lock::{Mutex, MutexGuard},
    platform::Buffer,
};

/// Memory for [chunked](crate::ProcsCapture::chunked) captures, which reuse or share it; see
/// [`ProcsCapture::buffers`](crate::ProcsCapture::buffers).
///
/// Memory of a tree is received into buffers, and waits there to be hashed and stored. While there
/// is room, the tree is frozen only as long as criu needs to send. Beyond the limit, criu waits for
/// the store.
///
/// Fresh memory is the slowest part of a capture, so the pool keeps its buffers as long as a clone
/// lives; clones share them. Buffers are wiped when a capture ends. The kernel may reclaim their
/// memory when memory runs short (`MADV_FREE`); until then it counts as the program's.
///
/// ```no_run
/// use criu_rpc::{BufferPool, Chunking, FsBlobStore, ProcsCapture};
///
/// let store = FsBlobStore::open("captures")?;
/// let pool = BufferPool::new(256 << 20);
/// for pid in [4242, 4243] {
///     ProcsCapture::new([pid]).chunked(Chunking::default()).buffers(&pool).run(&store)?;
/// }
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BufferPool {
    limit: u64,
    spare: Arc<Mutex<Vec<Buffer>>>,
}

impl Default for BufferPool {
    /// Makes a pool of up to 1 GiB.
    fn default() -> BufferPool {
        BufferPool::new(1 << 30)
    }
}

impl BufferPool {
    /// Makes an empty pool. Each capture uses up to `limit` bytes, but at least some 8 MiB; so much
    /// is kept between captures.
    ///
    /// The limit includes 16 bytes for each chunk of the tree, but at most half of it: that is the
    /// index of an [`FsBlobStore`](crate::FsBlobStore). So a capture of a large tree takes hardly
    /// more memory than that of a small one.
    pub fn new(limit: u64) -> BufferPool {
        BufferPool { limit, spare: Arc::default() }
    }

    /// Returns the limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns a pool with the same buffers and another limit.
    #[cfg(test)]
    pub(super) fn with_limit(&self, limit: u64) -> BufferPool {
        BufferPool { limit, ..self.clone() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.spare.lock()
    }

    /// Takes up to `most` buffers.
    pub(super) fn take(&self, most: usize) -> Vec<Buffer> {
        let mut spare = self.lock();
        let rest = spare.len().saturating_sub(most);
        spare.split_off(rest)
    }

    /// Keeps these buffers, wiped, up to `most` in all. A capture of this process would store their
    /// contents.
    pub(super) fn keep(&self, mut buffers: Vec<Buffer>, most: usize) {
        buffers.truncate(most);
        for buffer in &mut buffers {
            buffer.fill(0);
            buffer.mark_reclaimable();
        }
        let mut spare = self.lock();
        spare.extend(buffers);
        spare.truncate(most);
    }
}
