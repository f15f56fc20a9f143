//! [`ProcsCapture`]: a live process tree into a blob store. Dump, archive, hash, store, manifest, in that order.

mod chunked;
mod pipeline;

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

pub use self::chunked::Chunking;
use crate::{
    BlobStore, Cause, Digest256, DumpOptions, Error, Foresight, Pid, ProcsBlob, Result, Until, Warning,
    archive::{Trees, pack},
    platform::{self, Cancel, Job, Outcome, until},
};

/// Captures live process trees into a store.
///
/// The tree is left running unless [`leave_running(false)`](ProcsCapture::leave_running) says otherwise, and a capture
/// that fails leaves it running always.
///
/// Of several pids, those that are in one tree are captured as that tree, from the highest of them; so a process and
/// its descendants need one pid only. Pids of different trees are captured side by side.
///
/// Off Linux, and on Linux without criu, [`capture`](ProcsCapture::capture) succeeds as well. It stores a placeholder, which a
/// restore returns as a warning. [`run`](ProcsCapture::run) fails there, unless
/// [`placeholder(true)`](ProcsCapture::placeholder) is set.
///
/// Files on disk are no part of a capture: whoever goes back with a tree that writes files sees to those.
///
/// A terminal's signals to this program (`^C`, `^\`, a lost connection) do not reach criu, and so harm no tree. While this
/// program itself is stopped (`^Z`, SIGSTOP), a tree that is frozen then stays frozen: criu waits for this program. A program
/// that a person can stop handles SIGTSTP, and stops itself once the capture is done.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, ProcsCapture, ProcsRestore};
///
/// let mut child = std::process::Command::new("my-agent-tool").spawn()?;
/// let store = FsBlobStore::open("captures")?;
/// let stored = ProcsCapture::new([child.id()]).run(&store)?;
/// // … and later, to go back: kill the whole tree, reap it, and restore.
/// criu_rpc::kill_tree(child.id())?;
/// child.wait()?;
/// let restored = ProcsRestore::new().restore(&store, &stored.digest)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ProcsCapture {
    job: Job,
    chunking: Option<Chunking>,
    placeholder: bool,
    placeholder_if_unusable: bool,
}

/// The two ends of [`ProcsCapture::run_self`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SelfCapture {
    /// The capture is in the store. This is the process that made it.
    Stored(Stored),
    /// This is a revived copy of the process that captured itself.
    Revived,
}

/// A capture that is in the store.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Stored {
    /// The digest of the manifest: what [`ProcsRestore`](crate::ProcsRestore) wants.
    pub digest: Digest256,
    /// The manifest itself.
    pub manifest: ProcsBlob,
    /// How many bytes went to the store: the archive and the manifest; of a [chunked](ProcsCapture::chunked) capture those of
    /// the blobs that the store did not have yet, before it compresses or encrypts them. What a step cost.
    pub bytes: u64,
    /// The roots of the trees that were captured. None in a placeholder.
    pub roots: Vec<Pid>,
    /// How long the tree stood still for the dump, by criu's clock; of several trees, the one that did longest.
    pub frozen: Option<Duration>,
    /// How many [pre-dumps](Chunking::pre_dumps) came before the dump: none where the kernel does not track changes of
    /// memory.
    pub pre_dumps: u32,
    /// What the caller should tell its user: what a restore of this capture will lack, and what the capture did to a tree
    /// that goes on.
    pub warnings: Vec<Warning>,
}

impl Stored {
    /// A capture of which nothing but the store's part is known yet.
    fn of(digest: Digest256, manifest: ProcsBlob, bytes: u64) -> Stored {
        Stored {
            digest,
            manifest,
            bytes,
            roots: Vec::new(),
            frozen: None,
            pre_dumps: 0,
            warnings: Vec::new(),
        }
    }

    /// The note of a placeholder; `None` for a real capture. With a placeholder nothing was captured, so the processes must not
    /// be killed for it.
    pub fn placeholder(&self) -> Option<&str> {
        match &self.manifest {
            ProcsBlob::Unsupported { note, .. } => Some(note),
            _ => None,
        }
    }
}

impl ProcsCapture {
    /// A capture of these processes and their descendants. Takes `i32`, and `u32` as
    /// [`std::process::Child::id`] gives.
    pub fn new(pids: impl IntoIterator<Item = impl Into<Pid>>) -> ProcsCapture {
        let job = Job {
            pids: pids.into_iter().map(Into::into).collect(),
            options: DumpOptions::default(),
            leave_running: true,
            streams: [const { None }; 3],
            criu: None,
            staging: None,
            deadline: None,
            cancel: None,
            until: Until::forever(),
        };
        ProcsCapture { job, chunking: None, placeholder: false, placeholder_if_unusable: false }
    }

    /// Whether the trees go on after the capture. They do unless told otherwise.
    ///
    /// A tree that is to end is stored while it is frozen, and killed only when everything is in the store. Whoever
    /// started it has to reap it, and its descendants are reaped by their parents, or by init; until then its pids are
    /// taken, and it cannot be revived.
    #[must_use]
    pub fn leave_running(mut self, on: bool) -> ProcsCapture {
        self.job.leave_running = on;
        self
    }

    /// Options for criu, beside those that follow from the tree. These are set unless the caller has set them here:
    ///
    /// - `shell_job` for a root that leads no session;
    /// - `tcp_established`, and [`NetworkLock::Skip`](crate::options::NetworkLock), if there are TCP connections, and the
    ///   tree has both ends of each;
    /// - `file_locks` if there are file locks, and no process outside shares them;
    /// - `ghost_limit` of 256 MiB for each file that is open and deleted;
    /// - `link_remap`, of which nothing is left behind: a file that is open under a deleted name gets the name that it still
    ///   has, or its contents are stored.
    ///
    /// `external` for terminals outside, and for standard streams that are unix sockets to the outside, comes in addition
    /// to what is set here.
    /// [`DumpOptions::leave_running`] is overruled by [`leave_running`](ProcsCapture::leave_running).
    #[must_use]
    pub fn options(mut self, options: DumpOptions) -> ProcsCapture {
        self.job.options = options;
        self
    }

    /// Tells what the program was started with as its standard input, by criu's name for it. A
    /// restore gives it anew then, wherever the program has put it since; see
    /// [`stdout`](ProcsCapture::stdout).
    #[must_use]
    pub fn stdin(self, key: impl Into<String>) -> ProcsCapture {
        self.stream(0, key.into())
    }

    /// Tells what the program was started with as its standard output, by criu's name for it
    /// ([`Key`](crate::rpc::Key)): a pipe, or of a pair of sockets the program's end. A restore
    /// then gives that file, under whatever number and in whatever process it is, what
    /// [`ProcsRestore::stdout`](crate::ProcsRestore::stdout) names.
    ///
    /// Without a word, the descriptors 0, 1 and 2 of the root say what is a stream. If they are
    /// files, the root's other pipes to the outside count as the streams that it has saved
    /// elsewhere, in the order of their numbers: input for those that it reads, output and then
    /// error for those that it writes. A program that saved its streams in another order, or that
    /// has other pipes to the outside, comes back right only if the streams are told. Terminals
    /// need not be told.
    ///
    /// ```no_run
    /// # #[cfg(target_os = "linux")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::process::{Command, Stdio};
    /// use criu_rpc::{FsBlobStore, ProcsCapture, rpc::Key};
    ///
    /// let mut tests = Command::new("pytest").stdout(Stdio::piped()).spawn()?;
    /// let output = tests.stdout.take().expect("because it was asked for");
    /// let store = FsBlobStore::open("captures")?;
    /// ProcsCapture::new([tests.id()]).stdout(Key::of(&output)?).capture(&store)?;
    /// # Ok(())
    /// # }
    /// # #[cfg(not(target_os = "linux"))]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn stdout(self, key: impl Into<String>) -> ProcsCapture {
        self.stream(1, key.into())
    }

    /// Tells what the program was started with as its standard error, by criu's name for it; see
    /// [`stdout`](ProcsCapture::stdout).
    #[must_use]
    pub fn stderr(self, key: impl Into<String>) -> ProcsCapture {
        self.stream(2, key.into())
    }

    fn stream(mut self, number: usize, key: String) -> ProcsCapture {
        self.job.streams[number] = Some(key);
        self
    }

    /// The criu to use: a path, or a name to look for. Without it, `criu`.
    #[must_use]
    pub fn criu(mut self, program: impl Into<PathBuf>) -> ProcsCapture {
        self.job.criu = Some(program.into());
        self
    }

    /// The folder in which images are kept for a while, in a private folder of their own. It needs room for the memory
    /// of the trees. Without it, [`std::env::temp_dir`].
    #[must_use]
    pub fn staging(mut self, folder: impl Into<PathBuf>) -> ProcsCapture {
        self.job.staging = Some(folder.into());
        self
    }

    /// How long the capture may take, from the call on: criu's work (see [`Criu::deadline`](crate::Criu::deadline)), waiting
    /// for the locks of a store, and storing. Past it the trees go on, also those that were to end, and nothing is stored.
    ///
    /// A store that does not answer is not interrupted, so the call returns late then. No tree stands still for it past the
    /// deadline. What such a store has taken in when it answers may stay in it, and counts as not stored.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> ProcsCapture {
        self.job.deadline = Some(deadline);
        self
    }

    /// Stores memory in chunks instead of as one archive, so that a capture costs what has changed since the others that the
    /// store has. Equal memory is kept once, whatever process and capture it is of.
    ///
    /// Memory comes through a socket and is hashed on all processors, while the tree runs again. The manifest is
    /// a [`ProcsBlob::Chunked`], and a restore tells by itself. criu 3.15.
    ///
    /// A process that captures itself has nobody to take its memory in; its memory goes by the
    /// [staging](ProcsCapture::staging) folder, as that of other captures does.
    #[must_use]
    pub fn chunked(mut self, chunking: Chunking) -> ProcsCapture {
        self.chunking = Some(chunking);
        self
    }

    /// Lets this token stop the capture, as safely as the [`deadline`](ProcsCapture::deadline) does: the trees go on, and
    /// nothing is stored.
    ///
    /// ```no_run
    /// use criu_rpc::{Cancel, FsBlobStore, ProcsCapture};
    ///
    /// let cancel = Cancel::new()?;
    /// let remote = cancel.clone();
    /// std::thread::spawn(move || remote.cancel());
    /// ProcsCapture::new([4242]).cancelled_by(&cancel).capture(&FsBlobStore::open("captures")?)?;
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> ProcsCapture {
        self.job.cancel = Some(cancel.clone());
        self
    }

    /// Lets [`run`](ProcsCapture::run) store a placeholder where nothing can be captured: off Linux, and on Linux without criu.
    /// Without it `run` fails there. [`capture`](ProcsCapture::capture) always stores one.
    #[must_use]
    pub fn placeholder(mut self, on: bool) -> ProcsCapture {
        self.placeholder = on;
        self
    }

    /// Stores a placeholder also where criu is installed and cannot work: it lacks a privilege, or the kernel is too new for it,
    /// or the [`criu`](ProcsCapture::criu) that was named does not exist. It holds for [`run`](ProcsCapture::run) and
    /// [`capture`](ProcsCapture::capture). The note of the placeholder says what to do.
    ///
    /// criu must fail without a tree as well ([`Criu::check`](crate::Criu::check)), because a captured program can influence
    /// what criu says of it.
    #[must_use]
    pub fn placeholder_if_unusable(mut self, on: bool) -> ProcsCapture {
        self.placeholder_if_unusable = on;
        self
    }

    /// Looks for what this capture would meet, without touching a process: with the options that it adds by itself, such as for
    /// a terminal or a session from outside, and without what its restore does by itself, such as new standard streams. Useful
    /// before a capture with [`leave_running(false)`](ProcsCapture::leave_running), which ends what it captures. It takes
    /// milliseconds for a small tree. What changes between the look and the capture is not seen.
    ///
    /// Where nothing can be captured, because there is no criu or this is not Linux, that is what blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] for a pid that cannot be captured. [`Error::Criu`] if criu had to be asked what the kernel can do and
    /// could not tell.
    pub fn preflight(&self) -> Result<Foresight> {
        platform::foresee(&self.job)
    }

    /// Captures, and returns the digest of the manifest. It can be that of a placeholder: a caller that kills the tree next
    /// uses [`run`](ProcsCapture::run).
    ///
    /// Captures of one tree come one after the other: while one goes on, another fails.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] for a pid that cannot be captured, before anything is frozen; [`Error::Criu`] with
    /// [advice](Error::advice) if criu could not; [`Error::Unrevivable`] if the trees are to end and could never be revived;
    /// [`Error::TimedOut`] or [`Error::Overdue`] past the deadline, by what was at work then ([`Error::is_timeout`] is both);
    /// whatever the store says. The trees run on, and there is no manifest in the store.
    ///
    /// In the revived copy of a process that captured itself, [`Error::Revived`]. [`run_self`](ProcsCapture::run_self) gives both
    /// ends as values.
    pub fn capture(&self, store: &(impl BlobStore + ?Sized)) -> Result<Digest256> {
        self.checkpoint(store, true)?.stored().map(|stored| stored.digest)
    }

    /// Captures, and returns the details of the capture.
    ///
    /// # Errors
    ///
    /// Those of [`capture`](ProcsCapture::capture). Where nothing can be captured, [`Error::Unsupported`] off Linux and
    /// [`Error::NoCriu`] on Linux, unless [`placeholder(true)`](ProcsCapture::placeholder) is set.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{FsBlobStore, ProcsCapture};
    ///
    /// let stored = ProcsCapture::new([4242]).run(&FsBlobStore::open("captures")?)?;
    /// println!("{}: {} bytes, frozen for {:?}", stored.digest, stored.bytes, stored.frozen);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn run(&self, store: &(impl BlobStore + ?Sized)) -> Result<Stored> {
        self.run_self(store)?.stored()
    }

    /// Captures a tree that this process is in, and returns twice, like `fork`: [`SelfCapture::Stored`] in the process that goes
    /// on, [`SelfCapture::Revived`] in every copy that is revived from the capture. A process names itself by
    /// [`std::process::id`], or is a descendant of a pid that was named.
    ///
    /// # Errors
    ///
    /// Those of [`run`](ProcsCapture::run), except [`Error::Revived`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{FsBlobStore, ProcsCapture, SelfCapture};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// match ProcsCapture::new([std::process::id()]).run_self(&store)? {
    ///     SelfCapture::Stored(stored) => println!("I am {}", stored.digest),
    ///     SelfCapture::Revived => println!("I am back"),
    ///     _ => {}
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn run_self(&self, store: &(impl BlobStore + ?Sized)) -> Result<SelfCapture> {
        self.checkpoint(store, self.placeholder)
    }

    /// Captures. `placeholder` says whether one is stored where there is no criu.
    fn checkpoint(&self, store: &(impl BlobStore + ?Sized), placeholder: bool) -> Result<SelfCapture> {
        if self.job.pids.is_empty() {
            return Err(Error::Options { option: "pids", problem: "no process was named".to_owned() });
        }
        if self.manifest(Digest256::of(b"")).to_json().len() > ProcsBlob::CEILING {
            return Err(Error::Options { option: "pids", problem: "there are too many to note".to_owned() });
        }
        let store: &dyn BlobStore = &store;
        let job = Job { until: until(self.job.deadline, self.job.cancel.as_ref()), ..self.job.clone() };
        let outcome = match &self.chunking {
            None => {
                platform::checkpoint(&job, None, &mut |images| self.keep(images.trees, store, &job.until))
            }
            Some(chunking) => chunked::run(&job, chunking, store),
        };
        match outcome {
            Ok(Outcome::Kept(stored, facts)) => Ok(SelfCapture::Stored(Stored {
                roots: facts.roots,
                frozen: facts.frozen,
                pre_dumps: facts.pre_dumps,
                warnings: facts.warnings,
                ..stored
            })),
            Ok(Outcome::Revived) => Ok(SelfCapture::Revived),
            Err(error) => match unusable(&error) {
                Some(why) if self.takes_placeholder(&error, placeholder) => {
                    self.store_placeholder(why, store).map(SelfCapture::Stored)
                }
                _ => Err(error),
            },
        }
    }

    /// Returns true if the placeholder is stored for this error, which says that nothing can be captured here.
    fn takes_placeholder(&self, error: &Error, without_criu: bool) -> bool {
        match error {
            Error::Unsupported { .. } => without_criu || self.placeholder_if_unusable,
            Error::NoCriu { .. } => self.placeholder_if_unusable || (without_criu && self.job.criu.is_none()),
            // A captured program can influence what criu says of it, and not what criu says of this machine.
            _ => self.placeholder_if_unusable && platform::cannot_work(&self.job),
        }
    }

    /// Images to archive and manifest, both in the store.
    fn keep(&self, images: &Trees, store: &dyn BlobStore, until: &Until) -> Result<Stored> {
        until.check(|| "keep the images".to_owned())?;
        // An open batch keeps collections from the archive until there is a manifest, or tells at its commit that one came between.
        let batch = store.batch_until(until)?;
        let mut archive = pipeline::Hashing::new(store.writer()?, until);
        let bytes = pack(images, &mut archive)?;
        let criu_dump = archive.commit()?;
        until.check(|| "keep the manifest".to_owned())?;
        let stored = put(self.manifest(criu_dump), store)?;
        batch.commit()?;
        Ok(Stored { bytes: stored.bytes + bytes, ..stored })
    }

    fn manifest(&self, criu_dump: Digest256) -> ProcsBlob {
        ProcsBlob::Criu { criu_dump, pids: self.job.pids.iter().map(|pid| pid.as_raw()).collect() }
    }

    fn store_placeholder(&self, unusable: Unusable, store: &dyn BlobStore) -> Result<Stored> {
        let pids: Vec<_> = self.job.pids.iter().map(Pid::to_string).collect();
        let note = format!("{}; not captured: {}", unusable.why, pids.join(", "));
        put(ProcsBlob::Unsupported { unsupported_on: unusable.on.to_owned(), note }, store)
    }
}

impl SelfCapture {
    /// The capture, in the process that made it; [`Error::Revived`] in a copy.
    fn stored(self) -> Result<Stored> {
        match self {
            SelfCapture::Stored(stored) => Ok(stored),
            SelfCapture::Revived => Err(Error::Revived),
        }
    }
}

fn put(manifest: ProcsBlob, store: &dyn BlobStore) -> Result<Stored> {
    let json = manifest.to_json();
    let digest = Digest256::of(&json);
    let told = store.put(&json)?;
    if told != digest {
        return Err(Error::corrupt("the store's answer", format!("it calls {digest} {told}")));
    }
    Ok(Stored::of(digest, manifest, json.len() as u64))
}

/// The reason why nothing can be captured here.
struct Unusable {
    /// The name in the manifest: an operating system, or `linux-no-criu`.
    on: &'static str,
    /// The reason and the advice, in words.
    why: String,
}

/// The error as a reason for a placeholder, if it says that nothing can be captured here.
fn unusable(error: &Error) -> Option<Unusable> {
    let (on, what) = match (error, error.failure()) {
        (Error::NoCriu { .. }, _) => ("linux-no-criu", error.to_string()),
        (Error::Unsupported { .. }, _) => (std::env::consts::OS, error.to_string()),
        (_, Some(failure)) if matches!(failure.cause, Cause::TooOldForKernel | Cause::NotPrivileged) => {
            (std::env::consts::OS, failure.cause.to_string())
        }
        _ => return None,
    };
    Some(Unusable { on, why: format!("{what}; {}", error.advice()?) })
}
