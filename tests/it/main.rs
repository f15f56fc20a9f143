//! Tests that need neither privileges nor criu.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod crash;
mod golden;
mod stores;
mod wire;
