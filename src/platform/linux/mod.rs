//! Linux: dump and restore by criu, by way of a private folder.

mod checks;
mod dump;
mod enclosed;
mod files;
mod fit;
mod foreign;
mod foresee;
mod former;
mod frozen;
mod host;
mod jobs;
mod links;
mod meeting;
mod memory;
mod pids;
mod polls;
mod relock;
mod restore;
mod retry;
mod select;
mod settle;
mod staging;
mod still;
mod streams;
mod unsent;
mod whole;

pub(crate) use self::{
    dump::{cannot_work, checkpoint},
    foresee::foresee,
    host::host,
    restore::Reviver,
};
pub use crate::rpc::{
    cancel::Cancel,
    kill::{kill_session, kill_tree},
    tree::Tree,
};
pub(crate) use crate::sys::{Buffer, page_size};
