//! [`EarlySync`]: a file that goes to the disk while it is being written.
//!
//! Left alone, the system keeps what is written in memory until the sync at the end, and the disk idles until
//! then. Here a thread syncs every few megabytes while the writing goes on.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::{self, JoinHandle},
};

use super::disk::DiskFile;

/// A file to be written, by any number of threads, and then [finished](EarlySync::finish).
pub(super) struct EarlySync {
    file: Arc<DiskFile>,
    /// Where [`Write`] goes on.
    end: u64,
    unsynced: AtomicUsize,
    helper: Mutex<Option<Helper>>,
}

struct Helper {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl EarlySync {
    /// Writes to this file.
    pub(super) fn new(file: DiskFile) -> EarlySync {
        EarlySync { file: Arc::new(file), end: 0, unsynced: AtomicUsize::new(0), helper: Mutex::default() }
    }

    /// Writes all of it at this place.
    pub(super) fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)?;
        if self.unsynced.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() >= STEP {
            self.unsynced.store(0, Ordering::Relaxed);
            self.sync_early();
        }
        Ok(())
    }

    /// Brings all that was written to the disk, and closes the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        // The system tells of a failed write-back once, to whoever syncs first.
        let early = self.stop();
        self.file.sync().and(early)
    }

    /// Has the helper sync, if it isn't at it. Without a thread to spare, all is left to the end.
    fn sync_early(&self) {
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        if helper.is_none() {
            *helper = Helper::start(self.file.clone()).ok();
        }
        if let Some(helper) = &*helper {
            let _ = helper.wake.try_send(());
        }
    }

    fn stop(&mut self) -> io::Result<()> {
        let helper = self.helper.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Helper { wake, thread }) = helper else { return Ok(()) };
        drop(wake);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked")))
    }
}

impl Helper {
    fn start(file: Arc<DiskFile>) -> io::Result<Helper> {
        let (wake, woken) = mpsc::sync_channel(1);
        let sync = move || woken.into_iter().try_for_each(|()| file.sync());
        let thread = thread::Builder::new().name("blob-sync".into()).spawn(sync)?;
        Ok(Helper { wake, thread })
    }
}

impl Write for EarlySync {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What comes in one large piece is to overlap too.
        let bytes = &bytes[..bytes.len().min(STEP)];
        self.write_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for EarlySync {
    fn drop(&mut self) {
        // Waits, so that nobody has the file open afterwards.
        let _ = self.stop();
    }
}

/// How much is written between two syncs. Smaller blobs are synced once, at their end, without a thread.
///
/// Measured on ext4: 4 to 32 MiB are equal for large blobs, and less waits for the disk too often; the smaller
/// ones among them help blobs of some dozen megabytes, which most trees make.
const STEP: usize = 8 * 1024 * 1024;
