//! Tests that need neither privileges nor criu.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[cfg(target_os = "linux")]
mod apart;
mod attached;
#[cfg(feature = "conformance")]
mod conforms;
mod crash;
mod cycles;
#[cfg(feature = "encryption")]
mod encrypted;
mod golden;
mod hostile;
mod house;
#[cfg(target_os = "linux")]
mod killing;
#[cfg(target_os = "linux")]
mod peer;
mod peers;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod soak;
#[cfg(target_os = "linux")]
mod spawn;
mod stores;
mod stores_damage;
#[cfg(target_os = "linux")]
mod stores_full;
mod stores_gc;
mod stores_packs;
mod stores_purge;
mod stores_wait;
mod wire;
