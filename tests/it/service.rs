//! A hostile service in the place of criu's: it accepts no client, reads nothing, or sends anything
//! for ever.

use std::{
    fs::File,
    io::IoSlice,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use criu_rpc::{
    Cancel, Criu, DumpOptions, Error, Request,
    options::{PageServerAddress, PageServerOptions},
    rpc::{Lend, NoHooks},
};
use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
        socket::{
            AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind,
            connect, listen, recv, sendmsg, socket,
        },
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use prost::Message;

use crate::{
    apart::Apart,
    peer::{Kind, Resp, Version},
    stores::Folder,
};

/// The place of a service, and its end of the socket.
struct Place {
    folder: Folder,
    listener: OwnedFd,
}

impl Place {
    fn new() -> Place {
        let folder = Folder::new();
        let listener = packets();
        bind(listener.as_raw_fd(), &UnixAddr::new(&folder.join("service")).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        Place { folder, listener }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("service")
    }

    fn criu(&self) -> Criu {
        Criu::service(self.path())
    }

    /// Accepts one client, answers its request for the version, and then does this to it.
    fn serves(&self, then: impl FnOnce(&OwnedFd) + Send + 'static) -> JoinHandle<()> {
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || {
            let client = accept(listener.as_raw_fd()).unwrap();
            // SAFETY: the kernel just made this descriptor for us.
            #[allow(unsafe_code)]
            let client = unsafe { OwnedFd::from_raw_fd(client) };
            hear(&client);
            let version = Version { major: 4, minor: 2, ..Version::default() };
            say(&client, &Resp { version: Some(version), ..Resp::good(Kind::Version) }.encode_to_vec(), &[]);
            hear(&client);
            then(&client);
        })
    }

    /// Dumps this process in name only: the service does not touch it.
    fn dump(&self, criu: &Criu) -> Error {
        let images = File::open(&*self.folder).unwrap();
        let options = DumpOptions::default();
        criu.dump(process::id(), &options, Lend::images(&images), &mut NoHooks).unwrap_err()
    }
}

fn packets() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn hear(client: &OwnedFd) -> usize {
    recv(client.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()).unwrap()
}

/// Sends this with a descriptor for each number; `false` if the client has hung up.
fn say(client: &OwnedFd, packet: &[u8], numbers: &[i32]) -> bool {
    let control = [ControlMessage::ScmRights(numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &control[..] };
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(packet)], control, MsgFlags::MSG_NOSIGNAL, None).is_ok()
}

#[test]
fn a_service_that_accepts_nobody_is_given_up() {
    let place = Place::new();
    let first = packets(); // the only one for which there is room
    connect(first.as_raw_fd(), &UnixAddr::new(&place.path()).unwrap()).unwrap();
    let begin = Instant::now();
    let error = place.criu().deadline(Duration::from_millis(100)).version().unwrap_err();
    assert!(matches!(&error, Error::TimedOut(failure) if failure.request == Request::Version), "{error}");
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let error = place.criu().cancelled_by(&cancel).version().unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_service_that_tells_of_events_and_hears_no_answer_is_given_up() {
    let place = Place::new();
    let event = Resp::event(Some("pre-dump"), None).encode_to_vec();
    let service = place.serves(move |client| while say(client, &event, &[]) {});
    let begin = Instant::now();
    let error = place.dump(&place.criu().deadline(Duration::from_millis(200)));
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    service.join().unwrap();
}

#[test]
fn a_service_whose_log_is_a_pipe_keeps_nobody_waiting() {
    let place = Place::new();
    mkfifo(&place.folder.join("criu.log"), Mode::S_IRWXU).unwrap();
    let service = place.serves(|client| {
        say(client, &Resp::bad(Kind::Dump).encode_to_vec(), &[]);
    });
    let error = place.dump(&place.criu());
    assert!(matches!(error, Error::Criu(_)), "{error}");
    service.join().unwrap();
}

#[test]
fn descriptors_for_which_there_is_no_room_are_not_kept() {
    Apart::new(module_path!(), "descriptors_for_which_there_is_no_room_are_not_kept").run(|| {
        let place = Place::new();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let service = place.serves(|client| {
            let many = [client.as_raw_fd(); 200];
            let event = Resp::event(Some("of-the-future"), None).encode_to_vec();
            for _ in 0..3 {
                assert!(say(client, &event, &many));
                hear(client);
            }
            say(client, &Resp::bad(Kind::Dump).encode_to_vec(), &many);
        });
        let before = open();
        setrlimit(Resource::RLIMIT_NOFILE, 40, 40).unwrap();
        let error = place.dump(&place.criu());
        assert!(matches!(error, Error::Criu(_)), "{error}");
        service.join().unwrap();
        assert!(open() <= before, "{} files were open, and now {}", before, open());
    });
}

#[test]
fn nonsense_of_any_kind_is_an_error_in_time_and_leaves_nothing_open() {
    Apart::new(module_path!(), "nonsense_of_any_kind_is_an_error_in_time_and_leaves_nothing_open")
        .run(nonsense);
}

fn nonsense() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let good = Resp { errmsg: Some("x".repeat(40)), ..Resp::good(Kind::Notify) }.encode_to_vec();
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for round in 0..300 {
        let mut packet = good.clone();
        for _ in 0..=random(8) {
            let place = random(packet.len());
            packet[place] = u8::try_from(random(256)).unwrap();
        }
        packet.truncate(1 + random(good.len()));
        let place = Place::new();
        let service = place.serves(move |client| {
            let _ = say(client, &packet, &[]) && hear_once(client);
        });
        let begin = Instant::now();
        let images = File::open(&*place.folder).unwrap();
        let criu = place.criu().deadline(Duration::from_secs(5));
        let options = DumpOptions::default();
        let result = criu.dump(process::id(), &options, Lend::images(&images), &mut NoHooks);
        // A random answer can be the right one.
        if let Err(error) = result {
            assert!(!matches!(error, Error::TimedOut(_)), "{round}: {error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{round}");
        service.join().unwrap();
    }
    assert!(open() <= before, "{} files were open, and now {}", before, open());
}

/// Waits until the client acknowledges an event, or leaves.
fn hear_once(client: &OwnedFd) -> bool {
    recv(client.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()).is_ok()
}

/// A pid from the service may belong to another pid namespace; here it may be an unrelated process.
#[test]
fn a_page_server_that_is_none_of_the_services_is_not_killed() {
    let started =
        process::Command::new("sh").args(["-c", "sleep 60 >/dev/null 2>&1 & echo $!"]).output().unwrap();
    let stranger: i32 = String::from_utf8(started.stdout).unwrap().trim().parse().unwrap();
    let place = Place::new();
    let service = place.serves(move |client| {
        const PAGE_SERVER: i32 = 5;
        let mut answer = Resp { kind: PAGE_SERVER, success: true, ..Resp::default() }.encode_to_vec();
        let mut server = vec![3 << 3]; // its pid
        prost::encoding::encode_varint(u64::try_from(stranger).unwrap(), &mut server);
        answer.extend([6 << 3 | 2, u8::try_from(server.len()).unwrap()]);
        answer.extend(server);
        say(client, &answer, &[]);
    });
    let images = File::open(&*place.folder).unwrap();
    let options = PageServerOptions::default().ps(PageServerAddress::tcp("127.0.0.1", 0));
    let server = place.criu().page_server(&options, Lend::images(&images)).unwrap();
    service.join().unwrap();
    assert!(format!("{server:?}").contains(&stranger.to_string()));
    drop(server);
    thread::sleep(Duration::from_millis(50));
    let state = std::fs::read_to_string(format!("/proc/{stranger}/stat")).unwrap_or_default();
    let lives = state.contains(") S ");
    let _ = kill(Pid::from_raw(stranger), Signal::SIGKILL); // it was killed, then
    assert!(lives, "{state:?}");
}

#[test]
fn a_connection_that_keeps_no_packets_apart_is_refused() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Criu::over(ours).version().unwrap_err();
    assert!(matches!(error, Error::Options { option: "Criu::over", .. }), "{error}");
    let error = Criu::over(File::open("/dev/null").unwrap()).version().unwrap_err();
    assert!(matches!(error, Error::Options { option: "Criu::over", .. }), "{error}");
}
