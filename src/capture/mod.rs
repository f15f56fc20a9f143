//! [`ProcsCapture`]: a live process tree into a blob store. Dump, archive, hash, store, manifest, in that order.

mod chunked;
mod pipeline;

use std::{path::PathBuf, time::Duration};

pub use self::chunked::Chunking;
use crate::{
    BlobStore, Cause, Digest256, DumpOptions, Error, Foresight, Pid, ProcsBlob, Result, Until, Warning,
    archive::{Trees, pack},
    platform::{self, Cancel, Job, Outcome, Unsupported, until},
};

/// Captures live process trees into a store.
///
/// The tree is left running unless [`leave_running(false)`](ProcsCapture::leave_running) says otherwise, and a capture
/// that fails leaves it running always.
///
/// Of several pids, those that are in one tree are captured as that tree, from the highest of them; so a process and
/// its descendants need one pid only. Pids of different trees are captured side by side.
///
/// Where there is no criu (off Linux, or on Linux without the binary) the capture succeeds all the same, and stores a
/// placeholder that says so ([`Stored::placeholder`]); a restore gives it back as a warning.
///
/// Files on disk are no part of a capture: whoever goes back with a tree that writes files sees to those.
///
/// A terminal's signals to this program (`^C`, `^\`, a lost connection) do not reach criu, and so harm no tree. While this
/// program itself is stopped (`^Z`, SIGSTOP), a tree that is frozen then stays frozen: criu waits for this program. A program
/// that a person can stop handles SIGTSTP, and stops itself once the capture is done.
///
/// ```no_run
/// use criu_rpc::{Capture, FsBlobStore, ProcsCapture, ProcsRestore};
///
/// let mut child = std::process::Command::new("my-agent-tool").spawn()?;
/// let store = FsBlobStore::open("captures")?;
/// let Capture::Stored(stored) = ProcsCapture::new([child.id()]).run(&store)? else { unreachable!("it is not us") };
/// // … and later, to go back, if there is something to go back to: end the tree, all of it, and reap it.
/// if stored.placeholder().is_none() {
///     criu_rpc::kill_tree(child.id())?;
///     child.wait()?;
///     let restored = ProcsRestore::new().restore(&store, &stored.digest)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ProcsCapture {
    job: Job,
    chunking: Option<Chunking>,
    placeholder: bool,
}

/// What [`ProcsCapture::run`] came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Capture {
    /// The capture is in the store.
    Stored(Stored),
    /// This is the revived copy of the process that captured itself: what was stored is what this process was.
    Revived,
}

/// A capture that is in the store.
#[derive(Debug, Clone)]
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

    /// What a person should know of it if this is a placeholder: nothing was captured, because there is no criu here, so the
    /// processes must not be ended for it.
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
        ProcsCapture { job, chunking: None, placeholder: false }
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

    /// Whether to store the placeholder when criu is there but cannot work here, too, instead of failing: because of
    /// a privilege it lacks, or a kernel that is too new for it. Also when the [`criu`](ProcsCapture::criu) that was
    /// named is not there. The placeholder's note says what to do. criu has to say so when it is asked without a tree, too
    /// ([`Criu::check`](crate::Criu::check)): a captured program has a say in what criu says of it.
    #[must_use]
    pub fn placeholder_if_unusable(mut self, on: bool) -> ProcsCapture {
        self.placeholder = on;
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

    /// Captures, and gives the digest of the manifest, be it that of a placeholder: where that matters, because the tree is to be
    /// killed next, [`run`](ProcsCapture::run) tells it ([`Stored::placeholder`]).
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
    /// In the revived copy of a process that captured itself, [`Error::Revived`]: there is no digest to give. Such
    /// programs are better off with [`run`](ProcsCapture::run), which gives both as values.
    pub fn capture(&self, store: &(impl BlobStore + ?Sized)) -> Result<Digest256> {
        match self.run(store)? {
            Capture::Stored(stored) => Ok(stored.digest),
            Capture::Revived => Err(Error::Revived),
        }
    }

    /// Captures, and tells what there is to tell.
    ///
    /// A process may capture itself, by [`std::process::id`] or as a descendant of a pid. This returns twice then,
    /// like `fork`: as [`Capture::Stored`] in the process that goes on, and as [`Capture::Revived`] in every copy that
    /// is revived from the capture.
    ///
    /// # Errors
    ///
    /// As [`capture`](ProcsCapture::capture), save for [`Error::Revived`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{Capture, FsBlobStore, ProcsCapture};
    ///
    /// let store = FsBlobStore::open("captures")?;
    /// match ProcsCapture::new([std::process::id()]).run(&store)? {
    ///     Capture::Stored(stored) => println!("I am {}", stored.digest),
    ///     Capture::Revived => println!("I am back"),
    ///     _ => {}
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn run(&self, store: &(impl BlobStore + ?Sized)) -> Result<Capture> {
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
            Ok(Outcome::Kept(stored, facts)) => Ok(Capture::Stored(Stored {
                roots: facts.roots,
                frozen: facts.frozen,
                pre_dumps: facts.pre_dumps,
                warnings: facts.warnings,
                ..stored
            })),
            Ok(Outcome::Revived) => Ok(Capture::Revived),
            Ok(Outcome::Unsupported(unsupported)) => self.hold_place(&unsupported, store),
            Err(error) => match unusable(&error) {
                // A captured program has a say in what criu says of it, and none in what it says of this machine.
                Some(unsupported) if self.placeholder && platform::cannot_work(&self.job) => {
                    self.hold_place(&unsupported, store)
                }
                _ => Err(error),
            },
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

    fn hold_place(&self, unsupported: &Unsupported, store: &dyn BlobStore) -> Result<Capture> {
        let pids: Vec<_> = self.job.pids.iter().map(Pid::to_string).collect();
        let note = format!("{}; not captured: {}", unsupported.why, pids.join(", "));
        put(ProcsBlob::Unsupported { unsupported_on: unsupported.on.to_owned(), note }, store)
            .map(Capture::Stored)
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

/// The error as a reason for a placeholder, if it says that criu cannot work here at all.
fn unusable(error: &Error) -> Option<Unsupported> {
    let (on, what) = match (error, error.failure()) {
        (Error::NoCriu { .. }, _) => ("linux-no-criu", error.to_string()),
        (_, Some(failure)) if matches!(failure.cause, Cause::TooOldForKernel | Cause::NotPrivileged) => {
            (std::env::consts::OS, failure.cause.to_string())
        }
        _ => return None,
    };
    Some(Unsupported { on, why: format!("{what}; {}", error.advice()?) })
}
