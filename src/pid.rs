//! [`Pid`]: a process id.

use std::{fmt, num::ParseIntError, process::Child, str::FromStr};

use serde::{Deserialize, Serialize};

/// A process id, in the caller's pid namespace.
///
/// It is made from an `i32`, from the `u32` of [`std::process::Child::id`] and
/// [`std::process::id`], and from a [`Child`] itself. In JSON it is a number.
///
/// ```
/// use criu_rpc::Pid;
///
/// let own = Pid::from(std::process::id());
/// assert_eq!(own, std::process::id());
/// assert_eq!(own.to_string().parse(), Ok(own));
/// assert_eq!(u32::try_from(own), Ok(std::process::id()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(i32);

impl Pid {
    /// Returns the number.
    pub const fn as_raw(self) -> i32 {
        self.0
    }

    /// Returns the pid of the calling process.
    pub fn own() -> Pid {
        Pid::from(std::process::id())
    }
}

impl From<i32> for Pid {
    fn from(number: i32) -> Pid {
        Pid(number)
    }
}

impl From<u32> for Pid {
    /// Converts numbers above `i32::MAX`, which are no pids, to `i32::MAX`, which is no pid either.
    fn from(number: u32) -> Pid {
        Pid(i32::try_from(number).unwrap_or(i32::MAX))
    }
}

impl From<&Child> for Pid {
    fn from(child: &Child) -> Pid {
        Pid::from(child.id())
    }
}

impl From<Pid> for i32 {
    fn from(pid: Pid) -> i32 {
        pid.0
    }
}

impl TryFrom<Pid> for u32 {
    type Error = std::num::TryFromIntError;

    /// Fails for a negative number, which is not a pid.
    fn try_from(pid: Pid) -> Result<u32, Self::Error> {
        u32::try_from(pid.0)
    }
}

impl FromStr for Pid {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Pid, ParseIntError> {
        text.parse().map(Pid)
    }
}

impl PartialEq<i32> for Pid {
    fn eq(&self, number: &i32) -> bool {
        self.0 == *number
    }
}

impl PartialEq<u32> for Pid {
    fn eq(&self, number: &u32) -> bool {
        u32::try_from(self.0) == Ok(*number)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
