//! The table: a row for each field of `criu_opts`, in the order of criu's field numbers.
//!
//! A row names its kind, its field as criu does, and the requests that can use it. It names the
//! release of criu if that is younger than 3.0. A field without a row is in [`WITHHELD`], with the
//! reason; the test at the end checks that. Kinds: `flag`; `value` (anything that converts into its
//! type), `path`, `choice` (a type of ours, by its `wire`), `seconds` (a
//! [`Duration`](std::time::Duration)). Lists are `list`, `paths` and `each`, of `value`, `path` and
//! `choice`.

use std::{path::Path, time::Duration};

use super::{
    CgroupMode, CgroupRoot, Cpu, CpuCap, Dump, EmptyNamespace, JoinNamespace, LogLevel, NetworkLock, Options,
    PageServerAddress, PreDump, PreDumpMode, RequestKind, Restore, Serve, choices::text_of, sealed, unset,
};
use crate::{
    Version,
    proto::rpc::{
        CgroupRoot as WireCgroupRoot, CriuOpts, CriuPageServerInfo, JoinNamespace as WireJoinNamespace,
    },
};

macro_rules! rows {
    ($( $(#[$doc:meta])* $kind:ident $field:ident $(: $type:ty)? , $($request:ident)+ $(, $major:literal $minor:literal)? ; )*) => {
        rows!(@impls [Dump PreDump Restore Serve Cpu] {
            $( {
                [$($request)+] $kind $field [$($type)?]
                [$(#[$doc])* $( #[doc = concat!("\n\ncriu ", $major, ".", $minor, ".")] )?]
            } )*
        });

        /// Returns the set fields that some releases of criu do not know.
        pub(crate) fn younger_fields(opts: &CriuOpts) -> Vec<(&'static str, Version)> {
            let mut fields = Vec::new();
            $( $( if opts.$field.is_set() {
                fields.push((stringify!($field), Version::new($major, $minor, 0)));
            } )? )*
            fields
        }

        /// Returns a field whose text criu would truncate.
        pub(crate) fn field_with_zero_byte(opts: &CriuOpts) -> Option<&'static str> {
            $( if opts.$field.has_zero_byte() {
                return Some(stringify!($field));
            } )*
            None
        }

        #[cfg(test)]
        const ROWS: &[&str] = &[$(stringify!($field)),*];

        /// Returns the requests that each row names.
        #[cfg(test)]
        const REQUESTS: &[(&str, &[&str])] = &[$((stringify!($field), &[$(stringify!($request)),+])),*];

        /// Makes a message with every row set.
        #[cfg(test)]
        fn with_every_row() -> CriuOpts {
            let mut opts = CriuOpts { pid: Some(1), ..CriuOpts::default() };
            $( opts.$field = Field::example(); )*
            opts
        }

        /// Returns the rows that are set.
        #[cfg(test)]
        fn rows_set(opts: &CriuOpts) -> Vec<&'static str> {
            let mut rows = Vec::new();
            $( if opts.$field.is_set() {
                rows.push(stringify!($field));
            } )*
            rows
        }
    };
    // One block for each request, with the rows that name it.
    (@impls [$($request:ident)*] $rows:tt) => {
        $( rows!(@impl $request $rows); )*
    };
    (@impl $request:ident { $( { $requests:tt $kind:ident $field:ident $type:tt $docs:tt } )* }) => {
        impl Options<$request> {
            $( rows!(@if $request in $requests $kind $field $type $docs); )*
        }

        impl sealed::Rows for $request {
            fn rows_of(opts: &CriuOpts) -> CriuOpts {
                let mut kept = unset();
                $( rows!(@if $request in $requests keep $field [kept opts] []); )*
                kept
            }
        }

        impl RequestKind for $request {}
    };
    (@if Dump in [Dump $($other:ident)*] $($row:tt)*) => { rows!(@body $($row)*); };
    (@if PreDump in [PreDump $($other:ident)*] $($row:tt)*) => { rows!(@body $($row)*); };
    (@if Restore in [Restore $($other:ident)*] $($row:tt)*) => { rows!(@body $($row)*); };
    (@if Serve in [Serve $($other:ident)*] $($row:tt)*) => { rows!(@body $($row)*); };
    (@if Cpu in [Cpu $($other:ident)*] $($row:tt)*) => { rows!(@body $($row)*); };
    (@if $request:ident in [$first:ident $($other:ident)*] $($row:tt)*) => {
        rows!(@if $request in [$($other)*] $($row)*);
    };
    (@if $request:ident in [] $($row:tt)*) => {};
    (@body keep $field:ident [$kept:ident $opts:ident] []) => { $kept.$field.clone_from(&$opts.$field); };
    (@body flag $field:ident [] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, on: bool) -> Self {
            self.wire.$field = Some(on);
            self
        }
    };
    (@body value $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, value: impl Into<$type>) -> Self {
            self.wire.$field = Some(value.into());
            self
        }
    };
    (@body path $field:ident [] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, path: impl AsRef<Path>) -> Self {
            self.wire.$field = Some(text_of(path.as_ref()));
            self
        }
    };
    (@body paths $field:ident [] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        ///
        /// Call it once for each value.
        #[must_use]
        pub fn $field(mut self, path: impl AsRef<Path>) -> Self {
            self.wire.$field.push(text_of(path.as_ref()));
            self
        }
    };
    (@body choice $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, choice: $type) -> Self {
            self.wire.$field = Some(choice.wire());
            self
        }
    };
    (@body seconds $field:ident [] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, time: Duration) -> Self {
            let seconds = time.as_secs().saturating_add((time.subsec_nanos() > 0).into());
            self.wire.$field = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
            self
        }
    };
    (@body list $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        ///
        /// Call it once for each value.
        #[must_use]
        pub fn $field(mut self, one: impl Into<$type>) -> Self {
            self.wire.$field.push(one.into());
            self
        }
    };
    (@body each $field:ident [$type:ty] [$(#[$doc:meta])*]) => {
        $(#[$doc])*
        ///
        /// Call it once for each value.
        #[must_use]
        pub fn $field(mut self, one: $type) -> Self {
            self.wire.$field.push(one.wire());
            self
        }
    };
}

/// A field of the message.
trait Field {
    /// Returns true if the field is set.
    fn is_set(&self) -> bool;

    /// Returns true if a text in it has a zero byte, where criu would truncate it.
    fn has_zero_byte(&self) -> bool {
        false
    }

    /// Returns a value that counts as set.
    #[cfg(test)]
    fn example() -> Self;
}

macro_rules! fields_without_text {
    ($($type:ty),*) => { $(
        impl Field for Option<$type> {
            fn is_set(&self) -> bool {
                self.is_some()
            }

            #[cfg(test)]
            fn example() -> Self {
                Some(<$type>::default())
            }
        }
    )* };
}
fields_without_text!(bool, i32, u32, CriuPageServerInfo);

impl Field for Option<String> {
    fn is_set(&self) -> bool {
        self.is_some()
    }

    fn has_zero_byte(&self) -> bool {
        self.as_ref().is_some_and(|text| text.contains('\0'))
    }

    #[cfg(test)]
    fn example() -> Self {
        Some("example".to_owned())
    }
}

impl Field for Vec<String> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }

    fn has_zero_byte(&self) -> bool {
        self.iter().any(|text| text.contains('\0'))
    }

    #[cfg(test)]
    fn example() -> Self {
        vec!["example".to_owned()]
    }
}

impl Field for Vec<WireCgroupRoot> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }

    fn has_zero_byte(&self) -> bool {
        self.iter().any(|root| root.path.contains('\0'))
    }

    #[cfg(test)]
    fn example() -> Self {
        vec![WireCgroupRoot::default()]
    }
}

impl Field for Vec<WireJoinNamespace> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }

    fn has_zero_byte(&self) -> bool {
        self.iter().any(|namespace| namespace.ns_file.contains('\0'))
    }

    #[cfg(test)]
    fn example() -> Self {
        vec![WireJoinNamespace::default()]
    }
}

rows! {
    /// Let the tree continue after the dump. criu's default is to kill it.
    flag leave_running, Dump;
    /// Allow unix datagram sockets whose other end is outside the tree. For stream sockets use
    /// [`external`](Self::external) with `unix[inode]`.
    flag ext_unix_sk, Dump Restore;
    /// Dump established TCP connections. A restore must be told the same.
    flag tcp_established, Dump Restore;
    /// Accept any path to a device as long as its number is right.
    flag evasive_devices, Dump;
    /// Allow a root task that leads no session, and a terminal from outside. A restore must be told
    /// the same. It puts the root into criu's session and process group, and takes the terminal
    /// from criu's standard input.
    flag shell_job, Dump Restore;
    /// Dump file locks. A restore that is not told the same drops them silently.
    flag file_locks, Dump Restore;
    /// The level of criu's log. The log comes back in a [`Failure`](crate::Failure).
    choice log_level: LogLevel, Dump PreDump Restore Serve Cpu;
    /// Write the log into this file of the work folder instead of handing it to the caller. A name,
    /// not a path.
    path log_file, Dump PreDump Restore Serve Cpu;
    /// Send the memory to the page server at this address instead of the folder of images. For a
    /// page server itself, the address to listen on. For a socket of the caller's:
    /// [`Lend::page_server`](crate::rpc::Lend).
    choice ps: PageServerAddress, Dump PreDump Serve;
    /// The folder that becomes the root of a restored mount namespace; a mount point.
    path root, Dump Restore;
    /// The folder of the previous images, relative to the folder of the images: pages in it are
    /// left out. Needs a kernel that tracks changes of memory.
    path parent_img, Dump PreDump Serve;
    /// Start to track changes of memory, for the next dump. Needs `CONFIG_MEM_SOFT_DIRTY`.
    flag track_mem, Dump;
    /// Dump: remove pages from the parent images that these replace. Restore: remove pages from the
    /// images as they are loaded. Destroys images: never for files that anything else uses.
    flag auto_dedup, Dump PreDump Restore Serve;
    /// Hard-link deleted files that still have a name elsewhere, so that they can be dumped. Such
    /// images are good for one restore.
    flag link_remap, Dump;
    /// Features of the processor that must be the same at the restore.
    choice cpu_cap: CpuCap, Dump Restore Cpu;
    /// Find the paths of watched files by searching.
    flag force_irmap, Dump PreDump;
    /// The program that criu becomes after the restore, and its arguments.
    list exec_cmd: String, Restore;
    /// Make the root task a child of the caller instead of criu's, so that the caller can wait for
    /// it.
    flag rst_sibling, Restore;
    /// Detect bind mounts from outside, without a name for each.
    flag auto_ext_mnt, Dump Restore;
    /// Allow shared mounts from outside; with [`auto_ext_mnt`](Self::auto_ext_mnt).
    flag ext_sharing, Dump Restore;
    /// Allow mounts that are slaves of mounts outside; with [`auto_ext_mnt`](Self::auto_ext_mnt).
    flag ext_masters, Dump Restore;
    /// A mount point to leave out.
    paths skip_mnt, Dump;
    /// A file system to allow although criu does not know it, or `all`.
    list enable_fs: String, Dump Restore;
    /// The treatment of control groups.
    choice manage_cgroups_mode: CgroupMode, Dump Restore;
    /// Another place for the control groups of a controller, or of all.
    each cg_root: CgroupRoot, Dump Restore;
    /// The largest deleted file to store in the images, in bytes of allocated blocks. criu's own
    /// limit is 1 MiB.
    value ghost_limit: u32, Dump;
    /// One more folder to search with [`force_irmap`](Self::force_irmap).
    paths irmap_scan_paths, Dump PreDump;
    /// A resource that criu is to treat as external: `mnt[/path]:label`, `dev[major/minor]:label`,
    /// `file[mount:inode]`, `tty[rdev:dev]` (hexadecimal), `unix[inode]`, `net[inode]:label`,
    /// `pid[inode]:label`, `veth[inner]:outer`.
    list external: String, Dump Restore;
    /// A namespace to restore empty, for the caller to fill.
    choice empty_ns: EmptyNamespace, Dump Restore;
    /// An existing namespace for the tree to join.
    each join_ns: JoinNamespace, Restore;
    /// Properties of control groups to dump, as criu's manual writes them.
    value cgroup_props: String, Dump;
    /// A file with such properties.
    path cgroup_props_file, Dump;
    /// A controller of control groups to dump; without any, all are dumped.
    list cgroup_dump_controller: String, Dump;
    /// Freeze the tree through this control group, instead of task by task.
    path freeze_cgroup, Dump PreDump;
    /// The time limit for freezing the tree, in whole seconds, rounded up. criu's default is 10. It
    /// covers only the freezing; use [`Criu::deadline`](crate::rpc::Criu::deadline) for all of it.
    seconds timeout, Dump PreDump;
    /// Leave out TCP connections that were not accepted yet.
    flag tcp_skip_in_flight, Dump;
    /// Skip kernel settings that do not exist here.
    flag weak_sysctls, Restore;
    /// Dump: keep memory out of the images, and serve it afterwards, at the address of
    /// [`ps`](Options::<Dump>::ps), which must be set. Page server: serve the memory of the images
    /// in its folder at that address. Restore: fetch memory when it is touched, from a server on
    /// `lazy-pages.socket` in the work folder.
    flag lazy_pages, Dump Restore Serve, 3 5;
    /// Hand out the masters of orphaned terminals, at
    /// [`Event::OrphanPtsMaster`](crate::rpc::Event::OrphanPtsMaster).
    flag orphan_pts_master, Dump Restore;
    /// A file of criu's options, which override all others.
    path config_file, Dump PreDump Restore Serve Cpu, 3 11;
    /// Drop TCP connections: their sockets are restored as closed. A restore must be told the same.
    flag tcp_close, Dump Restore, 3 12;
    /// The security profile to restore into: `apparmor:name` or `selinux:context`, or `none:`.
    value lsm_profile: String, Restore, 3 12;
    /// The certificate authority for the page server.
    path tls_cacert, Dump PreDump Serve, 3 13;
    /// The revoked certificates for the page server.
    path tls_cacrl, Dump PreDump Serve, 3 13;
    /// Our certificate for the page server.
    path tls_cert, Dump PreDump Serve, 3 13;
    /// The key to our certificate for the page server.
    path tls_key, Dump PreDump Serve, 3 13;
    /// Encrypt the connection to the page server.
    flag tls, Dump PreDump Serve, 3 13;
    /// Do not check the name in the page server's certificate.
    flag tls_no_cn_verify, Dump PreDump Serve, 3 13;
    /// A folder with mounted control groups, so that criu does not mount them.
    path cgroup_yard, Dump Restore, 3 14;
    /// The way to read memory before the dump.
    choice pre_dump_mode: PreDumpMode, PreDump, 3 14;
    /// The value for `context=` of restored mounts.
    value lsm_mount_context: String, Restore, 3 16;
    /// The way to hold back packets while criu dumps TCP connections.
    choice network_lock: NetworkLock, Dump, 3 16;
    /// Restore mounts in the way of criu before 3.17.
    flag mntns_compat_mode, Restore, 3 17;
    /// Accept files whose permissions changed since the dump.
    flag skip_file_rwx_check, Restore, 3 18;
    /// Run without root, with `CAP_CHECKPOINT_RESTORE`.
    flag unprivileged, Dump PreDump Restore Cpu, 3 18;
    /// Leave the tree stopped, as by SIGSTOP.
    flag leave_stopped, Dump Restore, 3 19;
}

/// The fields that callers cannot set, with the reasons.
#[cfg(test)]
const WITHHELD: &[(&str, &str)] = &[
    ("images_dir_fd", "lent: Lend::images"),
    ("images_dir", "ours: the folder is lent as a descriptor; by path for a self-dump"),
    ("pid", "a parameter of the call"),
    ("notify_scripts", "ours: set when there are hooks"),
    ("work_dir_fd", "lent: Lend::work"),
    ("veths", "deprecated: external, veth[inner]:outer"),
    ("ext_mnt", "deprecated: external, mnt[path]:label"),
    ("manage_cgroups", "superseded by manage_cgroups_mode"),
    ("inherit_fd", "lent: Lend::inherit"),
    ("unix_sk_ino", "deprecated: external, unix[inode]"),
    ("status_fd", "obsolete: Event::StatusReady"),
    ("pidfd_store_sk", "lent: Lend::pidfd_store"),
    ("display_stats", "ours: statistics are read from stats-dump"),
    ("log_to_stderr", "ours: set when the caller names no log file"),
];

/// Fields above the last one of criu 4.2, which are in no release. criu-dev and its forks give one
/// number several meanings, so the version does not help. Each needs a feature check before it
/// becomes a row.
#[cfg(test)]
const UNSETTLED: &[(u32, &str, &str)] = &[
    (72, "image_io_mode", "criu-dev; elsewhere allow_uprobes, stream, stream_restore or compress"),
    (73, "compress", "criu-dev: its check is criu_features.mem_compression"),
    (74, "compress_acceleration", "criu-dev, with compress"),
    (75, "compress_region_size", "criu-dev, with compress"),
    (76, "decompress_threads", "criu-dev, with compress"),
];

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::options::RawValue;

    #[test]
    fn no_field_with_a_number_of_several_meanings_can_be_set() {
        let proto = include_str!("../../proto/rpc/rpc.proto");
        let message = proto.split("message criu_opts {").nth(1).unwrap().split("\n}").next().unwrap();
        let lines = message.lines().map(|line| line.split("//").next().unwrap());
        let values = lines.filter_map(|line| line.split('=').nth(1));
        let number = |value: &str| value.trim().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        let numbers: Vec<u32> = values.filter_map(number).collect();
        let first = UNSETTLED.iter().map(|(number, ..)| *number).min().unwrap();
        assert!(numbers.len() > 60 && numbers.iter().all(|number| *number < first), "{numbers:?}");
        for (number, name, why) in UNSETTLED {
            assert!(!ROWS.contains(name), "{name} ({number}): {why}");
        }
    }

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
    fn options_for_another_request_have_the_rows_that_name_both() {
        fn share<A: RequestKind, B: RequestKind>(from: &str, to: &str) {
            let wire = A::rows_of(&with_every_row());
            let options = Options::<A> { wire, raw: Vec::new(), request: PhantomData }
                .raw_field(99, RawValue::Flag(true));
            let both = |(row, requests): &(&'static str, &[&str])| {
                (requests.contains(&from) && requests.contains(&to)).then_some(*row)
            };
            let rows: Vec<_> = REQUESTS.iter().filter_map(both).collect();
            let shared = options.shared_with::<B>();
            assert!(rows.contains(&"log_level"), "{from} and {to}");
            assert_eq!(rows_set(&shared.wire), rows, "{from} to {to}");
            assert_eq!((shared.wire.pid, shared.wire.images_dir_fd), (None, -1), "{from} to {to}");
            assert!(shared.raw.is_empty(), "{from} to {to}");
        }
        fn share_with_all<A: RequestKind>(from: &str) {
            share::<A, Dump>(from, "Dump");
            share::<A, PreDump>(from, "PreDump");
            share::<A, Restore>(from, "Restore");
            share::<A, Serve>(from, "Serve");
            share::<A, Cpu>(from, "Cpu");
        }
        share_with_all::<Dump>("Dump");
        share_with_all::<PreDump>("PreDump");
        share_with_all::<Restore>("Restore");
        share_with_all::<Serve>("Serve");
        share_with_all::<Cpu>("Cpu");
        assert_eq!(rows_set(&with_every_row()), ROWS);
    }

    #[test]
    fn a_field_that_another_request_shares_keeps_its_value() {
        let options = Options::<Dump>::default()
            .external("dev[1/2]:a")
            .timeout(Duration::from_secs(7))
            .tcp_established(true)
            .ghost_limit(1_u32);
        let restore: Options<Restore> = options.shared_with();
        assert_eq!(restore, Options::<Restore>::default().external("dev[1/2]:a").tcp_established(true));
        let pre_dump: Options<PreDump> = options.shared_with();
        assert_eq!(pre_dump, Options::<PreDump>::default().timeout(Duration::from_secs(7)));
        assert_eq!(Options::<Dump>::default().shared_with::<Cpu>(), Options::default());
    }

    #[test]
    fn a_field_that_an_old_criu_would_ignore_names_the_release_it_needs() {
        let options = Options::<Restore>::default().tcp_close(true).leave_stopped(true).shell_job(true);
        let fields = younger_fields(&options.wire());
        assert_eq!(
            fields,
            [("tcp_close", Version::new(3, 12, 0)), ("leave_stopped", Version::new(3, 19, 0))]
        );
    }

    #[test]
    fn a_text_that_criu_would_cut_off_is_found() {
        let clean = Options::<Dump>::default().external("mnt[/a]:a").log_file("a");
        assert_eq!(field_with_zero_byte(&clean.wire()), None);
        assert_eq!(field_with_zero_byte(&clean.clone().external("a\0b").wire()), Some("external"));
        assert_eq!(field_with_zero_byte(&clean.clone().log_file("a\0b").wire()), Some("log_file"));
        #[cfg(unix)]
        {
            let foreign: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/a\xff");
            assert_eq!(field_with_zero_byte(&clean.clone().root(foreign).wire()), Some("root"));
            assert_eq!(field_with_zero_byte(&clean.skip_mnt(foreign).wire()), Some("skip_mnt"));
        }
    }

    #[test]
    fn times_are_rounded_up_to_seconds() {
        let seconds = |time| Options::<Dump>::default().timeout(time).wire().timeout;
        assert_eq!(seconds(Duration::from_millis(1)), Some(1));
        assert_eq!(seconds(Duration::from_secs(7)), Some(7));
        assert_eq!(seconds(Duration::MAX), Some(u32::MAX));
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
