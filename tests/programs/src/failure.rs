//! [`Failure`]: why a program did not pass.

use std::fmt;

use criu_rpc::Cause;

/// The result of a step of a program's test.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

/// The reason why a program did not pass.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The program did something else than it should have.
    Wrong(String),
    /// The crate refused to capture or to revive it.
    Refused(&'static str, Box<criu_rpc::Error>),
}

impl Failure {
    /// A failure of the program, in words.
    pub(crate) fn wrong(problem: impl Into<String>) -> Failure {
        Failure::Wrong(problem.into())
    }

    /// True if another program on this machine took the number of one of the tree's own terminals.
    pub(crate) fn is_of_others(&self) -> bool {
        let Failure::Refused(_, error) = self else { return false };
        error.failure().is_some_and(|failure| failure.cause == Cause::TerminalTaken)
    }

    /// The same failure with a prefix.
    pub(crate) fn context(self, before: &str) -> Failure {
        match self {
            Failure::Wrong(problem) => Failure::Wrong(format!("{before}: {problem}")),
            refused @ Failure::Refused(..) => refused,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Wrong(error.to_string())
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(error: nix::errno::Errno) -> Failure {
        Failure::Wrong(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Wrong(problem) => f.write_str(problem),
            Failure::Refused(step, error) => write!(f, "{step}: {}", chain(error)),
        }
    }
}

/// Formats an error with all its causes on one line.
fn chain(error: &criu_rpc::Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        words += &format!(": {error}");
        source = error.source();
    }
    words
}
