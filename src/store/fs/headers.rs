//! [`Headers`]: recently read headers of frames. Blobs are mostly looked up in the order that they
//! were put.

use std::sync::Arc;

use super::place::Place;
use crate::{
    lock::Mutex,
    store::pack::{Frame, PackId},
};

/// A cache of headers.
#[derive(Debug)]
pub(super) struct Headers(Vec<Mutex<Header>>);

/// The pack and the position of a frame, and its header. The header is `None` while only one blob
/// of the frame was looked up.
type Header = Option<(PackId, u64, Option<Arc<Frame>>)>;

impl Headers {
    pub(super) fn new() -> Headers {
        let mut headers = Vec::new();
        headers.resize_with(HEADERS, Mutex::default);
        Headers(headers)
    }

    pub(super) fn get(&self, place: &Place) -> Option<Arc<Frame>> {
        let slot = self.slot(place).lock();
        slot.as_ref().filter(|slot| is(slot, place)).and_then(|(.., frame)| frame.clone())
    }

    pub(super) fn keep(&self, place: &Place, frame: Arc<Frame>) {
        *self.slot(place).lock() = Some((place.pack, place.at, Some(frame)));
    }

    /// Returns true if another blob of the frame was looked up before. Then the whole header is
    /// worth reading.
    pub(super) fn asked_before(&self, place: &Place) -> bool {
        let mut slot = self.slot(place).lock();
        let asked = slot.as_ref().is_some_and(|slot| is(slot, place));
        if !asked {
            *slot = Some((place.pack, place.at, None));
        }
        asked
    }

    /// Returns the slot of a frame. Neighbouring frames mostly have different slots.
    fn slot(&self, place: &Place) -> &Mutex<Header> {
        let [.., low] = place.pack.as_bytes();
        &self.0[(usize::from(*low) + usize::try_from(place.at >> 17).unwrap_or(0)) % HEADERS]
    }
}

fn is((pack, at, _): &(PackId, u64, Option<Arc<Frame>>), place: &Place) -> bool {
    (*pack, *at) == (place.pack, place.at)
}

/// The number of headers in the cache.
const HEADERS: usize = 64;
