//! [`ProcsCapture`]: stores a live process tree. Dump, archive, hash, store, manifest, in that
//! order.

mod chunked;
mod pipeline;

use std::time::Duration;

use serde::Serialize;

pub use self::chunked::{BufferPool, Chunking};
use crate::{
    BlobStore, Cause, Digest256, DumpOptions, Error, Foresight, Pid, ProcsBlob, Result, Until, Warning,
    archive::{Trees, pack},
    manifest::Additions,
    platform::{self, Job, Means, Outcome, means},
};

/// Captures live process trees into a store.
///
/// The tree keeps running, unless [`leave_running(false)`](ProcsCapture::leave_running) is set. A
/// capture that fails always leaves it running.
///
/// One pid is enough for a process and all its descendants: pids below another one of the list
/// belong to its tree. Pids of different trees are captured side by side.
///
/// Where nothing can be captured, off Linux and on Linux without criu,
/// [`capture`](ProcsCapture::capture) stores a placeholder and succeeds. Its restore gives a
/// warning. [`run`](ProcsCapture::run) fails there, unless
/// [`placeholder(true)`](ProcsCapture::placeholder) is set.
///
/// Files on disk are not part of a capture. A caller that goes back restores them as well.
///
/// A terminal's signals to this program (`^C`, `^\`, a lost connection) do not reach criu, so they
/// harm no tree. If this program is stopped during a capture (`^Z`, SIGSTOP), a frozen tree stays
/// frozen until it continues. An interactive program should handle SIGTSTP and stop after the
/// capture.
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
    additions: Additions,
    pool: BufferPool,
    placeholder: bool,
    placeholder_if_unusable: bool,
}

/// The two ends of [`ProcsCapture::run_self`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SelfCapture {
    /// The capture is stored. This is the process that made it.
    Stored(Stored),
    /// This is a revived copy of the process that captured itself.
    Revived,
}

/// A stored capture.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Stored {
    /// The digest of the manifest, for [`ProcsRestore`](crate::ProcsRestore).
    pub digest: Digest256,
    /// The manifest itself.
    pub manifest: ProcsBlob,
    /// The bytes that were stored: the archive and the manifest. For a
    /// [chunked](ProcsCapture::chunked) capture, those of blobs that the store did not have yet,
    /// before compression and encryption.
    pub bytes: u64,
    /// The roots of the captured trees; empty for a placeholder.
    pub roots: Vec<Pid>,
    /// The time that the tree was frozen for the dump, as criu measures it; with several trees, the
    /// longest.
    pub frozen: Option<Duration>,
    /// The number of [pre-dumps](Chunking::pre_dumps) before the dump; 0 where the kernel does not
    /// track changes of memory.
    pub pre_dumps: u32,
    /// Warnings for the caller's user: state that a restore will lack, and effects on a tree that
    /// goes on.
    pub warnings: Vec<Warning>,
}

impl Stored {
    /// Makes a result with no other facts, for tests of a program that captures. The fields can be
    /// set.
    ///
    /// ```
    /// use criu_rpc::{Digest256, ProcsBlob, Stored};
    ///
    /// let manifest = ProcsBlob::Unsupported { unsupported_on: "macos".into(), note: "a test".into() };
    /// let mut stored = Stored::new(Digest256::of(&manifest.to_json()), manifest);
    /// stored.bytes = 4711;
    /// assert_eq!(stored.placeholder(), Some("a test"));
    /// ```
    pub fn new(digest: Digest256, manifest: ProcsBlob) -> Stored {
        Stored {
            digest,
            manifest,
            bytes: 0,
            roots: Vec::new(),
            frozen: None,
            pre_dumps: 0,
            warnings: Vec::new(),
        }
    }

    /// Returns the note of a placeholder; `None` for a real capture. A placeholder holds no
    /// process, so the caller must not kill the tree for it.
    pub fn placeholder(&self) -> Option<&str> {
        match &self.manifest {
            ProcsBlob::Unsupported { note, .. } => Some(note),
            _ => None,
        }
    }
}

impl ProcsCapture {
    /// Prepares a capture of these processes and their descendants. Takes `i32`, and `u32` as
    /// [`std::process::Child::id`] returns.
    pub fn new(pids: impl IntoIterator<Item = impl Into<Pid>>) -> ProcsCapture {
        let job = Job {
            pids: pids.into_iter().map(Into::into).collect(),
            options: DumpOptions::default(),
            leave_running: true,
            streams: [const { None }; 3],
            means: Means::default(),
            until: Until::forever(),
        };
        ProcsCapture {
            job,
            chunking: None,
            additions: Additions::default(),
            pool: BufferPool::default(),
            placeholder: false,
            placeholder_if_unusable: false,
        }
    }

    /// Sets whether the trees go on after the capture. The default is true.
    ///
    /// With false, a tree is stored while it is frozen, and killed only when everything is stored.
    /// The parent of the root must reap it; init reaps the other processes. Until then their pids
    /// are taken, and the tree cannot be revived.
    #[must_use]
    pub fn leave_running(mut self, on: bool) -> ProcsCapture {
        self.job.leave_running = on;
        self
    }

    pub(crate) fn leaves_running(&self) -> bool {
        self.job.leave_running
    }

    /// Sets options for criu. The crate adds these where the tree needs them, unless the caller has
    /// set them:
    ///
    /// - `shell_job` for a root that leads no session;
    /// - `tcp_established`, and [`NetworkLock::Skip`](crate::options::NetworkLock), if there are
    ///   TCP connections, and the tree has both ends of each;
    /// - `file_locks` if there are file locks, and no process outside shares them;
    /// - `ghost_limit` of 256 MiB for each file that is open and deleted;
    /// - `link_remap`, and no link is left behind: a file that is open under a deleted name gets
    ///   its other name, or its contents are stored.
    ///
    /// It always adds `external` for terminals outside, and for standard streams that are unix
    /// sockets to the outside. [`leave_running`](ProcsCapture::leave_running) overrules
    /// [`DumpOptions::leave_running`].
    #[must_use]
    pub fn options(mut self, options: DumpOptions) -> ProcsCapture {
        self.job.options = options;
        self
    }

    /// Names the file that the program was started with as its standard input. A restore replaces
    /// it, even if the program has moved it to another descriptor; see
    /// [`stdout`](ProcsCapture::stdout).
    #[must_use]
    pub fn stdin(self, key: impl Into<String>) -> ProcsCapture {
        self.stream(0, key.into())
    }

    /// Names the file that the program was started with as its standard output: a pipe, or the
    /// program's end of a pair of sockets, by criu's name ([`Key`](crate::rpc::Key)). A restore
    /// replaces it by [`ProcsRestore::stdout`](crate::ProcsRestore::stdout), in each process and
    /// under each number that it has.
    ///
    /// By default, the descriptors 0, 1 and 2 of the root are the streams. If they are files, the
    /// root's other pipes to the outside count as saved streams, in the order of their numbers:
    /// pipes that it reads as input, pipes that it writes as output and then error. A program that
    /// saved its streams in another order, or that has other pipes to the outside, is restored
    /// correctly only if the streams are named. Terminals need no name.
    ///
    /// The capture and its preflight fail with [`Error::Options`] for a text that cannot be criu's
    /// name of a file, such as `pipe:12`.
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

    /// Names the file that the program was started with as its standard error; see
    /// [`stdout`](ProcsCapture::stdout).
    #[must_use]
    pub fn stderr(self, key: impl Into<String>) -> ProcsCapture {
        self.stream(2, key.into())
    }

    fn stream(mut self, number: usize, key: String) -> ProcsCapture {
        self.job.streams[number] = Some(key.trim_start_matches('/').to_owned());
        self
    }

    means! {
        job.means;
        staging: "It needs room for the memory of the trees, unless the capture is [chunked](ProcsCapture::chunked).",
        deadline: "Past the deadline all trees go on, also those that were to end, and no capture is stored. No \
                   tree stays frozen for the store past the deadline. Blobs that the store accepts later may stay \
                   in it, without a manifest.",
        cancel: "The trees go on, and no capture is stored.

```no_run
use criu_rpc::{Cancel, FsBlobStore, ProcsCapture};

let cancel = Cancel::new()?;
let remote = cancel.clone();
std::thread::spawn(move || remote.cancel());
ProcsCapture::new([4242]).cancelled_by(&cancel).run(&FsBlobStore::open(\"captures\")?)?;
# Ok::<(), criu_rpc::Error>(())
```",
    }

    /// Stores memory in chunks instead of one archive, so a capture costs only what changed since
    /// earlier ones in the store. Equal memory is stored once, across processes and captures.
    ///
    /// Memory comes through a socket, and is hashed on all processors while the tree runs again.
    /// The manifest is a [`ProcsBlob::Chunked`]; a restore needs no option for it. criu 3.15.
    ///
    /// The memory of a process that captures itself goes through the
    /// [staging](ProcsCapture::staging) folder, because the receiver would be frozen, too.
    #[must_use]
    pub fn chunked(mut self, chunking: Chunking) -> ProcsCapture {
        self.chunking = Some(chunking);
        self
    }

    /// Adds a label to the manifest of a [chunked](ProcsCapture::chunked) capture: a name, and any
    /// text. A label with the same name is replaced. The crate gives labels no meaning; a reader
    /// finds them in [`ChunkedBlob::labels`](crate::manifest::ChunkedBlob::labels).
    ///
    /// A name has 1 to 256 bytes. All names and texts together have at most 64 KiB.
    ///
    /// ```no_run
    /// use criu_rpc::{BlobStoreExt, Chunking, FsBlobStore, ProcsCapture};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// let capture = ProcsCapture::new([4242]).chunked(Chunking::default()).label("step", "17");
    /// let digest = capture.run(&store)?.digest;
    /// if let Some(blob) = store.manifest(&digest)?.chunked() {
    ///     assert_eq!(blob.labels["step"], "17");
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// The capture fails with [`Error::Options`] beyond these limits, and without `chunked`: the
    /// other manifests have no labels. A placeholder loses them.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, text: impl Into<String>) -> ProcsCapture {
        self.additions.labels.insert(name.into(), text.into());
        self
    }

    /// Attaches a blob to a [chunked](ProcsCapture::chunked) capture, under a name: something that
    /// belongs to it, such as a snapshot of its files. The blob is kept and copied with the capture
    /// ([`reachable`](crate::stored::reachable), [`copy_capture`](crate::stored::copy_capture)). A
    /// restore ignores it; a reader finds it in
    /// [`ChunkedBlob::attached`](crate::manifest::ChunkedBlob::attached).
    ///
    /// The blob can have any size and form. If it is a manifest, the blobs that it names are not
    /// kept with it: give its digest to `reachable`, too. It must be in the store before the
    /// capture, and no collection may remove it meanwhile. The limits are those of
    /// [`label`](ProcsCapture::label).
    ///
    /// The capture fails with [`Error::Missing`], before anything is frozen, if the store lacks the
    /// blob.
    #[must_use]
    pub fn attach(mut self, name: impl Into<String>, digest: Digest256) -> ProcsCapture {
        self.additions.attached.insert(name.into(), digest);
        self
    }

    /// Sets the memory that a [chunked](ProcsCapture::chunked) capture uses for its work. The
    /// default is a pool of up to 1 GiB, which this value and its clones share: captures of one
    /// tree at every step need no pool of their own.
    #[must_use]
    pub fn buffers(mut self, pool: &BufferPool) -> ProcsCapture {
        self.pool = pool.clone();
        self
    }

    /// Lets [`run`](ProcsCapture::run) store a placeholder where nothing can be captured: off
    /// Linux, and on Linux without criu. By default `run` fails there.
    /// [`capture`](ProcsCapture::capture) always stores one.
    #[must_use]
    pub fn placeholder(mut self, on: bool) -> ProcsCapture {
        self.placeholder = on;
        self
    }

    /// Stores a placeholder also where criu is installed but cannot work: it lacks a privilege, the
    /// kernel is too new for it, or the named [`criu`](ProcsCapture::criu) does not exist. Applies
    /// to [`run`](ProcsCapture::run) and [`capture`](ProcsCapture::capture). The note of the
    /// placeholder has advice.
    ///
    /// [`Criu::check`](crate::Criu::check), which involves no tree, must fail as well: a captured
    /// program can influence criu's messages about itself.
    #[must_use]
    pub fn placeholder_if_unusable(mut self, on: bool) -> ProcsCapture {
        self.placeholder_if_unusable = on;
        self
    }

    /// Finds problems that this capture would meet, without touching a process. Problems that the
    /// capture or its restore solves by itself are left out, such as a terminal from outside or new
    /// standard streams. Useful before a capture with
    /// [`leave_running(false)`](ProcsCapture::leave_running), which ends the tree. It takes
    /// milliseconds for a small tree. Later changes are not seen.
    ///
    /// The risks include what a revived tree will lack, as far as that shows while the tree runs.
    /// The capture [warns](crate::Warning::Lost) of it, too.
    ///
    /// Off Linux, and without criu, that is the finding.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] for a pid that cannot be captured. [`Error::Criu`] if criu was asked for
    /// the kernel's features and failed.
    pub fn preflight(&self) -> Result<Foresight> {
        platform::foresee(&self.job)
    }

    /// Captures, and returns the digest of the manifest. It can be that of a placeholder: a caller
    /// that kills the tree afterwards should use [`run`](ProcsCapture::run).
    ///
    /// Only one capture of a tree can run at a time: a second one fails.
    ///
    /// # Errors
    ///
    /// - [`Error::Process`] for a pid that cannot be captured, before anything is frozen
    /// - [`Error::Criu`], with [advice](Error::advice), if criu failed
    /// - [`Error::Unrevivable`] if the trees are to end and could never be revived
    /// - [`Error::TimedOut`] past the deadline in criu's work, [`Error::Overdue`] in the crate's
    ///   own work; [`Error::is_timeout`] covers both
    /// - errors of the store
    ///
    /// After an error the trees run on, and there is no manifest in the store.
    ///
    /// The revived copy of a process that captured itself gets [`Error::Revived`].
    /// [`run_self`](ProcsCapture::run_self) returns both cases as values.
    pub fn capture(&self, store: &(impl BlobStore + ?Sized)) -> Result<Digest256> {
        self.checkpoint(store, true)?.stored().map(|stored| stored.digest)
    }

    /// Captures, and returns details of the result.
    ///
    /// # Errors
    ///
    /// Those of [`capture`](ProcsCapture::capture). Where nothing can be captured,
    /// [`Error::Unsupported`] off Linux and [`Error::NoCriu`] on Linux, unless
    /// [`placeholder(true)`](ProcsCapture::placeholder) is set.
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

    /// Captures a tree that includes this process, and returns twice, like `fork`:
    /// [`SelfCapture::Stored`] in the original, [`SelfCapture::Revived`] in every revived copy. The
    /// pids are [`std::process::id`], or that of an ancestor.
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

    /// Captures. `placeholder` decides whether to store one if there is no criu.
    fn checkpoint(&self, store: &(impl BlobStore + ?Sized), placeholder: bool) -> Result<SelfCapture> {
        if self.job.pids.is_empty() {
            return Err(Error::Options { option: "pids", problem: "no process was named".to_owned() });
        }
        if self.manifest(Digest256::of(b"")).to_json().len() > ProcsBlob::CEILING {
            return Err(Error::Options {
                option: "pids",
                problem: "too many processes for a manifest".to_owned(),
            });
        }
        let store: &dyn BlobStore = &store;
        self.check_additions(store)?;
        let job = Job { until: self.job.means.until(), ..self.job.clone() };
        let outcome = match &self.chunking {
            None => {
                platform::checkpoint(&job, None, &mut |images| self.keep(images.trees, store, &job.until))
            }
            Some(chunking) => chunked::run(&job, chunking, &self.additions, &self.pool, store),
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

    /// Refuses labels and attached blobs that cannot be part of the capture.
    fn check_additions(&self, store: &dyn BlobStore) -> Result<()> {
        if self.chunking.is_none() && !self.additions.is_empty() {
            let option = if self.additions.labels.is_empty() { "attach" } else { "label" };
            let problem = "only the manifest of a chunked capture can contain it".to_owned();
            return Err(Error::Options { option, problem });
        }
        self.additions.check()?;
        for digest in self.additions.attached.values() {
            if !store.contains(digest)? {
                return Err(Error::Missing { digest: *digest });
            }
        }
        Ok(())
    }

    /// Returns true if the caller wants a placeholder for this error.
    fn takes_placeholder(&self, error: &Error, without_criu: bool) -> bool {
        match error {
            Error::Unsupported { .. } => without_criu || self.placeholder_if_unusable,
            Error::NoCriu { .. } => {
                self.placeholder_if_unusable || (without_criu && self.job.means.criu.is_none())
            }
            // A captured program can influence criu's messages about itself, but not criu's check.
            _ => self.placeholder_if_unusable && platform::cannot_work(&self.job),
        }
    }

    /// Stores the images as an archive, and the manifest.
    fn keep(&self, images: &Trees, store: &dyn BlobStore, until: &Until) -> Result<Stored> {
        until.check(|| "keep the images".to_owned())?;
        // The open batch protects the archive from collections until the manifest is stored. If a
        // collection ran all the same, the commit fails.
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
        ProcsBlob::Criu { criu_dump, pids: self.job.pids.clone() }
    }

    fn store_placeholder(&self, unusable: Unusable, store: &dyn BlobStore) -> Result<Stored> {
        let pids: Vec<_> = self.job.pids.iter().map(Pid::to_string).collect();
        let note = format!("{}; not captured: {}", unusable.why, pids.join(", "));
        put(ProcsBlob::Unsupported { unsupported_on: unusable.on.to_owned(), note }, store)
    }
}

impl SelfCapture {
    /// Returns the capture in the process that made it; [`Error::Revived`] in a copy.
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
        return Err(Error::corrupt(
            "the store's answer",
            format!("stored a blob with digest {digest} as {told}"),
        ));
    }
    Ok(Stored { bytes: json.len() as u64, ..Stored::new(digest, manifest) })
}

/// The reason for a placeholder.
struct Unusable {
    /// The name in the manifest: an operating system, or `linux-no-criu`.
    on: &'static str,
    /// The reason and the advice, in words.
    why: String,
}

/// Returns the reason for a placeholder, if the error shows that a capture is impossible here.
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
