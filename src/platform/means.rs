//! [`Means`]: the options that captures and restores share.

use std::{path::PathBuf, time::Duration};

use super::Cancel;
use crate::Until;

/// The means of a capture or a restore. [`means!`] makes the methods that set them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Means {
    /// The criu to use; `None` for the one in `PATH`.
    pub(crate) criu: Option<PathBuf>,
    /// The folder for temporary images; `None` for the usual one.
    pub(crate) staging: Option<PathBuf>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) cancel: Option<Cancel>,
}

impl Means {
    /// Joins the deadline and the token, from now on.
    pub(crate) fn until(&self) -> Until {
        let until = self.deadline.map_or_else(Until::forever, Until::within);
        match self.cancel.clone() {
            Some(cancel) => until.or_when(move || cancel.is_cancelled()),
            None => until,
        }
    }
}

/// The methods of a builder that set its [`Means`], which are in this field. What is special about
/// a folder, a deadline or a token there is in the docs that are given.
macro_rules! means {
    ($($field:ident).+; staging: $staging:expr, deadline: $deadline:expr, cancel: $cancel:expr $(,)?) => {
        /// Sets the criu to use: a path, or a name to search for. The default is `criu`.
        #[must_use]
        pub fn criu(mut self, program: impl Into<std::path::PathBuf>) -> Self {
            self.$($field).+.criu = Some(program.into());
            self
        }

        /// Sets the folder for temporary images, which are in a private folder within it. The
        /// default is [`std::env::temp_dir`].
        ///
        #[doc = $staging]
        #[must_use]
        pub fn staging(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
            self.$($field).+.staging = Some(folder.into());
            self
        }

        /// Limits the time of the whole call: criu's work (see
        /// [`Criu::deadline`](crate::Criu::deadline)), and that of this crate with the store and
        /// its locks. A store that hangs is not interrupted, so the call can return late.
        ///
        #[doc = $deadline]
        #[must_use]
        pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
            self.$($field).+.deadline = Some(deadline);
            self
        }

        /// Lets this token stop the call, as the deadline does.
        ///
        #[doc = $cancel]
        #[must_use]
        pub fn cancelled_by(mut self, cancel: &crate::Cancel) -> Self {
            self.$($field).+.cancel = Some(cancel.clone());
            self
        }
    };
}
pub(crate) use means;
