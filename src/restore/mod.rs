//! [`ProcsRestore`]: a capture in a blob store back into a live process tree. Manifest, verify, unpack, revive, in
//! that order.

mod chunked;
mod host;
mod preflight;
mod verify;

use std::{fs::File, io::Read, path::PathBuf, time::Duration};

use crate::{
    BlobStore, Digest256, Error, ProcsBlob, RestoreOptions, RestoreTimes, Result, Tree, Unread, Until,
    Warning,
    archive::{Limits, Trees, unpack},
    platform::{self, Cancel, GrownFiles, Revival, Revived, Reviver, ToRevive, until},
    took::{Clock, Phase},
};

/// Revives what [`ProcsCapture`](crate::ProcsCapture) captured.
///
/// Every byte is verified before criu sees it; criu itself does not check. The memory of a
/// [chunked](crate::ProcsCapture::chunked) capture is fetched and verified while criu restores: where it is damaged, criu has
/// begun, and what it had made of the tree is ended.
///
/// A revived tree has the pids that it had, so none of them may be in use: the old tree must have ended, all of it, and
/// been reaped. [`kill_tree`](crate::kill_tree) ends a tree. Its files must be there as they were.
///
/// Its standard streams go where [`stdin`](ProcsRestore::stdin), [`stdout`](ProcsRestore::stdout) and
/// [`stderr`](ProcsRestore::stderr) say, whatever they were, save for pipes inside the tree. By default those that led
/// to a terminal, a pipe or a socket outside the tree, which are gone, lead to the caller's own; files are the same
/// files again. The streams of the root are meant: a descendant that shares one of them gets the same, under whatever number.
///
/// A standard input that had ended ends again, once what was left in it is read, whatever is given: only
/// [`inherit`](ProcsRestore::inherit) replaces it. What the tree had not read of an input that is replaced is in
/// [`Restored::unread`]. Output that the root saved elsewhere to make room for a file (`exec 3>&1 >log`) is its standard output still.
///
/// A tree from a terminal that is given a terminal gets all of it back: the session that the terminal controls, so that ^C and ^Z
/// arrive; its modes, such as raw or without echo; its size at the capture (set another afterwards, and the tree is told by
/// SIGWINCH); every open of it, by `/dev/tty` and by name too. A terminal that controls a session already, as the caller's own does,
/// stays that session's and keeps its size. Given a pipe or a file instead, the tree has no terminal any more, and what needs one fails. A terminal
/// that is none of the streams is one of them after the restore, if one is a terminal, else one that has hung up.
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

/// What was restored.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct Restored {
    /// The revived trees: one, unless several were captured together. None of a placeholder.
    pub trees: Vec<Tree>,
    /// What the caller should tell its user.
    pub warnings: Vec<Warning>,
    /// What the trees had not read of the input that was replaced. A caller who wants it read writes it to the new standard
    /// input before anything else.
    pub unread: Vec<Unread>,
    /// Where the time of the restore went.
    pub took: RestoreTimes,
}

impl Restored {
    /// The one tree of the capture, or the first of several; `None` for a placeholder. The others of several go on, as
    /// trees that are dropped do.
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

    fn of(revived: Revived) -> Restored {
        let Revived { trees, warnings, unread } = revived;
        Restored { trees, warnings, unread, took: RestoreTimes::default() }
    }
}

impl ProcsRestore {
    /// A restore by the criu in `PATH`.
    pub fn new() -> ProcsRestore {
        ProcsRestore::default()
    }

    /// Options for criu. Those that must be as they were at the dump follow from the images, unless they are set here:
    /// `shell_job`, `tcp_established`, `tcp_close` and `file_locks`. `rst_sibling` is always set.
    #[must_use]
    pub fn options(mut self, options: RestoreOptions) -> ProcsRestore {
        self.revival.options = options;
        self
    }

    /// The criu to use: a path, or a name to look for. Without it, `criu`.
    #[must_use]
    pub fn criu(mut self, program: impl Into<PathBuf>) -> ProcsRestore {
        self.revival.criu = Some(program.into());
        self
    }

    /// The folder in which images are kept for a while, in a private folder of their own. Without it,
    /// [`std::env::temp_dir`].
    ///
    /// The memory of a [chunked](crate::ProcsCapture::chunked) capture takes no room there: criu reads it from this process,
    /// which fetches it meanwhile. Only where there is no `/dev/fuse`, no privilege to mount (CAP_SYS_ADMIN), or no Linux 5.2,
    /// and for the options `auto_dedup` and `lazy_pages`, it is written there first.
    #[must_use]
    pub fn staging(mut self, folder: impl Into<PathBuf>) -> ProcsRestore {
        self.revival.staging = Some(folder.into());
        self
    }

    /// What the tree gets as standard input. On Unix a `File` can be made of any `OwnedFd`: of the end of a pipe
    /// ([`std::io::pipe`]), for instance, by way of `OwnedFd::from(end)`.
    #[must_use]
    pub fn stdin(mut self, file: impl Into<File>) -> ProcsRestore {
        self.revival.streams[0] = Some(file.into());
        self
    }

    /// What the tree gets as standard output.
    ///
    /// This value keeps the file open, so a pipe does not end while it lives: drop it before reading to the end. What the
    /// tree had written before the capture is in its old pipe, not here.
    #[must_use]
    pub fn stdout(mut self, file: impl Into<File>) -> ProcsRestore {
        self.revival.streams[1] = Some(file.into());
        self
    }

    /// What the tree gets as standard error.
    #[must_use]
    pub fn stderr(mut self, file: impl Into<File>) -> ProcsRestore {
        self.revival.streams[2] = Some(file.into());
        self
    }

    /// Gives the tree the caller's own standard streams, whatever its were, except for those that
    /// [`stdin`](ProcsRestore::stdin), [`stdout`](ProcsRestore::stdout) and [`stderr`](ProcsRestore::stderr) name.
    #[must_use]
    pub fn inherit_streams(mut self) -> ProcsRestore {
        self.revival.own_streams = true;
        self
    }

    /// Puts this file in the place of a resource of the tree's, by criu's name for it; see
    /// [`Lend::inherit`](crate::rpc::Lend::inherit). A path goes without its leading slash, which
    /// [`Key::Path`](crate::rpc::Key::Path) takes off.
    #[must_use]
    pub fn inherit(mut self, key: impl Into<String>, file: impl Into<File>) -> ProcsRestore {
        self.revival.inherit.push((key.into(), file.into()));
        self
    }

    /// How long to wait for the pids that the tree had, while they are held by zombies that somebody else is to reap:
    /// init takes its time in some containers. Without it, five seconds. Processes that live are not waited for. TCP
    /// connections of the tree that the kernel has not forgotten are waited for as long.
    #[must_use]
    pub fn wait_for_pids(mut self, patience: Duration) -> ProcsRestore {
        self.revival.patience = Some(patience);
        self
    }

    /// How long the restore may take, from the call on: reading and verifying the capture, and criu's work for all trees (see
    /// [`Criu::deadline`](crate::Criu::deadline)). Past it nothing of the capture is left running. A store that does not answer
    /// is not interrupted; then this returns when it has.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> ProcsRestore {
        self.revival.deadline = Some(deadline);
        self
    }

    /// Lets this token stop the restore, as the [`deadline`](ProcsRestore::deadline) does: nothing of the capture is left
    /// running.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> ProcsRestore {
        self.revival.cancel = Some(cancel.clone());
        self
    }

    /// The most bytes that images may have. Without it, 1 TiB.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> ProcsRestore {
        self.limit = Some(bytes);
        self
    }

    /// Whether to try even if this machine lacks instruction sets that the one had where the capture was made: programs
    /// that found and use them die. Only [chunked](crate::ProcsCapture::chunked) captures tell; without this they are refused
    /// before anything is revived.
    #[must_use]
    pub fn any_host(mut self, on: bool) -> ProcsRestore {
        self.any_host = on;
        self
    }

    /// What becomes of files that have another size than at the capture, such as a log that grew. Without it,
    /// [`GrownFiles::Continue`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// use criu_rpc::{GrownFiles, ProcsRestore};
    ///
    /// // The files are to be as they were, too.
    /// let restored = ProcsRestore::new().grown_files(GrownFiles::CutBack).restore(&store, &digest)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn grown_files(mut self, choice: GrownFiles) -> ProcsRestore {
        self.revival.grown_files = choice;
        self
    }

    /// Accepts files that were replaced since the capture. Without it, a restore is refused with
    /// [`Cause::FileReplaced`](crate::Cause::FileReplaced) if a path of the tree leads through a link now, or if a file
    /// belongs to another user or group than at the capture: a restore opens files as root, so a tree that may not read a
    /// file could get it that way.
    ///
    /// Paths inside a mount namespace of the tree's own are not compared. Owners are known of captures by this version or
    /// a later one.
    #[must_use]
    pub fn replaced_files(mut self, on: bool) -> ProcsRestore {
        self.revival.replaced_files = on;
        self
    }

    /// Revives the capture of this digest.
    ///
    /// A placeholder is no failure: it comes back as a [`Warning`], with no tree.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] or [`Error::Corrupt`] if the store does not have what was stored; [`Error::UnknownKind`] for
    /// a capture that a later version made; [`Error::NoCriu`], [`Error::Unsupported`] where nothing can be revived; [`Error::Host`] where this capture
    /// cannot;
    /// [`Error::Criu`] with [advice](Error::advice) if criu could not. Nothing is left running then.
    pub fn restore(&self, store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Restored> {
        let clock = Clock::start();
        let until = until(self.revival.deadline, self.revival.cancel.as_ref());
        let json = manifest(&store, digest, &until)?;
        let marked = store.is_marked(digest)?;
        let mut restored = self.restore_manifest(store, &json, &until, &clock)?;
        if marked {
            restored.warnings.push(Warning::Marked { capture: *digest });
        }
        clock.lap(Phase::Finish);
        restored.took = clock.times();
        Ok(restored)
    }

    fn restore_manifest(
        &self,
        store: &(impl BlobStore + ?Sized),
        json: &[u8],
        until: &Until,
        clock: &Clock,
    ) -> Result<Restored> {
        let reviver = || Reviver::new(&self.revival, until, clock);
        match ProcsBlob::from_json(json)? {
            ProcsBlob::Unsupported { unsupported_on: on, note } => {
                let warnings = vec![Warning::Unsupported { on, note }];
                clock.lap(Phase::Read);
                Ok(Restored::of(Revived { warnings, ..Revived::default() }))
            }
            ProcsBlob::Chunked(blob) => {
                let reviver = reviver()?;
                let mut here = platform::host();
                if !self.any_host {
                    host::check(&blob.host, &here)?;
                }
                let laid_out = chunked::lay_out(&store, &blob, reviver.folder(), self.limits().bytes, until)?;
                let trees: Vec<_> = laid_out.iter().map(chunked::LaidOut::to_revive).collect();
                clock.lap(Phase::Read);
                let mut revived = reviver.revive(&trees)?;
                here.criu = reviver.criu();
                revived.warnings.extend(host::warnings(&blob.host, &here));
                Ok(Restored::of(revived))
            }
            ProcsBlob::Criu { criu_dump, .. } => {
                let reviver = reviver()?;
                let folders = self.unpack(&store, &criu_dump, until, |bytes| {
                    unpack(bytes, reviver.folder(), &self.limits())
                })?;
                let trees: Vec<_> = folders.iter().map(|folder| ToRevive { folder, pages: None }).collect();
                clock.lap(Phase::Read);
                reviver.revive(&trees).map(Restored::of)
            }
        }
    }

    fn limits(&self) -> Limits {
        let limits = Limits::default();
        Limits { bytes: self.limit.unwrap_or(limits.bytes), ..limits }
    }

    /// Reads an archive through, unpacks it, and gives the folder of each tree.
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

/// The bytes of a manifest, verified, and not more than a manifest can have.
fn manifest(store: &dyn BlobStore, digest: &Digest256, until: &Until) -> Result<Vec<u8>> {
    let ceiling = ProcsBlob::CEILING as u64;
    verify::verified(store.reader(digest)?, digest, ceiling, until, |mut stream| {
        let mut json = Vec::new();
        stream.read_to_end(&mut json).map_err(Error::io(format!("read the manifest {digest}")))?;
        Ok(json)
    })
}
