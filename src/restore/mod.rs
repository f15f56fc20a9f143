//! [`ProcsRestore`]: a capture in a blob store back into a live process tree. Manifest, verify, unpack, revive, in
//! that order.

mod verify;

use std::{fmt, fs::File, path::PathBuf, time::Duration};

use crate::{
    BlobStore, Digest256, Error, ProcsBlob, RestoreOptions, Result, Tree,
    archive::{Limits, unpack},
    platform::{Reviver, Streams},
};

/// Revives what [`ProcsCapture`](crate::ProcsCapture) captured.
///
/// Every byte is verified before criu sees any of it; criu itself does not check.
///
/// A revived tree has the pids that it had, so none of them may be in use: the old tree must have ended, and been
/// reaped. Its files must be there as they were.
///
/// Its standard streams go where [`stdin`](ProcsRestore::stdin), [`stdout`](ProcsRestore::stdout) and
/// [`stderr`](ProcsRestore::stderr) say, whatever they were, save for pipes inside the tree. By default those that led
/// to a terminal, a pipe or a socket outside the tree, which are gone, lead to the caller's own; files are the same
/// files again.
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
    options: RestoreOptions,
    criu: Option<PathBuf>,
    staging: Option<PathBuf>,
    streams: Streams,
    limit: Option<u64>,
    deadline: Option<Duration>,
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
}

/// Something that is not as one would expect, but no failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The capture is a placeholder: no process was captured, because that was not supported where it was made.
    Unsupported {
        /// The operating system, or `linux-no-criu`.
        on: String,
        /// What was noted for people.
        note: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Unsupported { on, note } => {
                write!(f, "no process was captured, because that is not supported on {on}: {note}")
            }
        }
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
        self.options = options;
        self
    }

    /// The criu to use: a path, or a name to look for. Without it, `criu`.
    #[must_use]
    pub fn criu(mut self, program: impl Into<PathBuf>) -> ProcsRestore {
        self.criu = Some(program.into());
        self
    }

    /// The folder in which images are kept for a while, in a private folder of their own. Without it,
    /// [`std::env::temp_dir`].
    #[must_use]
    pub fn staging(mut self, folder: impl Into<PathBuf>) -> ProcsRestore {
        self.staging = Some(folder.into());
        self
    }

    /// What the tree gets as standard input. On Unix a `File` can be made of any `OwnedFd`.
    #[must_use]
    pub fn stdin(mut self, file: impl Into<File>) -> ProcsRestore {
        self.streams.chosen[0] = Some(file.into());
        self
    }

    /// What the tree gets as standard output.
    #[must_use]
    pub fn stdout(mut self, file: impl Into<File>) -> ProcsRestore {
        self.streams.chosen[1] = Some(file.into());
        self
    }

    /// What the tree gets as standard error.
    #[must_use]
    pub fn stderr(mut self, file: impl Into<File>) -> ProcsRestore {
        self.streams.chosen[2] = Some(file.into());
        self
    }

    /// Gives the tree the caller's own standard streams, whatever its were, except for those that
    /// [`stdin`](ProcsRestore::stdin), [`stdout`](ProcsRestore::stdout) and [`stderr`](ProcsRestore::stderr) name.
    #[must_use]
    pub fn inherit_streams(mut self) -> ProcsRestore {
        self.streams.inherited = true;
        self
    }

    /// How long criu may take for each tree; see [`Criu::deadline`](crate::Criu::deadline). Past it nothing of the
    /// capture is left running.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> ProcsRestore {
        self.deadline = Some(deadline);
        self
    }

    /// The most bytes that images may have. Without it, 1 TiB.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> ProcsRestore {
        self.limit = Some(bytes);
        self
    }

    /// Revives the capture of this digest.
    ///
    /// A placeholder is no failure: it comes back as a [`Warning`], with no tree.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] or [`Error::Corrupt`] if the store does not have what was stored; [`Error::UnknownKind`] for
    /// a capture that a later version made; [`Error::NoCriu`], [`Error::Unsupported`] where nothing can be revived;
    /// [`Error::Criu`] with [advice](Error::advice) if criu could not. Nothing is left running then.
    pub fn restore(&self, store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Restored> {
        let json = store.get(digest)?;
        if Digest256::of(&json) != *digest {
            return Err(Error::corrupt(format!("the manifest {digest}"), "it has another digest"));
        }
        match ProcsBlob::from_json(&json)? {
            ProcsBlob::Unsupported { unsupported_on: on, note } => {
                Ok(Restored { trees: Vec::new(), warnings: vec![Warning::Unsupported { on, note }] })
            }
            ProcsBlob::Criu { criu_dump, .. } => {
                let trees = self.revive(&store, &criu_dump)?;
                Ok(Restored { trees, warnings: Vec::new() })
            }
        }
    }

    fn revive(&self, store: &dyn BlobStore, archive: &Digest256) -> Result<Vec<Tree>> {
        let reviver = Reviver::new(self.criu.clone(), self.staging.clone(), self.deadline)?;
        let mut limits = Limits::default();
        if let Some(limit) = self.limit {
            limits.bytes = limit;
        }
        let trees = verify::verified(store.reader(archive)?, archive, |bytes| {
            unpack(bytes, reviver.folder(), &limits)
        })?;
        reviver.revive(&trees, &self.options, &self.streams)
    }
}
