//! [`ProcsRestore`]: revives a stored capture. Manifest, verify, unpack, revive, in that order.

mod chunked;
mod host;
mod many;
mod preflight;
mod verify;

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read},
    path::PathBuf,
    time::Duration,
};

use serde::{Serialize, Serializer};

use self::many::many;
use crate::{
    BlobStore, Digest256, Error, Isolation, ProcsBlob, RestoreOptions, RestoreTimes, Result, Stream, Tree,
    Unread, Until, Warning,
    archive::{Limits, Trees, unpack},
    manifest::parse,
    platform::{self, GrownFiles, Revival, Revived, Reviver, ToRevive, means},
    stream::{self, Ends},
    took::{Clock, Phase},
};

/// Revives what [`ProcsCapture`](crate::ProcsCapture) captured.
///
/// Every byte is verified before criu reads it; criu itself does not check. The memory of a
/// [chunked](crate::ProcsCapture::chunked) capture is verified while criu restores. If that fails,
/// the half-restored tree is killed.
///
/// A revived tree gets the pids that it had, so they must be free: the whole old tree must have
/// ended and been reaped. [`kill_tree`](crate::kill_tree) ends a tree. Its files must be there as
/// they were.
///
/// # Standard streams
///
/// [`stdin`](ProcsRestore::stdin), [`stdout`](ProcsRestore::stdout) and
/// [`stderr`](ProcsRestore::stderr) replace the standard streams of the root, unless they are pipes
/// inside the tree. A descendant that shares one of them gets the same file, under whatever number.
/// By default, streams that led to a terminal, a pipe or a socket outside the tree become the
/// caller's own, and files are opened again.
///
/// A standard input that had ended ends again once its rest is read; only
/// [`inherit`](ProcsRestore::inherit) replaces it. [`Restored::unread`] has the unread bytes of a
/// replaced input. Output that the root saved to make room for a file (`exec 3>&1 >log`) is still
/// its standard output.
///
/// # Terminals
///
/// A tree from a terminal that is given another terminal gets back:
///
/// - the session that the terminal controls, so ^C and ^Z arrive
/// - its modes, such as raw or without echo
/// - its size at the capture; if the caller sets another one, the tree gets SIGWINCH
/// - every open of it, also by name and by `/dev/tty`
///
/// A terminal that controls another session already, such as the caller's own, stays with that
/// session and keeps its size. With a pipe or a file instead, the tree has no terminal, and
/// operations that need one fail. A terminal that was not a standard stream becomes one of the
/// streams' terminals, or, if no stream is a terminal, one that has hung up.
///
/// ```no_run
/// use std::fs::File;
/// use criu_rpc::{Digest256, FsBlobStore, ProcsRestore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let digest: Digest256 = "".parse()?;
/// let store = FsBlobStore::open("captures")?;
/// let mut restored = ProcsRestore::new().stdout(File::create("output")?).restore(&store, &digest)?;
/// for warning in &restored.warnings {
///     eprintln!("warning: {warning}");
/// }
/// for tree in &mut restored.trees {
///     println!("process {} ended with {}", tree.pid(), tree.wait()?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct ProcsRestore {
    revival: Revival,
    limit: Option<u64>,
    any_host: bool,
    check_memory: bool,
}

/// The result of a restore. Its JSON has the pids of the trees, and not the pipes.
///
/// The default has no trees; it is for tests of a program that restores. The fields can be set.
#[derive(Debug, Default, Serialize)]
#[must_use]
#[non_exhaustive]
pub struct Restored {
    /// The revived trees: one, unless several were captured together; empty for a placeholder.
    #[serde(serialize_with = "as_pids")]
    pub trees: Vec<Tree>,
    /// Warnings for the caller's user.
    pub warnings: Vec<Warning>,
    /// Input that was replaced before the trees had read it. The caller can write it to the new
    /// standard input, before anything else.
    pub unread: Vec<Unread>,
    /// The other end of a standard input that was [piped](Stream::Piped). Several trees share it.
    #[serde(skip)]
    pub stdin: Option<PipeWriter>,
    /// The other end of a standard output that was [piped](Stream::Piped).
    #[serde(skip)]
    pub stdout: Option<PipeReader>,
    /// The other end of a standard error that was [piped](Stream::Piped).
    #[serde(skip)]
    pub stderr: Option<PipeReader>,
    /// The time of the restore, by phase.
    pub took: RestoreTimes,
}

fn as_pids<S: Serializer>(trees: &[Tree], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(trees.iter().map(Tree::pid))
}

impl Restored {
    /// Returns the tree, or the first of several; `None` for a placeholder. The others are dropped,
    /// and keep running. So are pipes: take those first.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// let restored = criu_rpc::ProcsRestore::new().restore(&store, &digest)?;
    /// let mut tree = restored.into_tree().ok_or("nothing was captured")?;
    /// println!("{}", tree.wait()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_tree(self) -> Option<Tree> {
        self.trees.into_iter().next()
    }

    fn of(revived: Revived, ends: Ends) -> Restored {
        let (Revived { trees, warnings, unread }, Ends { stdin, stdout, stderr }) = (revived, ends);
        Restored { trees, warnings, unread, stdin, stdout, stderr, ..Restored::default() }
    }
}

impl ProcsRestore {
    /// Prepares a restore by the criu in `PATH`.
    pub fn new() -> ProcsRestore {
        ProcsRestore::default()
    }

    /// Sets options for criu. `shell_job`, `tcp_established`, `tcp_close` and `file_locks` must be
    /// as at the dump, and follow from the images unless they are set here. `rst_sibling` is always
    /// set.
    #[must_use]
    pub fn options(mut self, options: RestoreOptions) -> ProcsRestore {
        self.revival.options = options;
        self
    }

    means! {
        revival.means;
        staging: "The memory of a [chunked](crate::ProcsCapture::chunked) capture takes no room there: criu reads it \
                  from this process, which fetches it meanwhile. That needs `/dev/fuse`, CAP_SYS_ADMIN and Linux \
                  5.2. Without them, and with the options `auto_dedup` and `lazy_pages`, memory is written to the \
                  folder.",
        deadline: "Past the deadline nothing of the capture is left running.",
        cancel: "Nothing of the capture is left running.",
    }

    /// Sets the standard input of the tree: a [`Stream`], or a file, the end of a pipe or a socket.
    #[must_use]
    pub fn stdin(mut self, stream: impl Into<Stream>) -> ProcsRestore {
        self.revival.streams[0] = Some(stream.into());
        self
    }

    /// Sets the standard output of the tree.
    ///
    /// This value keeps a file that it was given open, so a pipe does not end while this value
    /// lives: drop it before reading to the end, or use [`Stream::Piped`]. Output from before the
    /// capture is in the old pipe, not here.
    #[must_use]
    pub fn stdout(mut self, stream: impl Into<Stream>) -> ProcsRestore {
        self.revival.streams[1] = Some(stream.into());
        self
    }

    /// Sets the standard error of the tree.
    #[must_use]
    pub fn stderr(mut self, stream: impl Into<Stream>) -> ProcsRestore {
        self.revival.streams[2] = Some(stream.into());
        self
    }

    /// Replaces a resource of the tree by this file. The key is criu's name of the resource; see
    /// [`Lend::inherit`](crate::rpc::Lend::inherit). criu's names of paths have no leading slash,
    /// so one is removed. The restore fails with [`Error::Options`] for a text that cannot be such
    /// a name, such as `pipe:12`; a name that fits nothing in the capture has no effect.
    #[must_use]
    pub fn inherit(mut self, key: impl Into<String>, file: impl Into<File>) -> ProcsRestore {
        self.revival.inherit.push((key.into().trim_start_matches('/').to_owned(), file.into()));
        self
    }

    /// Revives the tree as a copy, in namespaces of its own: beside the original, and beside any
    /// number of other copies of the same capture.
    ///
    /// [`Tree::pid`] is the pid of its root in this program's namespace. Inside, its processes have
    /// the pids of the capture. [`Tree::kill`] ends all processes of a copy, also those that are no
    /// descendants of its root any more. A copy ends when this program ends, unless it is
    /// [detached](Tree::detach), or when its last process does.
    ///
    /// A restore into a copy needs CAP_SYS_ADMIN, and x86-64 or aarch64. A copy can be captured and
    /// revived as copies again. A program that has copies cannot be captured. See [`Isolation`] for
    /// what copies share.
    ///
    /// # Errors
    ///
    /// The restore fails with [`Error::Options`] for a capture of several trees, or of a tree in a
    /// pid namespace of its own, or if the crate was built without the init of copies; with
    /// [`Error::Io`] if the kernel or a container refuses the namespaces.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// use criu_rpc::{Isolation, ProcsRestore, Stream};
    ///
    /// let restore = || ProcsRestore::new().isolated(Isolation::new()).stdout(Stream::Piped);
    /// let (one, other) = (restore().restore(&store, &digest)?, restore().restore(&store, &digest)?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn isolated(mut self, isolation: Isolation) -> ProcsRestore {
        self.revival.isolation = Some(isolation);
        self
    }

    pub(crate) fn makes_copies(&self) -> bool {
        self.revival.isolation.is_some()
    }

    /// Limits the wait for pids of the tree that zombies still hold: init reaps slowly in some
    /// containers. The default is five seconds. The restore does not wait for processes that live.
    /// The same limit applies to the tree's old TCP connections, until the kernel has forgotten
    /// them; without one, the restore waits 65 seconds for the ports of such connections.
    #[must_use]
    pub fn wait_for_pids(mut self, patience: Duration) -> ProcsRestore {
        self.revival.patience = Some(patience);
        self
    }

    /// Limits the bytes of images. The default is 1 TiB.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> ProcsRestore {
        self.limit = Some(bytes);
        self
    }

    /// Allows a restore on a machine that lacks instruction sets of the capturing machine. Programs
    /// that use them die. By default such a restore fails before anything is revived. Only
    /// [chunked](crate::ProcsCapture::chunked) captures record the instruction sets.
    #[must_use]
    pub fn any_host(mut self, on: bool) -> ProcsRestore {
        self.any_host = on;
        self
    }

    /// Sets the choice for files whose size differs from that at the capture, such as a log that
    /// grew. The default is [`GrownFiles::Continue`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// use criu_rpc::{GrownFiles, ProcsRestore};
    ///
    /// // Cut the files back to their old size, too.
    /// let restored = ProcsRestore::new().grown_files(GrownFiles::CutBack).restore(&store, &digest)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn grown_files(mut self, choice: GrownFiles) -> ProcsRestore {
        self.revival.grown_files = choice;
        self
    }

    /// Accepts files that were replaced since the capture. By default, a restore fails with
    /// [`Cause::FileReplaced`](crate::Cause::FileReplaced) if a path of the tree leads through a
    /// new link, or if a file belongs to another user or group now: criu opens files as root, so
    /// the tree could get a file that it may not read. It also fails if another program has taken
    /// over a unix socket of the tree, which criu would take away from it.
    ///
    /// Paths inside a mount namespace of the tree's own are not compared.
    #[must_use]
    pub fn replaced_files(mut self, on: bool) -> ProcsRestore {
        self.revival.replaced_files = on;
        self
    }

    /// Revives the capture with this digest.
    ///
    /// A placeholder is not a failure: the result is a [`Warning`] and no tree.
    ///
    /// # Errors
    ///
    /// - [`Error::Missing`] or [`Error::Corrupt`] if the store lost or changed a blob
    /// - [`Error::UnknownKind`] for a capture by a later version
    /// - [`Error::NoCriu`] or [`Error::Unsupported`] where nothing can be revived
    /// - [`Error::Host`] if this machine cannot revive this capture
    /// - [`Error::Criu`], with [advice](Error::advice), if criu failed
    ///
    /// After an error nothing is left running.
    pub fn restore(&self, store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Restored> {
        let clock = Clock::start();
        let until = self.revival.means.until();
        let json = manifest(&store, digest, &until)?;
        let marked = store.is_marked(digest)?;
        let mut restored = self.restore_manifest(store, digest, &json, &until, &clock)?;
        if marked {
            restored.warnings.push(Warning::Marked { capture: *digest });
        }
        clock.lap(Phase::Finish);
        restored.took = clock.times();
        Ok(restored)
    }

    /// Revives `count` copies of the capture, as many at a time as there are processors. Each
    /// result is that of [`restore`](ProcsRestore::restore). A copy that fails does not affect the
    /// others.
    ///
    /// A file that was given as a stream is shared by all copies; [`Stream::Piped`] gives each its
    /// own pipes. Trees with locks, with sockets that have a path, or with deleted files that are
    /// open are revived one after the other.
    ///
    /// # Errors
    ///
    /// Every result is [`Error::Options`] unless [`isolated`](ProcsRestore::isolated) is set.
    /// Several trees cannot have the same pids.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// use criu_rpc::{Isolation, ProcsRestore, Stream};
    ///
    /// let restore = ProcsRestore::new().isolated(Isolation::new()).stdout(Stream::Piped);
    /// for copy in restore.restore_many(&store, &digest, 8) {
    ///     println!("process {}", copy?.trees[0].pid());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn restore_many(
        &self,
        store: &(impl BlobStore + ?Sized),
        digest: &Digest256,
        count: usize,
    ) -> Vec<Result<Restored>> {
        if self.revival.isolation.is_none() {
            let problem = || "several trees cannot have the same pids: set `isolated`".to_owned();
            let refused = || Err(Error::Options { option: "restore_many", problem: problem() });
            return (0..count).map(|_| refused()).collect();
        }
        many(count, || self.restore(store, digest))
    }

    fn restore_manifest(
        &self,
        store: &(impl BlobStore + ?Sized),
        digest: &Digest256,
        json: &[u8],
        until: &Until,
        clock: &Clock,
    ) -> Result<Restored> {
        let (chosen, ends) = stream::open(&self.revival.streams)?;
        let reviver = || Reviver::new(&self.revival, &chosen, until, clock);
        match parse(digest, json)? {
            ProcsBlob::Unsupported { unsupported_on: on, note } => {
                let warnings = vec![Warning::Unsupported { on, note }];
                clock.lap(Phase::Read);
                Ok(Restored::of(Revived { warnings, ..Revived::default() }, Ends::default()))
            }
            ProcsBlob::Chunked(blob) => {
                let reviver = reviver()?;
                let mut here = platform::host();
                if !self.any_host {
                    host::check(&blob.host, &here)?;
                }
                let staged =
                    chunked::write_images(&store, &blob, reviver.folder(), self.limits().bytes, until)?;
                let trees: Vec<_> = staged.iter().map(chunked::StagedTree::to_revive).collect();
                clock.lap(Phase::Read);
                let mut revived = reviver.revive(&trees)?;
                here.criu = reviver.criu();
                revived.warnings.extend(host::warnings(&blob.host, &here));
                Ok(Restored::of(revived, ends))
            }
            ProcsBlob::Criu { criu_dump, .. } => {
                let reviver = reviver()?;
                let folders = self.unpack(&store, &criu_dump, until, |bytes| {
                    unpack(bytes, reviver.folder(), &self.limits())
                })?;
                let trees: Vec<_> = folders.iter().map(|folder| ToRevive { folder, pages: None }).collect();
                clock.lap(Phase::Read);
                reviver.revive(&trees).map(|revived| Restored::of(revived, ends))
            }
        }
    }

    fn limits(&self) -> Limits {
        let limits = Limits::default();
        Limits { bytes: self.limit.unwrap_or(limits.bytes), ..limits }
    }

    /// Reads and unpacks an archive, and returns the folder of each tree.
    fn unpack(
        &self,
        store: &dyn BlobStore,
        archive: &Digest256,
        until: &Until,
        unpack: impl FnOnce(verify::Stream) -> Result<Trees>,
    ) -> Result<Vec<PathBuf>> {
        let limit = self.limits().archive();
        Ok(match verify::verified(store.reader(archive)?, archive, limit, until, unpack)? {
            Trees::One(folder) => vec![folder],
            Trees::Several(folders) => folders.into_values().collect(),
        })
    }
}

/// Reads and verifies a manifest, within its size limit.
fn manifest(store: &dyn BlobStore, digest: &Digest256, until: &Until) -> Result<Vec<u8>> {
    let ceiling = ProcsBlob::CEILING as u64;
    verify::verified(store.reader(digest)?, digest, ceiling, until, |mut stream| {
        let mut json = Vec::new();
        stream.read_to_end(&mut json).map_err(Error::io(format!("read the manifest {digest}")))?;
        Ok(json)
    })
}
