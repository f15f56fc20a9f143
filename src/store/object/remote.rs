//! [`Remote`]: somebody's store, asked from threads that know nothing of `async`.
//!
//! Whoever calls may be in a runtime of its own, which must not be blocked by another's. So everything runs on threads of
//! ours, and the caller waits at a channel.

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

/// Bytes of an answer, shared.
pub(super) type Bytes = Vec<u8>;

/// What `object_store` says.
type Said = object_store::Error;

#[derive(Debug)]
pub(super) struct Remote {
    pub(super) store: Arc<dyn ObjectStore>,
    /// What errors call the store.
    pub(super) name: String,
    pub(super) prefix: Path,
    pub(super) patience: Duration,
    pub(super) secrets: Secrets,
    pub(super) threads: runtime::Handle,
}

impl Remote {
    /// The path of something below the prefix.
    pub(super) fn path(&self, below: &str) -> Path {
        let prefix = self.prefix.as_ref();
        // Both parts are paths already: nothing in them is to be encoded.
        let whole = if prefix.is_empty() { below.to_owned() } else { format!("{prefix}/{below}") };
        Path::parse(whole).expect("because hexadecimal digits and our own words make a path")
    }

    /// Runs this on our threads.
    pub(super) fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Task<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let task = self.threads.spawn(async move {
            // Nobody listens to a task that was dropped.
            let _ = sender.send(work.await);
        });
        Task { receiver, abort: task.abort_handle() }
    }

    /// Runs this on our threads, and waits for it.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.start(work).wait()
    }

    /// Runs a task for each job, some at a time, and gives what comes of them to `each`, as it comes, on this thread.
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
                    // A task that panics answers too: `each` must not wait for ever.
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

    /// Does one thing with the store, for as long as there is patience.
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

    /// What the store says, without secrets, as an error of ours.
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
        Error::store(format!("{doing} in {}", self.name), Plain(self.secrets.strike(&text)))
    }

    /// How the object is, or `None` if there is none.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>> {
        match self.try_ask(self.store.head(path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Said::NotFound { .. }) => Ok(None),
            Err(said) => Err(self.error(&format!("look for {path}"), said)),
        }
    }

    /// All bytes of an object, or `None` if there is none. What is large comes in parts, in parallel.
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

    /// A part of an object, all of it; `None` if there is no such object.
    pub(super) async fn range(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        let length = range.end - range.start;
        let part = self.what_is_left(path, range).await?;
        match part.as_ref().map_or(length, |bytes| bytes.len() as u64) {
            whole if whole == length => Ok(part),
            _ => Err(Error::corrupt(format!("{path} in {}", self.name), "it became shorter")),
        }
    }

    /// A part of an object, less of it where it ends before; `None` if there is no such object.
    pub(super) async fn what_is_left(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        match self.fetch(path, Some(range.clone())).await {
            Ok(Fetched::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Fetched::TooLong(_)) => Err(self.error(&format!("read {path}"), wrong_length())),
            Err(Said::NotFound { .. }) => Ok(None),
            Err(said) => {
                // That it ends before the range begins is an error like any other.
                if matches!(self.head(path).await, Ok(Some(meta)) if meta.size <= range.start) {
                    return Ok(Some(Bytes::new()));
                }
                Err(self.error(&format!("read the bytes {} to {} of {path}", range.start, range.end), said))
            }
        }
    }

    /// One request. What breaks off within the answer is asked for again: `object_store` does that only where a server has
    /// a tag for the object.
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

    /// Makes an object of these bytes in one request.
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

    /// Removes an object, if it is there.
    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        match self.try_ask(self.store.delete(path)).await {
            Ok(()) | Err(Said::NotFound { .. }) => Ok(()),
            Err(said) => Err(self.error(&format!("remove {path}"), said)),
        }
    }

    /// The objects below a path.
    pub(super) async fn list(&self, below: &Path) -> Result<Vec<ObjectMeta>> {
        self.list_after(below, None).await
    }

    /// The objects below a path, of which the names come after another.
    pub(super) async fn list_after(&self, below: &Path, after: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        // A listing is as many requests as it has pages. Each of them must come in time, not all of them together.
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
    /// It has so many bytes, too many for one request.
    TooLong(u64),
}

/// The body of an answer, if it is as long as it was asked for.
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

/// A range in pieces.
pub(super) fn ranges(whole: Range<u64>, piece: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let mut start = whole.start;
    std::iter::from_fn(move || {
        let from = start;
        start = whole.end.min(from.saturating_add(piece));
        (from < start).then_some(from..start)
    })
}

/// Work on our threads. Dropped, it is given up.
pub(super) struct Task<T> {
    receiver: mpsc::Receiver<Result<T>>,
    abort: AbortHandle,
}

impl<T> Task<T> {
    pub(super) fn wait(self) -> Result<T> {
        self.receiver.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Waits for so long at most; whatever comes later is nobody's.
    pub(super) fn wait_at_most(self, time: Duration) {
        let _ = self.receiver.recv_timeout(time);
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Ends tasks that are not waited for any more.
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

/// What was said, as text: the errors that it came from may have secrets in them.
#[derive(Debug)]
struct Plain(String);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Plain {}

/// An error of ours where an [`io::Error`] is wanted.
pub(super) fn as_io(error: Error) -> io::Error {
    io::Error::other(error)
}

/// How much is read or written by one request.
pub(super) const PART: u64 = 8 * 1024 * 1024;

/// How many requests are under way ahead of a reader.
pub(super) const AHEAD: usize = 6;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
