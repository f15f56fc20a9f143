//! [`External`]: the name of a resource that is not part of the tree.

use std::fmt;

/// A resource outside the tree, for [`external`](crate::DumpOptions::external). `criu --external`.
///
/// ```
/// use criu_rpc::{DumpOptions, options::External};
///
/// let options = DumpOptions::default()
///     .external(External::Mount { path: "/data".into(), label: "data".into() })
///     .external(External::Unix { inode: 4711 });
/// assert_eq!(External::Unix { inode: 4711 }.to_string(), "unix[4711]");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum External {
    /// In a dump, a bind mount at `path` in the tree, and a label for it. In a restore `path` is
    /// that label, and `label` is the path to mount there.
    Mount {
        /// The mount point, or the label that it got.
        path: String,
        /// The label, or the path to bind there.
        label: String,
    },
    /// A device with a mounted file system, for a dump. A restore names the label:
    /// [`External::DevicePath`].
    Device {
        /// The major number of the device.
        major: u32,
        /// The minor number of the device.
        minor: u32,
        /// The label.
        label: String,
    },
    /// A device that got a label in the dump, for a restore.
    DevicePath {
        /// The label.
        label: String,
        /// The path of the device.
        path: String,
    },
    /// An open file.
    File {
        /// The mount it is on, as in `/proc/<pid>/fdinfo`.
        mount: i32,
        /// Its inode.
        inode: u64,
    },
    /// A terminal whose other side is outside.
    Terminal {
        /// The device number of the terminal (`st_rdev`).
        rdev: u64,
        /// The device number of the file system it is on (`st_dev`).
        dev: u64,
    },
    /// A unix socket whose other end is outside.
    Unix {
        /// The inode of the tree's own end.
        inode: u64,
    },
    /// A network namespace.
    Net {
        /// Its inode, as in `/proc/<pid>/ns/net`.
        inode: u64,
        /// The label, which [`Lend::inherit`](crate::rpc::Lend::inherit) takes at the restore.
        label: String,
    },
    /// A pid namespace. criu 3.15.
    Pid {
        /// Its inode, as in `/proc/<pid>/ns/pid`.
        inode: u64,
        /// The label, which [`Lend::inherit`](crate::rpc::Lend::inherit) takes at the restore.
        label: String,
    },
    /// A pair of virtual network devices.
    Veth {
        /// The device in the tree's namespace.
        inner: String,
        /// The device outside, maybe with `@bridge`.
        outer: String,
    },
    /// A network device of the tree's namespace that another program creates at the restore. criu
    /// 3.16.
    NetDevice {
        /// The device in the tree's namespace.
        name: String,
        /// Its name where it is created.
        outer: String,
    },
    /// A macvlan device of the tree's namespace, for a restore.
    Macvlan {
        /// The device in the tree's namespace.
        name: String,
        /// The device outside on which it is created.
        outer: String,
    },
}

impl fmt::Display for External {
    /// Writes the resource as criu does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            External::Mount { path, label } => write!(f, "mnt[{path}]:{label}"),
            External::Device { major, minor, label } => write!(f, "dev[{major}/{minor}]:{label}"),
            External::DevicePath { label, path } => write!(f, "dev[{label}]:{path}"),
            External::File { mount, inode } => write!(f, "file[{mount:x}:{inode:x}]"),
            External::Terminal { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            External::Unix { inode } => write!(f, "unix[{inode}]"),
            External::Net { inode, label } => write!(f, "net[{inode}]:{label}"),
            External::Pid { inode, label } => write!(f, "pid[{inode}]:{label}"),
            External::Veth { inner, outer } => write!(f, "veth[{inner}]:{outer}"),
            External::NetDevice { name, outer } => write!(f, "netdev[{name}]:{outer}"),
            External::Macvlan { name, outer } => write!(f, "macvlan[{name}]:{outer}"),
        }
    }
}

impl From<External> for String {
    fn from(external: External) -> String {
        external.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the forms in `criu --help` and criu's manual.
    #[test]
    fn every_resource_is_written_as_criu_reads_it() {
        let text = str::to_owned;
        let all = [
            (External::Mount { path: text("/data"), label: text("d") }, "mnt[/data]:d"),
            (External::Device { major: 8, minor: 17, label: text("disk") }, "dev[8/17]:disk"),
            (External::DevicePath { label: text("disk"), path: text("/dev/sdb1") }, "dev[disk]:/dev/sdb1"),
            (External::File { mount: 0x1f, inode: 0xabc }, "file[1f:abc]"),
            (External::Terminal { rdev: 0x8801, dev: 0x17 }, "tty[8801:17]"),
            (External::Unix { inode: 4711 }, "unix[4711]"),
            (External::Net { inode: 4711, label: text("net") }, "net[4711]:net"),
            (External::Pid { inode: 4711, label: text("pid") }, "pid[4711]:pid"),
            (External::Veth { inner: text("eth0"), outer: text("veth1@br0") }, "veth[eth0]:veth1@br0"),
            (External::NetDevice { name: text("eth0"), outer: text("veth1") }, "netdev[eth0]:veth1"),
            (External::Macvlan { name: text("eth0"), outer: text("wan") }, "macvlan[eth0]:wan"),
        ];
        for (external, written) in all {
            assert_eq!(String::from(external.clone()), written, "{external:?}");
            let wire = crate::RestoreOptions::default().external(external).wire();
            assert_eq!(wire.external, [written]);
        }
    }
}
