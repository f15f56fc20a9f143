//! Rust types of criu's interfaces, made by `build.rs` from `proto/`. Private to the crate.

/// What criu and its callers say to each other.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
pub(crate) mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc/_.rs"));
}

/// What criu writes into images, as far as this crate reads it.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
pub(crate) mod images {
    include!(concat!(env!("OUT_DIR"), "/images/_.rs"));
}
