//! Options with a few choices.

use std::{ops::BitOr, path::Path};

use crate::proto::rpc::{
    CgroupRoot as WireCgroupRoot, CriuCgMode, CriuNetworkLockMethod, CriuPageServerInfo, CriuPreDumpMode,
    JoinNamespace as WireJoinNamespace,
};

/// Converts a path to a text of the message. Protobuf has UTF-8 only. Another path gets a zero
/// byte, so that the request is refused before criu works on a wrong file.
pub(super) fn text_of(path: &Path) -> String {
    path.to_str().map_or_else(|| format!("{}\0", path.display()), str::to_owned)
}

/// The level of criu's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogLevel {
    /// Errors only. `-v1`.
    Error,
    /// Errors and warnings. `-v2`, and the default: more makes criu slow on large trees.
    Warn,
    /// The steps of its work as well, with times. `-v3`.
    Info,
    /// Everything. `-v4`. A dump of a large tree takes several times as long.
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

/// criu's treatment of control groups. `--manage-cgroups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CgroupMode {
    /// Leaves them alone: nothing is dumped, and restored tasks stay in criu's groups.
    Ignore,
    /// Restores the tasks' membership, in groups that exist.
    None,
    /// Restores membership, and the properties of groups that exist.
    Props,
    /// Creates missing groups, with their properties; leaves existing groups alone. criu's default.
    Soft,
    /// Creates missing groups, and restores the properties of all.
    Full,
    /// Creates all groups; an existing group is an error.
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

/// The way to hold back packets of TCP connections while criu dumps them. `--network-lock`.
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

/// The way in which a pre-dump reads memory. `--pre-dump-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PreDumpMode {
    /// By code that criu puts into the tasks, while they are frozen. criu's default.
    Splice,
    /// From outside, by `process_vm_readv`, while they run.
    VmRead,
}

impl PreDumpMode {
    pub(super) fn wire(self) -> i32 {
        let mode = match self {
            PreDumpMode::Splice => CriuPreDumpMode::Splice,
            PreDumpMode::VmRead => CriuPreDumpMode::VmRead,
        };
        mode.into()
    }
}

/// Features of the processor that must be the same at the restore. `--cpu-cap`.
///
/// ```
/// use criu_rpc::{DumpOptions, options::CpuCap};
///
/// let options = DumpOptions::default().cpu_cap(CpuCap::FPU | CpuCap::INS);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuCap(u32);

impl CpuCap {
    /// None of them.
    pub const NONE: CpuCap = CpuCap(0);
    /// Those of the floating point unit.
    pub const FPU: CpuCap = CpuCap(1);
    /// All of them, exactly.
    pub const CPU: CpuCap = CpuCap(2);
    /// The instructions that programs may use.
    pub const INS: CpuCap = CpuCap(4);

    pub(super) fn wire(self) -> u32 {
        self.0
    }
}

impl BitOr for CpuCap {
    type Output = CpuCap;

    fn bitor(self, other: CpuCap) -> CpuCap {
        CpuCap(self.0 | other.0)
    }
}

/// The address on which a page server listens. `--address`, `--port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageServerAddress {
    host: Option<String>,
    port: u16,
}

impl PageServerAddress {
    /// Makes an address of a host and a port. To connect, the host may be a name. To listen, it is
    /// a number, and port 0 means any.
    pub fn tcp(host: impl Into<String>, port: u16) -> PageServerAddress {
        PageServerAddress { host: Some(host.into()), port }
    }

    /// Makes an address that listens on all addresses of IPv4, on this port. Every client that
    /// reaches it can write into the images.
    pub fn any(port: u16) -> PageServerAddress {
        PageServerAddress { host: None, port }
    }

    pub(super) fn wire(self) -> CriuPageServerInfo {
        CriuPageServerInfo {
            address: self.host,
            port: Some(self.port.into()),
            ..CriuPageServerInfo::default()
        }
    }
}

/// Another place for control groups. `--cgroup-root`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupRoot {
    controller: Option<String>,
    path: String,
}

impl CgroupRoot {
    /// Moves all controllers.
    pub fn all(path: impl AsRef<Path>) -> CgroupRoot {
        CgroupRoot { controller: None, path: text_of(path.as_ref()) }
    }

    /// Moves one controller.
    pub fn of(controller: impl Into<String>, path: impl AsRef<Path>) -> CgroupRoot {
        CgroupRoot { controller: Some(controller.into()), path: text_of(path.as_ref()) }
    }

    pub(super) fn wire(self) -> WireCgroupRoot {
        WireCgroupRoot { ctrl: self.controller, path: self.path }
    }
}

/// A namespace to restore empty. `--empty-ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EmptyNamespace {
    /// The network namespace, without its devices, addresses and rules.
    Net,
}

impl EmptyNamespace {
    pub(super) fn wire(self) -> u32 {
        match self {
            EmptyNamespace::Net => 0x4000_0000,
        }
    }
}

/// An existing namespace, for a restored tree to join. `--join-ns`. criu 2.3.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JoinNamespace {
    kind: &'static str,
    file: String,
    extra: Option<String>,
}

impl JoinNamespace {
    /// Joins a network namespace: a path such as `/run/netns/name`, or the pid of a process in it.
    pub fn net(file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace::of("net", file)
    }

    /// Joins a namespace of host names.
    pub fn uts(file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace::of("uts", file)
    }

    /// Joins a namespace of System V and POSIX objects.
    pub fn ipc(file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace::of("ipc", file)
    }

    /// Joins a namespace of clocks.
    pub fn time(file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace::of("time", file)
    }

    /// Joins a mount namespace.
    pub fn mnt(file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace::of("mnt", file)
    }

    /// Joins a user namespace, as this user and group.
    pub fn user(file: impl AsRef<Path>, uid: u32, gid: u32) -> JoinNamespace {
        JoinNamespace { extra: Some(format!("{uid},{gid}")), ..JoinNamespace::of("user", file) }
    }

    fn of(kind: &'static str, file: impl AsRef<Path>) -> JoinNamespace {
        JoinNamespace { kind, file: text_of(file.as_ref()), extra: None }
    }

    pub(super) fn wire(self) -> WireJoinNamespace {
        WireJoinNamespace { ns: self.kind.to_owned(), ns_file: self.file, extra_opt: self.extra }
    }
}
