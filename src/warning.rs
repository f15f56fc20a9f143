//! [`Warning`]: notes for the caller's user about a capture or a restore that succeeded.

use std::{
    fmt::{self, Write},
    path::PathBuf,
};

use serde::Serialize;

use crate::{
    Digest256, Pid,
    plain::{Plain, path_as_text},
};

/// A note about a capture or a restore that succeeded, for the caller's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind")]
#[non_exhaustive]
pub enum Warning {
    /// The capture is a placeholder: no process was captured, because that system does not support
    /// it.
    #[non_exhaustive]
    Unsupported {
        /// The operating system, or `linux-no-criu`.
        on: String,
        /// A note for people.
        note: String,
    },
    /// The capture is marked for deletion: a collection was not told to keep it, and may remove it
    /// at any time.
    #[non_exhaustive]
    Marked {
        /// The digest of the capture.
        capture: Digest256,
    },
    /// The kernel is older than that of the capture, and may not support all of its features.
    #[non_exhaustive]
    OlderKernel {
        /// The release at the capture.
        there: String,
        /// The release here.
        here: String,
    },
    /// criu is older than that of the capture, and may not support all of its features.
    #[non_exhaustive]
    OlderCriu {
        /// The release at the capture.
        there: String,
        /// The release here.
        here: String,
    },
    /// A file that the tree was writing at its end has grown since the capture. The tree continues
    /// at the new end; see [`GrownFiles`](crate::GrownFiles). It has its own position: if another
    /// process writes to the file later, without appending, they overwrite each other's data.
    #[non_exhaustive]
    FileContinued {
        /// The file.
        path: String,
        /// Its size at the capture, in bytes.
        then: u64,
        /// Its size now.
        now: u64,
    },
    /// A file that the tree reads, executes or has mapped was written to or replaced since the
    /// capture, and has the same size. The revived tree finds the present contents.
    ///
    /// Contents are compared if the tree had a shared and writable mapping of the file of at most 1
    /// MiB, such as a named semaphore. For other files, the time of the last change is compared. A
    /// file that was put back as it was counts as changed, unless that time was put back as well.
    #[non_exhaustive]
    FileChanged {
        /// The file.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
    /// The capture can never be revived. Its tree goes on; for a tree that is to end, the capture
    /// fails with [`Error::Unrevivable`](crate::Error::Unrevivable) instead.
    #[non_exhaustive]
    Unrevivable {
        /// The problem that prevents a restore.
        problem: String,
    },
    /// The capture ended a waiting system call of this process. A `write` or `sendto` ends after a
    /// part of its bytes, as with SIGSTOP and SIGCONT. Other calls end with EINTR. In the tree that
    /// goes on these are `epoll_wait`, most calls with a time limit, and a few others. On x86-64, a
    /// revived thread repeats `poll` and the calls without a limit. `docs/platforms.md` has the
    /// list.
    #[non_exhaustive]
    Interrupted {
        /// The process.
        pid: Pid,
    },
    /// A process that is not in the tree belongs to the session or the process group that a process
    /// of the tree leads, such as a daemon that left the tree and kept its session. A restore fails
    /// while it lives: the number of the leader is taken. End it by
    /// [`kill_session`](crate::kill_session), or give it a session of its own (`setsid`).
    #[non_exhaustive]
    SessionHeld {
        /// The process that leads the session or the group.
        pid: Pid,
        /// The process outside.
        by: Pid,
    },
    /// A process has state that a capture cannot contain, so the revived process lacks it.
    #[non_exhaustive]
    Lost {
        /// The process.
        pid: Pid,
        /// The state, such as `personality`.
        what: &'static str,
    },
    /// A process has a lock on a file that it also has mapped, and the restore will not bring it
    /// back, so other processes can take it. criu loses such locks. A restore takes them again,
    /// except for 32-bit programs, and except on processors other than x86-64 and arm64.
    #[non_exhaustive]
    LockLost {
        /// The process.
        pid: Pid,
        /// The file.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
    /// A revived thread lacks a setting that it had; other threads may lack it as well.
    #[non_exhaustive]
    NotSet {
        /// The thread.
        pid: Pid,
        /// The setting, such as `CPU affinity`.
        what: &'static str,
        /// The system's error.
        problem: String,
    },
    /// The standard input of the tree had ended before the capture, and has ended again. The input
    /// that the restore was given is not used. Only
    /// [`ProcsRestore::inherit`](crate::ProcsRestore::inherit) replaces such an input.
    #[non_exhaustive]
    InputEnded {
        /// The root of the tree.
        pid: Pid,
    },
    /// The restore was given a standard stream, and no process of the revived trees got it: the
    /// stream of the root is closed, or both of its ends are in the tree. Only
    /// [`ProcsRestore::inherit`](crate::ProcsRestore::inherit) replaces such a stream.
    #[non_exhaustive]
    StreamUnused {
        /// The root of the first tree.
        pid: Pid,
        /// The stream: 0, 1 or 2.
        stream: u32,
    },
    /// A pipe, socket or terminal leads to a process outside the tree, and is not a standard
    /// stream. The revived tree finds its other side closed, unless the restore gets another file
    /// for it ([`ProcsRestore::inherit`](crate::ProcsRestore::inherit)).
    #[non_exhaustive]
    LeadsOut {
        /// A process that has it.
        pid: Pid,
        /// The number of the descriptor.
        descriptor: u32,
        /// The name of the file, as `inherit` takes it.
        key: String,
    },
    /// A pipe leads to a process outside the tree. A restore will assume that it is a standard
    /// stream, which the program saved to make room for a file. To be sure, name the streams at the
    /// capture ([`ProcsCapture::stdout`](crate::ProcsCapture::stdout)).
    #[non_exhaustive]
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
    /// The tree has a file of `/proc` open that belongs to a process outside. The capture can be
    /// revived only while that process lives.
    #[non_exhaustive]
    ProcOfOther {
        /// The file.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
    /// A file is open under a deleted name, and its other name was not found. The revived tree gets
    /// a copy of its own.
    #[non_exhaustive]
    Copied {
        /// The root of the tree.
        pid: Pid,
        /// The deleted name.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
    },
    /// A process shares an open file with a process outside of the tree: the capturing process, one
    /// in another tree of the capture, or the parent of the root. A revived tree does not share it.
    /// Each file is reported once.
    ///
    /// Give the file at the restore: [`Stream::Inherit`](crate::Stream::Inherit), or the file
    /// itself. A memfd, which counts as deleted, cannot be given.
    #[non_exhaustive]
    FileShared {
        /// The process in the tree.
        pid: Pid,
        /// The file.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
        /// The process outside.
        with: Pid,
        /// The kind of sharing, which is lost.
        what: Shared,
    },
}

/// The kind of sharing of a file by two processes ([`Warning::FileShared`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Shared {
    /// The position at which both write, because one inherited the open file from the other
    /// (`caller > log`). After a restore each has its own position, and they overwrite each other's
    /// data. Files that are open for appending (`>>`) are not affected.
    Written,
    /// The position at which both read (`while read line; do tool; done < list`). After a restore
    /// each has its own position, and both read the same data. A position at the end of the file is
    /// not reported. A file that was not read yet is reported only as standard input.
    Read,
    /// A deleted file, such as a temporary one: the revived tree gets a copy, and each side misses
    /// what the other writes.
    Deleted,
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
            Warning::OlderKernel { there, here } => {
                write!(f, "the kernel is {here}, older than the {there} that the capture was made with")
            }
            Warning::OlderCriu { there, here } => {
                write!(f, "the criu is {here}, older than the {there} that the capture was made with")
            }
            Warning::FileChanged { path } => write!(
                f,
                "{} was written to or replaced since the capture: the tree finds the present contents",
                path.display()
            ),
            Warning::Unrevivable { problem } => write!(f, "the capture can never be revived: {problem}"),
            Warning::Interrupted { pid } => write!(
                f,
                "a system call in which process {pid} waited ended early (with EINTR, or after a part of a write), or will \
                 when it is revived"
            ),
            Warning::SessionHeld { pid, by } => write!(
                f,
                "process {by}, which is not in the tree, is in the session or process group of process {pid}: a restore \
                 fails until it has ended, such as by `kill_session`"
            ),
            Warning::Lost { pid, what } => write!(f, "the revived process {pid} will lack its {what}"),
            Warning::LockLost { pid, path } => write!(
                f,
                "the revived process {pid} will lack its lock on {}, which it has mapped",
                path.display()
            ),
            Warning::NotSet { pid, what, problem } => {
                write!(f, "thread {pid} lacks the {what} that it had: {problem}")
            }
            Warning::InputEnded { pid } => write!(
                f,
                "the standard input of {pid} had ended before the capture and stays so: the given one is not used"
            ),
            Warning::StreamUnused { pid, stream } => write!(
                f,
                "the standard stream {stream} that the restore was given is not used: no revived process of tree {pid} \
                 had it from outside"
            ),
            Warning::LeadsOut { pid, descriptor, key } => write!(
                f,
                "descriptor {descriptor} of process {pid} leads out of the tree: the revived tree finds its other side \
                 closed, unless the restore gets another file for {key} by `inherit`"
            ),
            Warning::StreamAssumed { pid, descriptor, key, stream } => write!(
                f,
                "descriptor {descriptor} of process {pid} leads out of the tree ({key}): a restore will assume that it is \
                 the standard stream {stream}, because the capture was not told the streams"
            ),
            Warning::ProcOfOther { path } => write!(
                f,
                "{} is open, and its process is not in the tree: the capture can be revived only while that process lives",
                path.display()
            ),
            Warning::Copied { pid, path } => write!(
                f,
                "the revived process {pid} will have a copy of {}: that name was deleted, and no other was found",
                path.display()
            ),
            Warning::FileShared { pid, path, with, what: Shared::Written } => write!(
                f,
                "process {pid} writes to {} at the same position as process {with}: after a restore each has its own, \
                 and they overwrite each other's data; open it for appending (>>), or give it at the restore, such \
                 as by `ProcsRestore::stdout(Stream::Inherit)`",
                path.display()
            ),
            Warning::FileShared { pid, path, with, what: Shared::Read } => write!(
                f,
                "process {pid} reads {} at the same position as process {with}: after a restore each has its own, and \
                 both read the same data; give the file at the restore, such as by \
                 `ProcsRestore::stdin(Stream::Inherit)`",
                path.display()
            ),
            Warning::FileShared { pid, path, with, what: Shared::Deleted } => write!(
                f,
                "process {pid} shares the deleted file {} with process {with}: after a restore the tree has a copy, \
                 and neither gets what the other writes; give the file at the restore, such as by \
                 `ProcsRestore::stdout`, which does not replace a memfd",
                path.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_warning_of_a_path_that_is_not_utf_8_becomes_json() {
        use std::os::unix::ffi::OsStringExt;

        let path = || PathBuf::from(std::ffi::OsString::from_vec(b"/tmp/\xff".to_vec()));
        let pid = 7.into();
        for warning in [
            Warning::FileChanged { path: path() },
            Warning::LockLost { pid, path: path() },
            Warning::ProcOfOther { path: path() },
            Warning::Copied { pid, path: path() },
        ] {
            let json = serde_json::to_value(&warning).unwrap();
            assert_eq!(json["path"], "/tmp/\u{fffd}", "{json}");
        }
    }
}
