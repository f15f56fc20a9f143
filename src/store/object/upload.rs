//! [`Upload`]: an object that is being uploaded, several parts at a time.
//!
//! An object smaller than a part is one request. If the store has no multipart upload (plain HTTP),
//! all bytes wait in memory.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use object_store::{Error as Said, MultipartUpload, ObjectStoreExt, PutPayload, path::Path};

use super::remote::{Remote, Task};
use crate::{Error, Result};

/// An incomplete object. Dropped unfinished, it leaves nothing.
pub(super) struct Upload {
    remote: Arc<Remote>,
    path: Path,
    /// The bytes of the next part, which is not full yet.
    buffer: Vec<u8>,
    state: UploadState,
    length: u64,
}

enum UploadState {
    /// Nothing was sent yet.
    Waiting,
    /// Parts are sent as they come.
    Parts { upload: Box<dyn MultipartUpload>, sending: VecDeque<Task<()>> },
    /// The store takes no parts: these are kept for one request.
    Kept(Vec<Vec<u8>>),
    /// The upload is finished or aborted.
    Ended,
}

impl Upload {
    /// Makes an upload to this path; the first request is sent with the first part.
    pub(super) fn new(remote: &Arc<Remote>, path: Path) -> Upload {
        Upload {
            remote: Arc::clone(remote),
            path,
            buffer: Vec::new(),
            state: UploadState::Waiting,
            length: 0,
        }
    }

    /// Returns the number of bytes written.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns true if the store has parts of it already. Then its path cannot change any more.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.state, UploadState::Parts { .. })
    }

    /// Adds bytes. Waits while enough parts are being sent.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PART - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if self.buffer.capacity() == 0 && !now.is_empty() && self.length > PART as u64 {
                self.buffer.reserve_exact(PART);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            // A full part waits for further bytes, because it may be the only one.
            if self.buffer.len() == PART && !bytes.is_empty() {
                let part = std::mem::take(&mut self.buffer);
                self.send(part)?;
            }
        }
        Ok(())
    }

    /// Sends a part. If a part failed, the upload is aborted: a later part must not close the gap.
    fn send(&mut self, part: Vec<u8>) -> Result<()> {
        let sent = self.try_send(part);
        if sent.is_err() {
            self.give_up();
        }
        sent
    }

    fn try_send(&mut self, part: Vec<u8>) -> Result<()> {
        if matches!(self.state, UploadState::Waiting) {
            self.state = self.begin()?;
        }
        match &mut self.state {
            UploadState::Parts { upload, sending } => {
                while sending.len() >= SENDING {
                    sending.pop_front().map_or(Ok(()), Task::wait)?;
                }
                let (remote, path) = (Arc::clone(&self.remote), self.path.clone());
                let part = upload.put_part(PutPayload::from(part));
                sending.push_back(
                    self.remote
                        .start(async move { remote.ask(|| format!("write a part of {path}"), part).await }),
                );
                Ok(())
            }
            UploadState::Kept(parts) => {
                parts.push(part);
                Ok(())
            }
            UploadState::Waiting | UploadState::Ended => {
                Err(Error::store("continue", "an upload was written to after its end"))
            }
        }
    }

    fn begin(&self) -> Result<UploadState> {
        let (remote, path) = (Arc::clone(&self.remote), self.path.clone());
        self.remote.wait(async move {
            let begun = async {
                match remote.store.put_multipart(&path).await {
                    Ok(upload) => Ok(Some(upload)),
                    Err(Said::NotImplemented { .. } | Said::NotSupported { .. }) => Ok(None),
                    Err(said) => Err(said),
                }
            };
            Ok(match remote.ask(|| format!("begin to write {path}"), begun).await? {
                Some(upload) => UploadState::Parts { upload, sending: VecDeque::new() },
                None => UploadState::Kept(Vec::new()),
            })
        })
    }

    /// Completes the object.
    pub(super) fn finish(self) -> Result<()> {
        let path = self.path.clone();
        self.finish_as(&path)
    }

    /// Completes the object under another path, if no part [is sent](Upload::is_sent) yet.
    pub(super) fn finish_as(mut self, path: &Path) -> Result<()> {
        if self.is_sent() {
            let last = std::mem::take(&mut self.buffer);
            if !last.is_empty() {
                self.send(last)?;
            }
            if let UploadState::Parts { sending, .. } = &mut self.state {
                while let Some(task) = sending.pop_front() {
                    task.wait()?;
                }
            }
            return self.complete();
        }
        let mut parts = match std::mem::replace(&mut self.state, UploadState::Ended) {
            UploadState::Kept(parts) => parts,
            UploadState::Waiting | UploadState::Parts { .. } | UploadState::Ended => Vec::new(),
        };
        parts.push(std::mem::take(&mut self.buffer));
        let payload: PutPayload = parts.into_iter().map(bytes_of).collect();
        let (remote, path) = (Arc::clone(&self.remote), path.clone());
        self.remote.wait(async move { remote.put(&path, payload).await })
    }

    fn complete(&mut self) -> Result<()> {
        let UploadState::Parts { mut upload, .. } = std::mem::replace(&mut self.state, UploadState::Ended)
        else {
            return Ok(());
        };
        let (remote, path, length) = (Arc::clone(&self.remote), self.path.clone(), self.length);
        self.remote.wait(async move {
            let doing = || format!("make {path} of its parts");
            let Err(error) = remote.ask(doing, upload.complete()).await else { return Ok(()) };
            // If the first answer was lost, the retry is answered with "no such upload".
            if matches!(remote.head(&path).await, Ok(Some(meta)) if meta.size == length) {
                return Ok(());
            }
            let _ = remote.ask(doing, upload.abort()).await;
            Err(error)
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Upload {
    fn give_up(&mut self) {
        if let UploadState::Parts { mut upload, sending } =
            std::mem::replace(&mut self.state, UploadState::Ended)
        {
            drop(sending);
            let (remote, path) = (Arc::clone(&self.remote), self.path.clone());
            let abort = async move { remote.ask(|| format!("give up {path}"), upload.abort()).await };
            self.remote.start(abort).wait_at_most(GOODBYE);
        }
    }
}

/// Converts bytes for a payload.
fn bytes_of(part: Vec<u8>) -> <object_store::PutPayload as IntoIterator>::Item {
    part.into()
}

/// The size of a part. S3 takes ten thousand parts.
const PART: usize = 16 * 1024 * 1024;

/// The number of concurrent uploads of parts.
const SENDING: usize = 4;

/// The time that a drop waits for the store to abort an upload.
const GOODBYE: Duration = Duration::from_secs(5);
