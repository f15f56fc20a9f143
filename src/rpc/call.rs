//! [`Call`]: a request to criu, with its options and files.

use std::path::Path;

use super::{Lend, hooks::Hooks};
use crate::{
    Request,
    proto::rpc::{CriuFeatures, CriuOpts},
};

/// A request, with its options, files and hooks.
pub(super) struct Call<'a> {
    pub(super) request: Request,
    pub(super) opts: Option<CriuOpts>,
    /// More options, encoded.
    pub(super) raw: &'a [u8],
    pub(super) features: Option<CriuFeatures>,
    /// True if criu is to wait for another request afterwards.
    pub(super) keep_open: bool,
    /// The process to wait for.
    pub(super) child: Option<u32>,
    pub(super) files: Files<'a>,
    pub(super) hooks: Option<&'a mut dyn Hooks>,
}

/// The files of a request.
pub(super) enum Files<'a> {
    None,
    Lent(Lend<'a>),
    /// A folder of images that this process must not have open, because it is dumped itself.
    InFolder(&'a Path),
}

impl Call<'_> {
    pub(super) fn new(request: Request) -> Self {
        Call {
            request,
            opts: None,
            raw: &[],
            features: None,
            keep_open: false,
            child: None,
            files: Files::None,
            hooks: None,
        }
    }
}

/// The name of the log if it goes to a file.
pub(super) const LOG: &str = "criu.log";
