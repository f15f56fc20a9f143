//! [`Foresight`]: the findings of a preflight.

use std::fmt;

use serde::Serialize;

use crate::{Cause, Error, Result};

/// Findings of [`ProcsCapture::preflight`](crate::ProcsCapture::preflight) or
/// [`ProcsRestore::preflight`](crate::ProcsRestore::preflight).
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, ProcsCapture};
///
/// let capture = ProcsCapture::new([4242]).leave_running(false);
/// let foresight = capture.preflight()?;
/// if foresight.is_clear() {
///     capture.capture(&FsBlobStore::open("captures")?)?;
/// } else {
///     foresight.blocks.iter().for_each(|finding| eprintln!("{finding}"));
/// }
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Foresight {
    /// Findings that would make the call fail. For a capture, also those that would make every
    /// restore of it fail.
    pub blocks: Vec<Foreseen>,
    /// Findings that may make the call fail, and notes for the caller.
    pub risks: Vec<Foreseen>,
    /// The number of processes that would be captured or revived.
    pub processes: usize,
}

impl Foresight {
    /// Returns true if no finding would make the call fail.
    pub fn is_clear(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Adds the findings of an error. Returns errors of the search itself.
    pub(crate) fn block(&mut self, error: Error) -> Result<()> {
        self.blocks.extend(Foreseen::of(error)?);
        Ok(())
    }

    pub(crate) fn risk(&mut self, problem: impl fmt::Display) {
        self.risks.push(Foreseen::new(problem));
    }
}

/// One finding. `Display` is one line for people, with the cure if there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Foreseen {
    /// The problem, and where it is.
    pub problem: String,
    /// The cause of the failure that it would lead to ([`Failure::cause`](crate::Failure::cause)).
    /// `None` if another kind of error would follow, such as [`Error::Host`](crate::Error::Host).
    ///
    /// A capture that would end with [`Error::NoCriu`](crate::Error::NoCriu) or
    /// [`Error::Unrevivable`](crate::Error::Unrevivable), which carry no failure, has the nearest
    /// cause all the same.
    pub cause: Option<Cause>,
    /// The cure, with the name of the option if there is one.
    pub cure: Option<String>,
}

impl Foreseen {
    /// Makes a finding without a cause or a cure.
    pub(crate) fn new(problem: impl fmt::Display) -> Foreseen {
        Foreseen { problem: problem.to_string(), cause: None, cure: None }
    }

    /// Returns the findings that an error carries. Fails with errors of the search itself.
    fn of(error: Error) -> Result<Vec<Foreseen>> {
        let cure = error.advice().map(str::to_owned);
        match error {
            Error::Criu(failure) | Error::Gone(failure) => {
                let cause = Some(failure.cause);
                let of = |problem| Foreseen { problem, cause, cure: cure.clone() };
                Ok(match failure.findings.as_slice() {
                    [] => vec![of(failure.to_string())],
                    found => found.iter().map(|found| of(format!("{}: {found}", failure.cause))).collect(),
                })
            }
            Error::NoCriu { .. } => {
                Ok(vec![Foreseen { cure, cause: Some(Cause::NoCriu), ..Foreseen::new(error) }])
            }
            Error::Unsupported { .. }
            | Error::Host { .. }
            | Error::Unrevivable { .. }
            | Error::Missing { .. }
            | Error::Corrupt { .. }
            | Error::Capture { .. }
            | Error::UnknownKind { .. } => Ok(vec![Foreseen { cure, ..Foreseen::new(error) }]),
            error => Err(error),
        }
    }
}

impl fmt::Display for Foreseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        match &self.cure {
            Some(cure) => write!(f, " (cure: {cure})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{Digest256, Failure, Request};

    #[test]
    fn what_a_failure_found_is_a_line_each() {
        let findings = vec!["one".to_owned(), "two".to_owned()];
        let failure = Failure::foreseen(Request::Restore, Cause::FileChanged, findings);
        let mut foresight = Foresight::default();
        foresight.block(Error::Criu(failure.into())).unwrap();
        let lines: Vec<_> = foresight.blocks.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains(": two (cure: ") && foresight.blocks[1].cause == Some(Cause::FileChanged));
        assert!(!foresight.is_clear());
    }

    #[test]
    fn errors_of_the_look_itself_are_no_findings() {
        let mut foresight = Foresight::default();
        let overdue = Error::Overdue { doing: "look".to_owned() };
        assert!(foresight.block(overdue).is_err());
        assert!(foresight.block(Error::io("read")(io::ErrorKind::Other.into())).is_err());
        assert!(foresight.is_clear());
        foresight.block(Error::Missing { digest: Digest256::of(b"") }).unwrap();
        assert!(!foresight.is_clear());
    }
}
