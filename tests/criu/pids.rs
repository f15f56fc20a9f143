//! The meaning of a list of pids.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, ProcessProblem, ProcsBlob,
    options::PreDumpOptions,
    rpc::{Lend, NoHooks},
};

use crate::{
    harness::{criu, dumps_tcp, skip, tests},
    places::{Home, names, state},
    stores::{FULL, Failing, Fault, says},
    talk::{Talk, pipe},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![
    a_process_and_its_child_are_one_tree,
    trees_without_a_common_root_are_captured_ended_and_revived_together,
    trees_run_on_together_when_the_store_fails,
    of_trees_that_cannot_all_be_revived_none_is_left,
    of_trees_of_which_criu_cannot_revive_the_second_none_has_run,
    a_process_that_cannot_be_captured_is_told_before_anything_is_frozen,
    a_pid_that_cannot_be_dumped_is_told_before_criu_is_asked,
    a_pid_that_cannot_be_is_not_asked_of_a_service_either,
];

fn a_process_and_its_child_are_one_tree() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["children=1"]);
    let child: i32 = victim.ask("children").parse().unwrap();
    let pids = [child, victim.pid(), child];
    let stored = home.capture(pids).run(&store).or_explain();
    assert_eq!(stored.roots.iter().map(|root| root.as_raw()).collect::<Vec<_>>(), [victim.pid()]);
    assert!(matches!(&stored.manifest, ProcsBlob::Criu { pids: named, .. } if *named == pids));
    assert!(stored.frozen.is_some() && stored.bytes > 4096);
    victim.end();
    Revived::from(home.restore(), &store, &stored.digest).assert_counts_on(0);
}

/// Two victims that can be talked to by socket, since revived trees share what they are given as
/// standard input.
fn pair(home: &Home) -> [(Victim, String); 2] {
    let mut pair = ["one", "other"].map(|name| {
        let socket = home.path(name).display().to_string();
        (Victim::start(&["children=1", "memory=2", &format!("serve={socket}")]), socket)
    });
    pair.sort_by_key(|(victim, _)| victim.pid());
    pair
}

#[track_caller]
fn ask(socket: &str, line: &str) -> String {
    let connection = UnixStream::connect(socket).unwrap();
    Talk::new(connection.try_clone().unwrap(), connection).ask(line)
}

fn trees_without_a_common_root_are_captured_ended_and_revived_together() {
    let home = Home::new();
    let store = home.store();
    let pair = pair(&home);
    assert_eq!(ask(&pair[0].1, "tick"), "count 1");
    let pids = [pair[1].0.pid(), pair[0].0.pid()];
    let members = pair.each_ref().map(|(victim, _)| victim.members());
    let stored = home.capture(pids).leave_running(false).run(&store).or_explain();
    home.assert_staging_empty();
    assert_eq!(stored.roots.iter().map(|root| root.as_raw()).collect::<Vec<_>>(), pids);
    let sockets = pair.each_ref().map(|(_, socket)| socket.clone());
    for ((victim, _), members) in pair.into_iter().zip(&members) {
        victim.reap(members);
    }
    let ProcsBlob::Criu { criu_dump, .. } = &stored.manifest else { panic!("{:?}", stored.manifest) };
    let archive = fs::read(crate::places::file_of(&home.path("store"), criu_dump)).unwrap();
    for pid in pids {
        let folder = format!("tree-{pid}/");
        assert!(archive.windows(folder.len()).any(|window| window == folder.as_bytes()), "{folder}");
    }

    let (talk, input, output) = Talk::through_pipes();
    let restored = home.restore().stdin(input).stdout(output).restore(&store, &stored.digest).or_explain();
    let mut talk = Some(talk);
    let trees: Vec<_> = restored
        .trees
        .into_iter()
        .map(|tree| Revived::new(tree, talk.take().unwrap_or_else(|| Talk::through_pipes().0)))
        .collect();
    let mut revived: Vec<_> = trees.iter().map(Revived::pid).collect();
    revived.sort_unstable();
    assert_eq!(revived, [pids[1], pids[0]]);
    assert_eq!(ask(&sockets[0], "tick"), "count 2");
    assert_eq!(ask(&sockets[1], "tick"), "count 1");
    for socket in &sockets {
        assert_eq!(ask(socket, "check"), "memory ok 512 pages");
        assert_eq!(ask(socket, "child 0 tick"), "count 1");
    }
}

fn trees_run_on_together_when_the_store_fails() {
    let home = Home::new();
    let pair = pair(&home);
    let pids = pair.each_ref().map(|(victim, _)| victim.pid());
    for fault in [Fault::WriteAfter(1 << 20), Fault::Put] {
        let store = Failing { inner: home.store(), fault };
        let error = home.capture(pids).leave_running(false).capture(&store).unwrap_err();
        assert!(says(&error, FULL), "{}", explain(&error));
        home.assert_staging_empty();
    }
    for (victim, socket) in &pair {
        assert_eq!(ask(socket, "tick"), "count 1");
        assert_eq!(ask(socket, "check"), "memory ok 512 pages");
        assert_eq!(victim.members().len(), 2);
    }
}

fn of_trees_that_cannot_all_be_revived_none_is_left() {
    let home = Home::new();
    let store = home.store();
    let [(first, _), (second, socket)] = pair(&home);
    let digest = home.capture([first.pid(), second.pid()]).capture(&store).or_explain();
    let pid = first.pid();
    first.end();

    let (input, _end) = pipe();
    let error = home.restore().stdin(input).restore(&store, &digest).unwrap_err();
    assert!(error.failure().is_some_and(|failure| failure.cause == Cause::PidInUse), "{}", explain(&error));
    assert_eq!(state(pid), None, "the first tree was left behind");
    assert_eq!(names(&home.staging()), [""; 0]);
    assert_eq!(ask(&socket, "tick"), "count 1");
}

/// Only criu notices that another process has the port of the second tree. The first stands by
/// then, but does not run.
fn of_trees_of_which_criu_cannot_revive_the_second_none_has_run() {
    const BOUND: &str = "use Socket; $| = 1; socket(my $s, PF_INET, SOCK_DGRAM, 0); \
        bind($s, pack_sockaddr_in($ARGV[1], INADDR_LOOPBACK)) or die if $ARGV[1]; open(my $o, '>>', $ARGV[0]); \
        my $said; while (1) { syswrite($o, '.'); print \"ready\\n\" if !$said++; select(undef, undef, undef, 0.001) }";
    if !dumps_tcp() {
        skip("it cannot dump sockets of IPv4 here");
    }
    let home = Home::new();
    let store = home.store();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let programs = [0, port].map(|port| {
        let mut command = std::process::Command::new("perl");
        command.args(["-e", BOUND]).arg(home.path(&format!("log-{port}"))).arg(port.to_string());
        let mut program = crate::program::Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "ready");
        program
    });
    let pids = programs.each_ref().map(crate::program::Program::pid);
    let digest = home.capture(pids).leave_running(false).capture(&store).or_explain();
    programs.into_iter().for_each(crate::program::Program::end);
    let size = || fs::metadata(home.path("log-0")).unwrap().len();
    let before = size();
    let taken = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let restore = home.restore().stdin(criu_rpc::Stream::Null).wait_for_pids(std::time::Duration::ZERO);
    let error = restore.restore(&store, &digest).unwrap_err();
    assert!(explain(&error).contains("Can't bind inet socket"), "{}", explain(&error));
    assert_eq!((pids.map(state), size()), ([None; 2], before));
    assert_eq!(names(&home.staging()), [""; 0]);
    drop(taken);
    let restored = restore.restore(&store, &digest).or_explain();
    assert_eq!(restored.trees.iter().map(criu_rpc::Tree::pid).collect::<Vec<_>>(), pids.map(criu_rpc::Pid::from));
    crate::places::wait_until("the first runs", || size() > before);
    for mut tree in restored.trees {
        tree.kill_and_wait().unwrap();
    }
}

/// Numbers of what cannot be dumped, and what is the matter with each. The victim has a thread.
fn cases(victim: &mut Victim) -> Vec<(i32, ProcessProblem)> {
    let gone = Victim::start(&[]);
    let missing = gone.pid();
    gone.end();
    let zombie: i32 = victim.ask("zombie").parse().unwrap();
    crate::places::wait_until("there is a zombie", || state(zombie) == Some('Z'));
    let threads = names(format!("/proc/{}/task", victim.pid()).as_ref());
    let thread = threads.iter().map(|name| name.parse().unwrap()).find(|id| *id != victim.pid()).unwrap();
    let mut cases = vec![
        (missing, ProcessProblem::Missing),
        (0, ProcessProblem::Impossible),
        (-1, ProcessProblem::Impossible),
        (zombie, ProcessProblem::Zombie),
        (thread, ProcessProblem::Thread),
    ];
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        cases.push((2, ProcessProblem::Kernel));
    }
    cases
}

fn a_process_that_cannot_be_captured_is_told_before_anything_is_frozen() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["threads=1"]);
    let cases = cases(&mut victim);
    for (pid, expected) in cases {
        for pids in [vec![pid], vec![victim.pid(), pid]] {
            let error = home.capture(pids).leave_running(false).capture(&store).unwrap_err();
            let right = matches!(&error, Error::Process { pid: told, problem, .. } if *told == pid && *problem == expected);
            assert!(right, "{pid} {expected:?}: {}", explain(&error));
        }
    }
    victim.assert_counts_on(0);
    home.assert_staging_empty();
    assert_eq!(crate::places::stored_files(&home.path("store")), [""; 0].map(std::path::PathBuf::from));
}

/// Asks criu to dump this pid in all the ways there are, and returns the errors.
fn attempts(criu: &Criu, home: &Home, pid: i32) -> Vec<Error> {
    let path = home.folder(&format!("images-{pid}"));
    let folder = File::open(&path).unwrap();
    let lend = || Lend::images(&folder);
    let (dump, pre_dump) = (DumpOptions::default(), PreDumpOptions::default());
    let errors = vec![
        criu.dump(pid, &dump, lend(), &mut NoHooks).unwrap_err(),
        criu.dump_around_self(pid, &dump, &path).unwrap_err(),
        criu.pre_dump(pid, &pre_dump, lend()).unwrap_err(),
        criu.pre_dumps(pid).pre_dump(&pre_dump, lend()).unwrap_err(),
        criu.pre_dumps(pid).dump(&dump, lend(), &mut NoHooks).unwrap_err(),
    ];
    assert_eq!(names(&path), [""; 0]);
    errors
}

#[track_caller]
fn assert_told(errors: &[Error], pid: i32, expected: ProcessProblem) {
    for error in errors {
        let right =
            matches!(error, Error::Process { pid: told, problem, .. } if *told == pid && *problem == expected);
        assert!(right && error.advice().is_some(), "{pid} {expected:?}: {}", explain(error));
    }
}

fn a_pid_that_cannot_be_dumped_is_told_before_criu_is_asked() {
    let home = Home::new();
    let mut victim = Victim::start(&["threads=1"]);
    for (pid, expected) in cases(&mut victim) {
        assert_told(&attempts(&criu(), &home, pid), pid, expected);
    }
    victim.assert_counts_on(0);
}

fn a_pid_that_cannot_be_is_not_asked_of_a_service_either() {
    let home = Home::new();
    let nobody = Criu::service(home.path("service"));
    for pid in [0, -1, i32::MIN] {
        let folder = File::open(home.folder(&format!("images{pid}"))).unwrap();
        let dumped = nobody.dump(pid, &DumpOptions::default(), Lend::images(&folder), &mut NoHooks);
        assert_told(&[dumped.unwrap_err()], pid, ProcessProblem::Impossible);
    }
}
