//! The table: one row a field of `criu_opts`, in the order of criu's own numbers.
//!
//! A row names its kind (`flag`, `value`, `choice`, `list`), its field as criu does, and the requests that can
//! use it. A field that is not a row is in [`WITHHELD`], with the reason; the test at the foot sees to that.

use super::{CgroupMode, Dump, LogLevel, NetworkLock, Options, Restore};

macro_rules! rows {
    ($( $(#[$doc:meta])* $kind:ident $field:ident $(: $type:ty)? , $($request:ident)+ ; )*) => {
        $( rows!(@each [$($request)+] $kind $field [$($type)?] $(#[$doc])*); )*

        #[cfg(test)]
        const ROWS: &[&str] = &[$(stringify!($field)),*];
    };
    (@each [$($request:ident)+] $kind:ident $field:ident $type:tt $(#[$doc:meta])*) => {
        rows!(@split [$($request)+] $kind $field $type [$(#[$doc])*]);
    };
    (@split [$($request:ident)+] $kind:ident $field:ident $type:tt $docs:tt) => {
        $( rows!(@method $request $kind $field $type $docs); )+
    };
    (@method $request:ident flag $field:ident [] [$(#[$doc:meta])*]) => {
        impl Options<$request> {
            $(#[$doc])*
            #[must_use]
            pub fn $field(mut self, on: bool) -> Self {
                self.wire.$field = Some(on);
                self
            }
        }
    };
    (@method $request:ident value $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        impl Options<$request> {
            $(#[$doc])*
            #[must_use]
            pub fn $field(mut self, value: impl Into<$type>) -> Self {
                self.wire.$field = Some(value.into());
                self
            }
        }
    };
    (@method $request:ident choice $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        impl Options<$request> {
            $(#[$doc])*
            #[must_use]
            pub fn $field(mut self, choice: $type) -> Self {
                self.wire.$field = Some(choice.wire());
                self
            }
        }
    };
    (@method $request:ident list $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        impl Options<$request> {
            $(#[$doc])*
            ///
            /// Call it once for each.
            #[must_use]
            pub fn $field(mut self, one: impl Into<$type>) -> Self {
                self.wire.$field.push(one.into());
                self
            }
        }
    };
}

rows! {
    /// Let the tree go on after the dump. criu by itself kills it.
    flag leave_running, Dump;
    /// Allow unix datagram sockets whose other end is outside the tree. For stream sockets use
    /// [`external`](Self::external) with `unix[inode]`.
    flag ext_unix_sk, Dump Restore;
    /// Carry established TCP connections along. A restore must be told the same.
    flag tcp_established, Dump Restore;
    /// Accept any path to a device as long as its number is right.
    flag evasive_devices, Dump;
    /// Allow a root task that leads no session, and a terminal from outside. A restore must be told the same;
    /// it puts the root into criu's session and process group, and takes the terminal from criu's standard
    /// input.
    flag shell_job, Dump Restore;
    /// Carry file locks along. A restore that is not told the same drops them without a word.
    flag file_locks, Dump Restore;
    /// How much criu logs. What it logs comes back in a [`Failure`](crate::Failure).
    choice log_level: LogLevel, Dump Restore;
    /// Write the log into this file of the work folder instead of handing it to the caller. A name, not a path.
    value log_file: String, Dump Restore;
    /// The folder that becomes the root of a restored mount namespace; a mount point.
    value root: String, Dump Restore;
    /// The folder of the images before these, relative to the folder of the images: pages that are there
    /// already are left out. Needs a kernel that tracks changes of memory.
    value parent_img: String, Dump;
    /// Start to track changes of memory, for the next dump. Needs `CONFIG_MEM_SOFT_DIRTY`.
    flag track_mem, Dump;
    /// Dump: remove pages from the parent images that these replace. Restore: remove pages from the images as they
    /// are loaded. Destroys images: never for files that anything else uses.
    flag auto_dedup, Dump Restore;
    /// Hard-link deleted files that still have a name elsewhere, so that they can be dumped. Such images are good
    /// for one restore.
    flag link_remap, Dump;
    /// Which of the processor's features must be the same at restore: bits 1 (floating point), 2 (all) and
    /// 4 (instructions); 0 for none.
    value cpu_cap: u32, Dump Restore;
    /// Find the paths of watched files by searching.
    flag force_irmap, Dump;
    /// The program that criu becomes after the restore, and its arguments.
    list exec_cmd: String, Restore;
    /// Make the root task a child of the caller, not of criu, so that the caller can wait for it.
    flag rst_sibling, Restore;
    /// Detect bind mounts from outside by themselves.
    flag auto_ext_mnt, Dump Restore;
    /// Allow shared mounts from outside; with [`auto_ext_mnt`](Self::auto_ext_mnt).
    flag ext_sharing, Dump Restore;
    /// Allow mounts that are slaves of mounts outside; with [`auto_ext_mnt`](Self::auto_ext_mnt).
    flag ext_masters, Dump Restore;
    /// A mount point to leave out.
    list skip_mnt: String, Dump;
    /// A file system to allow although criu does not know it, or `all`.
    list enable_fs: String, Dump Restore;
    /// What to do with control groups.
    choice manage_cgroups_mode: CgroupMode, Dump Restore;
    /// The largest deleted file to store in the images, in bytes of allocated blocks. criu's own limit is 1 MiB.
    value ghost_limit: u32, Dump;
    /// One more folder to search with [`force_irmap`](Self::force_irmap).
    list irmap_scan_paths: String, Dump;
    /// A resource that criu is to treat as somebody else's: `mnt[/path]:label`, `dev[major/minor]:label`,
    /// `file[mount:inode]`, `tty[rdev:dev]` (hexadecimal), `unix[inode]`, `net[inode]:label`,
    /// `pid[inode]:label`, `veth[inner]:outer`.
    list external: String, Dump Restore;
    /// Properties of control groups to dump, as criu's manual writes them.
    value cgroup_props: String, Dump;
    /// A file with such properties.
    value cgroup_props_file: String, Dump;
    /// A controller of control groups to dump; without any, all.
    list cgroup_dump_controller: String, Dump;
    /// Freeze the tree through this control group, instead of one task after the other.
    value freeze_cgroup: String, Dump;
    /// How long criu may take to freeze the tree, in seconds; 10 by itself.
    value timeout: u32, Dump;
    /// Leave out TCP connections that nobody has accepted yet.
    flag tcp_skip_in_flight, Dump;
    /// Skip kernel settings that do not exist here.
    flag weak_sysctls, Restore;
    /// Dump: keep memory out of the images, and serve it afterwards. Restore: fetch memory when it is touched,
    /// from a server on `lazy-pages.socket` in the work folder.
    flag lazy_pages, Dump Restore;
    /// Hand the masters of orphaned terminals over, at
    /// [`Event::OrphanPtsMaster`](crate::rpc::Event::OrphanPtsMaster).
    flag orphan_pts_master, Dump Restore;
    /// A file of criu's options, which have the last word.
    value config_file: String, Dump Restore;
    /// Drop TCP connections: the sockets come back closed. A restore must be told the same.
    flag tcp_close, Dump Restore;
    /// The security profile to restore into: `apparmor:name` or `selinux:context`, or `none:`.
    value lsm_profile: String, Restore;
    /// The certificate authority for the page server.
    value tls_cacert: String, Dump;
    /// The revoked certificates for the page server.
    value tls_cacrl: String, Dump;
    /// Our certificate for the page server.
    value tls_cert: String, Dump;
    /// The key to our certificate for the page server.
    value tls_key: String, Dump;
    /// Encrypt what goes to the page server.
    flag tls, Dump;
    /// Do not check the name in the page server's certificate.
    flag tls_no_cn_verify, Dump;
    /// A folder with mounted control groups, so that criu need not mount them.
    value cgroup_yard: String, Dump Restore;
    /// What to use as `context=` of restored mounts.
    value lsm_mount_context: String, Restore;
    /// How to hold back packets while TCP connections are dumped. criu 3.16.
    choice network_lock: NetworkLock, Dump;
    /// Restore mounts in the way that criu had before 3.17.
    flag mntns_compat_mode, Restore;
    /// Accept files whose permissions changed since the dump. criu 3.18.
    flag skip_file_rwx_check, Restore;
    /// Run without root, with `CAP_CHECKPOINT_RESTORE`. criu 3.18.
    flag unprivileged, Dump Restore;
    /// Leave the tree stopped, as by SIGSTOP. criu 3.19 over RPC.
    flag leave_stopped, Dump Restore;
}

/// The fields that callers cannot set, and why.
#[cfg(test)]
const WITHHELD: &[(&str, &str)] = &[
    ("images_dir_fd", "lent: Lend::images"),
    ("images_dir", "ours: the folder is lent as a descriptor; by path for a self-dump"),
    ("pid", "a parameter of the call"),
    ("ps", "not offered yet"),
    ("notify_scripts", "ours: set when there are hooks"),
    ("work_dir_fd", "lent: Lend::work"),
    ("veths", "deprecated: external, veth[inner]:outer"),
    ("ext_mnt", "deprecated: external, mnt[path]:label"),
    ("manage_cgroups", "superseded by manage_cgroups_mode"),
    ("cg_root", "not offered yet"),
    ("inherit_fd", "lent: Lend::inherit"),
    ("unix_sk_ino", "deprecated: external, unix[inode]"),
    ("empty_ns", "not offered yet"),
    ("join_ns", "not offered yet"),
    ("status_fd", "obsolete: Event::StatusReady"),
    ("pre_dump_mode", "not offered yet"),
    ("pidfd_store_sk", "not offered yet"),
    ("display_stats", "ours: statistics are read from stats-dump"),
    ("log_to_stderr", "ours: set when the caller names no log file"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_criu_is_a_row_or_withheld_for_a_reason() {
        let proto = include_str!("../../proto/rpc/rpc.proto");
        let message = proto.split("message criu_opts {").nth(1).unwrap().split("\n}").next().unwrap();
        let lines = message.lines().map(|line| line.split("//").next().unwrap().trim());
        let mut fields: Vec<_> = lines
            .filter_map(|line| {
                line.split('=').next()?.split_whitespace().nth(2).filter(|_| line.contains('='))
            })
            .collect();
        let mut known: Vec<_> =
            ROWS.iter().copied().chain(WITHHELD.iter().map(|(field, _)| *field)).collect();
        fields.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, fields);
    }

    #[test]
    fn what_is_set_is_what_goes_over_the_wire() {
        let options =
            Options::<Dump>::default().leave_running(true).external("mnt[/a]:a").external("dev[1/2]:b");
        let wire = options.wire();
        assert_eq!(wire.leave_running, Some(true));
        assert_eq!(wire.external, ["mnt[/a]:a", "dev[1/2]:b"]);
        assert_eq!(wire.images_dir_fd, -1);
        assert_eq!(wire.tcp_established, None);
    }
}
