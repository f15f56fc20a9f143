//! Finds the cause of a failure of criu, from its answer, its log and its output.
//!
//! [`log`] parses criu's output, [`rules`] maps criu's messages to causes, and [`causes`] has the
//! meaning and the advice. `docs/failures.md` shows the two tables to people.

mod causes;
#[cfg(test)]
mod document;
mod log;
#[cfg(test)]
mod recorded;
mod rules;

use std::fmt;

use crate::{Cause, Error, Failure, Pid, Request, plain::plain};

pub(crate) use self::{
    log::{Output, OutputContext, interrupted, message, starts},
    rules::cause,
};

/// Returns all causes, chapter by chapter.
pub(crate) fn causes() -> impl Iterator<Item = Cause> {
    causes::CHAPTERS.iter().flat_map(|(_, causes)| causes.iter().copied())
}

/// Returns the name of its variant.
pub(crate) fn name(cause: Cause) -> &'static str {
    causes::row(cause).name
}

/// Returns the problem in one line.
pub(crate) fn summary(cause: Cause) -> &'static str {
    causes::row(cause).summary
}

/// Returns the advice for a cause.
pub(crate) fn advice(cause: Cause) -> &'static str {
    causes::row(cause).advice
}

/// Returns the advice if criu gave no reason, by the level and the name of its log.
pub(crate) fn advice_for_unknown(level: i32, log: Option<&str>) -> Option<String> {
    const DEBUG: i32 = 4;
    let log = log.map(|name| format!(", in {}", plain(name))).unwrap_or_default();
    (level >= DEBUG).then(|| format!("read criu's log{log} from its end"))
}

/// Returns the advice if a process of the tree traces another one.
pub(crate) fn advice_for_inner_tracer(tracer: Pid) -> String {
    format!(
        "process {tracer}, which is a part of the tree, traces another one: let it detach before the dump (a debugger, strace, \
         a test runner), or capture what it traces without it, once it has ended"
    )
}

/// Returns the options that cure a cause.
pub(crate) fn options(cause: Cause) -> &'static [&'static str] {
    causes::row(cause).cure
}

/// Returns criu's most telling line: one that a rule knows, or else the first error that is not a
/// mere consequence. Harmless lines do not count.
pub(crate) fn telling_line(failure: &Failure) -> Option<&str> {
    let log = || failure.log.iter().map(String::as_str);
    // A line outside the log counts if it told the cause.
    let told = |line: &&str| rules::tells(line, failure.cause);
    let known: Vec<_> =
        log().chain(failure.stderr.lines().filter(told)).chain(failure.message.as_deref()).collect();
    let errors = || log().chain(failure.message.as_deref()).filter(|line| !log::is_noise(line));
    rules::telling(&known)
        .or_else(|| errors().find(|line| !rules::is_consequence(line)))
        .or_else(|| errors().next())
}

/// Returns true if the line only reports a consequence of another error.
pub(crate) fn only_follows(line: &str) -> bool {
    log::is_noise(line) || rules::is_consequence(line)
}

/// Returns criu's exit status as text, for a criu that did not give a reason.
pub(crate) fn leaving(failure: &Failure) -> String {
    match failure.exit {
        Some(status) if !status.success() => format!(", and ended with {}", status),
        _ => String::new(),
    }
}

/// A [`Failure`] in several lines, for people.
pub(crate) struct Report<'a>(pub(crate) &'a Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report(failure) = self;
        writeln!(f, "criu could not {}: {failure}", failure.request)?;
        writeln!(f, "  what to do:  {}", failure.advice())?;
        details(f, failure)
    }
}

/// Writes the details below the first line and the advice.
fn details(f: &mut fmt::Formatter<'_>, failure: &Failure) -> fmt::Result {
    writeln!(f, "  the tree:    {}", state(failure))?;
    if let Some(version) = &failure.version {
        writeln!(f, "  criu:        {version}")?;
    }
    if let Some(event) = &failure.last_event {
        writeln!(f, "  last event:  {}", plain(event))?;
    }
    if let Some(errno) = failure.errno.filter(|_| failure.cause == Cause::Unknown) {
        writeln!(f, "  its errno:   {errno} ({})", std::io::Error::from_raw_os_error(errno))?;
    }
    if let Some(status) = failure.exit.filter(|status| !status.success()) {
        writeln!(f, "  criu ended:  {}", status)?;
    }
    let log = failure.log.iter().map(String::as_str);
    let mut lines = log.chain(failure.stderr.lines()).peekable();
    while let Some(said) = lines.next() {
        let line = plain(said);
        let mut times = 1;
        while lines.next_if_eq(&said).is_some() {
            times += 1;
        }
        match times {
            1 => writeln!(f, "  criu says:   {line}")?,
            _ => writeln!(f, "  criu says:   {line} ({times} times)")?,
        }
    }
    for finding in &failure.findings {
        writeln!(f, "  found:       {}", plain(finding))?;
    }
    Ok(())
}

/// An [`Error`] in several lines, for people.
pub(crate) struct ErrorReport<'a>(pub(crate) &'a Error);

impl fmt::Display for ErrorReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorReport(error) = self;
        match error {
            Error::Criu(failure) => return Report(failure).fmt(f),
            Error::Gone(failure) => {
                writeln!(f, "{error}: {failure}")?;
                writeln!(f, "  what to do:  {}", failure.advice())?;
                return details(f, failure);
            }
            Error::TimedOut(failure) | Error::Cancelled(failure) => {
                writeln!(f, "{error}")?;
                if let Some(advice) = error.advice() {
                    writeln!(f, "  what to do:  {advice}")?;
                }
                return details(f, failure);
            }
            _ => writeln!(f, "{error}")?,
        }
        let mut source = std::error::Error::source(error);
        while let Some(because) = source {
            writeln!(f, "  because:     {}", plain(&because.to_string()))?;
            source = because.source();
        }
        if let Error::Refused { event, .. } = error {
            writeln!(f, "  the tree:    {}", state_after_refusal(event))?;
        }
        match error.advice() {
            Some(advice) => writeln!(f, "  what to do:  {advice}"),
            None => Ok(()),
        }
    }
}

/// Returns the state of the tree after a hook refused at this event. The event names are criu's.
fn state_after_refusal(event: &str) -> &'static str {
    match event {
        "pre-restore"
        | "setup-namespaces"
        | "post-setup-namespaces"
        | "orphan-pts-master"
        | "post-restore"
        | "pre-resume"
        | "post-resume" => "nothing of it runs",
        _ => "goes on as it was",
    }
}

fn state(failure: &Failure) -> String {
    use crate::Target;
    let words = match (failure.target, failure.tracer) {
        (Target::None, _) if failure.request == Request::Restore => "nothing was revived",
        (Target::None, _) => "none was touched",
        (Target::Running, _) => "runs",
        (Target::Stopped, _) => "is stopped",
        (Target::Traced, Some(tracer)) => return format!("is traced by process {tracer}"),
        (Target::Traced, None) => "is traced by some process",
        (Target::Damaged, _) => "is damaged: not all of its processes live",
        (Target::Gone, _) => "does not exist",
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_says_all_is_not_asked_to_say_more() {
        assert_eq!(advice_for_unknown(1, None), None, "the advice of the cause is to log more");
        assert!(advice(Cause::Unknown).contains("log_level(LogLevel::Debug)"));
        let told = advice_for_unknown(4, Some("dump\n.log")).unwrap();
        assert!(told.contains(r"dump\n.log") && !told.contains("log_level"), "{told}");
    }
}
