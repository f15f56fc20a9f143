//! Work on captures that are stored: what they need, and copies of them.
//!
//! [`FsBlobStore::gc`](crate::FsBlobStore::gc) and [`purge`](crate::FsBlobStore::purge) remove
//! captures.

mod collect;
mod copy;
mod reach;

pub use self::{
    copy::{copy_capture, copy_capture_until},
    reach::{reachable, reachable_until},
};
