//! Checkpoint live process trees into content-addressed storage, and bring them back.
//!
//! The work is done by [criu](https://criu.org), to which this crate talks over its RPC. There are
//! two layers:
//!
//! - **The capture**, to get processes back: [`ProcsCapture`] stores a live process tree in a
//!   [`BlobStore`], and [`ProcsRestore`] revives it. They find the right settings of criu by
//!   themselves.
//! - **The client**, for those who know criu: [`Criu`] has a method for each request. Its settings
//!   are in [`options`], its events and results in [`rpc`].
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
//! It needs Linux, root and the criu binary, 4.2 recommended. A container needs some privileges:
//! see `docs/containers.md`.
//!
//! # Choosing
//!
//! - **An archive or chunks?** For one capture, the default: an archive. For captures at each step,
//!   [`ProcsCapture::chunked`]: each stores only what the store lacks.
//! - **Left running or ended?** The default leaves the tree running.
//!   [`leave_running(false)`](ProcsCapture::leave_running) ends it once the store has everything.
//! - **Back in time, or one more?** By default a tree gets its old pids, so the old tree must end
//!   first. [`ProcsRestore::isolated`] makes a copy beside it.
//! - **Which store?** [`FsBlobStore`] on one machine, `ObjectBlobStore` for several,
//!   [`MemBlobStore`] in tests.
//! - **Preflight, and when?** [`ProcsCapture::preflight`] once before the first capture of a tool,
//!   and before each that ends the tree.
//! - **Frozen for too long?** [`Chunking::pre_dumps`] sends most of the memory while the tree runs.
//!
//! A capture does not contain files on disk, programs and libraries, or the other side of
//! connections. The README has the list.
//!
//! # Overview
//!
//! | For | see |
//! |---|---|
//! | capturing | [`ProcsCapture`], [`Stored`], [`Chunking`], [`BufferPool`], [`Pid`] |
//! | capturing the calling process | [`SelfCapture`] |
//! | reviving | [`ProcsRestore`], [`Restored`], [`Tree`], [`Stream`] |
//! | input to write again, times of a restore | [`Unread`], [`RestoreTimes`] |
//! | reviving copies beside the original | [`ProcsRestore::isolated`], [`Isolation`] |
//! | a capture and copies of it | [`ProcsCapture::branch`], [`Branched`] |
//! | several copies at once | [`ProcsRestore::restore_many`] |
//! | files that changed meanwhile | [`GrownFiles`], [`ProcsRestore::replaced_files`] |
//! | notes for the user of a capture or a restore | [`Warning`], [`Shared`] |
//! | ending a tree, before it is revived | [`kill_tree`], [`kill_session`] |
//! | stopping a capture or a restore | [`Cancel`]; [`Until`] for work on stores |
//! | storing | [`BlobStore`], [`BlobStoreExt`]; [`FsBlobStore`], [`MemBlobStore`] |
//! | compressing and encrypting stores, behind features | [`store::StoreOptions`] |
//! | stores in a cloud, behind a feature | `ObjectBlobStore` |
//! | stores of your own, reports of stores | [`store`] |
//! | removing captures | [`FsBlobStore::gc`], [`FsBlobStore::purge`] |
//! | moving captures, and the blobs that they need | [`stored`] |
//! | the contents of a capture | [`ProcsBlob`], [`manifest`], [`digest`] |
//! | obstacles to a capture | [`ProcsCapture::preflight`], [`Foresight`], [`Foreseen`] |
//! | obstacles to a restore | [`ProcsRestore::preflight`] |
//! | obstacles to a dump, and criu itself | `Criu` with its `preflight`, on Linux |
//! | options for criu | [`DumpOptions`], [`RestoreOptions`], [`options`] |
//! | failures | [`Error`], [`Result`], [`BoxError`], [`ProcessProblem`] |
//! | failures of criu | [`Failure`], [`Cause`], [`Target`], [`Request`] |
//! | releases of criu | [`Version`], [`ParseVersionError`] |
//!
//! # Errors
//!
//! Error variants are sorted by who can act. [`Error::advice`] says what a person can do, and
//! [`Error::report`] prints everything that is known:
//!
//! ```text
//! error: criu could not restore the process tree: a pid of the tree is in use (pid 16449 is held by `sleep`, which runs)
//!   what to do:  end the tree that has these pids (`kill_tree`; after a dump with `leave_running` it is the original) …
//!   the tree:    nothing was revived
//!   criu:        4.2.1
//!   found:       pid 16449 is held by `sleep`, which runs
//! ```
//!
//! A program decides by the [`Cause`]:
//!
//! ```no_run
//! use criu_rpc::{Cause, FsBlobStore, ProcsCapture};
//!
//! let store = FsBlobStore::open("captures")?;
//! match ProcsCapture::new([4242]).run(&store) {
//!     Ok(stored) => println!("{}", stored.digest),
//!     Err(error) => match error.failure().map(|failure| failure.cause) {
//!         Some(Cause::NotPrivileged) => eprintln!("start me with sudo"),
//!         Some(Cause::NoSuchProcess) => eprintln!("the tool has ended"),
//!         _ => eprint!("{}", error.report()),
//!     },
//! }
//! # Ok::<(), criu_rpc::Error>(())
//! ```
//!
//! A failed capture leaves the tree running as it was.
//!
//! # Platforms
//!
//! criu needs Linux and root. On other systems, and on Linux without criu,
//! [`ProcsCapture::capture`] stores a placeholder, which a restore returns as a [`Warning`]. There
//! [`ProcsCapture::run`] fails unless the caller asked for a placeholder. The module [`rpc`] exists
//! on Linux only; the rest is the same everywhere.
//!
//! # Speed
//!
//! Hashing and encryption need optimized code. Build with `--release`, or set
//! `[profile.dev.package."*"] opt-level = 2` in the Cargo.toml of the workspace. Without
//! optimization they take fifteen to forty times as long.
//!
//! # Features
//!
//! All are off by default.
//!
//! - `compression`: [`store::StoreOptions`] can compress packs with zstd.
//! - `conformance`: the test suite that every [`BlobStore`] must pass, for authors of stores.
//! - `encryption`: [`store::StoreOptions`] can encrypt a store.
//! - `multi-buffer`: hashes several chunks at once. Chunked captures and restores take a fifth less
//!   time.
//! - `object-store`: `ObjectBlobStore`, a store in S3, Google Cloud Storage, Azure Blob Storage or
//!   on a WebDAV server.

#![cfg_attr(docsrs, feature(doc_cfg))]
// On other systems a capture stores a placeholder, so most of the formats are unused there.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unreachable_pub, unused_imports))]

mod archive;
mod branch;
mod capture;
mod diagnose;
pub mod digest;
mod error;
mod file_lock;
mod foresight;
#[doc(hidden)]
#[cfg(all(fuzzing, target_os = "linux"))]
pub mod fuzz;
mod image;
mod isolation;
mod lock;
pub mod manifest;
pub mod options;
mod pages;
mod pid;
mod plain;
mod platform;
#[cfg(target_os = "linux")]
pub mod preflight;
#[cfg_attr(unix, path = "private_files/unix.rs")]
#[cfg_attr(not(unix), path = "private_files/elsewhere.rs")]
mod private_files;
#[cfg(target_os = "linux")]
mod procfs;
mod proto;
mod recent;
mod request;
mod restore;
#[cfg(target_os = "linux")]
pub mod rpc;
#[cfg(target_os = "linux")]
mod serve;
pub mod store;
pub mod stored;
mod stream;
#[cfg(target_os = "linux")]
mod sys;
mod threads;
mod took;
mod unique;
mod until;
mod version;
mod warning;
mod wiped;

pub use branch::Branched;
pub use capture::{BufferPool, Chunking, ProcsCapture, SelfCapture, Stored};
pub use digest::Digest256;
pub use error::{BoxError, Cause, Error, Failure, ProcessProblem, Result, Target};
pub use foresight::{Foreseen, Foresight};
pub use isolation::Isolation;
pub use manifest::ProcsBlob;
pub use options::{DumpOptions, RestoreOptions};
pub use pid::Pid;
pub use platform::{Cancel, GrownFiles, Tree, Unread, kill_session, kill_tree};
pub use request::Request;
pub use restore::{ProcsRestore, Restored};
#[cfg(target_os = "linux")]
pub use rpc::Criu;
#[cfg(feature = "object-store")]
pub use store::ObjectBlobStore;
pub use store::{BlobStore, BlobStoreExt, FsBlobStore, MemBlobStore};
pub use stream::Stream;
pub use took::RestoreTimes;
pub use until::Until;
pub use version::{ParseVersionError, Version};
pub use warning::{Shared, Warning};

#[doc = include_str!("../README.md")] // its example is tested
#[cfg(doctest)]
mod readme {}

#[doc = include_str!("../docs/copies.md")]
#[cfg(doctest)]
mod copies {}

#[doc = include_str!("../docs/embedding.md")]
#[cfg(doctest)]
mod embedding {}
