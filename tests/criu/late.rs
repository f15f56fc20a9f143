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
    tree::{Revived, signal},
    ways::{Script, WAYS, stored},
};

tests![unsent_data_to_an_end_that_is_restored_late];

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
        let home = Home::new();
        let mut victim = Script::perl(&program);
        let members = victim.members();
        let told = victim.ask("ends");
        let told: Vec<i32> = told.split(' ').map(|number| number.parse().unwrap()).collect();
        let [child, port, other] = told[..] else { panic!("{told:?}") };
        let late = Late { parent: victim.pid(), child, port, other };
        let stored = stored(way.capture(&home, victim.pid()).run(&home.store()));
        victim.end(&members, way);
        let mut revived = late.revive(|| Revived::from(home.restore(), &home.store(), &stored.digest));
        let all = if shut.is_empty() { "allback" } else { "all0back" };
        assert_eq!(revived.ask("?"), all, "{way:?} {shut}");
        signal(child, Signal::SIGKILL);
    }
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
            signal(self.child, Signal::SIGKILL);
            drop(revived);
        }
        panic!("the child was restored too quickly each time");
    }

    /// Whether the child could be kept.
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
        while !has() {
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
        }
        false
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
