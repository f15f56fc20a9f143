//! [`Pid`]: the number of a process.

use std::{fmt, num::ParseIntError, process::Child, str::FromStr};

use serde::{Deserialize, Serialize};

/// The number of a process, as the caller sees it.
///
/// Made from an `i32`, from the `u32` that [`std::process::Child::id`] and [`std::process::id`] give, and from a
/// [`Child`] itself. In JSON it is a number.
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
    /// The number itself.
    pub const fn as_raw(self) -> i32 {
        self.0
    }

    /// The process that calls this.
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
    /// Numbers above `i32::MAX`, which no process has, become `i32::MAX`, which none has either.
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

    /// Fails for a negative number, which no process has.
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
