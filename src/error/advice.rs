//! Advice for people, for each [`Error`].

use super::{Cause, Error};
use crate::{Request, diagnose};

impl Error {
    /// Returns advice for people, if there is any.
    pub fn advice(&self) -> Option<&str> {
        match self {
            Error::NoCriu { .. } => Some(diagnose::advice(Cause::NoCriu)),
            Error::NoService { .. } => Some(
                "check that the service runs (`criu service --address SOCKET`), that the path is that of its socket, \
                 and that this user may write to it",
            ),
            Error::Process { problem, .. } => Some(problem.advice()),
            Error::Unrevivable { .. } => Some(
                "remove what the message names before the capture, or start the tree without it: put a namespace around \
                 the whole tree instead of around a child; close a file of a thread (`/proc/<pid>/task/<tid>/…`, \
                 `/proc/thread-self/…`), or open that of its process (`/proc/<pid>/…`)",
            ),
            Error::Unsupported { .. } => Some("use Linux, with criu"),
            Error::Missing { .. } => Some(
                "check that this is the store of the capture, with its key if it is encrypted, and whether the blob was \
                 collected (`gc`, `retain`) or set aside as damaged (`quarantine`)",
            ),
            Error::Corrupt { .. } => Some(
                "remove the damaged blobs (with an `FsBlobStore`: `quarantine` the findings of `verify`), then copy the \
                 capture again from an undamaged store (`copy_capture`); or go back to another capture",
            ),
            Error::Host { .. } => Some(
                "revive it on a machine that has these features; or set `any_host(true)`, if they are the processor's and \
                 you know that the programs do not use them",
            ),
            Error::WrongKey => Some("open the store with the key that it was created with"),
            Error::Capture { .. } => Some(
                "leave that capture out of the list; or repair it: remove the damaged blobs (with an `FsBlobStore`: \
                 `quarantine` the findings of `verify`), and copy it again from an undamaged store (`copy_capture`)",
            ),
            Error::UnknownKind { .. } => Some("use a newer version of this crate, which made the capture"),
            Error::TooOld { .. } => Some("install a newer criu, or leave the option out"),
            Error::Busy { .. } => Some("wait until the other one is done, and try again"),
            Error::Over { .. } => {
                Some("begin a new conversation (`Criu::pre_dumps`), or make a new connection (`Criu::over`)")
            }
            Error::Options { .. }
            | Error::Protocol { .. }
            | Error::Refused { .. }
            | Error::Revived
            | Error::Store { .. }
            | Error::Io { .. } => None,
            Error::TimedOut(failure) if failure.request == Request::Restore => Some(
                "allow more time (`deadline`), if it was too little; and check whether the images are complete: criu can \
                 wait for ever for images that are cut short",
            ),
            Error::Overdue { .. } => Some(
                "allow more time (`deadline`), if it was too little; if the error names a process or a lock, wait until it \
                 is done or end it",
            ),
            Error::TimedOut(_) => Some("allow more time (`deadline`), if it was too little"),
            Error::Cancelled(_) | Error::Stopped { .. } => None,
            Error::Criu(failure) | Error::Gone(failure) => Some(failure.advice()),
        }
    }
}
