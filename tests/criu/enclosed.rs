//! Options that follow from a tree: what is its own business is carried along without a word.

use std::fs::File;

use criu_rpc::{Cause, DumpOptions, Error};

use crate::{
    harness::{dumps_tcp, skip, tests},
    places::{Home, lives},
    tree::{OrExplain, Revived, Victim, explain},
    ways::{Script, WAYS, comes_back, comes_back_times},
};

tests![
    connections_within_a_tree,
    data_on_its_way_within_a_tree,
    unsent_data_within_a_tree,
    unsent_data_to_a_child,
    more_unsent_data_than_a_window_holds,
    connections_that_are_closing_within_a_tree,
    connections_whose_other_end_was_closed_within_a_tree,
    connections_to_the_outside_need_a_word,
    a_connection_to_the_outside_is_closed_in_what_is_revived_and_stays_in_the_tree_that_goes_on,
    locks_of_a_tree,
    locks_whose_taker_has_ended,
    locks_that_are_shared_with_the_outside_need_a_word,
    large_deleted_files,
    larger_deleted_files_need_a_word,
];

/// A server and its client, both in the tree. The client answers with what the server made of the
/// line.
fn server_and_client(domain: &str) -> String {
    let (class, address) = match domain {
        "4" => ("IO::Socket::INET", "127.0.0.1"),
        _ => ("IO::Socket::IP", "::1"),
    };
    format!(
        "use {class}; $SIG{{CHLD}} = 'IGNORE'; my $s = {class}->new(Listen => 5, LocalAddr => '{address}') or die; \
         if (!fork) {{ my $c = $s->accept; close $s; close STDIN; close STDOUT; $c->autoflush(1); \
         while (my $l = <$c>) {{ chomp $l; print $c scalar reverse($l), \"\\n\"; }} sleep 1000 while 1; }} \
         my $c = {class}->new(PeerAddr => '{address}', PeerPort => $s->sockport) or die; close $s; $c->autoflush(1); \
         sub answer {{ print $c \"$_[0]\\n\"; my $l = <$c>; chomp $l; return $l; }}"
    )
}

pub(crate) fn needs_tcp() {
    if !dumps_tcp() {
        skip("it cannot dump TCP sockets on this kernel");
    }
}

fn connections_within_a_tree() {
    needs_tcp();
    for domain in ["4", "6"] {
        comes_back(
            |_| {
                let mut victim = Script::perl(&server_and_client(domain));
                assert_eq!(victim.ask("abc"), "cba");
                victim
            },
            |talk| assert_eq!(talk.ask("hello"), "olleh"),
        );
    }
}

/// There is unread data in both directions at the capture.
fn data_on_its_way_within_a_tree() {
    needs_tcp();
    comes_back(
        |_| {
            Script::perl(
                "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
                 my $a; my ($n, $m) = (0, 0); \
                 my $b = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
                 $a = $s->accept; close $s; $a->blocking(0); $b->blocking(0); my $block = 'abcdefghij' x 1000; \
                 for (1 .. 4) { $n += syswrite($a, $block); $m += syswrite($b, $block) } \
                 $a->blocking(1); $b->blocking(1); \
                 sub all { my ($f, $max) = @_; my ($t, $buf) = (0); \
                 while ($t < $max && (my $k = sysread($f, $buf, 65536))) { $t += $k } return $t } \
                 sub answer { if ($n + $m == 0) { return 'twice' } \
                 my ($x, $y) = (all($b, $n), all($a, $m)); my $ok = ($x == $n && $y == $m && $n == 40000); \
                 ($n, $m) = (0, 0); return $ok ? 'all' : \"$x of $n, $y of $m\" }",
            )
        },
        |talk| assert_eq!(talk.ask("?"), "all"),
    );
}

/// A process with both ends of a connection, each of which has written until nothing more was
/// taken.
pub(crate) fn stuffed(prepare: &str) -> String {
    format!(
        "use IO::Socket::INET; use Socket qw(:all); \
         my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; my $b; \
         {prepare} \
         sub stuff {{ my ($f, $from) = @_; my $n = 0; $f->blocking(0); \
         while (1) {{ my $k = syswrite($f, pack('N*', $from + $n / 4 .. $from + $n / 4 + 4095)); last if !$k; $n += $k; \
         $n -= $n % 4; last if $k % 4; }} $f->blocking(1); return $n; }} \
         sub all {{ my ($f, $max, $from) = @_; my ($t, $buf) = (0, ''); \
         while ($t < $max) {{ my $k = sysread($f, $buf, $max - $t, $t); return \"$t of $max: $!\" if !$k; $t += $k; }} \
         my $n = int($max / 4); return \"$t of $max\" if $t != $max; \
         return 'order' if substr($buf, 0, $n * 4) ne pack('N*', $from .. $from + $n - 1); return 'all'; }} "
    )
}

/// Neither side has read what the other one has written, and much of that was not sent.
fn unsent_data_within_a_tree() {
    needs_tcp();
    for both in [false, true] {
        let back = if both { "$m = stuff($b, 7)" } else { "" };
        let program = stuffed(
            "my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
             $b = $s->accept; close $s; my ($n, $m) = (0, 0);",
        ) + &format!(
            "$n = stuff($a, 3); {back}; sub answer {{ return \"$n\" if $_[0] eq 'bytes'; return 'twice' if !$n; \
             my $t = all($b, $n, 3); $t .= all($a, $m, 7) if $m; $n = 0; return $t; }}"
        );
        comes_back(
            |_| {
                let mut victim = Script::perl(&program);
                assert!(victim.ask("bytes").parse::<u64>().unwrap() > 100_000);
                victim
            },
            |talk| assert_eq!(talk.ask("?"), if both { "allall" } else { "all" }),
        );
    }
}
/// The other end is a child's, which reads when it is told to.
fn unsent_data_to_a_child() {
    needs_tcp();
    let program = stuffed(
        "pipe(my $hear, my $tell); pipe(my $told, my $say); \
         if (!fork) { close STDIN; close STDOUT; close $tell; \
         $b = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; close $s; \
         my $n = <$hear>; syswrite($say, all($b, int($n), 3) . \"\\n\"); sleep 1000 while 1; } \
         my $a = $s->accept; close $s;",
    ) + "my $n = stuff($a, 3); sub answer { return \"$n\" if $_[0] eq 'bytes'; \
         syswrite($tell, \"$n\\n\"); my $l = <$told>; chomp $l; return $l; }";
    comes_back(|_| Script::perl(&program), |talk| assert_eq!(talk.ask("?"), "all"));
}

fn more_unsent_data_than_a_window_holds() {
    needs_tcp();
    // 32 is SO_SNDBUFFORCE.
    let program = stuffed(
        "my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
         $b = $s->accept; close $s; setsockopt($a, SOL_SOCKET, 32, 24 << 20) or die;",
    ) + "my $n = stuff($a, 3); sub answer { return all($b, $n, 3); }";
    comes_back(|_| Script::perl(&program), |talk| assert_eq!(talk.ask("?"), "all"));
}

/// One side or both have said that they write no more, some with data before that which was not
/// sent.
fn connections_that_are_closing_within_a_tree() {
    needs_tcp();
    const HALF: &str = "shutdown($a, 1);";
    const BOTH: &str = "shutdown($a, 1); shutdown($b, 1);";
    const SENT: &str = "syswrite($a, pack('N*', 3 .. 102)); $n = 400;";
    const STUFFED: &str = "$n = stuff($a, 3);";
    const BACK: &str = "$m = stuff($b, 7);";
    let cases = [
        ("half closed", vec![SENT, HALF]),
        ("closed by both", vec![SENT, BOTH]),
        ("half closed with unsent data", vec![STUFFED, HALF]),
        ("half closed, unsent data the other way", vec![SENT, HALF, BACK]),
        ("ended in both directions by one", vec![SENT, "shutdown($a, 2);"]),
        ("closed by both, unsent data of the first", vec![STUFFED, BOTH]),
        ("closed by both, unsent data of both", vec![STUFFED, BACK, BOTH]),
        ("closed by both, unsent data of the last", vec![HALF, BACK, "shutdown($b, 1);"]),
    ];
    let program = |steps: &[&str]| {
        stuffed(
            "my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
             $b = $s->accept; close $s; my ($n, $m) = (0, 0);",
        ) + &steps.join(" ")
            + "sub answer { my $t = ''; $t .= all($b, $n, 3) if $n; $t .= all($a, $m, 7) if $m; ($n, $m) = (0, 0); \
               while (1) { my $k = sysread($b, my $rest, 65536); last if !$k; $t .= 'more' if $k > 3; } return \"$t.\"; }"
    };
    for (name, steps) in cases {
        eprintln!("{name}");
        let mut all = String::new();
        all += if steps.contains(&SENT) || steps.contains(&STUFFED) { "all" } else { "" };
        all += if steps.contains(&BACK) { "all." } else { "." };
        comes_back(|_| Script::perl(&program(&steps)), |talk| assert_eq!(talk.ask("?"), all, "{name}"));
    }
}

/// The server has closed its end, of which a client with a pool of connections takes no notice. It
/// is revived once: what is left of the connection then takes the kernel a minute to forget.
fn connections_whose_other_end_was_closed_within_a_tree() {
    needs_tcp();
    comes_back_times(
        1,
        |_| {
            Script::perl(
                "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
                 my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
                 my $a = $s->accept; close $s; close $a; \
                 sub answer { my $l = <$c>; return defined $l ? 'more' : 'end'; }",
            )
        },
        |talk| assert_eq!(talk.ask("?"), "end"),
    );
}

fn connections_to_the_outside_need_a_word() {
    needs_tcp();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    assert_eq!(victim.ask(&format!("connect {port}")), "connected");
    let _other = listener.accept().unwrap();
    refused(&home, victim.pid(), Cause::EstablishedTcp);
    victim.assert_counts_on(0);
}

/// As the advice says: the tree that goes on keeps its connection, and what is revived later finds
/// it closed at once.
fn a_connection_to_the_outside_is_closed_in_what_is_revived_and_stays_in_the_tree_that_goes_on() {
    needs_tcp();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let home = Home::new();
    let mut victim = Victim::start(&[]);
    assert_eq!(victim.ask(&format!("connect {port}")), "connected");
    let (mut other, _) = listener.accept().unwrap();
    let options = DumpOptions::default().tcp_close(true);
    let stored = home.capture([victim.pid()]).options(options).run(&home.store()).or_explain();
    assert_eq!(victim.ask("say still here"), "said");
    victim.end();
    let mut heard = String::new();
    std::io::Read::read_to_string(&mut other, &mut heard).unwrap();
    assert_eq!(heard, "still here\n");
    let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
    assert!(revived.ask("say again").starts_with("Broken pipe"));
}

/// The capture fails for this reason, and the tree goes on.
#[track_caller]
pub(crate) fn refused(home: &Home, pid: i32, cause: Cause) {
    for way in WAYS {
        let error = way.capture(home, pid).run(&home.store()).unwrap_err();
        assert_eq!(error.failure().map(|failure| failure.cause), Some(cause), "{}", explain(&error));
        assert!(matches!(error, Error::Criu(_)) && error.advice().is_some(), "{}", explain(&error));
    }
}

const LOCKED: &str = "sub answer { open(my $g, '+<', $path) or die; return flock($g, 6) ? 'free' : 'locked'; }";

fn locks_of_a_tree() {
    let kinds = [
        "flock($f, 2) or die;",
        "my $p = pack('s s x4 q q i x4', 1, 0, 0, 0, 0); fcntl($f, 6, $p) or die;", // F_SETLK
        "my $p = pack('s s x4 q q i x4', 1, 0, 0, 0, 0); fcntl($f, 37, $p) or die;", // F_OFD_SETLK
    ];
    for kind in kinds {
        let own = kind.starts_with("flock");
        let probe = match own {
            true => LOCKED.to_owned(),
            // Another process asks, because a process never meets its own lock.
            false => "sub answer { my $r = `perl -e 'open(F, \"+<\", \"$path\"); \
                      my \\$p = pack(\"s s x4 q q i x4\", 1, 0, 0, 0, 0); print fcntl(F, 6, \\$p) ? \"free\" : \"locked\"'`; return $r; }"
                .to_owned(),
        };
        comes_back(
            |home| {
                let path = home.path("lock");
                File::create(&path).unwrap();
                let mut victim = Script::perl(&format!(
                    "my $path = '{}'; open(my $f, '+<', $path) or die; {kind} {probe}",
                    path.display()
                ));
                assert_eq!(victim.ask("?"), "locked");
                victim
            },
            |talk| assert_eq!(talk.ask("?"), "locked", "{kind}"),
        );
    }
}

/// As of `exec 5> lock; flock 5` in a shell.
fn locks_whose_taker_has_ended() {
    comes_back(
        |home| {
            let path = home.path("lock");
            let path = path.display();
            File::create(home.path("lock")).unwrap();
            let mut victim = Script::perl(&format!(
                "my $path = '{path}'; $^F = 10; open(my $f, '+<', $path) or die; \
                 if (!fork) {{ flock($f, 2) or die; POSIX::_exit(0); }} wait; {LOCKED}"
            ));
            assert_eq!(victim.ask("?"), "locked");
            victim
        },
        |talk| assert_eq!(talk.ask("?"), "locked"),
    );
}

/// As of `flock FILE PROGRAM`: who started the tree holds the lock as well, and does so at the
/// restore.
fn locks_that_are_shared_with_the_outside_need_a_word() {
    let home = Home::new();
    let path = home.path("lock");
    File::create(&path).unwrap();
    let mut outside = Script::perl(&format!(
        "open(my $f, '+<', '{}') or die; flock($f, 2) or die; pipe(my $r, my $w); my $child = fork; \
         if (!$child) {{ POSIX::setsid(); close STDIN; close STDOUT; close $w; <$r>; POSIX::_exit(0); }} \
         close $r; sub answer {{ return $child; }}",
        path.display()
    ));
    let child = outside.ask("?").parse().unwrap();
    refused(&home, child, Cause::FileLocks);
    let options = DumpOptions::default().file_locks(true);
    home.capture([child]).options(options).run(&home.store()).or_explain();
    assert!(lives(child));
}

fn deleted_file(home: &Home, size: u32) -> Script {
    Script::perl(&format!(
        "my $path = '{}'; open(my $f, '+>', $path) or die; unlink $path; print $f 'x' x {size}; \
         $f->flush; sub answer {{ return -s $f; }}",
        home.path("deleted").display()
    ))
}

fn large_deleted_files() {
    comes_back(|home| deleted_file(home, 5 << 20), |talk| assert_eq!(talk.ask("?"), (5 << 20).to_string()));
}

fn larger_deleted_files_need_a_word() {
    let home = Home::new();
    let mut victim = deleted_file(&home, 5 << 20);
    for way in WAYS {
        let options = DumpOptions::default().ghost_limit(4_u32 << 20);
        let error = way.capture(&home, victim.pid()).options(options).run(&home.store()).unwrap_err();
        assert_eq!(error.failure().unwrap().cause, Cause::GhostFileTooBig, "{}", explain(&error));
    }
    assert_eq!(victim.ask("?"), (5 << 20).to_string());
}
