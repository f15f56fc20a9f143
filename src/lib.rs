//! Checkpoint live process trees into content-addressed storage, and bring them back.
//!
//! The work is done by [criu](https://criu.org), to which this crate talks over its RPC. There are two layers:
//!
//! - **The capture**, for those who want processes back: [`ProcsCapture`] takes a live process tree into a
//!   [`BlobStore`], [`ProcsRestore`] makes a live process tree of what is there. What criu must be told is found out.
//! - **The client**, for those who know criu: [`Criu`] has a method for each request; what it can be told
//!   is in [`options`], what it tells while it works in [`rpc`].
//!
//! ```no_run
//! use criu_rpc::{FsBlobStore, ProcsCapture, ProcsRestore};
//!
//! let mut child = std::process::Command::new("my-tool").spawn()?;
//! let store = FsBlobStore::open("captures")?;
//!
//! // The tool goes on. Its state at this moment is in the store.
//! let stored = ProcsCapture::new([child.id()]).run(&store)?;
//!
//! // Later: back to that moment. A revived tree gets its old pids, so the old one is killed and reaped first.
//! criu_rpc::kill_tree(child.id())?;
//! child.wait()?;
//! let mut restored = ProcsRestore::new().restore(&store, &stored.digest)?;
//! for tree in &mut restored.trees {
//!     println!("process {} ended: {}", tree.pid(), tree.wait()?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where things are
//!
//! | For | see |
//! |---|---|
//! | capturing | [`ProcsCapture`] with its result [`Stored`]; [`Chunking`], [`BufferPool`]; [`SelfCapture`] for a process that captures itself; [`Pid`] |
//! | reviving | [`ProcsRestore`] with a [`Stream`] for each standard stream; [`Restored`] and its [`Tree`]s |
//! | what to tell a user of a capture or a restore | [`Warning`] |
//! | ending a tree, before it is revived | [`kill_tree`], [`kill_session`] |
//! | stopping a capture or a restore | [`Cancel`]; [`Until`] for work on stores |
//! | storing | [`BlobStore`], [`BlobStoreExt`]; [`FsBlobStore`], [`MemBlobStore`] |
//! | stores of other kinds, behind features | `EncryptedBlobStore`, `ObjectBlobStore` |
//! | stores of your own, collections, moving captures | [`store`] |
//! | what a capture is made of | [`ProcsBlob`], [`manifest`], [`digest`] |
//! | what would block a capture | [`ProcsCapture::preflight`] |
//! | what would block a restore | [`ProcsRestore::preflight`] |
//! | what would block a dump, and criu itself | `Criu` with its `preflight`, on Linux |
//! | options for criu | [`DumpOptions`], [`RestoreOptions`], [`options`] |
//! | failures | [`Error`], [`Result`], [`BoxError`]; [`ProcessProblem`]; [`Failure`] with its [`Cause`], [`Target`], [`Request`] and criu's [`Version`] ([`ParseVersionError`]) |
//!
//! # Errors
//!
//! Errors are sorted by who can act. [`Error::advice`] says what a person can do, and [`Failure::report`] tells all
//! that is known of a request that criu could not carry out. A capture that fails leaves the tree running as it was.
//!
//! # Platforms
//!
//! criu is for Linux, and needs root. Everywhere else, and on Linux without criu, [`ProcsCapture::capture`] stores a placeholder,
//! which a restore returns as a [`Warning`]. [`ProcsCapture::run`] fails there unless a placeholder was asked for. The module [`rpc`] is there on Linux only; the rest is the
//! same everywhere.
//!
//! # Speed
//!
//! Hashing and encryption want optimized code: `--release`, or `[profile.dev.package."*"] opt-level = 2` in the Cargo.toml of the workspace
//! that is built. Without, they take fifteen to forty times as long.
//!
//! # Features
//!
//! None is on by default.
//!
//! - `compression`: packs of [`FsBlobStore`] are compressed with zstd, where that makes them smaller: not what is encrypted.
//! - `conformance`: the suite that every [`BlobStore`] must pass, for authors of stores.
//! - `encryption`: `EncryptedBlobStore`, which encrypts what another store keeps.
//! - `multi-buffer`: chunks are hashed several at once: chunked captures and restores take a fifth less time.
//! - `object-store`: `ObjectBlobStore`, a store in S3, Google Cloud Storage, Azure Blob Storage or on an HTTP server.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod archive;
mod capture;
mod diagnose;
pub mod digest;
mod error;
mod foresight;
mod image;
pub mod manifest;
pub mod options;
mod pages;
mod pid;
mod plain;
mod platform;
#[cfg(target_os = "linux")]
pub mod preflight;
#[cfg_attr(unix, path = "private/unix.rs")]
#[cfg_attr(not(unix), path = "private/elsewhere.rs")]
mod private;
#[cfg(target_os = "linux")]
mod procfs;
mod proto;
mod request;
mod restore;
#[cfg(target_os = "linux")]
pub mod rpc;
pub mod store;
mod stream;
#[cfg(target_os = "linux")]
mod sys;
mod took;
mod until;
mod version;
mod warning;
mod wiped;

pub use capture::{BufferPool, Chunking, ProcsCapture, SelfCapture, Stored};
pub use digest::Digest256;
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use foresight::{Foreseen, Foresight};
pub use manifest::ProcsBlob;
pub use options::{DumpOptions, RestoreOptions};
pub use pid::Pid;
pub use platform::{Cancel, GrownFiles, Tree, Unread, kill_session, kill_tree};
pub use request::Request;
pub use restore::{ProcsRestore, Restored};
#[cfg(target_os = "linux")]
pub use rpc::Criu;
#[cfg(feature = "encryption")]
pub use store::EncryptedBlobStore;
#[cfg(feature = "object-store")]
pub use store::ObjectBlobStore;
pub use store::{BlobStore, BlobStoreExt, FsBlobStore, MemBlobStore};
pub use stream::Stream;
pub use took::RestoreTimes;
pub use until::Until;
pub use version::{ParseVersionError, Version};
pub use warning::Warning;

#[doc = include_str!("../README.md")] // its example is tested
#[cfg(doctest)]
mod readme {}
