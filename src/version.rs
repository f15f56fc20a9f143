//! [`Version`]: a release of criu.

use std::fmt;

/// A release of criu.
///
/// Releases are ordered by their numbers; the name and the git id do not matter for that.
///
/// ```
/// use criu_rpc::Version;
///
/// assert!(Version::new(4, 1, 1) < Version::new(4, 2, 0));
/// assert_eq!(Version::new(4, 2, 0).to_string(), "4.2");
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number; 0 where criu names none.
    pub sublevel: u32,
    /// The commit that criu was built from, for builds from git.
    pub git_id: Option<String>,
    /// The name of the release.
    pub name: Option<String>,
}

impl Version {
    /// The release with these numbers.
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
