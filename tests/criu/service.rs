//! A `criu service` that another process started.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Criu, DumpOptions, Error, RestoreOptions, Version,
    options::{PageServerAddress, PageServerOptions},
    rpc::{Event, Lend, NoHooks, SelfDump},
};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use crate::{
    harness::{self, criu, skip, tests, version},
    places::{Home, children, state, wait_until},
    requests::Images,
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, signal},
};

tests![
    a_service_tells_what_it_is,
    a_service_dumps_a_tree_and_revives_it,
    a_service_tells_of_events_and_is_refused_like_any_criu,
    a_service_of_another_pid_namespace_gives_no_tree,
    a_service_dumps_its_own_client,
    a_service_is_not_asked_what_it_cannot_do,
    a_service_serves_many_threads_at_once,
    a_service_runs_a_page_server,
    a_service_that_is_killed_before_it_froze_anything_leaves_the_tree_whole,
    a_service_that_is_killed_in_the_middle_of_a_dump_is_told_at_once,
    a_service_that_has_ended_is_told,
];

/// A service of the test's own, which ends with it.
pub(crate) struct Service {
    process: Child,
    socket: PathBuf,
}

impl Service {
    #[track_caller]
    pub(crate) fn start(home: &Home) -> Service {
        Service::start_by(home, Command::new(harness::criu().program().unwrap()))
    }

    /// Starts a service by a command to which criu's arguments are given.
    #[track_caller]
    fn start_by(home: &Home, mut command: Command) -> Service {
        let socket = home.path("service");
        command.args(["--no-default-config", "service", "--log-file", "service.log", "--address"]);
        command.arg(&socket).arg("--work-dir").arg(home.staging());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let service = Service { process: command.spawn().unwrap(), socket };
        wait_until("the service answers", || service.criu().version().is_ok());
        service
    }

    pub(crate) fn criu(&self) -> Criu {
        Criu::service(&self.socket)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// Those that work for its clients at the moment.
    fn workers(&self) -> Vec<i32> {
        children(self.pid()).into_iter().filter(|pid| state(*pid) != Some('Z')).collect()
    }

    fn end(&mut self) {
        let _ = self.process.kill(); // it may have been killed already
        let _ = self.process.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

/// A victim whose standard streams have names, so that criu restores them without lent files.
fn with_named_streams(home: &Home) -> Victim {
    let [input, output] = ["input", "output"].map(|name| {
        let path = home.path(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    });
    let mut command = Command::new("/proc/self/exe");
    command.args(["--victim", "session", "children=1", "memory=1"]);
    let root = command.stdin(input).stdout(output).stderr(Stdio::null()).spawn().unwrap();
    Victim::ready(root, named_talk(home))
}

fn named_talk(home: &Home) -> Talk {
    let open = |name| File::options().read(true).write(true).open(home.path(name)).unwrap();
    Talk::new(open("input"), open("output"))
}

fn a_service_tells_what_it_is() {
    let home = Home::new();
    let service = Service::start(&home);
    let criu = service.criu();
    assert_eq!(criu.version().or_explain(), version());
    assert_eq!(criu.about().or_explain().version, version());
    assert_eq!(criu.features().or_explain(), harness::criu().features().or_explain());
    criu.check().or_explain();
    assert!(matches!(criu.program().unwrap_err(), Error::Options { .. }));
    wait_until("its workers have left", || service.workers().is_empty());
}

fn a_service_dumps_a_tree_and_revives_it() {
    let home = Home::new();
    let service = Service::start(&home);
    let mut victim = with_named_streams(&home);
    victim.assert_counts_on(0);
    let images = Images::of(&victim, &home.folder("images"));
    let dumped = service.criu().dump(victim.pid(), &DumpOptions::default(), images.lend(), &mut NoHooks);
    assert_eq!(dumped.or_explain().version, Some(version()));
    victim.reap(&images.members);

    let restored = service.criu().restore(&RestoreOptions::default(), images.lend(), &mut NoHooks);
    let mut revived = Revived::new(restored.or_explain(), named_talk(&home));
    assert_eq!(revived.pid(), images.members[0]);
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("child 0 check"), "memory ok 256 pages");
    let (mut tree, mut talk) = revived.give();
    talk.hang_up();
    // Another process is its parent.
    let error = tree.wait().unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(nix::libc::ECHILD)),
        "{}",
        explain(&error)
    );
    crate::tree::wait_gone(&images.members);
}

fn a_service_tells_of_events_and_is_refused_like_any_criu() {
    let home = Home::new();
    let service = Service::start(&home);
    let mut victim = Victim::start(&["memory=1"]);
    let folder = File::open(home.folder("images")).unwrap();
    let mut seen = Vec::new();
    let mut hooks = |event: Event<'_>| {
        seen.push(event.name().to_owned());
        if matches!(event, Event::PostDump) { Err("not now".into()) } else { Ok(()) }
    };
    let options = DumpOptions::default();
    let error = service.criu().dump(victim.pid(), &options, Lend::images(&folder), &mut hooks).unwrap_err();
    assert!(matches!(&error, Error::Refused { event, .. } if event == "post-dump"), "{}", explain(&error));
    assert!(seen.first().is_some_and(|first| first == "pre-dump"), "{seen:?}");
    victim.assert_counts_on(0);

    // Why it failed is in the log, which a service writes among the images.
    let error = service.criu().dump(i32::MAX, &options, Lend::images(&folder), &mut NoHooks).unwrap_err();
    assert!(matches!(&error, Error::Criu(_)), "{}", explain(&error));
    assert!(error.failure().is_some_and(|failure| !failure.log.is_empty()), "{}", explain(&error));
}

fn a_service_of_another_pid_namespace_gives_no_tree() {
    let home = Home::new();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount-proc", "--fork", "--kill-child"]).arg(harness::criu().program().unwrap());
    let service = Service::start_by(&home, command);
    let folder = File::open(home.folder("images")).unwrap();
    let restored = service.criu().restore(&RestoreOptions::default(), Lend::images(&folder), &mut NoHooks);
    let error = restored.unwrap_err();
    let Error::Options { option: "Criu", problem, .. } = &error else { panic!("{}", explain(&error)) };
    assert!(problem.contains("pid namespace"), "{problem}");
}

/// `SOCKET FOLDER`: dumps itself through the service at this socket, and tells where it returned.
pub(crate) fn dumps_itself(words: &[String]) {
    nix::unistd::setsid().unwrap();
    let options = DumpOptions::default();
    let told = match Criu::service(&words[0]).dump_self(&options, Path::new(&words[1])) {
        Ok(SelfDump::Dumped(_)) => "dumped".to_owned(),
        Ok(SelfDump::Restored) => "restored".to_owned(),
        Ok(other) => format!("{other:?}"),
        Err(error) => explain(&error).replace('\n', "; "),
    };
    println!("{told}");
    let _ = std::io::stdout().flush(); // the listener may have gone
    // An error is an end as well.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

fn a_service_dumps_its_own_client() {
    if version() < Version::new(4, 2, 0) {
        skip("it takes no folder of images by its path");
    }
    let home = Home::new();
    let service = Service::start(&home);
    let folder = home.folder("images");
    let mut command = Command::new("/proc/self/exe");
    command.arg("--dumps-itself").arg(&service.socket).arg(&folder);
    let mut client =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(client.id()).unwrap();
    let (stdin, stdout) = (crate::client::resource(pid, 0), crate::client::resource(pid, 1));
    let mut talk = Talk::new(client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let told = talk.hear();
    talk.hang_up();
    drop(talk);
    client.wait().unwrap();
    assert_eq!(told, "dumped");

    let (mut talk, input, output) = Talk::through_pipes();
    let images = File::open(&folder).unwrap();
    let lend = Lend::images(&images).inherit(stdin, &input).inherit(stdout, &output);
    let options = RestoreOptions::default().rst_sibling(true);
    let tree = criu().restore(&options, lend, &mut NoHooks).or_explain();
    drop((input, output));
    assert_eq!(talk.hear(), "restored");
    let mut revived = Revived::new(tree, talk);
    revived.talk.hang_up();
    assert!(revived.tree().wait().or_explain().success());
}

fn a_service_is_not_asked_what_it_cannot_do() {
    // No service is at this place: a connection would fail in another way.
    let service = Criu::service("/nonexistent/service");
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let file = File::open("/dev/null").unwrap();
    let lend = || Lend::images(&folder);
    let sibling = RestoreOptions::default().rst_sibling(true);
    let plain = RestoreOptions::default();
    let dumping = DumpOptions::default();
    let refusals = [
        service.restore(&sibling, lend(), &mut NoHooks).map(drop),
        service.restore(&plain, lend().inherit("file", &file), &mut NoHooks).map(drop),
        service.restore(&plain, lend().terminal(&file), &mut NoHooks).map(drop),
        service.dump(crate::requests::own(), &dumping, lend().page_server(&file), &mut NoHooks).map(drop),
        service.page_server(&PageServerOptions::default(), lend().page_server(&file)).map(drop),
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        let error = refusal.unwrap_err();
        assert!(matches!(error, Error::Options { .. }), "{number}: {}", explain(&error));
    }
    let error = service.version().unwrap_err();
    assert!(matches!(error, Error::NoService { .. }), "{}", explain(&error));
}

fn a_service_serves_many_threads_at_once() {
    let home = Home::new();
    let service = Service::start(&home);
    let criu = service.criu();
    thread::scope(|scope| {
        for number in 0..4 {
            let (home, criu) = (&home, &criu);
            scope.spawn(move || {
                let mut victim = Victim::start(&["children=1", "memory=1"]);
                for count in 0..4 {
                    let folder = File::open(home.folder(&format!("{number}-{count}"))).unwrap();
                    let options = DumpOptions::default().leave_running(true);
                    criu.dump(victim.pid(), &options, Lend::images(&folder), &mut NoHooks).or_explain();
                    victim.assert_counts_on(count);
                }
            });
        }
    });
}

fn a_service_runs_a_page_server() {
    let home = Home::new();
    let service = Service::start(&home);
    let mut victim = Victim::start(&["memory=1"]);
    let images = Images::of(&victim, &home.folder("images"));
    let listening = PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0));
    let server = service.criu().page_server(&listening, images.lend()).or_explain();
    let address = PageServerAddress::tcp("127.0.0.1", server.port().unwrap());
    let options = DumpOptions::default().ps(address).leave_running(true);
    service.criu().dump(victim.pid(), &options, images.lend(), &mut NoHooks).or_explain();
    let status = server.wait().or_explain();
    assert!(status.success(), "{status}");
    assert!(home.path("images/pages-65537.img").is_file());
    victim.assert_counts_on(0);
}

fn a_service_that_is_killed_before_it_froze_anything_leaves_the_tree_whole() {
    let home = Home::new();
    let service = Service::start(&home);
    let mut victim = Victim::start(&["children=1", "memory=1"]);
    wait_until("the worker of another request has left", || service.workers().is_empty());
    let folder = File::open(home.folder("images")).unwrap();
    let mut kill = |event: Event<'_>| {
        if matches!(event, Event::PreDump) {
            for pid in service.workers().into_iter().chain([service.pid()]) {
                signal(pid, Signal::SIGKILL);
            }
        }
        Ok(())
    };
    let error = service
        .criu()
        .dump(victim.pid(), &DumpOptions::default(), Lend::images(&folder), &mut kill)
        .unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{}", explain(&error));
    victim.assert_counts_on(0);
    assert_eq!(victim.ask("child 0 check"), "memory ok 256 pages");
}

/// The fate of the tree is not ours to promise: another process killed criu while it held the tree.
fn a_service_that_is_killed_in_the_middle_of_a_dump_is_told_at_once() {
    let home = Home::new();
    let service = Service::start(&home);
    let victim = Victim::start(&["children=1", "memory=1"]);
    let folder = File::open(home.folder("images")).unwrap();
    let mut killed = None;
    let mut kill = |event: Event<'_>| {
        if matches!(event, Event::PostDump) {
            for pid in service.workers().into_iter().chain([service.pid()]) {
                signal(pid, Signal::SIGKILL);
            }
            killed = Some(Instant::now());
        }
        Ok(())
    };
    let dumped = service.criu().dump(victim.pid(), &DumpOptions::default(), Lend::images(&folder), &mut kill);
    let error = dumped.unwrap_err();
    let Error::Gone(failure) = &error else { panic!("{}", explain(&error)) };
    assert_eq!(failure.last_event.as_deref(), Some("post-dump"));
    assert!(killed.is_some_and(|killed| killed.elapsed() < Duration::from_secs(5)));
}

fn a_service_that_has_ended_is_told() {
    let home = Home::new();
    let mut service = Service::start(&home);
    service.end();
    let error = service.criu().version().unwrap_err();
    assert!(matches!(error, Error::NoService { .. }), "{}", explain(&error));
    assert!(error.advice().unwrap().contains("criu service --address"));
}
