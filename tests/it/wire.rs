//! Compares `proto/rpc/rpc.proto` with criu's: the same names, numbers, labels, types and defaults.
//!
//! The comparison uses a table of criu 4.2, and the file of an installed criu development package
//! if there is one. `CRIU_RPC_PROTO` names another file.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use protox::prost_reflect::prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};

#[test]
fn our_interface_is_that_of_criu_4_2() {
    let ours = Interface::parse(&our_file());
    let table = Interface::from_table(TABLE);

    assert_none(table.contradictions(&ours), "the table has what proto/rpc/rpc.proto lacks");
    assert_none(ours.contradictions(&table), "proto/rpc/rpc.proto has what the table lacks");
}

#[test]
fn our_interface_holds_that_of_an_installed_criu() {
    let Some(file) = installed_file() else {
        // Written directly, because the output of macros is hidden in a test that passes.
        let _ = writeln!(
            io::stderr(),
            "no rpc.proto of criu is installed: ours was compared with the table only"
        );
        return;
    };
    let ours = Interface::parse(&our_file());
    let mut installed = Interface::parse(&file);
    installed.add_default_of_3_19();

    let what = file.display();
    assert_none(installed.contradictions(&ours), &format!("{what} differs from ours"));
    assert_none(installed.gaps(&ours), &format!("{what} isn't merely older than ours"));
}

#[test]
fn an_older_interface_lacks_the_end_of_ours_and_nothing_else() {
    let ours = Interface::from_table("m.a 1 required bool\nm.b 2 optional int32 7\nn.c 1 optional n");
    let faults = |theirs| {
        let theirs = Interface::from_table(theirs);
        theirs.contradictions(&ours).len() + theirs.gaps(&ours).len()
    };

    assert_eq!(faults("m.a 1 required bool"), 0, "a later field and a later message");
    assert_eq!(faults("m.b 2 optional int32 7"), 1, "a field was removed");
    assert_eq!(faults("m.a 1 required bool\nm.c 3 optional bool"), 2, "a newer field, and one removed");
    for different in
        ["m.a 2 required bool", "m.a 1 optional bool", "m.a 1 required int32", "m.z 1 required bool"]
    {
        assert_ne!(faults(different), 0, "{different}");
    }
    assert_ne!(faults("m.a 1 required bool\nm.b 2 optional int32"), 0, "without its default");
}

/// Each field and each value of an enum, as `message.field`.
struct Interface(BTreeMap<String, Entry>);

#[derive(PartialEq)]
struct Entry {
    number: i32,
    /// Label, type, and default if there is one. Empty for a value of an enum.
    kind: String,
}

impl Interface {
    #[track_caller]
    fn parse(file: &Path) -> Self {
        let folder = file.parent().expect("a file is in a folder");
        let mut files = protox::compile([file], [folder]).unwrap_or_else(|error| panic!("{error:?}")).file;
        let file = files.pop().expect("one file went in");
        assert!(files.is_empty(), "criu's file imports nothing");
        assert_eq!((file.package(), file.syntax()), ("", ""), "no package, and proto2 goes unsaid");

        let mut interface = Interface(BTreeMap::new());
        file.message_type.iter().for_each(|message| interface.add_message(message));
        file.enum_type.iter().for_each(|choices| interface.add_enum(choices));
        interface
    }

    fn add_message(&mut self, message: &DescriptorProto) {
        assert!(message.nested_type.is_empty(), "{}: criu nests nothing", message.name());
        assert!(message.enum_type.is_empty(), "{}: criu nests nothing", message.name());
        for field in &message.field {
            self.add(format!("{}.{}", message.name(), field.name()), field.number(), kind(field));
        }
    }

    fn add_enum(&mut self, choices: &EnumDescriptorProto) {
        for value in &choices.value {
            self.add(format!("{}.{}", choices.name(), value.name()), value.number(), String::new());
        }
    }

    fn add(&mut self, name: String, number: i32, kind: String) {
        assert!(!self.0.contains_key(&name), "{name} is there twice");
        self.0.insert(name, Entry { number, kind });
    }

    #[track_caller]
    fn from_table(table: &str) -> Self {
        let mut interface = Interface(BTreeMap::new());
        for line in table.lines().filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let name = words.next().expect("a name");
            let number = words.next().and_then(|number| number.parse().ok()).expect("a number");
            interface.add(name.to_owned(), number, words.collect::<Vec<_>>().join(" "));
        }
        interface
    }

    /// Adds the only default that criu added to an existing field. It changes nothing on the wire.
    fn add_default_of_3_19(&mut self) {
        if let Some(entry) =
            self.0.get_mut("criu_opts.images_dir_fd").filter(|entry| entry.kind == "required int32")
        {
            entry.kind += " -1";
        }
    }

    /// Returns the entries of `self` that `other` lacks or has differently.
    fn contradictions(&self, other: &Self) -> Vec<String> {
        self.0
            .iter()
            .filter(|(name, entry)| other.0.get(*name) != Some(*entry))
            .map(|(name, entry)| format!("{name} {} {}", entry.number, entry.kind))
            .collect()
    }

    /// Returns the entries of `newer` that cannot be additions to `self`. criu numbers upwards, so
    /// an addition never has a lower number than an entry of `self` in the same place.
    fn gaps(&self, newer: &Self) -> Vec<String> {
        newer
            .0
            .iter()
            .filter(|(name, entry)| !self.0.contains_key(*name) && entry.number < self.last_number(name))
            .map(|(name, entry)| format!("{name} {} {}", entry.number, entry.kind))
            .collect()
    }

    /// Returns the highest number in the message or enum of `name`.
    fn last_number(&self, name: &str) -> i32 {
        let place = |name: &str| name.split('.').next().map(str::to_owned);
        let numbers =
            self.0.iter().filter(|(other, _)| place(other) == place(name)).map(|(_, entry)| entry.number);
        numbers.max().unwrap_or(i32::MIN)
    }
}

/// Formats a field as in the table: `required criu_req_type`, `optional int32 2`.
fn kind(field: &FieldDescriptorProto) -> String {
    let label = field.label().as_str_name().trim_start_matches("LABEL_").to_lowercase();
    let scalar = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
    let kind = field.type_name.as_deref().map_or(&*scalar, |name| name.trim_start_matches('.'));
    format!("{label} {kind} {}", field.default_value()).trim_end().to_owned()
}

fn our_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/rpc/rpc.proto")
}

/// Returns the `rpc.proto` of a criu development package. A file that was named must exist.
fn installed_file() -> Option<PathBuf> {
    if let Some(named) = env::var_os("CRIU_RPC_PROTO") {
        return Some(
            fs::canonicalize(&named).unwrap_or_else(|error| panic!("CRIU_RPC_PROTO is {named:?}: {error}")),
        );
    }
    ["/usr/include/criu/rpc.proto", "/usr/local/include/criu/rpc.proto"]
        .map(PathBuf::from)
        .into_iter()
        .find(|file| file.exists())
}

#[track_caller]
fn assert_none(lines: Vec<String>, what: &str) {
    assert!(lines.is_empty(), "{what} (see proto/README.md):\n{}", lines.join("\n"));
}

/// criu 4.2: name, number, label, type, default.
const TABLE: &str = "
criu_cg_mode.IGNORE                0
criu_cg_mode.CG_NONE               1
criu_cg_mode.PROPS                 2
criu_cg_mode.SOFT                  3
criu_cg_mode.FULL                  4
criu_cg_mode.STRICT                5
criu_cg_mode.DEFAULT               6

criu_network_lock_method.IPTABLES  1
criu_network_lock_method.NFTABLES  2
criu_network_lock_method.SKIP      3

criu_pre_dump_mode.SPLICE          1
criu_pre_dump_mode.VM_READ         2

criu_req_type.EMPTY                0
criu_req_type.DUMP                 1
criu_req_type.RESTORE              2
criu_req_type.CHECK                3
criu_req_type.PRE_DUMP             4
criu_req_type.PAGE_SERVER          5
criu_req_type.NOTIFY               6
criu_req_type.CPUINFO_DUMP         7
criu_req_type.CPUINFO_CHECK        8
criu_req_type.FEATURE_CHECK        9
criu_req_type.VERSION             10
criu_req_type.WAIT_PID            11
criu_req_type.PAGE_SERVER_CHLD    12
criu_req_type.SINGLE_PRE_DUMP     13

criu_page_server_info.address      1 optional string
criu_page_server_info.port         2 optional int32
criu_page_server_info.pid          3 optional int32
criu_page_server_info.fd           4 optional int32

criu_veth_pair.if_in               1 required string
criu_veth_pair.if_out              2 required string

ext_mount_map.key                  1 required string
ext_mount_map.val                  2 required string

join_namespace.ns                  1 required string
join_namespace.ns_file             2 required string
join_namespace.extra_opt           3 optional string

inherit_fd.key                     1 required string
inherit_fd.fd                      2 required int32

cgroup_root.ctrl                   1 optional string
cgroup_root.path                   2 required string

unix_sk.inode                      1 required uint32

criu_dump_resp.restored            1 optional bool

criu_restore_resp.pid              1 required int32

criu_notify.script                 1 optional string
criu_notify.pid                    2 optional int32

criu_features.mem_track            1 optional bool
criu_features.lazy_pages           2 optional bool
criu_features.pidfd_store          3 optional bool

criu_req.type                      1 required criu_req_type
criu_req.opts                      2 optional criu_opts
criu_req.notify_success            3 optional bool
criu_req.keep_open                 4 optional bool
criu_req.features                  5 optional criu_features
criu_req.pid                       6 optional uint32

criu_resp.type                     1 required criu_req_type
criu_resp.success                  2 required bool
criu_resp.dump                     3 optional criu_dump_resp
criu_resp.restore                  4 optional criu_restore_resp
criu_resp.notify                   5 optional criu_notify
criu_resp.ps                       6 optional criu_page_server_info
criu_resp.cr_errno                 7 optional int32
criu_resp.features                 8 optional criu_features
criu_resp.cr_errmsg                9 optional string
criu_resp.version                 10 optional criu_version
criu_resp.status                  11 optional int32

criu_version.major_number          1 required int32
criu_version.minor_number          2 required int32
criu_version.gitid                 3 optional string
criu_version.sublevel              4 optional int32
criu_version.extra                 5 optional int32
criu_version.name                  6 optional string

criu_opts.images_dir_fd            1 required int32 -1
criu_opts.pid                      2 optional int32
criu_opts.leave_running            3 optional bool
criu_opts.ext_unix_sk              4 optional bool
criu_opts.tcp_established          5 optional bool
criu_opts.evasive_devices          6 optional bool
criu_opts.shell_job                7 optional bool
criu_opts.file_locks               8 optional bool
criu_opts.log_level                9 optional int32 2
criu_opts.log_file                10 optional string
criu_opts.ps                      11 optional criu_page_server_info
criu_opts.notify_scripts          12 optional bool
criu_opts.root                    13 optional string
criu_opts.parent_img              14 optional string
criu_opts.track_mem               15 optional bool
criu_opts.auto_dedup              16 optional bool
criu_opts.work_dir_fd             17 optional int32
criu_opts.link_remap              18 optional bool
criu_opts.veths                   19 repeated criu_veth_pair
criu_opts.cpu_cap                 20 optional uint32 4294967295
criu_opts.force_irmap             21 optional bool
criu_opts.exec_cmd                22 repeated string
criu_opts.ext_mnt                 23 repeated ext_mount_map
criu_opts.manage_cgroups          24 optional bool
criu_opts.cg_root                 25 repeated cgroup_root
criu_opts.rst_sibling             26 optional bool
criu_opts.inherit_fd              27 repeated inherit_fd
criu_opts.auto_ext_mnt            28 optional bool
criu_opts.ext_sharing             29 optional bool
criu_opts.ext_masters             30 optional bool
criu_opts.skip_mnt                31 repeated string
criu_opts.enable_fs               32 repeated string
criu_opts.unix_sk_ino             33 repeated unix_sk
criu_opts.manage_cgroups_mode     34 optional criu_cg_mode
criu_opts.ghost_limit             35 optional uint32 1048576
criu_opts.irmap_scan_paths        36 repeated string
criu_opts.external                37 repeated string
criu_opts.empty_ns                38 optional uint32
criu_opts.join_ns                 39 repeated join_namespace
criu_opts.cgroup_props            41 optional string
criu_opts.cgroup_props_file       42 optional string
criu_opts.cgroup_dump_controller  43 repeated string
criu_opts.freeze_cgroup           44 optional string
criu_opts.timeout                 45 optional uint32
criu_opts.tcp_skip_in_flight      46 optional bool
criu_opts.weak_sysctls            47 optional bool
criu_opts.lazy_pages              48 optional bool
criu_opts.status_fd               49 optional int32
criu_opts.orphan_pts_master       50 optional bool
criu_opts.config_file             51 optional string
criu_opts.tcp_close               52 optional bool
criu_opts.lsm_profile             53 optional string
criu_opts.tls_cacert              54 optional string
criu_opts.tls_cacrl               55 optional string
criu_opts.tls_cert                56 optional string
criu_opts.tls_key                 57 optional string
criu_opts.tls                     58 optional bool
criu_opts.tls_no_cn_verify        59 optional bool
criu_opts.cgroup_yard             60 optional string
criu_opts.pre_dump_mode           61 optional criu_pre_dump_mode SPLICE
criu_opts.pidfd_store_sk          62 optional int32
criu_opts.lsm_mount_context       63 optional string
criu_opts.network_lock            64 optional criu_network_lock_method IPTABLES
criu_opts.mntns_compat_mode       65 optional bool
criu_opts.skip_file_rwx_check     66 optional bool
criu_opts.unprivileged            67 optional bool
criu_opts.images_dir              68 optional string
criu_opts.leave_stopped           69 optional bool
criu_opts.display_stats           70 optional bool
criu_opts.log_to_stderr           71 optional bool
";
