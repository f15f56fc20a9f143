//! The message of an [`Error`]. It escapes text of other parties: names, and messages of criu.

use std::{
    fmt::{self, Display, Write},
    path::PathBuf,
};

use super::Error;
use crate::plain::Plain;

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut Plain(f);
        match self {
            Error::Criu(failure) => write!(f, "criu could not {}", failure.request),
            Error::Gone(failure) => write!(f, "lost criu before it could {}", failure.request),
            Error::NoCriu { searched, unusable } => {
                write!(f, "no criu found (looked for {}", list(searched))?;
                unusable.iter().try_for_each(|problem| write!(f, "; {problem}"))?;
                f.write_str(")")
            }
            Error::NoService { socket, .. } => write!(f, "no criu service at {}", socket.display()),
            Error::Unsupported { what } => {
                write!(f, "cannot {what} on {}: criu is for Linux", std::env::consts::OS)
            }
            Error::TimedOut(failure) => write!(f, "criu did not {} in time", failure.request),
            Error::Cancelled(failure) => write!(f, "cancelled before criu could {}", failure.request),
            Error::Overdue { doing } => write!(f, "the deadline passed before it was possible to {doing}"),
            Error::Stopped { doing } => write!(f, "cancelled before it was possible to {doing}"),
            Error::Protocol { request, problem } => {
                write!(f, "unexpected answer while asking criu to {request}: {problem}")
            }
            Error::Refused { event, .. } => write!(f, "the hook refused to go on at {event}"),
            Error::Options { option, problem } => write!(f, "{option}: {problem}"),
            Error::TooOld { option, needs, found } => {
                write!(f, "{option} needs criu {needs} or newer, found criu {found}")
            }
            Error::Busy { what, by } => write!(f, "{what} is in use by {by}"),
            Error::Over { reason } => write!(f, "the conversation with criu is over: {reason}"),
            Error::Process { pid, problem } => write!(f, "process {pid} {problem}"),
            Error::Unrevivable { problems } => {
                write!(f, "the tree can be dumped, but never revived: {}", problems.join("; "))
            }
            Error::Revived => f.write_str("this process is the revived copy of the one that captured itself"),
            Error::Missing { digest } => write!(f, "the store has no blob {digest}"),
            Error::Corrupt { what, problem } => write!(f, "{what} is damaged: {problem}"),
            Error::Capture { capture, .. } => write!(f, "cannot read the capture {capture}"),
            Error::WrongKey => f.write_str("the store was encrypted with another key"),
            Error::UnknownKind { kind } => write!(f, "unknown kind of capture: {kind:?}"),
            Error::Host { problem } => write!(f, "this machine cannot revive the capture: {problem}"),
            Error::Store { doing, .. } => write!(f, "the store could not {doing}"),
            Error::Io { doing, .. } => write!(f, "could not {doing}"),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{Cause, Failure, ProcessProblem, Request, Shared, Version, Warning};

    /// A line break, an escape sequence, and a character that reverses the direction of writing.
    const HOSTILE: &str = "x\n\u{1b}[31m\u{202e}y";

    fn errors() -> Vec<Error> {
        let text = || HOSTILE.to_owned();
        let failure = |cause| Box::new(Failure::foreseen(Request::Dump, cause, vec![text()]));
        vec![
            Error::Criu(failure(Cause::Unknown)),
            Error::Gone(failure(Cause::PidInUse)),
            Error::TimedOut(failure(Cause::Unknown)),
            Error::Cancelled(failure(Cause::GivenUp)),
            Error::NoCriu { searched: vec![text().into()], unusable: Some(text()) },
            Error::NoService { socket: text().into(), source: io::Error::other(text()) },
            Error::Overdue { doing: text() },
            Error::Stopped { doing: text() },
            Error::Protocol { request: Request::Dump, problem: text() },
            Error::Refused { event: text(), source: text().into() },
            Error::Options { option: "pids", problem: text() },
            Error::TooOld {
                option: "tcp_close",
                needs: Version::new(4, 2, 0).into(),
                found: Version::new(4, 1, 0).into(),
            },
            Error::Busy { what: text(), by: text() },
            Error::Over { reason: "it ended" },
            Error::Process { pid: 1.into(), problem: ProcessProblem::Zombie },
            Error::Unrevivable { problems: vec![text(), text()] },
            Error::corrupt(text(), text()),
            Error::Capture {
                capture: crate::Digest256::of(b""),
                source: Box::new(Error::corrupt(text(), text())),
            },
            Error::UnknownKind { kind: text() },
            Error::Host { problem: text() },
            Error::store(text(), text()),
            Error::io(text())(io::Error::other(text())),
        ]
    }

    #[track_caller]
    fn assert_plain(shown: &str) {
        let acts = |character: char| character.is_control() || character == '\u{202e}';
        assert!(!shown.contains(acts), "{shown:?}");
    }

    #[test]
    fn no_error_shows_what_acts_on_a_terminal() {
        for error in errors() {
            assert_plain(&error.to_string());
            let report = error.report().to_string();
            for line in report.lines() {
                assert_plain(line);
                assert!(!line.starts_with("[31m") && !line.starts_with('y'), "{report}");
            }
            if let Some(failure) = error.failure() {
                assert_plain(&failure.to_string());
                failure.report().to_string().lines().for_each(assert_plain);
            }
        }
    }

    #[test]
    fn no_warning_shows_what_acts_on_a_terminal() {
        let (text, pid) = (|| HOSTILE.to_owned(), crate::Pid::from(7_i32));
        for warning in [
            Warning::Unsupported { on: text(), note: text() },
            Warning::OlderKernel { there: text(), here: text() },
            Warning::OlderCriu { there: text(), here: text() },
            Warning::FileContinued { path: text(), then: 1, now: 2 },
            Warning::Unrevivable { problem: text() },
            Warning::LockLost { pid, path: text().into() },
            Warning::NotSet { pid, what: "CPU affinity", problem: text() },
            Warning::Copied { pid, path: text().into() },
            Warning::FileShared { pid, path: text().into(), with: pid, what: Shared::Written },
            Warning::FileShared { pid, path: text().into(), with: pid, what: Shared::Read },
            Warning::FileShared { pid, path: text().into(), with: pid, what: Shared::Deleted },
        ] {
            assert_plain(&warning.to_string());
        }
    }
}
