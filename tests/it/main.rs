//! Tests that need neither privileges nor criu.

mod wire;
