//! The options that choose among a few ways.

use crate::proto::rpc::{CriuCgMode, CriuNetworkLockMethod};

/// How much criu tells in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogLevel {
    /// Errors only. `-v1`.
    Error,
    /// Errors and warnings. `-v2`, and the default: more makes criu slow on large trees.
    Warn,
    /// What it does as well, with times. `-v3`.
    Info,
    /// All of it. `-v4`. A dump of a large tree takes several times as long.
    Debug,
}

impl LogLevel {
    pub(super) fn wire(self) -> i32 {
        match self {
            LogLevel::Error => 1,
            LogLevel::Warn => 2,
            LogLevel::Info => 3,
            LogLevel::Debug => 4,
        }
    }
}

/// What criu does with control groups. `--manage-cgroups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CgroupMode {
    /// Leaves them alone: nothing is dumped, and restored tasks stay in criu's groups.
    Ignore,
    /// Restores the tasks' membership, in groups that exist.
    None,
    /// Restores membership, and the properties of groups that exist.
    Props,
    /// Makes groups that are missing, with their properties; those that exist are left alone. criu's default.
    Soft,
    /// Makes groups that are missing, and restores the properties of all.
    Full,
    /// Makes all groups; one that exists already is an error.
    Strict,
}

impl CgroupMode {
    pub(super) fn wire(self) -> i32 {
        let mode = match self {
            CgroupMode::Ignore => CriuCgMode::Ignore,
            CgroupMode::None => CriuCgMode::CgNone,
            CgroupMode::Props => CriuCgMode::Props,
            CgroupMode::Soft => CriuCgMode::Soft,
            CgroupMode::Full => CriuCgMode::Full,
            CgroupMode::Strict => CriuCgMode::Strict,
        };
        mode.into()
    }
}

/// How criu holds back the packets of TCP connections while they are dumped. `--network-lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetworkLock {
    /// With `iptables`.
    Iptables,
    /// With nftables; criu must have been built for it.
    Nftables,
    /// Not at all: packets that arrive meanwhile are answered with a reset. criu 3.19.
    Skip,
}

impl NetworkLock {
    pub(super) fn wire(self) -> i32 {
        let method = match self {
            NetworkLock::Iptables => CriuNetworkLockMethod::Iptables,
            NetworkLock::Nftables => CriuNetworkLockMethod::Nftables,
            NetworkLock::Skip => CriuNetworkLockMethod::Skip,
        };
        method.into()
    }
}
