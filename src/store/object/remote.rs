//! [`Remote`]: a blocking interface to an `async` store.
//!
//! The caller may be in a runtime of its own, which must not be blocked. So all work runs on
//! threads of this crate, and the caller waits at a channel.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    ops::Range,
    sync::{Arc, mpsc},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path};
use tokio::{runtime, task::AbortHandle, time};

use super::open::Secrets;
use crate::{Error, Result};

/// Bytes of an answer.
pub(super) type Bytes = Vec<u8>;

/// An error of `object_store`.
type Said = object_store::Error;

#[derive(Debug)]
pub(super) struct Remote {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The name of the store in errors.
    pub(super) name: String,
    pub(super) prefix: Path,
    pub(super) patience: Duration,
    pub(super) secrets: Secrets,
    pub(super) threads: runtime::Handle,
}

impl Remote {
    /// Returns a path below the prefix.
    pub(super) fn path(&self, below: &str) -> Path {
        let prefix = self.prefix.as_ref();
        // Both parts are paths already, so nothing is to be encoded.
        let whole = if prefix.is_empty() { below.to_owned() } else { format!("{prefix}/{below}") };
        Path::parse(whole).expect("because hexadecimal digits and our own words make a path")
    }

    /// Runs a future on the store's threads.
    pub(super) fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Task<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let task = self.threads.spawn(async move {
            // The receiver is gone if the task was dropped.
            let _ = sender.send(work.await);
        });
        Task { receiver, abort: task.abort_handle() }
    }

    /// Runs a future on the store's threads, and waits for it.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.start(work).wait()
    }

    /// Runs a task for each job, some at a time. Hands the results to `each` on this thread, as
    /// they come.
    pub(super) fn parallel<J, T, F>(
        &self,
        jobs: impl IntoIterator<Item = J>,
        at_once: usize,
        mut task: impl FnMut(J) -> F,
        mut each: impl FnMut(T) -> Result<()>,
    ) -> Result<()>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let mut aborts = Aborts::default();
        let mut running = 0;
        let mut jobs = jobs.into_iter();
        loop {
            while running < at_once {
                let Some(job) = jobs.next() else { break };
                let (work, sender) = (task(job), sender.clone());
                let spawned = self.threads.spawn(async move {
                    // A task that panics answers too, so that this thread does not wait for ever.
                    let mut answer = Answer { sender, sent: false };
                    let result = work.await;
                    answer.sent = true;
                    let _ = answer.sender.send(Some(result));
                });
                aborts.push(spawned.abort_handle());
                running += 1;
            }
            if running == 0 {
                return Ok(());
            }
            let result = receiver.recv().ok().flatten().unwrap_or_else(|| Err(ended()))?;
            running -= 1;
            each(result)?;
        }
    }

    /// Runs one request within the time limit.
    pub(super) async fn ask<T>(
        &self,
        doing: impl Fn() -> String,
        work: impl Future<Output = Result<T, Said>>,
    ) -> Result<T> {
        self.try_ask(work).await.map_err(|said| self.error(&doing(), said))
    }

    async fn try_ask<T>(&self, work: impl Future<Output = Result<T, Said>>) -> Result<T, Said> {
        match time::timeout(self.patience, work).await {
            Ok(result) => result,
            Err(_) => Err(Said::Generic {
                store: "the server",
                source: format!("no answer within {} seconds", self.patience.as_secs_f32()).into(),
            }),
        }
    }

    /// Converts an error of the store, with secrets removed.
    pub(super) fn error(&self, doing: &str, said: Said) -> Error {
        let mut text = said.to_string();
        let mut source = std::error::Error::source(&said);
        while let Some(deeper) = source {
            let deeper_text = deeper.to_string();
            if !text.contains(&deeper_text) {
                text = format!("{text}: {deeper_text}");
            }
            source = deeper.source();
        }
        Error::store(format!("{doing} in {}", self.name), Plain(self.secrets.redact(&text)))
    }

    /// Returns the metadata of an object; `None` if it does not exist.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>> {
        match self.try_ask(self.store.head(path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Said::NotFound { .. }) => Ok(None),
            Err(said) => Err(self.error(&format!("look for {path}"), said)),
        }
    }

    /// Reads a whole object; `None` if it does not exist. Large objects are read in parts, in
    /// parallel.
    pub(super) async fn get(&self, path: &Path) -> Result<Option<Bytes>> {
        let size = match self.fetch(path, None).await {
            Ok(Fetched::Bytes(bytes)) => return Ok(Some(bytes)),
            Ok(Fetched::TooLong(size)) => size,
            Err(Said::NotFound { .. }) => return Ok(None),
            Err(said) => return Err(self.error(&format!("read {path}"), said)),
        };
        let mut bytes = Bytes::new();
        let mut parts =
            stream::iter(ranges(0..size, PART)).map(|range| self.range(path, range)).buffered(AHEAD);
        while let Some(part) = parts.try_next().await? {
            let Some(part) = part else { return Ok(None) };
            bytes.extend_from_slice(&part);
        }
        Ok(Some(bytes))
    }

    /// Reads a whole range of an object; `None` if the object does not exist.
    pub(super) async fn range(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        let length = range.end - range.start;
        let part = self.read_at_most(path, range).await?;
        match part.as_ref().map_or(length, |bytes| bytes.len() as u64) {
            whole if whole == length => Ok(part),
            _ => Err(Error::corrupt(format!("{path} in {}", self.name), "it became shorter")),
        }
    }

    /// Reads a range of an object, or less if the object ends in it; `None` if the object does not
    /// exist.
    pub(super) async fn read_at_most(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        match self.fetch(path, Some(range.clone())).await {
            Ok(Fetched::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Fetched::TooLong(_)) => Err(self.error(&format!("read {path}"), wrong_length())),
            Err(Said::NotFound { .. }) => Ok(None),
            Err(said) => {
                // Stores report a range behind the end as an ordinary error.
                if matches!(self.head(path).await, Ok(Some(meta)) if meta.size <= range.start) {
                    return Ok(Some(Bytes::new()));
                }
                Err(self.error(&format!("read the bytes {} to {} of {path}", range.start, range.end), said))
            }
        }
    }

    /// Sends one request. A broken answer is requested again: `object_store` does that only if the
    /// server has a tag for the object.
    async fn fetch(&self, path: &Path, range: Option<Range<u64>>) -> Result<Fetched, Said> {
        let fetching = async {
            let mut pause = FIRST_PAUSE;
            loop {
                let options = GetOptions::new().with_range(range.clone());
                let answer = self.store.get_opts(path, options).await?;
                let length = match &range {
                    Some(_) => answer.range.end.saturating_sub(answer.range.start),
                    None if answer.meta.size > PART => return Ok(Fetched::TooLong(answer.meta.size)),
                    None => answer.meta.size,
                };
                match collect(answer, length).await {
                    Err(Said::Generic { .. }) => {}
                    result => return result.map(Fetched::Bytes),
                }
                time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        self.try_ask(fetching).await
    }

    /// Creates an object of these bytes in one request.
    pub(super) async fn put(&self, path: &Path, payload: PutPayload) -> Result<()> {
        self.ask(|| format!("write {path}"), self.store.put(path, payload)).await.map(drop)
    }

    /// Creates an object if the path is free; returns false if it exists already.
    pub(super) async fn create(&self, path: &Path, payload: PutPayload) -> Result<bool> {
        match self.try_ask(self.store.put_opts(path, payload, PutMode::Create.into())).await {
            Ok(_) => Ok(true),
            Err(Said::AlreadyExists { .. } | Said::Precondition { .. }) => Ok(false),
            Err(said) => Err(self.error(&format!("create {path}"), said)),
        }
    }

    /// Removes an object, if it exists.
    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        match self.try_ask(self.store.delete(path)).await {
            Ok(()) | Err(Said::NotFound { .. }) => Ok(()),
            Err(said) => Err(self.error(&format!("remove {path}"), said)),
        }
    }

    /// Lists the objects below a path.
    pub(super) async fn list(&self, below: &Path) -> Result<Vec<ObjectMeta>> {
        self.list_after(below, None).await
    }

    /// Lists the objects below a path whose names come after another.
    pub(super) async fn list_after(&self, below: &Path, after: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        // A listing has a request for each page. The time limit is for each page, not for all
        // together.
        let mut found = Vec::new();
        let mut listing = match after {
            Some(after) => self.store.list_with_offset(Some(below), after),
            None => self.store.list(Some(below)),
        };
        while let Some(meta) =
            self.ask(|| format!("list {below}"), async { listing.try_next().await }).await?
        {
            found.push(meta);
        }
        Ok(found)
    }
}

enum Fetched {
    Bytes(Bytes),
    /// The object's length, which is too long for one request.
    TooLong(u64),
}

/// Reads the body of an answer, if it has the requested length.
async fn collect(answer: object_store::GetResult, length: u64) -> Result<Bytes, Said> {
    let mut bytes = Bytes::new();
    let mut body = answer.into_stream();
    while let Some(piece) = body.try_next().await? {
        if (bytes.len() + piece.len()) as u64 > length {
            return Err(wrong_length());
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != length { Err(wrong_length()) } else { Ok(bytes) }
}

fn wrong_length() -> Said {
    Said::NotSupported { source: "the answer is not as long as was asked for".into() }
}

/// Cuts a range into pieces.
pub(super) fn ranges(whole: Range<u64>, piece: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let mut start = whole.start;
    std::iter::from_fn(move || {
        let from = start;
        start = whole.end.min(from.saturating_add(piece));
        (from < start).then_some(from..start)
    })
}

/// Work on the store's threads. Dropping it aborts the work.
pub(super) struct Task<T> {
    receiver: mpsc::Receiver<Result<T>>,
    abort: AbortHandle,
}

impl<T> Task<T> {
    pub(super) fn wait(self) -> Result<T> {
        self.receiver.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Waits at most this long; a later result is dropped.
    pub(super) fn wait_at_most(self, time: Duration) {
        let _ = self.receiver.recv_timeout(time);
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Aborts tasks that are not waited for any more.
#[derive(Default)]
struct Aborts(VecDeque<AbortHandle>);

impl Aborts {
    fn push(&mut self, handle: AbortHandle) {
        while self.0.front().is_some_and(AbortHandle::is_finished) {
            self.0.pop_front();
        }
        self.0.push_back(handle);
    }
}

impl Drop for Aborts {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

struct Answer<T> {
    sender: mpsc::Sender<Option<Result<T>>>,
    sent: bool,
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if !self.sent {
            let _ = self.sender.send(None);
        }
    }
}

fn ended() -> Error {
    Error::store("continue", "an internal task ended without a result")
}

/// An error as text only: its sources may contain secrets.
#[derive(Debug)]
struct Plain(String);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Plain {}

/// Wraps an error of ours in an [`io::Error`].
pub(super) fn as_io(error: Error) -> io::Error {
    io::Error::other(error)
}

/// The number of bytes read or written by one request.
pub(super) const PART: u64 = 8 * 1024 * 1024;

/// The number of requests that run ahead of a reader.
pub(super) const AHEAD: usize = 6;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
