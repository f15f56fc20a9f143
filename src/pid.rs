//! [`Pid`]: the number of a process.

use std::fmt;

/// The number of a process, as the caller sees it.
///
/// Made from an `i32` or from the `u32` that [`std::process::Child::id`] and [`std::process::id`] give.
///
/// ```
/// use criu_rpc::Pid;
///
/// assert_eq!(Pid::from(std::process::id()).to_string(), std::process::id().to_string());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
