//! Why criu failed: from its answer, its log and what it printed, to a cause and advice.
//!
//! [`log`] takes criu's output apart, [`rules`] is the table of known failures.

mod log;
mod rules;

use std::{fmt, process::ExitStatus};

use crate::Failure;

pub(crate) use self::{
    log::{Output, message},
    rules::{advice, cause, summary},
};

/// The line of criu's that tells best what went wrong: the one that a rule knows, else the first error, which
/// later ones follow from. Harmless lines do not count.
pub(crate) fn telling_line(failure: &Failure) -> Option<&str> {
    let lines = || failure.log.iter().map(String::as_str).chain(failure.message.as_deref());
    lines().find(|line| rules::matching(line).is_some()).or_else(|| lines().find(|line| !log::is_noise(line)))
}

/// How criu left, when it did not say why.
pub(crate) fn leaving(failure: &Failure) -> String {
    match failure.exit {
        Some(status) if !status.success() => format!(", and ended with {}", describe(status)),
        _ => String::new(),
    }
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}

/// A [`Failure`] in several lines, for people.
pub(crate) struct Report<'a>(pub(crate) &'a Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report(failure) = self;
        writeln!(f, "criu could not {}: {failure}", failure.request)?;
        if let Some(advice) = failure.advice() {
            writeln!(f, "  what to do:  {advice}")?;
        }
        writeln!(f, "  the tree:    {}", state(failure))?;
        if let Some(version) = &failure.version {
            writeln!(f, "  criu:        {version}")?;
        }
        if let Some(event) = &failure.last_event {
            writeln!(f, "  last event:  {event}")?;
        }
        if let Some(errno) = failure.errno {
            writeln!(f, "  its errno:   {errno} ({})", std::io::Error::from_raw_os_error(errno))?;
        }
        if let Some(status) = failure.exit.filter(|status| !status.success()) {
            writeln!(f, "  it ended:    {}", describe(status))?;
        }
        let log = failure.log.iter().map(String::as_str);
        for line in log.chain(failure.stderr.lines()) {
            writeln!(f, "  criu says:   {line}")?;
        }
        Ok(())
    }
}

fn state(failure: &Failure) -> &'static str {
    use crate::Target;
    match failure.target {
        Target::None => "none was touched",
        Target::Running => "runs",
        Target::Stopped => "is stopped",
        Target::Traced => "is traced by some process",
        Target::Gone => "does not exist",
    }
}
