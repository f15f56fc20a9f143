//! [`Warning`]: what a caller should tell its user of a capture or a restore that succeeded.

use std::{
    fmt::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use crate::{Digest256, Pid, plain::Plain};

/// Something that is not as one would expect, but no failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// The capture is a placeholder: no process was captured, because that was not supported where it was made.
    Unsupported {
        /// The operating system, or `linux-no-criu`.
        on: String,
        /// What was noted for people.
        note: String,
    },
    /// The capture is marked for deletion: a collection was not told to keep it, and may remove it at any time.
    Marked {
        /// Its digest.
        capture: Digest256,
    },
    /// What revives the capture is older than what it was made with, and may not understand all of it.
    Older {
        /// `kernel` or `criu`.
        what: &'static str,
        /// Its release where the capture was made.
        there: String,
        /// Its release here.
        here: String,
    },
    /// A file that the tree was writing at its end has grown since the capture. The tree goes on at the new end, so nothing
    /// that came since is lost; see [`GrownFiles`](crate::GrownFiles).
    FileContinued {
        /// The file.
        path: String,
        /// Its size at the capture, in bytes.
        then: u64,
        /// Its size now.
        now: u64,
    },
    /// A file that the tree has mapped shared and writable is not as it was at the capture: the
    /// revived tree finds what is in it now. Such a file is a database or a named semaphore, for
    /// instance.
    MappedFileChanged {
        /// The file.
        path: PathBuf,
    },
    /// This capture of a tree that goes on can never be revived. If the tree were to end, it is an
    /// [`Error::Unrevivable`](crate::Error::Unrevivable) instead.
    Unrevivable {
        /// What keeps it from that.
        problem: String,
    },
    /// A system call in which a thread of this process waited has ended with EINTR, as it does not for
    /// SIGSTOP and SIGCONT: `nanosleep`, and others with a time limit, both in a tree that goes on and
    /// in what is revived; `poll` in a tree that goes on. A revived thread calls `poll` again, on x86-64.
    Interrupted {
        /// The process.
        pid: Pid,
    },
    /// A process has something that cannot be carried along, so that what is revived of it lacks it.
    Lost {
        /// The process.
        pid: Pid,
        /// What it is, such as `personality`.
        what: &'static str,
    },
    /// A process has a lock on a file that it also has mapped. criu does not bring such a lock back, so others can take it. A
    /// restore takes it again, but not for programs of 32 bits, nor on other processors than x86-64 and arm64.
    LockLost {
        /// The process.
        pid: Pid,
        /// The file.
        #[serde(serialize_with = "in_words")]
        path: PathBuf,
    },
    /// A revived thread has not got a setting that it had; others may lack it as well.
    NotSet {
        /// The thread.
        pid: Pid,
        /// The setting, such as `CPU affinity`.
        what: &'static str,
        /// What the system said.
        problem: String,
    },
    /// The standard input of a tree had ended when it was captured. It has ended again, so the tree
    /// does not get the one that the restore was given. Only
    /// [`ProcsRestore::inherit`](crate::ProcsRestore::inherit) replaces such an input.
    InputEnded {
        /// The root of the tree.
        pid: Pid,
    },
    /// A pipe, socket or terminal leads to a process outside the tree, and is not a
    /// standard stream of the tree. What is revived finds its other side closed, unless the restore is given
    /// another file for it ([`ProcsRestore::inherit`](crate::ProcsRestore::inherit)).
    LeadsOut {
        /// A process that has it.
        pid: Pid,
        /// The number of the descriptor.
        descriptor: u32,
        /// The name of the file, as `inherit` takes it.
        key: String,
    },
    /// A pipe leads to a process outside the tree, and a restore will assume that it is a standard
    /// stream of the program, which it has saved to make room for a file. To be sure, tell the
    /// capture what the streams are ([`ProcsCapture::stdout`](crate::ProcsCapture::stdout)).
    StreamAssumed {
        /// A process that has it.
        pid: Pid,
        /// The number of the descriptor.
        descriptor: u32,
        /// The name of the pipe.
        key: String,
        /// The stream: 0, 1 or 2.
        stream: u32,
    },
    /// A file of `/proc` is open that belongs to a process outside the tree. The capture can be
    /// revived only while that process lives.
    ProcOfOther {
        /// The file.
        #[serde(serialize_with = "in_words")]
        path: PathBuf,
    },
    /// A file is open under a name that was deleted, and the name that it still has was not found. What is revived has
    /// a copy of its own.
    Copied {
        /// The root of the tree.
        pid: Pid,
        /// The deleted name.
        #[serde(serialize_with = "in_words")]
        path: PathBuf,
    },
}

/// A path as text, with replacement characters for what is not UTF-8.
fn in_words<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut Plain(f);
        match self {
            Warning::Unsupported { on, note } => {
                write!(f, "no process was captured, because that is not supported on {on}: {note}")
            }
            Warning::Marked { capture } => {
                write!(
                    f,
                    "the capture {capture} is marked for deletion: a collection may remove it at any time"
                )
            }
            Warning::FileContinued { path, then, now } => {
                write!(
                    f,
                    "{path} grew from {then} to {now} bytes since the capture: the tree goes on at its end"
                )
            }
            Warning::Older { what, there, here } => {
                write!(f, "the {what} is {here}, older than the {there} that the capture was made with")
            }
            Warning::MappedFileChanged { path } => write!(
                f,
                "{} was changed since the capture, and the tree has it mapped: it finds what is there now",
                path.display()
            ),
            Warning::Unrevivable { problem } => write!(f, "the capture can never be revived: {problem}"),
            Warning::Interrupted { pid } => write!(
                f,
                "a system call in which process {pid} waited ended with EINTR, or will when it is revived"
            ),
            Warning::Lost { pid, what } => write!(f, "what is revived of process {pid} will lack its {what}"),
            Warning::LockLost { pid, path } => write!(
                f,
                "what is revived of process {pid} will lack its lock on {}, which it has mapped",
                path.display()
            ),
            Warning::NotSet { pid, what, problem } => {
                write!(f, "thread {pid} has not got the {what} that it had: {problem}")
            }
            Warning::InputEnded { pid } => write!(
                f,
                "the standard input of {pid} had ended before the capture and stays so: the given one is not used"
            ),
            Warning::LeadsOut { pid, descriptor, key } => write!(
                f,
                "descriptor {descriptor} of process {pid} leads out of the tree: what is revived finds its other side \
                 closed, unless the restore is given another file for {key} by `inherit`"
            ),
            Warning::StreamAssumed { pid, descriptor, key, stream } => write!(
                f,
                "descriptor {descriptor} of process {pid} leads out of the tree ({key}): a restore will assume that it is \
                 the standard stream {stream}, for nothing was told of the streams"
            ),
            Warning::ProcOfOther { path } => write!(
                f,
                "{} is open, and its process is not in the tree: the capture can be revived only while that process lives",
                path.display()
            ),
            Warning::Copied { pid, path } => write!(
                f,
                "what is revived of {pid} has a copy of {}: that name was deleted, and no other was found",
                path.display()
            ),
        }
    }
}
