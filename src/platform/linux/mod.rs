//! Linux: dump and restore by criu, by way of a private folder.

mod dump;
mod fit;
mod pids;
mod restore;
mod select;
mod staging;

pub(crate) use self::{dump::checkpoint, restore::Reviver};
pub use crate::rpc::{Cancel, kill::kill_tree, tree::Tree};
