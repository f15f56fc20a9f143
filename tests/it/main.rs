//! What needs neither privilege nor criu.
#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod crash;
mod stores;
