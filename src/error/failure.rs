//! [`Failure`]: all facts about a request that criu could not carry out.

use std::{
    fmt::{self, Write},
    process::ExitStatus,
};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{Cause, Pid, Request, Version, diagnose, plain::Plain};

/// A request that criu could not carry out, with all facts about it.
///
/// `Display` is one line; [`report`](Failure::report) is for people. `Debug` is the report as well,
/// so a program that exits with this error shows the advice.
#[derive(Clone)]
#[non_exhaustive]
pub struct Failure {
    /// The request to criu.
    pub request: Request,
    /// The cause, if it was found.
    pub cause: Cause,
    /// The state of the tree after a failed dump.
    pub target: Target,
    /// A process that traces the tree: a debugger, `strace`, another criu. Never the criu of this
    /// request.
    pub tracer: Option<Pid>,
    /// criu's name of its last event.
    pub last_event: Option<String>,
    /// criu's error number. criu sets it for three kinds of failure only.
    pub errno: Option<i32>,
    /// criu's message: its first error line, which is not always the decisive one. If criu was not
    /// asked, the first finding.
    pub message: Option<String>,
    /// The error lines of criu's log, oldest first.
    pub log: Vec<String>,
    /// The output of criu on its standard output and standard error.
    pub stderr: String,
    /// Other findings, in words: the processes that hold pids of the tree, the processes that died.
    pub findings: Vec<String>,
    /// The exit status of criu, if known.
    pub exit: Option<ExitStatus>,
    /// The release of criu, if known.
    pub version: Option<Version>,
    /// Better advice than that of the cause, if there is any.
    pub(crate) advice: Option<String>,
}

impl Failure {
    /// Makes a failure with no other facts, for tests of a program that handles causes.
    ///
    /// ```
    /// use criu_rpc::{Cause, Error, Failure, Request};
    ///
    /// fn can_retry(error: &Error) -> bool {
    ///     matches!(error.failure().map(|failure| failure.cause), Some(Cause::PidInUse | Cause::Disturbed))
    /// }
    /// let taken = Failure::new(Request::Restore, Cause::PidInUse);
    /// assert!(can_retry(&Error::Criu(taken.into())));
    /// ```
    pub fn new(request: Request, cause: Cause) -> Failure {
        Failure {
            request,
            cause,
            target: Target::None,
            tracer: None,
            last_event: None,
            errno: None,
            message: None,
            log: Vec::new(),
            stderr: String::new(),
            findings: Vec::new(),
            exit: None,
            version: None,
            advice: None,
        }
    }

    /// Makes a failure that was found before criu was asked.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn foreseen(request: Request, cause: Cause, findings: Vec<String>) -> Failure {
        Failure { message: findings.first().cloned(), findings, ..Failure::new(request, cause) }
    }

    /// Returns advice for people.
    pub fn advice(&self) -> &str {
        self.advice.as_deref().unwrap_or(diagnose::advice(self.cause))
    }

    /// Returns the line of criu's output that explains the failure best.
    pub fn telling_line(&self) -> Option<&str> {
        diagnose::telling_line(self)
    }

    /// Returns a report of several lines for people: the failure, criu's messages, and advice.
    pub fn report(&self) -> impl fmt::Display + '_ {
        diagnose::Report(self)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut Plain(f);
        match (self.cause, self.telling_line()) {
            // criu's messages then report only the abort, and the error says who wanted it.
            (Cause::GivenUp, _) => f.write_str(match self.target {
                Target::Running => "aborted; the tree runs as before",
                _ => "aborted",
            }),
            (cause @ Cause::CriuKilled, _) => {
                let signal = self.exit.map(|status| format!(" ({status})"));
                write!(f, "{cause}{}", signal.unwrap_or_default())
            }
            // criu's messages about a traced process report only what went wrong later.
            (cause @ Cause::Untraceable, _) if self.tracer.is_some() => {
                let tracer = self.tracer.map(|pid| format!(": process {pid} traces it"));
                write!(f, "{cause}{}", tracer.unwrap_or_default())
            }
            (Cause::Unknown, Some(line)) => f.write_str(line),
            (Cause::Unknown, None) => write!(f, "criu did not say why{}", diagnose::leaving(self)),
            (cause, Some(line)) => write!(f, "{cause} ({line})"),
            (cause, None) => write!(f, "{cause}"),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.report())
    }
}

impl std::error::Error for Failure {}

/// Writes all fields, and the advice. The exit status is in words.
impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Failure", 13)?;
        fields.serialize_field("request", &self.request)?;
        fields.serialize_field("cause", &self.cause)?;
        fields.serialize_field("advice", &self.advice())?;
        fields.serialize_field("target", &self.target)?;
        fields.serialize_field("tracer", &self.tracer)?;
        fields.serialize_field("last_event", &self.last_event)?;
        fields.serialize_field("errno", &self.errno)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("log", &self.log)?;
        fields.serialize_field("stderr", &self.stderr)?;
        fields.serialize_field("findings", &self.findings)?;
        fields.serialize_field("exit", &self.exit.map(|status| status.to_string()))?;
        fields.serialize_field("version", &self.version)?;
        fields.end()
    }
}

/// The state of the process tree after a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Target {
    /// The request involved no tree.
    None,
    /// The tree runs as before.
    Running,
    /// The tree is stopped: by a signal, or as it was before.
    Stopped,
    /// A process of the tree is traced. [`Failure::tracer`] names the tracer, unless it is the criu
    /// of the request.
    Traced,
    /// Processes of the tree ended while criu worked on it; [`Failure::findings`] names them. A
    /// killed criu takes threads with it.
    Damaged,
    /// The tree does not exist.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_json_with_names_that_stay() {
        let failure = Failure::foreseen(Request::Restore, Cause::PidInUse, vec!["pid 7 is held".to_owned()]);
        let json = serde_json::to_value(&failure).unwrap();
        assert_eq!(json["request"], "Restore");
        assert_eq!(json["cause"], "PidInUse");
        assert_eq!(json["target"], "None");
        assert_eq!(json["findings"][0], "pid 7 is held");
        assert!(json["advice"].as_str().is_some_and(|advice| advice.contains("kill_tree")));
    }
}
