//! The raw client: requests, events and refusals.

use std::{fs, fs::File, os::unix::net::UnixListener, panic::resume_unwind};

use criu_rpc::{
    BoxError, Cause, Criu, DumpOptions, Error, RestoreOptions, Result, Version,
    rpc::{Dumped, Event, Hooks, Lend, NoHooks},
};

use crate::{
    harness::{criu, skip, tests, version},
    places::{Home, state, wait_until},
    talk::pipe,
    tree::{OrExplain, Revived, Victim, explain, wait_gone},
};

tests![
    criu_tells_its_version_and_what_it_can_do,
    a_criu_that_does_not_exist_is_told,
    the_events_of_a_dump_and_a_restore_come_in_order,
    a_refusal_before_the_dump_leaves_the_tree_running,
    a_refusal_after_the_dump_leaves_the_tree_running,
    a_hook_that_panics_refuses,
    a_refusal_before_or_after_the_restore_leaves_nothing,
    a_hook_names_external_files,
    a_tree_left_stopped_is_stopped,
];

/// Dumps into a new folder of that name.
#[track_caller]
pub(crate) fn dump(
    home: &Home,
    name: &str,
    pid: i32,
    options: &DumpOptions,
    hooks: &mut dyn Hooks,
) -> Result<Dumped> {
    let folder = File::open(home.folder(name)).unwrap();
    criu().dump(pid, options, Lend::images(&folder), hooks)
}

/// The name in criu's images of what this descriptor of a process leads to: `pipe:[4711]`.
pub(crate) fn resource(pid: i32, descriptor: i32) -> String {
    fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap().display().to_string()
}

fn criu_tells_its_version_and_what_it_can_do() {
    assert!(version() >= Version::new(3, 16, 0));
    criu().check().or_explain();
    let features = criu().features().or_explain();
    assert!(!format!("{features:?}").is_empty());
    let named = Criu::at(criu().program().unwrap());
    assert_eq!(named.version().or_explain(), version());
}

fn a_criu_that_does_not_exist_is_told() {
    for request in [Criu::version as fn(&Criu) -> Result<Version>, |criu| criu.check().map(|()| version())] {
        let error = request(&Criu::at("/nonexistent/criu")).unwrap_err();
        assert!(matches!(&error, Error::NoCriu { searched, .. } if searched.len() == 1), "{}", explain(&error));
        assert!(error.advice().is_some());
    }
    let error = Criu::at("/bin/false").version().unwrap_err();
    let Error::Gone(failure) = &error else { panic!("{}", explain(&error)) };
    assert_eq!((failure.cause, failure.exit.unwrap().code()), (Cause::NotCriu, Some(1)), "{}", explain(&error));
}

/// Notes the events, and refuses the one of this name.
struct Refusing<'a> {
    seen: Vec<String>,
    at: &'a str,
}

impl Hooks for Refusing<'_> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        self.seen.push(event.name().to_owned());
        if event.name() == self.at { Err("not now".into()) } else { Ok(()) }
    }
}

fn refusing(at: &str) -> Refusing<'_> {
    Refusing { seen: Vec::new(), at }
}

fn the_events_of_a_dump_and_a_restore_come_in_order() {
    let home = Home::new();
    let victim = Victim::start(&["children=1"]);
    let (stdin, stdout) = (resource(victim.pid(), 0), resource(victim.pid(), 1));
    let (pid, members) = (victim.pid(), victim.members());
    let mut events = refusing("");
    let dumped = dump(&home, "images", pid, &DumpOptions::default(), &mut events).or_explain();
    assert_eq!(dumped.version, Some(version()));
    let asked: &[&str] = if version() >= Version::new(3, 19, 0) { &["query-ext-files"] } else { &[] };
    assert_eq!(events.seen, [&["pre-dump"], asked, &["post-dump"]].concat());
    victim.reap(&members);

    // With an input that ended it would end while criu lets it go, and criu would call that a
    // failure.
    let ((input, _end), output) = (pipe(), File::create("/dev/null").unwrap());
    let folder = File::open(home.path("images")).unwrap();
    let lend = Lend::images(&folder).inherit(stdin, &input).inherit(stdout, &output);
    let mut pids = Vec::new();
    let mut names = Vec::new();
    let mut hooks = |event: Event<'_>| {
        names.push(event.name().to_owned());
        if let Event::PostRestore { pid, .. } = event {
            pids.push(pid.as_raw());
        }
        Ok(())
    };
    let options = RestoreOptions::default().rst_sibling(true);
    let mut tree = criu().restore(&options, lend, &mut hooks).or_explain();
    assert_eq!(tree.pid().as_raw(), pid);
    tree.kill().unwrap();
    tree.wait().unwrap();
    wait_gone(&members);
    // Those of namespaces come for a tree with namespaces of its own only.
    let expected = ["pre-restore", "post-restore", "pre-resume", "post-resume"];
    assert_eq!(names, expected);
    assert_eq!(pids, [pid]);
}

fn a_refusal_before_the_dump_leaves_the_tree_running() {
    refused_at("pre-dump");
}

fn a_refusal_after_the_dump_leaves_the_tree_running() {
    refused_at("post-dump");
}

#[track_caller]
fn refused_at(event: &str) {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1", "threads=1", "memory=1"]);
    let error =
        dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut refusing(event)).unwrap_err();
    match &error {
        Error::Refused { event: told, source, .. } => {
            assert_eq!((told.as_str(), source.to_string().as_str()), (event, "not now"));
        }
        _ => panic!("{}", explain(&error)),
    }
    victim.assert_counts_on(0);
    assert_eq!(victim.ask("check"), "memory ok 256 pages");
    assert_eq!(victim.ask("child 0 tick"), "count 1");
}

fn a_hook_that_panics_refuses() {
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    let mut panics = |event: Event<'_>| match event {
        Event::PostDump => resume_unwind(Box::new("oh no")), // a panic that prints nothing
        _ => Ok(()),
    };
    let error = dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut panics).unwrap_err();
    match &error {
        Error::Refused { source, .. } => assert!(source.to_string().contains("oh no"), "{source}"),
        _ => panic!("{}", explain(&error)),
    }
    victim.assert_counts_on(0);
}

fn a_refusal_before_or_after_the_restore_leaves_nothing() {
    let home = Home::new();
    let victim = Victim::start(&["children=1"]);
    let (stdin, stdout) = (resource(victim.pid(), 0), resource(victim.pid(), 1));
    let members = victim.members();
    dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut NoHooks).or_explain();
    victim.reap(&members);
    let folder = File::open(home.path("images")).unwrap();
    for event in ["pre-restore", "post-restore"] {
        let (input, output) = (File::open("/dev/null").unwrap(), File::create("/dev/null").unwrap());
        let lend = Lend::images(&folder).inherit(stdin.clone(), &input).inherit(stdout.clone(), &output);
        let options = RestoreOptions::default().rst_sibling(true);
        let error = criu().restore(&options, lend, &mut refusing(event)).unwrap_err();
        assert!(matches!(&error, Error::Refused { event: told, .. } if told == event), "{}", explain(&error));
        wait_gone(&members);
    }
    let (read, output) = pipe();
    let (input, write) = pipe();
    let lend = Lend::images(&folder).inherit(stdin, &input).inherit(stdout, &output);
    let tree = criu().restore(&RestoreOptions::default().rst_sibling(true), lend, &mut NoHooks).or_explain();
    drop((input, output));
    Revived::new(tree, crate::talk::Talk::new(write, read)).assert_counts_on(0);
}

fn a_hook_names_external_files() {
    if version() < Version::new(3, 19, 0) {
        skip("it does not ask for external files");
    }
    let home = Home::new();
    let socket = home.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut victim = Victim::start(&[]);
    assert_eq!(victim.ask(&format!("connect {}", socket.display())), "connected");
    let _other_end = listener.accept().unwrap();
    let sockets = crate::places::names(format!("/proc/{}/fd", victim.pid()).as_ref());
    let sockets = sockets.iter().map(|descriptor| resource(victim.pid(), descriptor.parse().unwrap()));
    let socket = sockets.into_iter().find(|name| name.starts_with("socket:")).unwrap();
    let inode = socket.trim_start_matches("socket:").to_owned();
    let mut names = |event: Event<'_>| {
        if let Event::QueryExtFiles(external) = event {
            external.push(format!("unix{inode}"));
        }
        Ok(())
    };
    let options = DumpOptions::default().leave_running(true);
    dump(&home, "named", victim.pid(), &options, &mut names).or_explain();
    dump(&home, "unnamed", victim.pid(), &options, &mut NoHooks).unwrap_err();
    victim.assert_counts_on(0);
}

fn a_tree_left_stopped_is_stopped() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=1"]);
    dump(&home, "images", victim.pid(), &DumpOptions::default().leave_stopped(true), &mut NoHooks)
        .or_explain();
    for pid in victim.members() {
        wait_until("it is stopped", || state(pid) == Some('T'));
    }
    for pid in victim.members() {
        crate::tree::signal(pid, nix::sys::signal::Signal::SIGCONT);
    }
    victim.assert_counts_on(0);
}
