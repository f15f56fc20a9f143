//! Sockets: connections, and who is at their other end.

use std::{
    net::TcpStream,
    os::unix::net::{UnixDatagram, UnixListener},
    process::Command,
};

use criu_rpc::{
    Cause,
    options::External,
    preflight::{Finding, Obstacle, Severity},
};

use super::{blocks, defaults, descriptor, lines, look, passes, perl, perl_by};
use crate::{
    harness::{dumps_tcp, skip, tests, version},
    places::Home,
    tree::Victim,
};

tests![
    tcp_connections,
    tcp_connections_that_nobody_accepted,
    unix_sockets_to_the_outside,
    unix_connections_that_nobody_accepted,
    unix_datagrams_to_the_outside,
    unix_sockets_within_the_tree,
    sockets_that_criu_does_not_know,
    sockets_for_pings,
    corked_datagrams,
    unix_listeners_with_connections_that_wait,
    unix_sockets_whose_relative_path_leads_nowhere,
    unix_messages_with_their_senders,
];

fn unix_sockets_whose_relative_path_leads_nowhere() {
    let home = Home::new();
    let bound = |then: &str| {
        perl(&format!(
            "use Socket; chdir '{}'; unlink 'one', 'two'; socket(S, 1, 1, 0); {then}; listen(S, 9)",
            home.path("").display()
        ))
    };
    let path = |obstacle: &Obstacle| *obstacle == Obstacle::SocketPath;
    for then in [
        "bind(S, pack_sockaddr_un('one')) or die; rename('one', 'two') or die",
        "mkdir 'a'; bind(S, pack_sockaddr_un('a/../one')) or die",
    ] {
        let victim = bound(then);
        let found = blocks(victim.pid(), &defaults(), victim.pid(), descriptor(victim.pid(), "socket:"), path);
        assert_eq!(found.cause(), Cause::SocketPath);
    }
    for name in ["one", "./one"] {
        let victim = bound(&format!("bind(S, pack_sockaddr_un('{name}')) or die"));
        assert_eq!(look(victim.pid(), &defaults()), []);
        passes(victim.pid(), &defaults());
    }
}

fn unix_messages_with_their_senders() {
    let pair = |kind: i32, then: &str| {
        perl(&format!("use Socket; socketpair(A, B, 1, {kind}, 0); setsockopt(A, 1, 16, 1) or die; {then}"))
    };
    for kind in [1, 2, 5] {
        let victim = pair(kind, "syswrite(B, 'x')");
        let queued = |obstacle: &Obstacle| *obstacle == Obstacle::QueuedCredentials;
        let found = blocks(victim.pid(), &defaults(), victim.pid(), None, queued);
        assert_eq!(found.cause(), Cause::QueuedCredentials);
        let victim = pair(kind, "1");
        assert_eq!(look(victim.pid(), &defaults()), []);
        passes(victim.pid(), &defaults());
    }
}

fn tcp_connections() {
    if !dumps_tcp() {
        return eprintln!("this criu cannot dump TCP sockets");
    }
    let mut victim = Victim::start(&["listen=tcp"]);
    let port = victim.ask("port");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    victim.ask(&format!("connect {}", listener.local_addr().unwrap().port()));
    let _accepted = listener.accept().unwrap();
    assert!(port.parse::<u16>().is_ok());
    blocks(victim.pid(), &defaults(), victim.pid(), None, |obstacle| *obstacle == Obstacle::Tcp);
    passes(victim.pid(), &defaults().tcp_established(true));
    passes(victim.pid(), &defaults().tcp_close(true));
}

fn tcp_connections_that_nobody_accepted() {
    if !dumps_tcp() {
        return eprintln!("this criu cannot dump TCP sockets");
    }
    let mut victim = Victim::start(&["listen=tcp"]);
    let port: u16 = victim.ask("port").parse().unwrap();
    let _waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let place = descriptor(victim.pid(), "socket:");
    blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| *obstacle == Obstacle::TcpInFlight);
    passes(victim.pid(), &defaults().tcp_skip_in_flight(true));
}

fn unix_sockets_to_the_outside() {
    let home = Home::new();
    let path = home.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut victim = Victim::start(&[]);
    victim.ask(&format!("connect {}", path.display()));
    let _accepted = listener.accept().unwrap();
    let place = descriptor(victim.pid(), "socket:");
    let outside = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnixOutside { .. });
    let obstacle = blocks(victim.pid(), &defaults(), victim.pid(), place, outside);
    let Some(external @ External::Unix { .. }) = obstacle.external() else { panic!("{obstacle}") };
    passes(victim.pid(), &defaults().external(external));
}

/// criu dumps these; to whom the connection goes at the restore it cannot know.
fn unix_connections_that_nobody_accepted() {
    let home = Home::new();
    let path = home.path("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut victim = Victim::start(&[]);
    victim.ask(&format!("connect {}", path.display()));
    let findings = look(victim.pid(), &defaults());
    assert!(
        matches!(
            &findings[..],
            [Finding { severity: Severity::Risk, obstacle: Obstacle::UnixOutside { .. }, .. }]
        ),
        "{}",
        lines(&findings)
    );
    passes(victim.pid(), &defaults());
}

fn unix_datagrams_to_the_outside() {
    let home = Home::new();
    let path = home.path("socket");
    let _log = UnixDatagram::bind(&path).unwrap();
    let victim = perl(&format!(
        "use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); connect(S, pack_sockaddr_un('{}')) or die",
        path.display()
    ));
    let place = descriptor(victim.pid(), "socket:");
    let outside = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnixOutside { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), place.clone(), outside);
    let allowing = || defaults().ext_unix_sk(true);
    assert_eq!(look(victim.pid(), &allowing()), []);
    passes(victim.pid(), &allowing());
    // The other end must have a name for that, and be no stream.
    let (one, _other) = UnixDatagram::pair().unwrap();
    let nameless = inherits(&one.into());
    blocks(nameless.pid(), &allowing(), nameless.pid(), None, outside);
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = inherits(&one.into());
    blocks(stream.pid(), &allowing(), stream.pid(), None, outside);
}

/// A victim that has this file open.
fn inherits(file: &std::os::fd::OwnedFd) -> super::Perl {
    use std::os::fd::AsRawFd;
    let (own, number) = (std::process::id(), file.as_raw_fd());
    perl(&format!(
        "$^F = 100; my $p = syscall(434, {own}, 0); syscall(438, $p, {number}, 0) >= 0 or die; POSIX::close($p)"
    ))
}

fn unix_sockets_within_the_tree() {
    let victim = perl(
        "use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0); socketpair(C, D, AF_UNIX, SOCK_DGRAM, 0); close D; \
         socketpair(E, F, AF_UNIX, SOCK_STREAM, 0); close F",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn sockets_that_criu_does_not_know() {
    for (socket, name) in [("2, 1, 262", "MPTCP"), ("40, 1, 0", "AF_VSOCK")] {
        let victim = perl(&format!("socket(S, {socket}) or die"));
        let place = descriptor(victim.pid(), "socket:");
        let unknown = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnsupportedSocket { protocol, .. } if protocol == name);
        blocks(victim.pid(), &defaults(), victim.pid(), place, unknown);
    }
    let victim = perl(
        "socket(A, 2, 2, 0); socket(B, 10, 2, 0); socket(C, 16, 3, 0); socket(D, 17, 3, 0); socket(E, 2, 3, 1); \
         socket(F, 2, 2, 136)",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    if !dumps_tcp() {
        skip("it cannot dump internet sockets on newer kernels");
    }
    passes(victim.pid(), &defaults());
}

/// In a network namespace that lets all users ping. criu and the preflight are in it as well.
fn sockets_for_pings() {
    if !dumps_tcp() {
        skip("it cannot dump internet sockets on newer kernels");
    }
    for (socket, name) in [("2, 2, 1", "PING"), ("10, 2, 58", "PINGv6")] {
        let mut command = Command::new("unshare");
        command.args(["--net", "perl"]);
        let victim = perl_by(
            command,
            &format!(
                "open(R, '>', '/proc/sys/net/ipv4/ping_group_range') or die; print R '0 0'; close R; \
                 socket(L, 2, 2, 0); my $i = pack('a16sx22', 'lo', 1); ioctl(L, 0x8914, $i) or die; close L; \
                 socket(S, {socket}) or die"
            ),
        );
        let place = descriptor(victim.pid(), "socket:");
        assert!(place.is_some());
        let pid = victim.pid().to_string();
        let mut look = Command::new("nsenter");
        look.args(["--net", "--target", &pid]).arg(std::env::current_exe().unwrap()).args(["--look", &pid]);
        let output = look.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let expected = if version() < criu_rpc::Version::new(4, 2, 0) {
            format!("Blocks: a socket that criu cannot dump: {name}\nrefused\n")
        } else {
            "dumped\n".to_owned()
        };
        assert_eq!(said, expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn corked_datagrams() {
    if !dumps_tcp() {
        skip("it cannot dump internet sockets on newer kernels");
    }
    for (family, to) in [(2, "sockaddr_in(9, inet_aton('127.0.0.1'))"), (10, "pack_sockaddr_in6(9, inet_pton(10, '::1'))")] {
        let send = |corked: u8| {
            perl(&format!(
                "use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6); socket(S, {family}, 2, 0) or die; \
                 connect(S, {to}) or die; setsockopt(S, 17, 1, {corked}) or die; send(S, 'x', 0)"
            ))
        };
        let victim = send(1);
        let place = descriptor(victim.pid(), "socket:");
        blocks(victim.pid(), &defaults(), victim.pid(), place, |obstacle| *obstacle == Obstacle::CorkedSocket);
        let victim = send(0);
        assert_eq!(look(victim.pid(), &defaults()), []);
        passes(victim.pid(), &defaults());
    }
}

fn unix_listeners_with_connections_that_wait() {
    let home = Home::new();
    let listen = |name: &str| {
        let path = home.path(name);
        let victim = perl(&format!(
            "use Socket; socket(S, 1, 1, 0); bind(S, pack_sockaddr_un('{}')) or die; listen(S, 9) or die",
            path.display()
        ));
        (victim, path)
    };
    let waits = |obstacle: &Obstacle| *obstacle == Obstacle::UnixInFlight;
    // The client is outside: criu dumps the listener without it.
    let (victim, path) = listen("outside");
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let findings = look(victim.pid(), &defaults());
    let [finding] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert!(waits(&finding.obstacle) && finding.severity == Severity::Risk, "{finding}");
    passes(victim.pid(), &defaults());
    // It has closed its end.
    drop(client);
    blocks(victim.pid(), &defaults(), victim.pid(), descriptor(victim.pid(), "socket:"), waits);

    let path = home.path("inside");
    let both = |then: &str| {
        let _ = std::fs::remove_file(&path);
        perl(&format!(
            "use Socket; my $n = pack_sockaddr_un('{}'); socket(S, 1, 1, 0); bind(S, $n) or die; listen(S, 9) or die; \
             socket(C, 1, 1, 0); connect(C, $n) or die; {then}",
            path.display()
        ))
    };
    let victim = both("1");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
    let victim = both("send(C, 'x', 0)");
    blocks(victim.pid(), &defaults(), victim.pid(), None, waits);
}
