//! Connections within a tree whose one end criu makes long after the other, as on a busy machine.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    enclosed::{needs_tcp, stuffed},
    harness::tests,
    places::{Home, PATIENCE, wait_until},
    provoked::odd::syscall,
    tree::{OrExplain, Revived, signal},
    ways::{Script, WAYS, Way},
};

tests![
    unsent_data_to_an_end_that_is_restored_late,
    half_closed_connections_with_an_end_that_is_restored_late,
];

/// The kernel sends data again after a second at most, and no socket is there to take it by then.
fn unsent_data_to_an_end_that_is_restored_late() {
    needs_tcp();
    for (way, shut) in [(WAYS[0], ""), (WAYS[3], "shutdown($a, 1);")] {
        let program = stuffed(&format!(
            "$SIG{{PIPE}} = 'IGNORE'; pipe(my $hear, my $tell); pipe(my $told, my $say); my $child = fork; \
             if (!$child) {{ close STDIN; close STDOUT; close $tell; \
             $b = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
             close $s; my $n = <$hear>; my $t = all($b, int($n), 3); \
             if ('{shut}') {{ $t .= sysread($b, my $rest, 1) // $!; }} \
             syswrite($b, 'back'); syswrite($say, \"$t\\n\"); sleep 1000 while 1; }} \
             my $a = $s->accept; close $s;"
        )) + &format!(
            "my $n = stuff($a, 3); {shut} sub answer {{ \
             return join(' ', $child, $a->sockport, $a->peerport) if $_[0] eq 'ends'; \
             syswrite($tell, \"$n\\n\"); my $l = <$told>; chomp $l; \
             my $k = sysread($a, my $back, 4); return $l . ($k ? $back : \" $!\"); }}"
        );
        let all = if shut.is_empty() { "allback" } else { "all0back" };
        check_late(way, &program, all);
    }
}

/// One end has said that it writes no more, or both have, some with data on its way. The child is
/// late, so the end that is there alone is once of the one kind and once of the other.
fn half_closed_connections_with_an_end_that_is_restored_late() {
    needs_tcp();
    // What the parent can write and has to read, and then the child.
    let cases = [
        ("", "shutdown($b, 1);", "5 0 E32 there0"),
        ("shutdown($a, 1);", "", "E32 back0 4 0"),
        ("syswrite($a, 'more');", "syswrite($b, 'more'); shutdown($b, 1);", "5 more0 E32 morethere0"),
        ("syswrite($a, 'more'); shutdown($a, 1);", "syswrite($b, 'more');", "E32 moreback0 4 more0"),
        ("shutdown($a, 1);", "$b->blocking(1); sysread($b, $_, 9); stuff($b); shutdown($b, 1);", "E32 all0 E32 0"),
        ("stuff($a); shutdown($a, 1);", "stuff($b); shutdown($b, 1);", "E32 all0 E32 all0"),
    ];
    for (place, (by_parent, by_child, expected)) in cases.into_iter().enumerate() {
        let program = format!(
            "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die; \
             $SIG{{PIPE}} = 'IGNORE'; pipe(my $hear, my $tell); pipe(my $told, my $say); my $n = 0; \
             sub stuff {{ my $f = $_[0]; $f->blocking(0); \
             while (my $k = syswrite($f, 'x' x 65536)) {{ $n += $k }} $f->blocking(1); }} \
             sub finish {{ my ($f, $word, $all) = @_; my ($t, $k, $buf) = (''); \
             my $written = syswrite($f, $word) // 'E' . ($! + 0); shutdown($f, 1); \
             while ($k = sysread($f, $buf, 65536)) {{ $t .= $buf }} \
             my $end = $k // 'E' . ($! + 0); \
             $t = length($t) == $all ? 'all' : length($t) . \" of $all\" if length($t) > 100; \
             return \"$written $t$end\"; }} \
             my $child = fork; \
             if (!$child) {{ close STDIN; close STDOUT; close $tell; \
             my $b = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; close $s; \
             {by_child} syswrite($say, \"$n\\n\"); my $all = <$hear>; \
             syswrite($say, finish($b, 'back', $all + 0) . \"\\n\"); sleep 1000 while 1; }} \
             my $a = $s->accept; close $s; {by_parent} my $all = <$told> + 0; \
             sub answer {{ return join(' ', $child, $a->sockport, $a->peerport) if $_[0] eq 'ends'; \
             syswrite($tell, \"$n\\n\"); my $t = finish($a, 'there', $all); my $l = <$told>; chomp $l; \
             return \"$t $l\"; }}"
        );
        assert_eq!(Script::perl(&program).ask("?"), expected, "without a capture");
        let ways = if place < 2 { &WAYS[..] } else { &WAYS[place % 4..][..1] };
        for way in ways {
            eprintln!("{way:?} {by_parent} {by_child}");
            check_late(*way, &program, expected);
        }
    }
}

/// Revives a tree whose child comes late to its end of the connection, and asks it.
#[track_caller]
fn check_late(way: Way, program: &str, expected: &str) {
    let home = Home::new();
    let mut victim = Script::perl(program);
    let members = victim.members();
    let told = victim.ask("ends");
    let told: Vec<i32> = told.split(' ').map(|number| number.parse().unwrap()).collect();
    let [child, port, other] = told[..] else { panic!("{told:?}") };
    let late = Late { parent: victim.pid(), child, port, other };
    let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
    if !way.ends {
        late.silence();
    }
    victim.end(&members, way);
    let mut revived = late.revive(|| Revived::from(home.restore(), &home.store(), &stored.digest));
    assert_eq!(revived.ask("?"), expected, "{way:?}");
    signal(child, Signal::SIGKILL);
}

/// A child that criu is to restore late, and the ports of the connection between it and its parent.
struct Late {
    parent: i32,
    child: i32,
    /// The parent's.
    port: i32,
    other: i32,
}

impl Late {
    /// Keeps the child from its end of the connection until the parent's was there for longer than
    /// the kernel waits to send again. Where the child was too quick, the tree is revived once
    /// more.
    fn revive(&self, revive: impl Fn() -> Revived) -> Revived {
        for _ in 0..20 {
            let (revived, late) = thread::scope(|scope| {
                let held = scope.spawn(|| self.hold());
                let revived = revive();
                (revived, held.join().unwrap())
            });
            if late {
                return revived;
            }
            self.silence();
            signal(self.child, Signal::SIGKILL);
            drop(revived);
        }
        panic!("the child was restored too quickly each time");
    }

    /// Has the connection end without a word when its processes end. The kernel would keep its
    /// ports for a minute if it ended in order.
    fn silence(&self) {
        const REPAIR: i64 = 19;
        for process in [self.parent, self.child] {
            let pidfd = syscall(libc::SYS_pidfd_open, [process.into(), 0, 0, 0, 0]);
            for entry in fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten() {
                if !fs::read_link(entry.path()).unwrap().to_string_lossy().starts_with("socket:") {
                    continue;
                }
                let descriptor = entry.file_name().to_str().unwrap().parse().unwrap();
                let socket = syscall(libc::SYS_pidfd_getfd, [pidfd, descriptor, 0, 0, 0]);
                let on = 1_i32;
                let option = [socket, libc::IPPROTO_TCP.into(), REPAIR, (&raw const on) as i64, 4];
                assert_eq!(syscall(libc::SYS_setsockopt, option), 0);
                syscall(libc::SYS_close, [socket, 0, 0, 0, 0]);
            }
            syscall(libc::SYS_close, [pidfd, 0, 0, 0, 0]);
        }
    }

    /// Holds the child back at the restore. Returns false if the child could not be held.
    fn hold(&self) -> bool {
        let stat = format!("/proc/{}/stat", self.child);
        // The original has ended, so a child of this parent is one that criu has made.
        let is_ours = || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            let after_name = stat.rsplit_once(") ").map(|(_, after)| after.split(' ').nth(1));
            after_name.flatten() == Some(&self.parent.to_string())
        };
        let deadline = Instant::now() + PATIENCE;
        while !is_ours() {
            assert!(Instant::now() < deadline, "the child was not restored");
        }
        let is_there = |from, to| {
            let ends = format!(" 0100007F:{from:04X} 0100007F:{to:04X} ");
            fs::read_to_string("/proc/net/tcp").unwrap().contains(&ends)
        };
        let traced = Traced::seize(self.child);
        if !traced.run_until_it_makes_an_internet_socket(|| is_there(self.other, self.port)) {
            return false;
        }
        wait_until("the parent's end is restored", || is_there(self.port, self.other));
        let since = Instant::now();
        while is_there(self.port, self.other) && since.elapsed() < Duration::from_millis(1500) {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there(self.other, self.port), "the child's end was restored");
        true
    }
}

/// A process that this thread traces until it is dropped. Its parent notices nothing, as it would
/// of SIGSTOP.
struct Traced(i32);

impl Traced {
    fn seize(pid: i32) -> Traced {
        const SEIZE: i64 = 0x4206;
        const INTERRUPT: i64 = 0x4207;
        const GOOD_SYSCALL_STOPS: i64 = 1;
        assert_eq!(ptrace(SEIZE, pid, 0, GOOD_SYSCALL_STOPS), 0);
        let traced = Traced(pid);
        assert_eq!(ptrace(INTERRUPT, pid, 0, 0), 0);
        traced.stopped();
        traced
    }

    /// The signal that it stopped with.
    fn stopped(&self) -> i64 {
        let mut status = 0_i32;
        let place = (&raw mut status) as i64;
        let all = libc::__WALL.into();
        assert_eq!(syscall(libc::SYS_wait4, [self.0.into(), place, all, 0, 0]), i64::from(self.0));
        assert!(libc::WIFSTOPPED(status), "it ended: {status:#x}");
        // What is a stop of ptrace's own is no signal.
        if status >> 16 == 0 { libc::WSTOPSIG(status).into() } else { 0 }
    }

    /// False if it has done so before, as `has` tells.
    fn run_until_it_makes_an_internet_socket(&self, has: impl Fn() -> bool) -> bool {
        const NEXT_SYSCALL: i64 = 24;
        const GET_SYSCALL_INFO: i64 = 0x420e;
        const ENTERS: u64 = 1;
        const OF_A_SYSCALL: i64 = (libc::SIGTRAP | 0x80) as i64;
        let mut signal = 0;
        if has() {
            return false;
        }
        loop {
            assert_eq!(ptrace(NEXT_SYSCALL, self.0, 0, signal), 0);
            signal = self.stopped();
            if signal != OF_A_SYSCALL {
                continue;
            }
            signal = 0;
            let mut info = [0_u64; 16];
            ptrace(GET_SYSCALL_INFO, self.0, 128, (&raw mut info) as i64);
            let [is, _, _, call, domain, ..] = info;
            let calls = [libc::SYS_socket, libc::AF_INET.into()].map(i64::cast_unsigned);
            if is & 0xff == ENTERS && [call, domain] == calls {
                return true;
            }
            // It had the socket, and has connected it by now. The look takes the kernel long.
            if call == libc::SYS_setsockopt.cast_unsigned() && has() {
                return false;
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        const DETACH: i64 = 17;
        ptrace(DETACH, self.0, 0, 0); // it may have ended
    }
}

fn ptrace(request: i64, pid: i32, address: i64, data: i64) -> i64 {
    syscall(libc::SYS_ptrace, [request, pid.into(), address, data, 0])
}
