//! Captures of copies, and several copies made at once.

use std::{fs, process::ExitStatus, time::Duration};

use criu_rpc::{Cause, Error, Isolation, ProcsRestore, Stream};

use crate::{
    copies::{COUNTS, RUNNING, copy, end},
    enclosed::needs_tcp,
    harness::tests,
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, explain},
    ways::{Script, WAYS},
};

tests![
    copies_are_captured_and_copied_again,
    a_copy_with_everything_is_captured,
    copies_are_made_together_and_fail_alone,
    a_copy_that_fails_does_not_disturb_the_others,
    what_a_copy_was_lent_comes_back_by_its_path,
    a_dump_of_a_copy_that_is_late_or_joined_by_another_harms_nothing,
];

fn copies_are_captured_and_copied_again() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = Script::perl(COUNTS);
        let (members, pid) = (victim.members(), victim.pid());
        let mut digest = WAYS[1].capture(&home, pid).run(&home.store()).or_explain().digest;
        let mut copies = Vec::new();
        for depth in 1..=3 {
            let mut copy = copy(&home, Isolation::new().network(depth == 2).terminals(depth == 3), &digest);
            assert_eq!(copy.ask("?"), format!("{depth} {pid} parent"), "{way:?}");
            let stored = way.capture(&home, copy.pid()).run(&home.store()).or_explain();
            assert_eq!(stored.roots, [criu_rpc::Pid::from(copy.pid())]);
            digest = stored.digest;
            if way.ends {
                assert_eq!(ended_by(copy.tree().wait().unwrap()), Some(9), "{way:?}");
            } else {
                assert_eq!(copy.ask("?"), format!("{} {pid} parent", depth + 1), "{way:?}");
                copies.push(copy);
            }
        }
        assert_eq!(victim.ask("?"), format!("1 {pid} parent"), "{way:?}");
        // The last of them comes back without a copy's namespaces, too.
        victim.end(&members, WAYS[1]);
        let mut back = Revived::from(home.restore(), &home.store(), &digest);
        assert_eq!((back.pid(), back.ask("?")), (pid, format!("4 {pid} parent")), "{way:?}");
        end(vec![back]);
        end(copies);
        home.assert_staging_empty();
    }
}

fn ended_by(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// Captures a copy that has connections, terminals, locks, a deleted file and unread input.
fn a_copy_with_everything_is_captured() {
    needs_tcp();
    for way in WAYS {
        let home = Home::new();
        let (gone, locked) = (home.path("gone"), home.path("locked"));
        let mut victim = Script::perl(&format!(
            "use Fcntl ':flock'; use IO::Socket::INET; \
             my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die $@; \
             my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $s->sockport) or die; \
             my $b = $s->accept; open(my $f, '+>', '{}') or die; syswrite($f, 'words'); unlink '{}'; \
             sysopen(my $m, '/dev/ptmx', O_RDWR | O_NOCTTY) or die; my $u = pack('l', 0); \
             ioctl($m, 0x40045431, $u) or die; my $i = pack('l', 0); ioctl($m, 0x80045430, $i) or die; \
             $i = unpack('l', $i); sysopen(my $t, \"/dev/pts/$i\", O_RDWR | O_NOCTTY) or die; \
             syswrite($m, \"unread\n\"); pipe(my $r, my $w); syswrite($w, 'piped'); my $n = 0; \
             sub answer {{ $n++; if ($_[0] eq 'lock') {{ open(my $l, '>>', '{}') or die; flock($l, LOCK_EX | LOCK_NB) \
             or return 'taken'; push @main::held, $l; return 'locked' }} \
             syswrite($a, \"sent $n\"); sysread($b, my $x, 99); sysseek($f, 0, 0); sysread($f, my $y, 99); \
             sysread($t, my $z, 99); syswrite($m, \"unread\n\"); chomp $z; sysread($r, my $p, 99); syswrite($w, $p); \
             return \"$x $y $z $p\" }}",
            gone.display(),
            gone.display(),
            locked.display(),
        ));
        let members = victim.members();
        assert_eq!(victim.ask("?"), "sent 1 words unread piped");
        let isolation = || Isolation::new().network(true).terminals(true);
        let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
        let mut first = copy(&home, isolation(), &stored.digest);
        assert_eq!(first.ask("?"), "sent 2 words unread piped", "{way:?}");
        assert_eq!(first.ask("lock"), "locked");
        let stored = way.capture(&home, first.pid()).run(&home.store()).or_explain();
        assert!(stored.warnings.is_empty(), "{:?}", stored.warnings);
        if way.ends {
            first.tree().wait().unwrap();
        } else {
            assert_eq!(first.ask("?"), "sent 4 words unread piped", "{way:?}");
            end(vec![first]);
        }
        let mut second = copy(&home, isolation(), &stored.digest);
        assert_eq!(second.ask("?"), "sent 4 words unread piped", "{way:?}");
        assert_eq!(victim.ask("lock"), "taken", "{way:?}");
        assert_eq!(victim.ask("?"), "sent 3 words unread piped", "{way:?}");
        end(vec![second]);
        victim.end(&members, WAYS[1]);
        home.assert_staging_empty();
    }
}

fn copies_are_made_together_and_fail_alone() {
    let home = Home::new();
    let gone = home.path("gone");
    let mut victim = Script::perl(&format!(
        "open(my $f, '+>', '{}') or die; syswrite($f, 'words'); unlink '{}'; \
         sub answer {{ sysseek($f, 0, 0); sysread($f, my $t, 99); return \"$t $_[0]\" }}",
        gone.display(),
        gone.display(),
    ));
    let members = victim.members();
    let restore = || home.restore().stdin(Stream::Piped).stdout(Stream::Piped);
    let isolated = || restore().isolated(Isolation::new());
    for way in RUNNING {
        let capture = way.capture(&home, victim.pid());
        let branched = capture.branch(&home.store(), &isolated(), 8).or_explain();
        assert_eq!(branched.copies.len(), 8);
        let mut copies: Vec<_> = branched.copies.into_iter().map(|copy| copy.or_explain()).collect();
        let mut talks: Vec<_> = copies
            .iter_mut()
            .map(|copy| Talk::new(copy.stdin.take().unwrap(), copy.stdout.take().unwrap()))
            .collect();
        for (number, talk) in (0..).zip(&mut talks) {
            assert_eq!(talk.ask(&number.to_string()), format!("words {number}"), "{way:?}");
        }
        assert_eq!(victim.ask("?"), "words ?");
        // One of them makes the third generation.
        let tree = copies.pop().unwrap().into_tree().unwrap();
        let more = tree.branch(2).or_explain();
        for copy in more.into_iter().map(|copy| copy.or_explain()) {
            let mut copy = copy;
            let mut talk = Talk::new(copy.stdin.take().unwrap(), copy.stdout.take().unwrap());
            assert_eq!(talk.ask("third"), "words third");
            copies.push(copy);
        }
        assert_eq!(talks.pop().unwrap().ask("?"), "words ?");
        tree.kill().unwrap();
        let refused = restore().restore_many(&home.store(), &branched.stored.digest, 3);
        assert_eq!(refused.len(), 3);
        for refused in refused {
            assert!(matches!(refused, Err(Error::Options { option: "restore_many", .. })), "{refused:?}");
        }
        let late = isolated().deadline(Duration::from_millis(1));
        let late = late.restore_many(&home.store(), &branched.stored.digest, 3);
        assert!(late.len() == 3 && late.iter().all(|copy| copy.is_err()));
        for copy in copies {
            copy.into_tree().unwrap().kill_and_wait().unwrap();
        }
        home.assert_staging_empty();
    }
    assert!(!gone.exists());
    victim.end(&members, WAYS[1]);
}

/// Only one copy can have the lock.
fn a_copy_that_fails_does_not_disturb_the_others() {
    let home = Home::new();
    let locked = home.path("locked");
    let mut victim = Script::perl(&format!(
        "use Fcntl ':flock'; my $f; sub answer {{ if ($_[0] eq 'lock') {{ open($f, '>>', '{}') or die; \
         flock($f, LOCK_EX) or die; }} return $_[0] }}",
        locked.display()
    ));
    assert_eq!(victim.ask("lock"), "lock");
    let members = victim.members();
    let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
    victim.end(&members, WAYS[1]);
    let copies = restore_of(&home).restore_many(&home.store(), &stored.digest, 4);
    assert_eq!(copies.len(), 4);
    let (good, bad): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| copy.is_ok());
    assert_eq!((good.len(), bad.len()), (1, 3));
    for error in bad.into_iter().filter_map(|copy| copy.err()) {
        assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::LockTaken), "{}", explain(&error));
    }
    for mut copy in good.into_iter().flatten() {
        let mut talk = Talk::new(copy.stdin.take().unwrap(), copy.stdout.take().unwrap());
        assert_eq!(talk.ask("still"), "still");
        copy.trees[0].kill_and_wait().unwrap();
    }
}

/// Its standard error is a file of this program, which criu cannot find by itself in the copy.
fn what_a_copy_was_lent_comes_back_by_its_path() {
    for way in WAYS {
        let home = Home::new();
        let (log, other) = (home.path("log"), home.path("other"));
        let mut victim = Script::perl(
            "sub answer { open(my $p, '<', '/proc/self/stat') if $_[0] eq 'proc'; push @main::held, $p if $p; \
             print STDERR \"$_[0]\\n\"; return \"$_[0] \" . tell(STDERR) }",
        );
        let members = victim.members();
        let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
        victim.end(&members, WAYS[1]);
        let lent = || {
            restore_of(&home).stderr(fs::File::options().append(true).create(true).open(&log).unwrap())
        };
        let mut first = lent().restore(&home.store(), &stored.digest).or_explain();
        let mut talk = Talk::new(first.stdin.take().unwrap(), first.stdout.take().unwrap());
        assert_eq!(talk.ask("first"), "first 6");
        assert_eq!(talk.ask("proc"), "proc 11");
        let capture = way.capture(&home, first.trees[0].pid().as_raw());
        let foreseen = capture.preflight().or_explain();
        assert!(foreseen.blocks.is_empty(), "{:?}", foreseen.blocks);
        let stored = capture.run(&home.store()).or_explain();
        assert!(stored.warnings.is_empty(), "{:?}", stored.warnings);
        let tree = &mut first.trees[0];
        let _ = if way.ends { tree.wait().unwrap() } else { tree.kill_and_wait().unwrap() };
        let mut second = restore_of(&home).restore(&home.store(), &stored.digest).or_explain();
        let mut talk = Talk::new(second.stdin.take().unwrap(), second.stdout.take().unwrap());
        assert_eq!(talk.ask("second"), "second 18", "{way:?}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "first\nproc\nsecond\n");
        // What was renamed has another path in the next capture, and what was removed has none.
        fs::rename(&log, &other).unwrap();
        let stored = WAYS[1].capture(&home, second.trees[0].pid().as_raw()).run(&home.store()).or_explain();
        let third = restore_of(&home).restore(&home.store(), &stored.digest).or_explain();
        third.trees[0].kill().unwrap();
        second.trees[0].kill_and_wait().unwrap();
        let first = lent().restore(&home.store(), &stored.digest).or_explain();
        fs::remove_file(&log).unwrap();
        let error = way.capture(&home, first.trees[0].pid().as_raw()).run(&home.store()).unwrap_err();
        let cause = error.failure().map(|failure| failure.cause);
        assert_eq!(cause, Some(Cause::FileOutsideMounts), "{}", explain(&error));
        first.trees[0].kill().unwrap();
        home.assert_staging_empty();
    }
}

fn restore_of(home: &Home) -> ProcsRestore {
    let restore = home.restore().isolated(Isolation::new());
    restore.stdin(Stream::Piped).stdout(Stream::Piped)
}

fn a_dump_of_a_copy_that_is_late_or_joined_by_another_harms_nothing() {
    let home = Home::new();
    let mut victim = Script::perl(COUNTS);
    let (members, pid) = (victim.members(), victim.pid());
    let stored = WAYS[1].capture(&home, pid).run(&home.store()).or_explain();
    let mut copies = [(); 2].map(|()| copy(&home, Isolation::new(), &stored.digest));
    let both = [copies[0].pid(), copies[1].pid()];
    for leave_running in [true, false] {
        let error = home.capture(both).leave_running(leave_running).run(&home.store()).unwrap_err();
        assert!(matches!(error, Error::Options { option: "ProcsCapture::new", .. }), "{error}");
    }
    for millis in [1, 5, 10, 20, 40] {
        for way in WAYS {
            let capture = way.capture(&home, copies[0].pid()).leave_running(true);
            match capture.deadline(Duration::from_millis(millis)).run(&home.store()) {
                Ok(_) | Err(Error::TimedOut(_) | Error::Overdue { .. }) => {}
                Err(error) => panic!("{}", explain(&error)),
            }
        }
    }
    for copy in &mut copies {
        assert_eq!(copy.ask("?"), format!("1 {pid} parent"));
    }
    end(copies.into());
    victim.end(&members, WAYS[1]);
    home.assert_staging_empty();
}
