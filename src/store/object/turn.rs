//! [`Turn`]: a collection of a store, for programs that write meanwhile.

/// The last collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) ended: bool,
}
