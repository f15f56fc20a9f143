//! Promises that need neither privilege nor criu.

mod golden;
