//! Sockets of the network inside a tree, in states and with options that are seldom seen.

use crate::{
    enclosed::needs_tcp,
    harness::tests,
    outside::{is_lost, is_told},
    ways::{Script, comes_back},
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
];

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
        "my $u; recv($b, $u, 1, MSG_OOB) // ($u = 'none'); $b->blocking(0); my ($t, $k) = (q()); $t .= $k while sysread($b, $k, 99); return \"$u $t\"",
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
        "my $k = sysread($b, my $t, 99) // 'E' . ($! + 0); my $e = sysread($b, my $r, 99) // 'E' . ($! + 0); \
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
