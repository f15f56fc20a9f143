//! The requests that the client sends, and their options.

use std::{fs::File, os::fd::AsRawFd, time::Duration};

use criu_rpc::{
    Criu, DumpOptions, Error, RestoreOptions,
    options::{CgroupMode, CpuCap, LogLevel, NetworkLock},
    rpc::{Event, Hooks, Lend, NoHooks},
};

use super::{dump_by, request, version_answer};
use crate::{
    peer::{Kind, Opts, Peer, Req, Resp, answer, hear, say},
    stores::Folder,
};

#[test]
fn options_arrive_as_they_were_set() {
    let options = DumpOptions::default()
        .leave_running(true)
        .tcp_established(false)
        .shell_job(true)
        .log_level(LogLevel::Debug)
        .log_file("mine.log")
        .root("/new/root")
        .parent_img("../before")
        .cpu_cap(CpuCap::FPU | CpuCap::CPU)
        .manage_cgroups_mode(CgroupMode::Ignore)
        .ghost_limit(u32::MAX)
        .external("mnt[/a]:a")
        .external("dev[1/2]:b")
        .timeout(Duration::from_secs(7))
        .network_lock(NetworkLock::Skip)
        .leave_stopped(true);
    let (images, work) = (Folder::new(), Folder::new());
    let (images, work) = (File::open(&*images).unwrap(), File::open(&*work).unwrap());
    let (socket, peer) = Peer::play([hear(Kind::Dump), answer(Kind::Dump)]);
    let lend = Lend::images(&images).work(&work);
    Criu::over(socket).dump(4242, &options, lend, &mut NoHooks).unwrap();
    let expected = Opts {
        images_dir_fd: Some(images.as_raw_fd()),
        work_dir_fd: Some(work.as_raw_fd()),
        pid: Some(4242),
        leave_running: Some(true),
        tcp_established: Some(false),
        shell_job: Some(true),
        log_level: Some(4),
        log_file: Some("mine.log".to_owned()),
        root: Some("/new/root".to_owned()),
        parent_img: Some("../before".to_owned()),
        cpu_cap: Some(3),
        manage_cgroups_mode: Some(0),
        ghost_limit: Some(u32::MAX),
        external: vec!["mnt[/a]:a".to_owned(), "dev[1/2]:b".to_owned()],
        timeout: Some(7),
        network_lock: Some(3),
        leave_stopped: Some(true),
        ..Opts::default()
    };
    assert_eq!(peer.done(), [Req { opts: Some(expected), ..request(Kind::Dump) }]);
}

#[test]
fn a_restore_says_what_it_was_told() {
    let options = RestoreOptions::default().rst_sibling(true).exec_cmd("true").exec_cmd("-x");
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let (socket, peer) = Peer::play([hear(Kind::Restore), say(Resp::bad(Kind::Restore))]);
    let _ = Criu::over(socket).restore(&options, Lend::images(&images), &mut NoHooks);
    let expected = Opts {
        images_dir_fd: Some(images.as_raw_fd()),
        log_level: Some(2),
        rst_sibling: Some(true),
        notify_scripts: Some(true), // its root is to be known, if it fails
        exec_cmd: vec!["true".to_owned(), "-x".to_owned()],
        ..Opts::default()
    };
    assert_eq!(peer.done(), [Req { opts: Some(expected), ..request(Kind::Restore) }]);
}

#[test]
fn criu_tells_of_events_only_where_somebody_listens() {
    for (hooks, told) in [(&mut NoHooks as &mut dyn Hooks, None), (&mut |_: Event<'_>| Ok(()), Some(true))] {
        let (socket, peer) = Peer::play([hear(Kind::Dump), answer(Kind::Dump)]);
        dump_by(&Criu::over(socket), hooks).unwrap();
        assert_eq!(peer.done()[0].opts.as_ref().unwrap().notify_scripts, told);
    }
}

#[test]
fn what_must_be_inherited_cannot_be_lent_over_a_foreign_socket() {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let lends = [Lend::images(&images).inherit("pipe:[1]", &images), Lend::images(&images).terminal(&images)];
    for lend in lends {
        let (socket, peer) = Peer::play([]);
        let error = Criu::over(socket).restore(&RestoreOptions::default(), lend, &mut NoHooks).unwrap_err();
        assert!(matches!(error, Error::Options { .. }), "{error}");
        peer.done();
    }
}

#[test]
fn what_cannot_be_lent_is_refused_by_its_name() {
    let folder = Folder::new();
    let images = File::open(&*folder).unwrap();
    let file = File::open("/dev/null").unwrap();
    for (lend, name) in [
        (Lend::images(&file), "Lend::images"),
        (Lend::images(&images).work(&file), "Lend::work"),
        (Lend::images(&images).inherit("pipe:[1]\0", &file), "Lend::inherit"),
        (Lend::images(&images).page_server(&file), "Lend::page_server"),
    ] {
        // The client sends no request and starts no process.
        let (socket, peer) = Peer::play([]);
        for criu in [Criu::over(socket), Criu::at("/nonexistent/criu")] {
            let error = criu.restore(&RestoreOptions::default(), lend.clone(), &mut NoHooks).unwrap_err();
            assert!(matches!(&error, Error::Options { option, .. } if *option == name), "{error}");
        }
        peer.done();
    }
}

#[test]
fn a_self_dump_needs_a_criu_of_its_own() {
    let folder = Folder::new();
    let (socket, peer) = Peer::play([]);
    let error = Criu::over(socket).dump_self(&DumpOptions::default(), &folder).unwrap_err();
    assert!(matches!(error, Error::Options { .. }), "{error}");
    peer.done();
}

#[test]
fn a_connection_carries_one_request() {
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer())]);
    let criu = Criu::over(socket);
    criu.version().unwrap();
    let error = criu.clone().version().unwrap_err();
    assert!(matches!(error, Error::Over { .. }), "{error}");
    peer.done();
}
