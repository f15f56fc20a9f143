//! Causes of criu's failures, with real trees and a real criu.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
};

use criu_rpc::{
    Cause, DumpOptions, Error, RestoreOptions, Target,
    options::NetworkLock,
    rpc::{Event, Lend, NoHooks},
};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    client::dump,
    harness::{criu, dumps_tcp, skip, tests},
    places::Home,
    requests::{own, parent},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_root_that_leads_no_session,
    an_established_tcp_connection_is_a_cause_and_can_be_carried_along,
    a_unix_socket_whose_other_end_is_outside,
    a_file_lock_is_a_cause_and_can_be_carried_along,
    a_file_that_grew_since_the_dump,
    a_file_that_is_gone,
    a_process_that_is_dumped_by_somebody_else,
    criu_inside_the_tree,
];

/// The dump failed for this cause; there is advice, and the tree runs on.
#[track_caller]
fn assert_cause(result: criu_rpc::Result<impl std::fmt::Debug>, cause: Cause, target: Target) {
    let error = result.expect_err("this should have failed");
    let Error::Criu(failure) = &error else { panic!("{}", explain(&error)) };
    assert_eq!((failure.cause, failure.target), (cause, target), "{}", explain(&error));
    assert!(!failure.advice().is_empty() && failure.telling_line().is_some(), "{}", failure.report());
    assert_eq!(failure.version, Some(crate::harness::version()));
}

fn a_root_that_leads_no_session() {
    let home = Home::new();
    let mut victim = Victim::start_in_our_session(&[]);
    let result = dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut NoHooks);
    assert_cause(result, Cause::ShellJob, Target::Running);
    victim.assert_counts_on(0);
    let options = DumpOptions::default().shell_job(true).leave_running(true);
    dump(&home, "again", victim.pid(), &options, &mut NoHooks).or_explain();

    // A capture knows by itself.
    let store = home.store();
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    Revived::from(home.restore(), &store, &digest).assert_counts_on(1);
}

fn an_established_tcp_connection_is_a_cause_and_can_be_carried_along() {
    let home = Home::new();
    let store = home.store();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut victim = Victim::start(&[]);
    assert_eq!(victim.ask(&format!("connect {port}")), "connected");
    if !dumps_tcp() {
        let options = DumpOptions::default().tcp_established(true).network_lock(NetworkLock::Skip);
        let result = dump(&home, "images", victim.pid(), &options, &mut NoHooks);
        assert_cause(result, Cause::TooOldForKernel, Target::Running);
        skip("it cannot dump TCP sockets on newer kernels, and says so");
    }
    let (mut connection, _) = listener.accept().unwrap();
    let result = dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut NoHooks);
    assert_cause(result, Cause::EstablishedTcp, Target::Running);
    assert_eq!(victim.ask("say before"), "said");

    let options = DumpOptions::default().tcp_established(true).network_lock(NetworkLock::Skip);
    let pid = victim.pid();
    let capture = home.capture([pid]).options(options).leave_running(false);
    let digest = capture.capture(&store).or_explain();
    victim.reap(&[pid]);
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("say after"), "said");
    let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    assert_eq!(lines.next().unwrap().unwrap(), "after");
    connection.write_all(b"and back\n").unwrap();
    assert_eq!(revived.ask("hear"), "and back");
}

fn a_unix_socket_whose_other_end_is_outside() {
    let home = Home::new();
    let socket = home.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut victim = Victim::start(&[]);
    assert_eq!(victim.ask(&format!("connect {}", socket.display())), "connected");
    let _other_end = listener.accept().unwrap();
    let result = dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut NoHooks);
    assert_cause(result, Cause::ExternalUnixSocket, Target::Running);
    assert_cause(
        home.capture([victim.pid()]).capture(&home.store()),
        Cause::ExternalUnixSocket,
        Target::Running,
    );
    victim.assert_counts_on(0);
    home.assert_staging_empty();
}

fn a_file_lock_is_a_cause_and_can_be_carried_along() {
    let home = Home::new();
    let store = home.store();
    let path = home.path("lock");
    fs::write(&path, "").unwrap();
    let is_locked = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).is_err();
    let mut victim = Victim::start(&[&format!("lock={}", path.display())]);
    assert!(is_locked());
    let result = dump(&home, "images", victim.pid(), &DumpOptions::default(), &mut NoHooks);
    assert_cause(result, Cause::FileLocks, Target::Running);
    victim.assert_counts_on(0);

    let options = DumpOptions::default().file_locks(true);
    let digest = home.capture([victim.pid()]).options(options).capture(&store).or_explain();
    assert!(is_locked());
    victim.end();
    assert!(!is_locked());
    // A restore need not be told of the locks.
    let mut revived = Revived::from(home.restore(), &store, &digest);
    revived.assert_counts_on(1);
    assert!(is_locked());
    drop(revived);
    assert!(!is_locked());
}

fn a_file_that_grew_since_the_dump() {
    file_changed(|path| {
        File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
    });
}

fn a_file_that_is_gone() {
    file_changed(|path| fs::remove_file(path).unwrap());
}

#[track_caller]
fn file_changed(change: fn(&std::path::Path)) {
    let home = Home::new();
    let store = home.store();
    let path = home.path("file");
    fs::write(&path, "line 00\nline 01\n").unwrap();
    let victim = Victim::start(&[&format!("file={}", path.display()), "children=1"]);
    let members = victim.members();
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    change(&path);
    let nothing = || File::options().read(true).write(true).open("/dev/null").unwrap();
    let restore = home.restore().stdin(nothing()).stdout(nothing());
    assert_cause(restore.restore(&store, &digest), Cause::FileChanged, Target::None);
    crate::tree::wait_gone(&members);

    fs::write(&path, "line 00\nline 01\n").unwrap();
    assert_eq!(Revived::after_changes(home.restore(), &store, &digest).ask("file"), "line 00");
}

fn a_process_that_is_dumped_by_somebody_else() {
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    let pid = victim.pid();
    let mut other = |event: Event<'_>| {
        if matches!(event, Event::PostDump) {
            let result = dump(&home, "other", pid, &DumpOptions::default(), &mut NoHooks);
            let failure = result.as_ref().unwrap_err().failure().unwrap();
            assert!(failure.tracer.is_some_and(|criu| parent(criu.as_raw()) == own()), "{}", failure.report());
            assert_cause(result, Cause::Untraceable, Target::Traced);
        }
        Ok(())
    };
    let options = DumpOptions::default().leave_running(true);
    dump(&home, "images", pid, &options, &mut other).or_explain();
    victim.assert_counts_on(0);
}

fn criu_inside_the_tree() {
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    let answer = victim.ask(&format!("dump {}", home.folder("images").display()));
    assert_eq!(answer, format!("{:?}", Cause::CriuInsideTree));
    victim.assert_counts_on(0);
    // A restore of nothing is no restore.
    let folder = File::open(home.folder("empty")).unwrap();
    criu().restore(&RestoreOptions::default(), Lend::images(&folder), &mut NoHooks).unwrap_err();
}
