//! [`Near`]: the frame of the last blob found. Blobs that were stored together are found there
//! without another search of the index.

use std::sync::Arc;

use super::place::Place;
use crate::store::{name::Name, pack::Frame};

/// The frame in which the last of several blobs was found by the index: the next one is mostly
/// beside it. A caller that relies on it calls [`Near::keep_for`] first: its pack may be gone.
#[derive(Debug, Default)]
pub(super) struct Near {
    place: Option<Place>,
    /// The frame's header, if it is worth reading, and the entry to look at next.
    frame: Option<(Arc<Frame>, usize)>,
    /// The version of the catalog before the search.
    version: u64,
}

impl Near {
    /// Forgets the frame if it was found in another version of the catalog.
    pub(super) fn keep_for(&mut self, version: u64) {
        if self.version != version {
            *self = Near { version, ..Near::default() };
        }
    }

    /// Notes where a blob was found.
    pub(super) fn found(&mut self, place: Place, frame: Arc<Frame>, index: usize) {
        (self.place, self.frame) = (Some(place), Some((frame, index + 1)));
    }

    /// Notes the frame of a blob. Reads its header if the blob before was in it, too.
    pub(super) fn note(&mut self, place: Place, header: impl FnOnce() -> Option<Arc<Frame>>) {
        let again = self.place.is_some_and(|last| (last.pack, last.at) == (place.pack, place.at));
        let frame = if again { header() } else { None };
        (self.place, self.frame) = (Some(place), frame.map(|frame| (frame, 0)));
    }

    /// Returns the frame and the index of a blob, if this frame has it.
    pub(super) fn find(&mut self, name: &Name) -> Option<(&Frame, usize)> {
        let (frame, next) = self.frame.as_mut()?;
        let index = frame.find(name, *next)?;
        *next = index + 1;
        Some((frame, index))
    }

    /// Returns the place of a blob, if this frame has it.
    pub(super) fn place(&mut self, name: &Name) -> Option<Place> {
        self.find(name)?;
        self.place
    }
}
