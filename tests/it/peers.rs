//! Checks the statements of `docs/peers.md` on this crate, in the sources and on the wire.

use std::{collections::BTreeSet, fs, path::Path};

const MARKS: [&str; 3] = ["●", "○", "–"];

#[test]
fn every_request_has_a_row() {
    let body = block("enum criu_req_type {");
    let types =
        body.lines().filter(|line| line.contains('=')).map(|line| line.trim().split(' ').next().unwrap());
    assert_eq!(sorted(types), sorted(table("Requests").iter().map(|row| row.subject())));
}

#[test]
fn every_option_has_a_row() {
    let fields = fields().into_iter().map(|(name, ..)| name);
    let rows = table("Options");
    assert_eq!(sorted(fields), sorted(rows.iter().map(Row::subject)));
}

#[test]
fn every_event_has_a_row() {
    let hooks = source("src/rpc/hooks.rs");
    let names = hooks.split("pub fn name(").nth(1).unwrap().split("Event::Unknown").next().unwrap();
    let names: Vec<_> = names.split('"').skip(1).step_by(2).collect();
    assert_eq!(names.len(), 14);
    let rows = table("Events");
    assert_eq!(sorted(names), sorted(rows.iter().map(Row::subject)));
}

#[test]
fn an_option_that_we_claim_is_a_row_of_the_table_or_lent_or_withheld() {
    let (options, lend) = (source("src/options/table.rs"), source("src/rpc/lend.rs"));
    let tests = texts("tests");
    let rows = options.split("rows! {\n").last().unwrap().split("\n}").next().unwrap();
    let withheld = options.split("const WITHHELD").nth(1).unwrap().split("];").next().unwrap();
    for row in table("Options") {
        let (field, ours) = (row.subject(), row.ours());
        let is_row = rows.lines().any(|line| {
            let line = line.trim().trim_end_matches(';').replace([',', ':'], " ");
            !line.starts_with("//") && line.split_whitespace().nth(1) == Some(field)
        });
        let is_withheld = withheld.contains(&format!("(\"{field}\","));
        assert!(is_row != is_withheld, "{field}");
        if is_row {
            assert!(ours.starts_with(&format!("● `{field}`")), "{field} is a method, and not {ours}");
            continue;
        }
        match named(ours).first().and_then(|name| name.strip_prefix("Lend::")) {
            Some(method) => {
                assert!(lend.contains(&format!("pub fn {method}(")), "{field}: {ours}");
                let used = [format!(".{method}("), format!("::{method}(")];
                assert!(used.iter().any(|text| tests.contains(text)), "{field}: {method} untested");
            }
            None => assert!(ours.contains("withheld"), "{field}: {ours}"),
        }
    }
}

#[test]
fn what_we_claim_is_there_and_some_test_uses_it() {
    let (sources, tests) = (texts("src"), texts("tests"));
    for heading in ["Requests", "Events", "Ways to reach criu", "What one gets"] {
        for row in table(heading).iter().filter(|row| row.ours().starts_with('●')) {
            let names = named(row.ours());
            assert!(!names.is_empty(), "{}: {} names nothing", row.subject(), row.ours());
            for name in names {
                let last = name.split("::").last().unwrap();
                let (declared, used) = if last.starts_with(char::is_uppercase) {
                    (
                        vec![format!("    {last}"), format!("struct {last}"), format!("trait {last}")],
                        vec![name.to_owned()],
                    )
                } else {
                    (
                        vec![format!("fn {last}("), format!("pub {last}:")],
                        vec![format!(".{last}"), format!("::{last}(")],
                    )
                };
                assert!(declared.iter().any(|text| sources.contains(text)), "{}: no {name}", row.subject());
                assert!(used.iter().any(|text| tests.contains(text)), "{}: {name} untested", row.subject());
            }
        }
    }
}

#[test]
fn every_cell_says_something_and_every_note_is_used() {
    let document = source("docs/peers.md");
    for heading in ["Requests", "Options", "Events", "Ways to reach criu", "What one gets"] {
        for row in table(heading) {
            assert_eq!(row.0.len(), 6, "{}", row.subject());
            for cell in &row.0[1..] {
                assert!(MARKS.iter().any(|mark| cell.starts_with(mark)), "{}: {cell}", row.subject());
            }
        }
    }
    let (notes, uses): (Vec<_>, Vec<_>) = document
        .match_indices("[^")
        .map(|(start, _)| &document[start..])
        .partition(|text| text.split(']').nth(1).is_some_and(|after| after.starts_with(':')));
    let label = |text: &&str| text.split(']').next().unwrap().to_owned();
    let (notes, uses) = (sorted(notes.iter().map(label)), sorted(uses.iter().map(label)));
    assert_eq!(notes, uses);
}

/// A row of a table of the document.
struct Row(Vec<String>);

impl Row {
    /// The subject of the row.
    fn subject(&self) -> &str {
        self.0[0].trim_matches('`')
    }

    /// The statement on this crate.
    fn ours(&self) -> &str {
        &self.0[1]
    }
}

/// Returns the rows of the tables below a heading.
fn table(heading: &str) -> Vec<Row> {
    let document = source("docs/peers.md");
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|'));
    let rows =
        lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    let rows: Vec<_> = rows.skip(2).map(Row).collect();
    let subjects: BTreeSet<_> = rows.iter().map(Row::subject).collect();
    assert_eq!(subjects.len(), rows.len(), "a row of {heading} is there twice");
    rows
}

/// Returns the names that a cell marks as code.
fn named(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Returns the fields of criu's options: name, number, and whether they have a length.
fn fields() -> Vec<(String, u32, bool)> {
    let body = block("message criu_opts {");
    let fields: Vec<_> = body
        .lines()
        .filter_map(|line| {
            let (words, number) = line.split("//").next().unwrap().split_once('=')?;
            let words: Vec<_> = words.split_whitespace().collect();
            let number = number.trim_matches(|letter: char| !letter.is_ascii_digit());
            let number = number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()?;
            let scalars =
                ["bool", "int32", "uint32", "criu_cg_mode", "criu_pre_dump_mode", "criu_network_lock_method"];
            Some((words[2].to_owned(), number, !scalars.contains(&words[1])))
        })
        .collect();
    assert!(fields.len() >= 70, "the interface is not read well");
    fields
}

/// Returns the lines of criu's interface between the line that begins so and the next brace in
/// column one.
fn block(begin: &str) -> String {
    let interface = source("proto/rpc/rpc.proto");
    interface.split(begin).nth(1).unwrap().split("\n}").next().unwrap().to_owned()
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap().replace("\r\n", "\n")
}

/// Returns the text of all Rust files below a folder.
fn texts(folder: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            text += &texts(&name);
        } else if name.ends_with(".rs") {
            text += &source(&name);
        }
    }
    text
}

fn sorted<T: ToString>(names: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    names.sort();
    names.dedup();
    names
}

/// Our options and requests, seen from the other end of the socket.
#[cfg(target_os = "linux")]
mod seen_by_criu {
    use std::{
        collections::BTreeMap,
        fs::File,
        io::ErrorKind,
        os::{
            fd::{AsRawFd, OwnedFd},
            unix::net::UnixListener,
        },
        process::{self, Command},
        thread::{self, JoinHandle},
        time::Duration,
    };

    use criu_rpc::{
        Criu, DumpOptions, Error, RestoreOptions, Version,
        options::{
            CgroupMode, CgroupRoot, CpuCap, CpuInfoOptions, EmptyNamespace, JoinNamespace, LogLevel,
            NetworkLock, PageServerAddress, PageServerOptions, PreDumpMode, PreDumpOptions,
        },
        rpc::{Lend, NoHooks, SelfDump},
    };
    use nix::sys::{
        socket::{
            AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, send,
            setsockopt, socket, socketpair, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    };
    use prost::{
        Message,
        encoding::{DecodeContext, WireType, decode_key, skip_field},
    };

    use crate::stores::Folder;

    #[test]
    fn every_option_arrives_as_its_field() {
        let mut seen = BTreeMap::new();
        macro_rules! set {
            ($options:ident, $ask:ident: $($field:ident($($value:expr),*))*) => {
                let nothing = $ask(&$options::default());
                $(
                    let mut fields = $ask(&$options::default().$field($($value),*));
                    fields.retain(|field| !nothing.contains(field));
                    seen.insert(stringify!($field).to_owned(), fields);
                )*
            };
        }
        let second = Duration::from_secs(1);
        set! { DumpOptions, dump:
            leave_running(true) ext_unix_sk(true) tcp_established(true) evasive_devices(true) shell_job(true)
            file_locks(true) log_file("a") ps(PageServerAddress::any(1)) root("/a") parent_img("a")
            track_mem(true) auto_dedup(true) link_remap(true) cpu_cap(CpuCap::CPU) force_irmap(true)
            auto_ext_mnt(true) ext_sharing(true) ext_masters(true) skip_mnt("/a") enable_fs("a")
            manage_cgroups_mode(CgroupMode::Full) cg_root(CgroupRoot::all("/a")) ghost_limit(1u32)
            irmap_scan_paths("/a") external("unix[1]") empty_ns(EmptyNamespace::Net) cgroup_props("a")
            cgroup_props_file("/a") cgroup_dump_controller("a") freeze_cgroup("/a") timeout(second)
            tcp_skip_in_flight(true) orphan_pts_master(true) config_file("/a")
            tcp_close(true) tls_cacert("/a") tls_cacrl("/a") tls_cert("/a") tls_key("/a") tls(true)
            tls_no_cn_verify(true) cgroup_yard("/a") network_lock(NetworkLock::Skip) unprivileged(true)
            leave_stopped(true)
        }
        set! { RestoreOptions, restore:
            exec_cmd("a") rst_sibling(true) join_ns(JoinNamespace::net("/a")) weak_sysctls(true)
            lsm_profile("none:") lsm_mount_context("a") mntns_compat_mode(true) skip_file_rwx_check(true)
            lazy_pages(true)
        }
        set! { PreDumpOptions, pre_dump: pre_dump_mode(PreDumpMode::VmRead) }
        // This option is always set, so only its value could differ.
        assert!(dump(&DumpOptions::default().log_level(LogLevel::Debug)).contains(&(9, false)));
        seen.insert("log_level".to_owned(), vec![(9, false)]);

        let claimed = super::table("Options");
        let claimed = claimed.iter().filter(|row| row.ours().starts_with(&format!("● `{}`", row.subject())));
        assert_eq!(super::sorted(seen.keys()), super::sorted(claimed.map(super::Row::subject)));
        for (name, number, has_length) in super::fields() {
            if let Some(fields) = seen.get(&name) {
                assert_eq!(*fields, [(number, has_length)], "{name}");
            }
        }
    }

    #[test]
    fn folders_and_the_store_of_pidfds_arrive_as_they_were_lent() {
        let nothing = dump(&DumpOptions::default());
        let (folder, file) = (File::open("/").unwrap(), File::open("/dev/null").unwrap());
        let mut fields = options_of(|criu, lend| {
            let lend = lend.work(&folder).pidfd_store(&file);
            drop(criu.dump(42, &DumpOptions::default(), lend, &mut NoHooks).unwrap());
        });
        assert!(nothing.contains(&(1, false)));
        fields.retain(|field| !nothing.contains(field));
        assert_eq!(fields, [(17, false), (62, false)]);
    }

    #[test]
    fn every_request_goes_out_as_its_type() {
        let folder = Folder::new();
        let folder = File::open(&*folder).unwrap();
        let lend = || Lend::images(&folder);
        assert_eq!(types(|criu| drop(criu.version().unwrap())), ["VERSION"]);
        assert_eq!(types(|criu| criu.check().unwrap()), ["CHECK"]);
        assert_eq!(types(|criu| assert!(criu.features().unwrap().mem_track)), ["FEATURE_CHECK"]);
        let dump =
            |criu: Criu| criu.dump(42, &DumpOptions::default(), lend(), &mut NoHooks).map(drop).unwrap();
        assert_eq!(types(dump), ["DUMP"]);
        let restore =
            |criu: Criu| criu.restore(&RestoreOptions::default(), lend(), &mut NoHooks).map(drop).unwrap();
        assert_eq!(types(restore), ["RESTORE"]);
        let once = |criu: Criu| criu.pre_dump(42, &PreDumpOptions::default(), lend()).unwrap();
        assert_eq!(types(once), ["FEATURE_CHECK", "SINGLE_PRE_DUMP"]);
        let row = |criu: Criu| {
            let row = criu.pre_dumps(42).pre_dump(&PreDumpOptions::default(), lend()).unwrap();
            let row = row.pre_dump(&PreDumpOptions::default(), lend()).unwrap();
            row.dump(&DumpOptions::default(), lend(), &mut NoHooks).unwrap();
        };
        assert_eq!(types(row), ["FEATURE_CHECK", "PRE_DUMP", "PRE_DUMP", "DUMP"]);
        let daemon = |criu: Criu| {
            let port = criu
                .page_server_daemon(
                    &PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0)),
                    lend(),
                )
                .unwrap();
            assert_eq!(port, Some(4711));
        };
        assert_eq!(types(daemon), ["PAGE_SERVER"]);
        let cpuinfo = |criu: Criu| criu.cpuinfo_dump(&CpuInfoOptions::default(), lend()).unwrap();
        assert_eq!(types(cpuinfo), ["CPUINFO_DUMP"]);
        let cpuinfo = |criu: Criu| criu.cpuinfo_check(&CpuInfoOptions::default(), lend()).unwrap();
        assert_eq!(types(cpuinfo), ["CPUINFO_CHECK"]);
    }

    #[test]
    fn a_page_server_is_waited_for_and_ends_with_its_owner() {
        let folder = Folder::new();
        let folder = File::open(&*folder).unwrap();
        let mut stand_in = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(stand_in.id()).unwrap();
        let (criu, there) = obliging(pid);
        let server = criu
            .page_server(
                &PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0)),
                Lend::images(&folder),
            )
            .unwrap();
        assert_eq!(server.port(), Some(4711));
        assert_eq!(server.pid().as_raw(), pid);
        let error = server.wait().unwrap_err();
        assert!(matches!(error, Error::Criu(_)), "{error}");
        assert_eq!(error.failure().unwrap().exit.unwrap().code(), Some(7));
        assert!(!stand_in.wait().unwrap().success(), "it was killed");
        drop(criu);
        let heard = there.join().unwrap();
        assert_eq!(names(&heard), ["PAGE_SERVER_CHLD", "WAIT_PID"]);
        assert_eq!((heard[0].keep_open, heard[1].pid), (Some(true), u32::try_from(pid).ok()));
    }

    #[test]
    fn a_service_is_asked_for_its_version_first() {
        let folder = Folder::new();
        let path = folder.join("criu.sock");
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let service = thread::spawn(move || {
            let listener = UnixListener::from(listener);
            let connections = listener.incoming().take(3);
            connections.flat_map(|connection| oblige(&connection.unwrap().into(), 0)).collect::<Vec<_>>()
        });
        let criu = Criu::service(&path);
        assert_eq!(criu.version().unwrap(), Version::new(4, 2, 0));
        let about = criu.about().unwrap();
        assert!(about.features.mem_track && about.version == Version::new(4, 2, 0));
        let side = criu.dump_self(&DumpOptions::default(), &folder).unwrap();
        assert!(matches!(side, SelfDump::Dumped(_)));
        let heard = service.join().unwrap();
        assert_eq!(names(&heard), ["VERSION", "VERSION", "FEATURE_CHECK", "VERSION", "DUMP"]);
    }

    fn dump(options: &DumpOptions) -> Vec<(u32, bool)> {
        options_of(|criu, lend| drop(criu.dump(42, options, lend, &mut NoHooks).unwrap()))
    }

    fn restore(options: &RestoreOptions) -> Vec<(u32, bool)> {
        options_of(|criu, lend| drop(criu.restore(options, lend, &mut NoHooks).unwrap()))
    }

    fn pre_dump(options: &PreDumpOptions) -> Vec<(u32, bool)> {
        options_of(|criu, lend| criu.pre_dump(42, options, lend).unwrap())
    }

    /// Returns the numbers of the last request's options, and whether they have a length.
    fn options_of(ask: impl FnOnce(Criu, Lend<'_>)) -> Vec<(u32, bool)> {
        let folder = Folder::new();
        let folder = File::open(&*folder).unwrap();
        let (criu, there) = obliging(0);
        ask(criu, Lend::images(&folder));
        let heard = there.join().unwrap().pop().unwrap();
        let opts = heard.opts.unwrap();
        let mut rest = opts.as_slice();
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let (number, kind) = decode_key(&mut rest).unwrap();
            skip_field(kind, number, &mut rest, DecodeContext::default()).unwrap();
            fields.push((number, kind == WireType::LengthDelimited));
        }
        fields
    }

    fn types(ask: impl FnOnce(Criu)) -> Vec<String> {
        let (criu, there) = obliging(0);
        ask(criu);
        names(&there.join().unwrap())
    }

    fn names(heard: &[Req]) -> Vec<String> {
        let body = super::block("enum criu_req_type {");
        let name = |request: &Req| {
            let numbered = |line: &&str| line.contains(&format!(" = {};", request.kind));
            body.lines().find(numbered).unwrap().trim().split(' ').next().unwrap().to_owned()
        };
        heard.iter().map(name).collect()
    }

    /// Plays a criu that grants everything, and returns its requests. `server` is the pid of the
    /// page server that it starts.
    fn obliging(server: i32) -> (Criu, JoinHandle<Vec<Req>>) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Criu::over(theirs), thread::spawn(move || oblige(&ours, server)))
    }

    fn oblige(socket: &OwnedFd, server: i32) -> Vec<Req> {
        setsockopt(socket, ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
        let mut heard = Vec::new();
        loop {
            let mut packet = [0; 4096];
            let size = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
            if size == 0 {
                return heard;
            }
            let request = Req::decode(&packet[..size]).unwrap();
            let kind = if request.kind == 12 { 5 } else { request.kind }; // as criu does
            let answer = Resp {
                kind,
                success: true,
                restore: (kind == 2).then_some(Number { number: process::id().try_into().unwrap() }),
                ps: (kind == 5).then_some(Server { port: 4711, pid: server }),
                features: (kind == 9).then_some(Feature { mem_track: true }),
                version: (kind == 10).then_some(Numbers { major: 4, minor: 2 }),
                status: (kind == 11).then_some(7 << 8),
            };
            heard.push(request);
            match send(socket.as_raw_fd(), &answer.encode_to_vec(), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {}
                Err(errno) => assert_eq!(std::io::Error::from(errno).kind(), ErrorKind::BrokenPipe),
            }
        }
    }

    /// The client's message, with its options as they arrived.
    #[derive(Clone, PartialEq, Message)]
    struct Req {
        #[prost(int32, required, tag = "1")]
        kind: i32,
        #[prost(bytes = "vec", optional, tag = "2")]
        opts: Option<Vec<u8>>,
        #[prost(bool, optional, tag = "4")]
        keep_open: Option<bool>,
        #[prost(uint32, optional, tag = "6")]
        pid: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Resp {
        #[prost(int32, required, tag = "1")]
        kind: i32,
        #[prost(bool, required, tag = "2")]
        success: bool,
        #[prost(message, optional, tag = "4")]
        restore: Option<Number>,
        #[prost(message, optional, tag = "6")]
        ps: Option<Server>,
        #[prost(message, optional, tag = "8")]
        features: Option<Feature>,
        #[prost(message, optional, tag = "10")]
        version: Option<Numbers>,
        #[prost(int32, optional, tag = "11")]
        status: Option<i32>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Number {
        #[prost(int32, required, tag = "1")]
        number: i32,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Server {
        #[prost(int32, required, tag = "2")]
        port: i32,
        #[prost(int32, required, tag = "3")]
        pid: i32,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Feature {
        #[prost(bool, required, tag = "1")]
        mem_track: bool,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Numbers {
        #[prost(int32, required, tag = "1")]
        major: i32,
        #[prost(int32, required, tag = "2")]
        minor: i32,
    }
}
