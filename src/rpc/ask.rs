//! [`Ask`]: a question to criu.

use std::path::Path;

use super::{Lend, hooks::Hooks};
use crate::{
    Request,
    proto::rpc::{CriuFeatures, CriuOpts},
};

/// A question, and what belongs to it.
pub(super) struct Ask<'a> {
    pub(super) request: Request,
    pub(super) opts: Option<CriuOpts>,
    /// More options, encoded.
    pub(super) raw: &'a [u8],
    pub(super) features: Option<CriuFeatures>,
    /// Whether criu is to wait for another question afterwards.
    pub(super) keep_open: bool,
    /// The process to wait for.
    pub(super) child: Option<u32>,
    pub(super) files: Files<'a>,
    pub(super) hooks: Option<&'a mut dyn Hooks>,
}

/// The files of a question.
pub(super) enum Files<'a> {
    None,
    Lent(Lend<'a>),
    /// A folder of images that this process must not have open, because it is dumped itself.
    InFolder(&'a Path),
}

impl Ask<'_> {
    pub(super) fn new(request: Request) -> Self {
        Ask {
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

/// The log's name where it does not go to criu's standard error.
pub(super) const LOG: &str = "criu.log";
