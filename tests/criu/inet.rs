//! Sockets of the network inside a tree, in states and with options that are seldom seen.

use std::time::Duration;

use criu_rpc::Cause;

use crate::{
    enclosed::needs_tcp,
    harness::tests,
    outside::{is_lost, is_told},
    places::Home,
    talk::Talk,
    tree::{OrExplain, explain},
    ways::{Script, WAYS, comes_back},
};

tests![
    listeners_that_share_a_port,
    a_connection_that_one_side_does_not_read,
    a_connection_that_both_sides_closed_has_no_error,
    an_urgent_byte,
    options_of_waiting,
    a_connection_of_a_socket_to_itself,
    a_connection_that_was_reset_with_unread_data,
    an_urgent_byte_of_unix,
    a_server_that_does_not_reuse_its_port,
    a_port_that_another_connection_holds,
];

/// The end of the original leaves a connection in TIME_WAIT, which holds the port.
fn a_server_that_does_not_reuse_its_port() {
    needs_tcp();
    for (family, address) in [("", "127.0.0.1"), ("6", "::1"), ("6", "::ffff:127.0.0.1")] {
        comes_back(
            |_| {
                Script::perl(&format!(
                    "use IO::Socket::IP; my $s = IO::Socket::IP->new(Listen => 5, LocalHost => '{address}', V6Only => 0) or die $@; \
                     my $p = $s->sockport; my $a = IO::Socket::IP->new(PeerHost => '{address}', PeerPort => $p) or die; \
                     my $b = $s->accept; sub answer {{ syswrite($a, 'kept'); sysread($b, my $t, 9); \
                     my $c = IO::Socket::IP->new(PeerHost => '{address}', PeerPort => $p) or return 'no'; my $d = $s->accept; \
                     syswrite($d, 'made'); sysread($c, my $u, 9); $c->setsockopt(1, 13, pack('ii', 1, 0)); close $c; close $d; \
                     return \"$t $u {family}\" }}"
                ))
            },
            |talk| assert_eq!(talk.ask("?").trim_end(), format!("kept made {family}").trim_end()),
        );
    }
}

/// A connection that is not in the capture, so a restore can only wait. That takes a minute, which
/// this does not.
fn a_port_that_another_connection_holds() {
    needs_tcp();
    let way = WAYS[0];
    let home = Home::new();
    let mut victim = Script::perl(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
         sub answer { my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
         my $d = $s->accept; close $d; close $c; return 'closed' }",
    );
    let members = victim.members();
    let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
    assert_eq!(victim.ask("?"), "closed");
    victim.end(&members, way);
    let restore = home.restore().wait_for_pids(Duration::ZERO);
    let (_talk, input, output) = Talk::through_pipes();
    let error = restore.stdin(input).stdout(output).restore(&home.store(), &stored.digest).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::TcpNotRestored), "{}", explain(&error));
}

/// Both ends of a connection, `$a` and `$b`.
fn connection(prepare: &str, answer: &str) -> String {
    format!(
        "use IO::Socket::INET; use Socket qw(:all); $SIG{{PIPE}} = 'IGNORE'; \
         my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
         my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
         my $b = $s->accept; close $s; {prepare} sub answer {{ {answer} }}"
    )
}

/// The kernel chooses a listener for each connection, and each gets some.
fn listeners_that_share_a_port() {
    needs_tcp();
    comes_back(
        |_| {
            Script::perl(
                "use IO::Socket::INET; use IO::Select; \
                 sub listener { return IO::Socket::INET->new(Listen => 99, LocalAddr => '127.0.0.1', \
                 LocalPort => $_[0], ReusePort => 1) or die; } \
                 my $one = listener(0); my $port = $one->sockport; my @all = ($one, listener($port), listener($port)); \
                 sub answer { my %served; for (1 .. 90) { \
                 my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die; \
                 my ($ready) = IO::Select->new(@all)->can_read; $served{fileno($ready)}++; \
                 my $b = $ready->accept; $c->sockopt(SO_LINGER, pack('ii', 1, 0)); close $c; close $b; } \
                 push @all, listener($port); my $n = scalar(keys %served); close(pop @all); return $n; }",
            )
        },
        |talk| assert_eq!(talk.ask("?"), "3"),
    );
}

fn a_connection_that_one_side_does_not_read() {
    needs_tcp();
    let program = connection(
        "shutdown($b, 0);",
        "$b->blocking(0); my $k = sysread($b, my $t, 9) // 'E' . ($! + 0); \
         my $w = syswrite($b, 'back'); sysread($a, $t, 9); return \"$k $w $t\"",
    );
    comes_back(|_| Script::perl(&program), |talk| assert_eq!(talk.ask("?"), "0 4 back"));
}

fn a_connection_that_both_sides_closed_has_no_error() {
    needs_tcp();
    let program = connection(
        "syswrite($a, 'more'); shutdown($a, 1); shutdown($b, 1);",
        "my $t = join(' ', map { unpack('i', getsockopt($_, SOL_SOCKET, SO_ERROR)) } $a, $b); return $t",
    );
    comes_back(|_| Script::perl(&program), |talk| assert_eq!(talk.ask("?"), "0 0"));
}

/// criu reads up to the mark, and takes the rest for read.
fn an_urgent_byte() {
    needs_tcp();
    let program = connection(
        "syswrite($a, 'abc'); send($a, 'X', MSG_OOB); syswrite($a, 'def');",
        "my $u; recv($b, $u, 1, MSG_OOB) // ($u = 'none'); $b->blocking(0); my ($t, $k) = (q()); \
         $t .= $k while sysread($b, $k, 99); return \"$u $t\"",
    );
    is_told(
        || Script::perl(&program),
        |warning| is_lost(warning, "unread urgent data (MSG_OOB) and what follows it"),
        |talk| assert_eq!(talk.ask("?"), "none abc"),
    );
}

fn options_of_waiting() {
    needs_tcp();
    let program = connection(
        "setsockopt($a, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) or die; setsockopt($b, SOL_SOCKET, SO_RCVLOWAT, 4) or die; \
         setsockopt($b, 6, 4, 77) or die;",
        "return join(' ', unpack('ii', getsockopt($a, SOL_SOCKET, SO_LINGER)), \
         map { unpack('i', getsockopt($b, $$_[0], $$_[1])) } [SOL_SOCKET, SO_RCVLOWAT], [6, 4])",
    );
    comes_back(|_| Script::perl(&program), |talk| assert_eq!(talk.ask("?"), "1 0 4 77"));
}

fn a_connection_of_a_socket_to_itself() {
    needs_tcp();
    comes_back(
        |_| {
            Script::perl(
                "use Socket; socket(my $s, AF_INET, SOCK_STREAM, 0); my $here = pack_sockaddr_in(0, INADDR_LOOPBACK); \
                 bind($s, $here) or die; connect($s, getsockname($s)) or die; syswrite($s, 'abc'); \
                 sub answer { sysread($s, my $t, 99); syswrite($s, 'abc'); return $t }",
            )
        },
        |talk| assert_eq!([talk.ask("?"), talk.ask("?")], ["abc", "abc"]),
    );
}

/// The program reads an end of the stream where it would have read an error.
fn a_connection_that_was_reset_with_unread_data() {
    needs_tcp();
    let program = connection(
        "syswrite($a, 'abc'); setsockopt($a, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) or die; close $a;",
        "my $k = sysread($b, my $t, 99) // 'E' . ($! + 0); \
         my $e = sysread($b, my $r, 99) // 'E' . ($! + 0); \
         return \"$k $e\"",
    );
    assert_eq!(Script::perl(&program).ask("?"), "3 E104");
    is_told(
        || Script::perl(&program),
        |warning| is_lost(warning, "unread error of a socket"),
        |talk| assert_eq!(talk.ask("?"), "3 0"),
    );
}

fn an_urgent_byte_of_unix() {
    is_told(
        || {
            Script::perl(
                "use Socket qw(:all); socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0); \
                 syswrite($a, 'abc'); send($a, 'X', MSG_OOB) // die; syswrite($a, 'def'); \
                 sub answer { my $u; recv($b, $u, 1, MSG_OOB) // ($u = 'none'); $b->blocking(0); \
                 my ($t, $k) = (q()); $t .= $k while sysread($b, $k, 99); return \"$u $t\" }",
            )
        },
        |warning| is_lost(warning, "mark of unread urgent data (MSG_OOB)"),
        |talk| assert_eq!(talk.ask("?"), "none abcXdef"),
    );
}
