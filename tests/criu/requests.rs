//! The client's other requests: the processor, page servers, pre-dumps, and options past the table.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    net::{TcpListener, TcpStream},
    os::unix::{
        net::{UnixDatagram, UnixStream},
        process::ExitStatusExt,
    },
    path::Path,
    process::Command,
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, RestoreOptions, Result, Version,
    options::{CpuInfoOptions, PageServerAddress, PageServerOptions, PreDumpOptions, RawValue},
    rpc::{Event, Hooks, Key, Lend, NoHooks},
};

use crate::{
    client::{dump, resource},
    harness::{criu, skip, tests, version},
    places::{Home, children, copy_program, family, names, state, wait_until},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, signal},
};

tests![
    one_criu_tells_both_its_release_and_its_features,
    the_processor_has_what_it_had,
    an_image_of_the_processor_that_is_missing_or_damaged_is_refused,
    a_field_is_set_by_its_number_in_a_dump_and_in_a_restore,
    an_argument_reaches_criu,
    a_page_server_takes_in_the_memory_of_a_dump,
    a_page_server_works_over_a_socket_that_was_lent,
    a_page_server_that_is_dropped_is_gone,
    a_page_server_that_is_stopped_fails_its_dump_and_harms_no_tree,
    a_page_server_that_fails_tells_what_criu_said,
    a_page_server_that_was_killed_is_told_from_one_that_failed,
    a_page_server_that_nobody_connects_to_is_not_waited_for_past_the_deadline,
    a_page_server_that_nobody_owns_takes_in_the_memory_of_a_dump,
    nothing_listens_wider_than_it_was_told,
    a_page_server_that_nobody_owns_can_be_told_to_write_its_number,
    a_dump_to_a_page_server_that_is_not_there_fails,
    where_memory_is_not_tracked_nothing_is_pre_dumped,
    pre_dumps_after_each_other_and_the_dump_make_a_whole,
    a_row_of_pre_dumps_and_its_dump_make_a_whole,
];

/// A victim's images, and what is to be known of it to revive it.
#[derive(Debug)]
pub(crate) struct Images {
    folder: File,
    stdin: String,
    stdout: String,
    pub(crate) members: Vec<i32>,
}

impl Images {
    /// Notes the facts about a victim whose images are in this folder, or will be.
    #[track_caller]
    pub(crate) fn of(victim: &Victim, folder: &Path) -> Images {
        let pid = victim.pid();
        Images {
            folder: File::open(folder).unwrap(),
            stdin: resource(pid, 0),
            stdout: resource(pid, 1),
            members: victim.members(),
        }
    }

    pub(crate) fn lend(&self) -> Lend<'_> {
        Lend::images(&self.folder)
    }

    /// Revives them as our child, with new pipes to talk through.
    pub(crate) fn revive(&self, criu: &Criu, options: &RestoreOptions) -> Result<Revived> {
        self.revive_with(criu, options, &[])
    }

    /// Revives them as our child, with these hooks.
    pub(crate) fn revive_by(&self, criu: &Criu, hooks: &mut dyn Hooks) -> Result<Revived> {
        self.revive_as(criu, &RestoreOptions::default(), &[], None, hooks)
    }

    /// The same, with these files in the place of others.
    pub(crate) fn revive_with(
        &self,
        criu: &Criu,
        options: &RestoreOptions,
        files: &[(Key, &File)],
    ) -> Result<Revived> {
        self.revive_as(criu, options, files, None, &mut NoHooks)
    }

    /// The same, with this terminal.
    pub(crate) fn revive_in(&self, criu: &Criu, options: &RestoreOptions, terminal: &File) -> Result<Revived> {
        self.revive_as(criu, options, &[], Some(terminal), &mut NoHooks)
    }

    fn revive_as(
        &self,
        criu: &Criu,
        options: &RestoreOptions,
        files: &[(Key, &File)],
        terminal: Option<&File>,
        hooks: &mut dyn Hooks,
    ) -> Result<Revived> {
        let (talk, input, output) = Talk::through_pipes();
        let lend = self.lend().inherit(self.stdin.clone(), &input).inherit(self.stdout.clone(), &output);
        let lend = files.iter().fold(lend, |lend, (key, file)| lend.inherit(key.clone(), *file));
        let lend = match terminal {
            Some(terminal) => lend.terminal(terminal),
            None => lend,
        };
        let tree = criu.restore(&options.clone().rst_sibling(true), lend, hooks)?;
        Ok(Revived::new(tree, talk))
    }
}

fn one_criu_tells_both_its_release_and_its_features() {
    let about = criu().about().or_explain();
    assert_eq!(about.version, version());
    assert_eq!(about.features, criu().features().or_explain());
}

fn the_processor_has_what_it_had() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let options = CpuInfoOptions::default();
    criu().cpuinfo_dump(&options, Lend::images(&folder)).or_explain();
    assert!(home.path("images/cpuinfo.img").is_file());
    criu().cpuinfo_check(&options, Lend::images(&folder)).or_explain();
}

fn an_image_of_the_processor_that_is_missing_or_damaged_is_refused() {
    let home = Home::new();
    let path = home.folder("images");
    let folder = File::open(&path).unwrap();
    let check = || criu().cpuinfo_check(&CpuInfoOptions::default(), Lend::images(&folder)).unwrap_err();
    let error = check();
    assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    assert_eq!(error.failure().unwrap().cause, Cause::NoImages, "{}", explain(&error));

    criu().cpuinfo_dump(&CpuInfoOptions::default(), Lend::images(&folder)).or_explain();
    let image = path.join("cpuinfo.img");
    let bytes = fs::read(&image).unwrap();
    for damaged in [&bytes[..bytes.len() - 1], &bytes[..9], &[]] {
        fs::write(&image, damaged).unwrap();
        let error = check();
        assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    }
}

fn a_field_is_set_by_its_number_in_a_dump_and_in_a_restore() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=1"]);
    let leave_running = DumpOptions::default().raw_field(3, RawValue::Flag(true));
    dump(&home, "images", victim.pid(), &leave_running, &mut NoHooks).or_explain();
    let images = Images::of(&victim, &home.path("images"));
    victim.assert_counts_on(0);
    victim.end();

    let leave_stopped = RestoreOptions::default().raw_field(69, RawValue::Flag(true));
    let mut revived = images.revive(&criu(), &leave_stopped).or_explain();
    wait_until("it is stopped", || state(revived.pid()) == Some('T'));
    signal(revived.pid(), nix::sys::signal::Signal::SIGCONT);
    revived.assert_counts_on(0);
}

fn an_argument_reaches_criu() {
    let home = Home::new();
    let program = home.path("program");
    copy_program(std::env::current_exe().unwrap(), &program);
    let bytes = fs::read(&program).unwrap();
    let Some(id) = build_id(&bytes) else { skip("this program has no build id to compare") };
    let mut command = Command::new(&program);
    command.args(["--victim", "session"]);
    let victim = Victim::start_by(command);
    dump(&home, "images", victim.pid(), &DumpOptions::default().leave_running(true), &mut NoHooks)
        .or_explain();
    let images = Images::of(&victim, &home.path("images"));
    victim.end();

    // Another build of the same size.
    let mut other = bytes;
    other[id] ^= 1;
    fs::write(home.path("other"), other).unwrap();
    copy_program(home.path("other"), &program);
    let options = RestoreOptions::default();
    let error = images.revive(&criu(), &options).unwrap_err();
    assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    let lenient = criu().argument("--file-validation").argument("filesize");
    images.revive(&lenient, &options).or_explain().assert_counts_on(0);
}

/// Returns the place at which the build id of a program begins.
fn build_id(program: &[u8]) -> Option<usize> {
    const NOTE: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    program.windows(NOTE.len()).position(|bytes| bytes == NOTE).map(|start| start + NOTE.len())
}

// Page servers.

const LOOPBACK: &str = "127.0.0.1";

fn listening() -> PageServerOptions {
    PageServerOptions::default().ps(PageServerAddress::tcp(LOOPBACK, 0))
}

fn sending_to(port: u16) -> DumpOptions {
    DumpOptions::default().ps(PageServerAddress::tcp(LOOPBACK, port))
}

/// Starts a victim whose memory a page server takes in.
#[track_caller]
fn victim() -> Victim {
    let mut victim = Victim::start(&["children=1", "memory=3"]);
    victim.assert_counts_on(0);
    victim
}

/// It was dumped and has ended; and its images are whole.
#[track_caller]
fn comes_back(victim: Victim, images: &Images) {
    let members = images.members.clone();
    victim.reap(&members);
    let mut revived = images.revive(&criu(), &RestoreOptions::default()).or_explain();
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("check"), "memory ok 768 pages");
    assert_eq!(revived.ask("child 0 check"), "memory ok 256 pages");
}

/// The numbers of page files are the page server's.
#[track_caller]
fn assert_served(home: &Home) {
    let pages: Vec<_> =
        names(&home.path("images")).into_iter().filter(|name| name.starts_with("pages-")).collect();
    assert!(!pages.is_empty() && pages.iter().all(|name| name.starts_with("pages-655")), "{pages:?}");
}

fn a_page_server_takes_in_the_memory_of_a_dump() {
    let home = Home::new();
    let victim = victim();
    let images = Images::of(&victim, &home.folder("images"));
    let server = criu().page_server(&listening(), images.lend()).or_explain();
    let port = server.port().unwrap();
    criu().dump(victim.pid(), &sending_to(port), images.lend(), &mut NoHooks).or_explain();
    let status = server.wait().or_explain();
    assert!(status.success(), "{status}");
    assert_served(&home);
    comes_back(victim, &images);
}

fn a_page_server_works_over_a_socket_that_was_lent() {
    let home = Home::new();
    let victim = victim();
    let images = Images::of(&victim, &home.folder("images"));
    let (here, there) = UnixStream::pair().unwrap();
    let server =
        criu().page_server(&PageServerOptions::default(), images.lend().page_server(&there)).or_explain();
    assert_eq!(server.port(), None);
    drop(there);
    criu()
        .dump(victim.pid(), &DumpOptions::default(), images.lend().page_server(&here), &mut NoHooks)
        .or_explain();
    let status = server.wait().or_explain();
    assert!(status.success(), "{status}");
    assert_served(&home);
    comes_back(victim, &images);
}

fn a_page_server_that_is_dropped_is_gone() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let mut victim = victim();
    let server = criu().page_server(&listening(), Lend::images(&folder)).or_explain();
    let port = server.port().unwrap();
    let pid = number(&format!("{server:?}"), "pid: ");
    let parent = parent(pid);
    assert!(state(pid).is_some() && children(own()).contains(&parent));
    drop(server);
    wait_until("the page server and its parent are gone", || state(pid).is_none() && state(parent).is_none());
    let error =
        criu().dump(victim.pid(), &sending_to(port), Lend::images(&folder), &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    victim.assert_counts_on(1);
}

fn a_page_server_that_is_stopped_fails_its_dump_and_harms_no_tree() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let mut victim = victim();
    let server = criu().page_server(&listening(), Lend::images(&folder)).or_explain();
    let (pid, options) = (server.pid().as_raw(), sending_to(server.port().unwrap()));
    // Whatever criu sends to a page server that does not run, it waits for the last answer.
    signal(pid, nix::sys::signal::Signal::SIGSTOP);
    let error = std::thread::scope(|scope| {
        let dump = scope
            .spawn(|| criu().dump(victim.pid(), &options, Lend::images(&folder), &mut NoHooks).unwrap_err());
        wait_until("the tree is frozen", || state(victim.pid()) == Some('t'));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let status = server.stop().or_explain();
        assert_eq!(status.signal(), Some(9));
        dump.join().unwrap()
    });
    assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    assert_eq!(state(pid), None, "it was reaped");
    assert_eq!(victim.ask("check"), "memory ok 768 pages");

    // One that has done its work tells so.
    let images = Images::of(&victim, &home.folder("more"));
    let server = criu().page_server(&listening(), images.lend()).or_explain();
    let pid = server.pid().as_raw();
    criu().dump(victim.pid(), &sending_to(server.port().unwrap()), images.lend(), &mut NoHooks).or_explain();
    wait_until("the page server has ended", || state(pid).is_none_or(|state| state == 'Z'));
    let status = server.stop().or_explain();
    assert!(status.success(), "{status}");
    comes_back(victim, &images);
}

fn a_page_server_that_fails_tells_what_criu_said() {
    let home = Home::new();
    let (folder, work) = (File::open(home.folder("images")).unwrap(), File::open(home.folder("work")).unwrap());
    let in_file = listening().log_file("server.log");
    for (options, lend) in [
        (listening(), Lend::images(&folder)),
        (in_file.clone(), Lend::images(&folder)),
        (in_file, Lend::images(&folder).work(&work)),
    ] {
        let server = criu().page_server(&options, lend).or_explain();
        let mut stream = TcpStream::connect((LOOPBACK, server.port().unwrap())).unwrap();
        stream.write_all(&[0x7f; 64]).unwrap();
        drop(stream);
        let error = server.wait().unwrap_err();
        let Error::Criu(failure) = &error else { panic!("{}", explain(&error)) };
        assert!(!failure.log.is_empty(), "{}", explain(&error));
        assert!(failure.exit.is_some_and(|exit| exit.code().is_some_and(|code| code != 0)), "{failure:?}");
        assert_eq!((failure.request, failure.version.is_some()), (criu_rpc::Request::WaitPid, true));
    }
}

fn a_page_server_that_was_killed_is_told_from_one_that_failed() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let server = criu().page_server(&listening(), Lend::images(&folder)).or_explain();
    let pid = server.pid().as_raw();
    assert!(children(own()).contains(&parent(pid)));
    signal(pid, nix::sys::signal::Signal::SIGTERM);
    let error = server.wait().unwrap_err();
    let Error::Criu(failure) = &error else { panic!("{}", explain(&error)) };
    assert_eq!(failure.exit.and_then(|exit| exit.signal()), Some(15), "{}", explain(&error));
    assert_eq!(failure.cause, Cause::CriuKilled, "{}", explain(&error));
}

fn a_page_server_that_nobody_connects_to_is_not_waited_for_past_the_deadline() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let criu = criu().deadline(std::time::Duration::from_secs(1));
    let server = criu.page_server(&listening(), Lend::images(&folder)).or_explain();
    let pid = number(&format!("{server:?}"), "pid: ");
    let error = server.wait().unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{}", explain(&error));
    wait_until("the page server is gone", || state(pid).is_none());
}

/// The local addresses of TCP sockets that these processes listen at, as `/proc` writes them.
fn listening_at(pids: &[i32]) -> BTreeSet<String> {
    let entries = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = pids.iter().flat_map(entries).filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let sockets: Vec<_> = links.map(|link| link.display().to_string()).collect();
    let tables = ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let words = lines.map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let ours = words.filter(|words| words[3] == "0A" && sockets.contains(&format!("socket:[{}]", words[9])));
    ours.map(|words| words[1].split(':').next().unwrap().to_owned()).collect()
}

/// 127.0.0.1, as `/proc` writes it.
fn loopback() -> String {
    format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]))
}

fn nothing_listens_wider_than_it_was_told() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let mut victim = victim();
    let running = DumpOptions::default().leave_running(true);
    criu().dump(victim.pid(), &running, Lend::images(&folder), &mut NoHooks).or_explain();
    let lazy = listening().lazy_pages(true);
    for options in [listening(), lazy] {
        let server = criu().page_server(&options, Lend::images(&folder)).or_explain();
        let pid = number(&format!("{server:?}"), "pid: ");
        assert_eq!(listening_at(&[pid]), BTreeSet::from([loopback()]), "{options:?}");
    }

    let mut seen = None;
    let mut hooks = |event: Event<'_>| {
        if matches!(event, Event::StatusReady) {
            // Other tests have children, too.
            let is_criu = |pid: &i32| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"swrk\x003\0"))
            };
            let ours = children(own()).into_iter().filter(is_criu).flat_map(family);
            seen = Some(listening_at(&ours.collect::<Vec<_>>()));
            return Err("that was to be seen".into());
        }
        Ok(())
    };
    let lazy = running.lazy_pages(true);
    let told = lazy.clone().ps(PageServerAddress::tcp(LOOPBACK, 0));
    let folder = File::open(home.folder("lazy")).unwrap();
    let criu = criu().deadline(std::time::Duration::from_secs(20));
    let dumped = criu.dump(victim.pid(), &told, Lend::images(&folder), &mut hooks);
    match dumped.unwrap_err() {
        Error::Refused { .. } => assert_eq!(seen, Some(BTreeSet::from([loopback()]))),
        // Its pipes are large, for which it needs a privilege.
        Error::Criu(failure) => assert_eq!(failure.cause, Cause::PipesTooSmall, "{}", failure.report()),
        error => panic!("{}", explain(&error)),
    }
    let (socket, _end) = UnixStream::pair().unwrap();
    for lend in [Lend::images(&folder), Lend::images(&folder).page_server(&socket)] {
        let error = criu.dump(victim.pid(), &lazy, lend, &mut NoHooks).unwrap_err();
        assert!(matches!(error, Error::Options { .. }), "{}", explain(&error));
    }
    victim.assert_counts_on(1);
}

fn a_page_server_that_nobody_owns_takes_in_the_memory_of_a_dump() {
    let home = Home::new();
    let victim = victim();
    let images = Images::of(&victim, &home.folder("images"));
    let port = criu().page_server_daemon(&listening(), images.lend()).or_explain().unwrap();
    let _end = EndOf(port);
    criu().dump(victim.pid(), &sending_to(port), images.lend(), &mut NoHooks).or_explain();
    assert_served(&home);
    comes_back(victim, &images);
}

fn a_page_server_that_nobody_owns_can_be_told_to_write_its_number() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let file = home.path("pid");
    let criu = criu().argument("--pidfile").argument(&file);
    let port = criu.page_server_daemon(&listening(), Lend::images(&folder)).or_explain().unwrap();
    let _end = EndOf(port);
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    signal(pid, nix::sys::signal::Signal::SIGTERM);
    wait_until("the page server is gone", || state(pid).is_none());
}

/// The port of a page server without an owner. Such a server ends with its first connection, which
/// is made at the latest when this is dropped.
struct EndOf(u16);

impl Drop for EndOf {
    fn drop(&mut self) {
        let _ = TcpStream::connect((LOOPBACK, self.0)); // it has ended already, then
    }
}

fn a_dump_to_a_page_server_that_is_not_there_fails() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let mut victim = victim();
    let port = TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port();
    let error =
        criu().dump(victim.pid(), &sending_to(port), Lend::images(&folder), &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
    victim.assert_counts_on(1);
    assert_eq!(victim.ask("check"), "memory ok 768 pages");
}

/// The number after this word.
fn number(text: &str, after: &str) -> i32 {
    let (_, rest) = text.split_once(after).unwrap();
    rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}

pub(crate) fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

/// The parent of a process.
pub(crate) fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

// Pre-dumps.

fn where_memory_is_not_tracked_nothing_is_pre_dumped() {
    if criu().features().or_explain().mem_track {
        skip("this kernel tracks memory");
    }
    let home = Home::new();
    let path = home.folder("images");
    let folder = File::open(&path).unwrap();
    let mut victim = victim();
    let options = PreDumpOptions::default();
    let alone = criu().pre_dump(victim.pid(), &options, Lend::images(&folder)).unwrap_err();
    let row = criu().pre_dumps(victim.pid()).pre_dump(&options, Lend::images(&folder)).unwrap_err();
    for error in [alone, row] {
        assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
        assert_eq!(error.failure().unwrap().cause, Cause::MemoryTracking);
        let report = error.report().to_string();
        assert!(report.contains("pre-dump") && report.contains("the tree:    runs"), "{report}");
    }
    assert_eq!(names(&path), [""; 0]);
    victim.assert_counts_on(1);
}

fn needs_tracking() {
    if !criu().features().or_explain().mem_track {
        skip("this kernel does not track changes of memory");
    }
}

/// The size of all pages in a folder.
fn size_of_pages(folder: &Path) -> u64 {
    let pages = names(folder).into_iter().filter(|name| name.starts_with("pages-"));
    pages.map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum()
}

/// The folders of a row, and that each but the first holds what changed only.
struct Row {
    home: Home,
    folders: [File; 3],
}

impl Row {
    fn new() -> Row {
        let home = Home::new();
        let folders = ["1", "2", "images"].map(|name| File::open(home.folder(name)).unwrap());
        Row { home, folders }
    }

    #[track_caller]
    fn is_whole(&self, victim: Victim, images: &Images) {
        let [first, second, last] = ["1", "2", "images"].map(|name| size_of_pages(&self.home.path(name)));
        assert!(first > 3 << 20, "{first}");
        assert!(second < first / 2 && last < first / 2, "{first} {second} {last}");
        victim.reap(&images.members);
        let mut revived = images.revive(&criu(), &RestoreOptions::default()).or_explain();
        revived.assert_counts_on(3);
        assert_eq!(revived.ask("check"), "memory ok 768 pages");
        assert_eq!(revived.ask("child 0 check"), "memory ok 256 pages");
    }
}

fn pre_dumps_after_each_other_and_the_dump_make_a_whole() {
    needs_tracking();
    if version() < Version::new(3, 17, 0) {
        skip("it knows no single pre-dump");
    }
    let row = Row::new();
    let mut victim = victim();
    let images = Images::of(&victim, &row.home.path("images"));
    let [first, second, last] = &row.folders;
    let store = UnixDatagram::unbound().unwrap();
    let options = PreDumpOptions::default();
    criu().pre_dump(victim.pid(), &options, Lend::images(first).pidfd_store(&store)).or_explain();
    victim.assert_counts_on(1);
    let options = options.parent_img("../1");
    criu().pre_dump(victim.pid(), &options, Lend::images(second).pidfd_store(&store)).or_explain();
    victim.assert_counts_on(2);
    let options = DumpOptions::default().track_mem(true).parent_img("../2");
    criu().dump(victim.pid(), &options, Lend::images(last).pidfd_store(&store), &mut NoHooks).or_explain();
    row.is_whole(victim, &images);
}

fn a_row_of_pre_dumps_and_its_dump_make_a_whole() {
    needs_tracking();
    let row = Row::new();
    let mut victim = victim();
    let images = Images::of(&victim, &row.home.path("images"));
    let [first, second, last] = &row.folders;
    let options = PreDumpOptions::default();
    let dumps = criu().pre_dumps(victim.pid()).pre_dump(&options, Lend::images(first)).or_explain();
    victim.assert_counts_on(1);
    let dumps = dumps.pre_dump(&options.parent_img("../1"), Lend::images(second)).or_explain();
    victim.assert_counts_on(2);
    let options = DumpOptions::default().track_mem(true).parent_img("../2");
    dumps.dump(&options, Lend::images(last), &mut NoHooks).or_explain();
    row.is_whole(victim, &images);
}
