//! [`Warning`]: what a caller should tell its user of a capture or a restore that succeeded.

use std::fmt;

/// Something that is not as one would expect, but no failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The capture is a placeholder: no process was captured, because that was not supported where it was made.
    Unsupported {
        /// The operating system, or `linux-no-criu`.
        on: String,
        /// What was noted for people.
        note: String,
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
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Unsupported { on, note } => {
                write!(f, "no process was captured, because that is not supported on {on}: {note}")
            }
            Warning::Older { what, there, here } => {
                write!(f, "the {what} is {here}, older than the {there} that the capture was made with")
            }
        }
    }
}
