//! Tests that need neither privileges nor criu.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod crash;
mod stores;
mod wire;
