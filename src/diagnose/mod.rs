//! Why criu failed: from its answer, its log and what it printed, to a cause and advice.

use std::fmt;

use crate::{Cause, Failure};

pub(crate) fn advice(_cause: Cause) -> &'static str {
    ""
}

pub(crate) fn summary(_cause: Cause) -> &'static str {
    ""
}

pub(crate) fn telling_line(failure: &Failure) -> Option<&str> {
    failure.message.as_deref()
}

pub(crate) fn leaving(_failure: &Failure) -> String {
    String::new()
}

pub(crate) struct Report<'a>(pub(crate) &'a Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0)
    }
}
