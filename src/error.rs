//! [`Error`]: the errors of this crate, sorted by who can act. [`Failure`]: details of a failed
//! request to criu.

mod advice;
mod cause;
mod display;
mod failure;
mod process;

use std::{fmt, io, path::PathBuf};

pub use self::{
    cause::Cause,
    failure::{Failure, Target},
    process::ProcessProblem,
};
use crate::{Digest256, Pid, Request, Version, diagnose};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from the caller's code: a store, a hook.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The error of every fallible call of this crate.
///
/// Each layer reports its own part; the rest is in [`source`](std::error::Error::source). An
/// [`Error::Criu`] carries a [`Failure`], which has a [`Cause`] to match on and advice to follow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// criu tried the request and failed.
    Criu(#[source] Box<Failure>),

    /// criu ended before it answered.
    Gone(#[source] Box<Failure>),

    /// No usable criu binary was found in `PATH` and the usual `sbin` folders, or at the path that
    /// the caller named.
    #[non_exhaustive]
    NoCriu {
        /// The paths that were tried.
        searched: Vec<PathBuf>,
        /// The problem with the first path that exists but is not a program.
        unusable: Option<String>,
    },

    /// No `criu service` could be reached at the socket.
    #[non_exhaustive]
    NoService {
        /// The socket, as the caller named it.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },

    /// This operating system has no criu.
    #[non_exhaustive]
    Unsupported {
        /// The task that failed.
        what: &'static str,
    },

    /// The deadline passed before criu answered.
    TimedOut(#[source] Box<Failure>),

    /// The caller cancelled the request before criu answered.
    Cancelled(#[source] Box<Failure>),

    /// The deadline passed in this crate's own work: with a store, a lock, or images. criu was not
    /// at work.
    #[non_exhaustive]
    Overdue {
        /// The work that was not finished, as a verb phrase.
        doing: String,
    },

    /// The caller cancelled this crate's own work: with a store, a lock, or images. criu was not at
    /// work.
    #[non_exhaustive]
    Stopped {
        /// The work that was not finished, as a verb phrase.
        doing: String,
    },

    /// criu sent a message that its protocol does not allow here.
    #[non_exhaustive]
    Protocol {
        /// The request to criu.
        request: Request,
        /// The problem with the answer.
        problem: String,
    },

    /// A hook refused to continue, and criu has undone its work. A tree to dump continues as
    /// before; nothing of a tree to restore runs.
    #[non_exhaustive]
    Refused {
        /// criu's name of the event that was refused.
        event: String,
        /// The hook's error.
        source: BoxError,
    },

    /// An option or a parameter is invalid. criu was not asked.
    #[non_exhaustive]
    Options {
        /// The invalid option or parameter.
        option: &'static str,
        /// The problem with it.
        problem: String,
    },

    /// This criu is older than an option of the request. criu was not asked to work.
    #[non_exhaustive]
    TooOld {
        /// The option.
        option: &'static str,
        /// The first release of criu that has it.
        needs: Box<Version>,
        /// The release of this criu.
        found: Box<Version>,
    },

    /// Another user holds a lock or a process. Nothing was changed; the same call can succeed
    /// later.
    #[non_exhaustive]
    Busy {
        /// The object that is in use.
        what: String,
        /// Its user.
        by: String,
    },

    /// The conversation with criu is over, and takes no more requests.
    #[non_exhaustive]
    Over {
        /// The reason.
        reason: &'static str,
    },

    /// A process that cannot be captured. Nothing was frozen.
    #[non_exhaustive]
    Process {
        /// The process, as the caller named it.
        pid: Pid,
        /// The problem with it.
        problem: ProcessProblem,
    },

    /// criu could dump the tree, but never restore it. The tree was to end, and goes on instead. No
    /// capture was stored.
    #[non_exhaustive]
    Unrevivable {
        /// The problems that prevent a restore.
        problems: Vec<String>,
    },

    /// This process is the revived copy, in a call that cannot return that as a value; see
    /// [`ProcsCapture::capture`](crate::ProcsCapture::capture).
    Revived,

    /// The store has no such blob.
    #[non_exhaustive]
    Missing {
        /// The digest of the blob.
        digest: Digest256,
    },

    /// Bytes are damaged, cut short or forged. None of them were used.
    #[non_exhaustive]
    Corrupt {
        /// The object that was read.
        what: String,
        /// The damage.
        problem: String,
    },

    /// The manifest or a list of a capture cannot be read.
    #[non_exhaustive]
    Capture {
        /// The capture, by its manifest.
        capture: Digest256,
        /// The problem with its manifest or list.
        source: Box<Error>,
    },

    /// The store is encrypted with another key.
    WrongKey,

    /// A manifest of a kind that this version does not know.
    #[non_exhaustive]
    UnknownKind {
        /// The kind that the manifest names.
        kind: String,
    },

    /// This machine lacks features that the captured processes may use. Nothing was revived.
    #[non_exhaustive]
    Host {
        /// The missing feature.
        problem: String,
    },

    /// A store failed.
    #[non_exhaustive]
    Store {
        /// The operation that failed, as a verb phrase.
        doing: String,
        /// The store's error.
        source: BoxError,
    },

    /// The operating system refused an operation.
    #[non_exhaustive]
    Io {
        /// The operation and its object, as a verb phrase.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// Makes an [`Error::Missing`], for authors of stores.
    pub fn missing(digest: &Digest256) -> Error {
        Error::Missing { digest: *digest }
    }

    /// Makes an [`Error::Store`], for authors of stores.
    pub fn store(doing: impl Into<String>, source: impl Into<BoxError>) -> Error {
        Error::Store { doing: doing.into(), source: source.into() }
    }

    /// Makes an [`Error::Corrupt`], for authors of stores.
    pub fn corrupt(what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Corrupt { what: what.into(), problem: problem.into() }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing: doing.into(), source }
    }

    /// Returns all facts about the failed request, if criu was asked.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Criu(failure)
            | Error::Gone(failure)
            | Error::TimedOut(failure)
            | Error::Cancelled(failure) => Some(failure),
            _ => None,
        }
    }

    /// Returns true if a deadline passed, in criu's work or in that of this crate.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::TimedOut(_) | Error::Overdue { .. })
    }

    /// Returns true if the caller cancelled criu's work or that of this crate.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled(_) | Error::Stopped { .. })
    }

    /// Returns a report of several lines for people: the error, its causes, criu's messages, and
    /// advice.
    ///
    /// ```
    /// let error = criu_rpc::Error::corrupt("the blob", "it is cut short");
    /// assert!(error.report().to_string().contains("what to do:"));
    /// ```
    pub fn report(&self) -> impl fmt::Display + '_ {
        diagnose::ErrorReport(self)
    }
}
