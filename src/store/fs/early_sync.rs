//! [`EarlySync`]: a file that goes to the disk while it is being written.
//!
//! Left alone, the system keeps what is written in memory until the sync at the end, and the disk idles until
//! then. Here a thread syncs every few megabytes while the writing goes on.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        mpsc::{self, SyncSender},
    },
    thread::{self, JoinHandle},
};

/// A file to be written and then [finished](EarlySync::finish).
pub(super) struct EarlySync {
    file: Arc<File>,
    unsynced: usize,
    helper: Option<Helper>,
}

struct Helper {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl EarlySync {
    /// Writes to this file.
    pub(super) fn new(file: File) -> EarlySync {
        EarlySync { file: Arc::new(file), unsynced: 0, helper: None }
    }

    /// Brings all that was written to the disk, and closes the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        // The system tells of a failed write-back once, to whoever syncs first.
        let early = self.stop();
        self.file.sync_data().and(early)
    }

    /// Has the helper sync, if it isn't at it. Without a thread to spare, all is left to the end.
    fn sync_early(&mut self) {
        if self.helper.is_none() {
            self.helper = Helper::start(self.file.clone()).ok();
        }
        if let Some(helper) = &self.helper {
            let _ = helper.wake.try_send(());
        }
    }

    fn stop(&mut self) -> io::Result<()> {
        let Some(Helper { wake, thread }) = self.helper.take() else { return Ok(()) };
        drop(wake);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked")))
    }
}

impl Helper {
    fn start(file: Arc<File>) -> io::Result<Helper> {
        let (wake, woken) = mpsc::sync_channel(1);
        let sync = move || woken.into_iter().try_for_each(|()| file.sync_data());
        let thread = thread::Builder::new().name("blob-sync".into()).spawn(sync)?;
        Ok(Helper { wake, thread })
    }
}

impl Write for EarlySync {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What comes in one large piece is to overlap too.
        let written = (&*self.file).write(&bytes[..bytes.len().min(STEP)])?;
        self.unsynced += written;
        if self.unsynced >= STEP {
            self.unsynced = 0;
            self.sync_early();
        }
        Ok(written)
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
