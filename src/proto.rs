//! Rust types of criu's interfaces, made by `build.rs` from `proto/`. Private to the crate.

/// The messages between criu and its callers.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
pub(crate) mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc/_.rs"));
}

/// The parts of criu's image formats that this crate reads.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
pub(crate) mod images {
    include!(concat!(env!("OUT_DIR"), "/images/_.rs"));
}
