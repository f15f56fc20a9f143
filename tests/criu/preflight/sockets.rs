//! Sockets: connections, and who is at their other end.

use std::{
    net::TcpStream,
    os::unix::net::{UnixDatagram, UnixListener},
};

use criu_rpc::{
    options::External,
    preflight::{Finding, Obstacle, Severity},
};

use super::{blocks, defaults, descriptor, lines, look, passes, perl};
use crate::{
    harness::{dumps_tcp, skip, tests},
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
];

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
    blocks(victim.pid(), &defaults(), victim.pid(), place, outside);
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
        let unknown = |obstacle: &Obstacle| matches!(obstacle, Obstacle::UnsupportedSocket { protocol } if protocol == name);
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
