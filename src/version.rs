//! [`Version`]: a release of criu.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::Serialize;

/// A release of criu.
///
/// Releases are ordered by their numbers; name and git id do not count.
///
/// ```
/// use criu_rpc::Version;
///
/// assert!(Version::new(4, 1, 1) < Version::new(4, 2, 0));
/// assert_eq!(Version::new(4, 2, 0).to_string(), "4.2");
/// assert_eq!("4.1.1".parse(), Ok(Version::new(4, 1, 1)));
/// ```
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number; 0 if criu reports only two.
    pub sublevel: u32,
    /// The commit that criu was built from, for builds from git.
    pub git_id: Option<String>,
    /// The name of the release.
    pub name: Option<String>,
}

impl Version {
    /// Makes a release of these numbers.
    pub const fn new(major: u32, minor: u32, sublevel: u32) -> Version {
        Version { major, minor, sublevel, git_id: None, name: None }
    }

    const fn numbers(&self) -> (u32, u32, u32) {
        (self.major, self.minor, self.sublevel)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.sublevel > 0 {
            write!(f, ".{}", self.sublevel)?;
        }
        match &self.git_id {
            Some(id) => write!(f, " ({id})"),
            None => Ok(()),
        }
    }
}

/// The error for a text that is not a release of criu such as `4.2` or `4.1.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a release of criu: expected two or three numbers with dots between them")]
pub struct ParseVersionError;

impl FromStr for Version {
    type Err = ParseVersionError;

    /// Parses the numbers of a release, such as `4.2` or `4.1.1`.
    fn from_str(text: &str) -> Result<Version, ParseVersionError> {
        let numbers: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([major, minor]) => Ok(Version::new(*major, *minor, 0)),
            Ok([major, minor, sublevel]) => Ok(Version::new(*major, *minor, *sublevel)),
            _ => Err(ParseVersionError),
        }
    }
}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.numbers().hash(state);
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.numbers() == other.numbers()
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Version) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Version) -> std::cmp::Ordering {
        self.numbers().cmp(&other.numbers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_parsed_from_two_or_three_numbers() {
        assert_eq!("4.2".parse(), Ok(Version::new(4, 2, 0)));
        assert_eq!("3.17.1".parse(), Ok(Version::new(3, 17, 1)));
        for other in ["", "4", "4.", "4.2.1.0", "v4.2", "4.2-rc1", "4.-2"] {
            assert_eq!(other.parse::<Version>(), Err(ParseVersionError), "{other}");
        }
    }
}
