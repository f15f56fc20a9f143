//! Copies of one capture, each in namespaces of its own: side by side, and beside the original.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use criu_rpc::{Cause, Digest256, Error, Isolation};
use nix::sys::signal::Signal;

use crate::{
    apart::{apart, random},
    enclosed::needs_tcp,
    harness::{Test, tests},
    places::{Home, children, family, lives, state, wait_until},
    program::{Program, Terminal},
    talk::Talk,
    tree::{OrExplain, Revived, explain, signal, wait_gone},
    ways::{Script, WAYS, Way},
};

tests![
    copies_run_beside_each_other_and_the_original,
    a_copy_has_the_settings_of_the_original,
    the_status_of_a_copy_is_its_root_s,
    a_killed_copy_leaves_nothing,
    copies_end_with_their_owner_unless_detached,
    a_copy_that_fails_leaves_nothing,
    a_copy_has_its_own_network,
    a_copy_has_its_own_terminals,
    copies_of_two_trees_are_refused,
    many_copies_leak_nothing,
    what_only_one_can_have_is_refused_to_a_copy,
    a_copy_of_a_shell_is_interrupted_in_its_new_terminal,
    a_tree_without_a_session_gets_that_of_the_init,
];

pub(crate) const APART: &[Test] = &[("many_copies", many_copies)];

pub(crate) const COUNTS: &str = "my $n = 0; my $child = fork; if (!$child) { sleep 1 while 1 } \
    sub answer { $n++; return \"$n $$ \" . (kill(0, $child) ? 'parent' : 'alone') }";

/// The ways in which the original goes on.
pub(crate) const RUNNING: [Way; 2] = [WAYS[0], WAYS[1]];

#[track_caller]
pub(crate) fn copy(home: &Home, isolation: Isolation, digest: &Digest256) -> Revived {
    Revived::from(home.restore().isolated(isolation), &home.store(), digest)
}

/// Ends copies with all their processes.
#[track_caller]
pub(crate) fn end(copies: Vec<Revived>) {
    for mut copy in copies {
        copy.tree().kill().unwrap();
    }
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The namespaces of this kind of all processes.
fn namespaces(kind: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut all: Vec<_> = processes
        .filter_map(|process| fs::read_link(process.path().join("ns").join(kind)).ok())
        .map(|link| link.display().to_string())
        .collect();
    all.sort();
    all.dedup();
    all
}

fn copies_run_beside_each_other_and_the_original() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = Script::perl(COUNTS);
        let (members, pid) = (victim.members(), victim.pid());
        assert_eq!(victim.ask("?"), format!("1 {pid} parent"));
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        if way.ends {
            victim.end(&members, way);
        }
        let mut copies: Vec<_> = (0..4).map(|_| copy(&home, Isolation::new(), &stored.digest)).collect();
        for turn in 2..4 {
            for copy in &mut copies {
                assert_eq!(copy.ask("?"), format!("{turn} {pid} parent"), "{way:?}");
            }
            if !way.ends {
                assert_eq!(victim.ask("?"), format!("{turn} {pid} parent"), "{way:?}");
            }
        }
        end(copies);
        if !way.ends {
            victim.end(&members, way);
        }
        home.assert_staging_empty();
    }
}

fn a_copy_has_the_settings_of_the_original() {
    for way in RUNNING {
        let home = Home::new();
        let mut victim = Script::perl(
            "sub state { open(my $f, '<', '/proc/self/coredump_filter'); my $c = <$f>; chomp $c; \
             return \"$c \" . getpriority(0, 0) . ' ' . syscall(157, 30, 0, 0, 0, 0) } \
             open(my $f, '>', '/proc/self/coredump_filter'); print $f '0x11'; close $f; setpriority(0, 0, 5); \
             syscall(157, 29, 12345, 0, 0, 0); sub answer { return state() }",
        );
        let members = victim.members();
        let before = victim.ask("?");
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        for _ in 0..2 {
            assert_eq!(copy(&home, Isolation::new(), &stored.digest).ask("?"), before, "{way:?}");
        }
        assert_eq!(victim.ask("?"), before, "{way:?}");
        victim.end(&members, way);
    }
}

fn the_status_of_a_copy_is_its_root_s() {
    let home = Home::new();
    let mut victim = Script::perl("sub answer { my ($l) = @_; kill($l, $$) if $l eq 'TERM'; exit 7 }");
    let members = victim.members();
    let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
    // At once, or even before the restore returns.
    for _ in 0..5 {
        let restore = home.restore().isolated(Isolation::new()).stdout(criu_rpc::Stream::Null);
        let restore = restore.stdin(fs::File::open("/proc/self/comm").unwrap());
        let mut tree = restore.restore(&home.store(), &stored.digest).or_explain().into_tree().unwrap();
        assert_eq!(tree.wait().unwrap().code(), Some(7));
    }
    for (word, code, ended_by) in [("exit", Some(7), None), ("TERM", None, Some(15))] {
        let (mut tree, mut talk) = copy(&home, Isolation::new(), &stored.digest).give();
        assert_eq!(tree.wait_timeout(Duration::from_millis(20)).unwrap(), None);
        talk.tell(word);
        let status = tree.wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!((status.code(), status.signal()), (code, ended_by));
        assert_eq!(tree.wait().unwrap(), status);
    }
    let (mut tree, _talk) = copy(&home, Isolation::new(), &stored.digest).give();
    let status = tree.kill_and_wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    victim.end(&members, WAYS[1]);
}

/// Also orphans, which are no descendants of the root.
fn a_killed_copy_leaves_nothing() {
    let kinds = ["pid", "mnt", "net"];
    for way in RUNNING {
        let home = Home::new();
        let mut victim = Script::perl(
            "sub answer { my $p = fork; if (!$p) { if (!fork) { POSIX::setsid(); sleep 1 while 1 } POSIX::_exit(0) } \
             waitpid($p, 0); return 'orphaned' }",
        );
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let before = kinds.map(namespaces);
        let mut copy = copy(&home, Isolation::new().network(true), &stored.digest);
        assert_eq!(copy.ask("?"), "orphaned");
        let init = parent(copy.pid());
        assert_eq!(comm(init), "criu-rpc init");
        let all = family(init);
        assert_eq!(all.len(), 3, "the init, the root, and an orphan: {all:?}");
        let sleeps = || {
            std::thread::sleep(Duration::from_millis(2));
            state(init) == Some('S')
        };
        wait_until("the init sleeps", || (0..10).all(|_| sleeps()));
        copy.tree().kill().unwrap();
        assert!(!all.iter().any(|pid| lives(*pid)), "kill waits until all have ended");
        drop(copy);
        wait_gone(&all);
        let left = kinds.map(namespaces);
        for (before, left) in before.iter().zip(&left) {
            let new: Vec<_> = left.iter().filter(|one| !before.contains(one)).collect();
            assert!(new.len() <= 4, "{new:?}"); // those of other tests
        }
        victim.end(&members, way);
        home.assert_staging_empty();
    }
}

/// The owner: a process that revives a copy, tells its pid, and waits to be killed.
pub(crate) fn main(words: &[String]) {
    let home = Home::of_another(&words[0]);
    let digest: Digest256 = words[1].parse().unwrap();
    let (_talk, input, output) = Talk::through_pipes();
    let restored =
        home.restore().isolated(Isolation::new()).stdin(input).stdout(output).restore(&home.store(), &digest);
    let tree = restored.or_explain().into_tree().unwrap();
    println!("{}", tree.pid());
    if words.get(2).is_some_and(|word| word == "detach") {
        tree.detach().unwrap();
        println!("detached");
    }
    std::thread::sleep(Duration::from_secs(100));
}

fn copies_end_with_their_owner_unless_detached() {
    let home = Home::new();
    let mut victim = Script::perl(COUNTS);
    let members = victim.members();
    let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
    for how in ["owned", "detach"] {
        let mut owner = Command::new("/proc/self/exe");
        owner.args(["--copies", &home.word(), &stored.digest.to_string(), how]);
        let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut talk = Talk::new(owner.stdin.take().unwrap(), owner.stdout.take().unwrap());
        let root: i32 = talk.hear().parse().unwrap();
        let all = family(root);
        assert_eq!(all.len(), 2);
        if how == "detach" {
            assert_eq!(talk.hear(), "detached");
        }
        assert!(lives(root));
        let init = parent(root);
        owner.kill().unwrap();
        owner.wait().unwrap();
        if how == "detach" {
            // Its input has ended, so the root ends by itself. Its child goes on.
            wait_until("the root has ended", || !lives(root));
            assert!(lives(init) && lives(all[1]));
            signal(init, Signal::SIGKILL);
        }
        wait_gone(&all);
    }
    victim.end(&members, WAYS[1]);
}

fn a_copy_that_fails_leaves_nothing() {
    for way in RUNNING {
        let home = Home::new();
        let file = home.path("needed");
        fs::write(&file, "words").unwrap();
        let mut victim = Script::perl(&format!(
            "open(my $f, '<', '{}') or die; my $c = fork; if (!$c) {{ sleep 1 while 1 }} sub answer {{ return 1 }}",
            file.display()
        ));
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        fs::remove_file(&file).unwrap();
        let ours = children(i32::try_from(std::process::id()).unwrap());
        let restore = home.restore().isolated(Isolation::new()).replaced_files(true);
        let error = restore.restore(&home.store(), &stored.digest).unwrap_err();
        assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::FileChanged), "{}", explain(&error));
        let late = home.restore().isolated(Isolation::new()).deadline(Duration::from_millis(1));
        late.restore(&home.store(), &stored.digest).unwrap_err();
        let own = i32::try_from(std::process::id()).unwrap();
        let left = || children(own).into_iter().filter(|child| !ours.contains(child) && state(*child) != Some('Z'));
        wait_until("no child is left", || left().all(|child| comm(child) != "criu-rpc init"));
        victim.end(&members, way);
        home.assert_staging_empty();
    }
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn a_copy_has_its_own_network() {
    needs_tcp();
    for way in RUNNING {
        let home = Home::new();
        let mut victim = Script::perl(
            "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die $@; \
             my $p = $s->sockport; my $a = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $p) or die; \
             my $b = $s->accept; my $n = 0; sub answer { $n++; syswrite($a, \"kept $n\"); sysread($b, my $t, 9); \
             my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $p) or return 'no'; \
             my $d = $s->accept; syswrite($d, 'made'); sysread($c, my $u, 9); return \"$t $u\" }",
        );
        let members = victim.members();
        assert_eq!(victim.ask("?"), "kept 1 made");
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let mut copies: Vec<_> =
            (0..2).map(|_| copy(&home, Isolation::new().network(true), &stored.digest)).collect();
        for copy in &mut copies {
            assert_eq!(copy.ask("?"), "kept 2 made", "{way:?}");
        }
        assert_eq!(victim.ask("?"), "kept 2 made", "{way:?}");
        // In the network of the original, its port is taken.
        let error = home.restore().isolated(Isolation::new()).restore(&home.store(), &stored.digest).unwrap_err();
        assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::TcpNotRestored), "{}", explain(&error));
        drop(copies);
        victim.end(&members, way);
    }
}

fn a_copy_has_its_own_terminals() {
    for way in RUNNING {
        let home = Home::new();
        let mut victim = Script::perl(
            "use Fcntl; sysopen(my $m, '/dev/ptmx', O_RDWR | O_NOCTTY) or die; my $u = pack('l', 0); \
             ioctl($m, 0x40045431, $u) or die; my $i = pack('l', 0); ioctl($m, 0x80045430, $i) or die; $i = unpack('l', $i); \
             sysopen(my $s, \"/dev/pts/$i\", O_RDWR | O_NOCTTY) or die; my $n = 0; \
             sub answer { $n++; syswrite($m, \"line $n\\n\"); sysread($s, my $l, 99); chomp $l; return \"$l $i\" }",
        );
        let members = victim.members();
        let before = victim.ask("?");
        let index = before.rsplit(' ').next().unwrap().to_owned();
        assert_eq!(before, format!("line 1 {index}"));
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let mut copies: Vec<_> =
            (0..2).map(|_| copy(&home, Isolation::new().terminals(true), &stored.digest)).collect();
        for copy in &mut copies {
            assert_eq!(copy.ask("?"), format!("line 2 {index}"), "{way:?}");
        }
        assert_eq!(victim.ask("?"), format!("line 2 {index}"), "{way:?}");
        drop(copies);
        victim.end(&members, way);
    }
}

/// As long as the original has it.
fn what_only_one_can_have_is_refused_to_a_copy() {
    let lock = "use Fcntl ':flock'; open(my $f, '>>', 'FILE') or die; flock($f, LOCK_EX) or die;";
    let listener = "use IO::Socket::UNIX; my $f = IO::Socket::UNIX->new(Local => 'FILE', Listen => 1) or die;";
    for (holds, cause) in [(lock, Cause::LockTaken), (listener, Cause::FileReplaced)] {
        let home = Home::new();
        let holds = holds.replace("FILE", &home.path("file").display().to_string());
        let mut victim = Script::perl(&format!("{holds} sub answer {{ return 'holds' }}"));
        let members = victim.members();
        let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
        let restore = home.restore().isolated(Isolation::new());
        let error = restore.restore(&home.store(), &stored.digest).unwrap_err();
        assert_eq!(error.failure().map(|failure| failure.cause), Some(cause), "{}", explain(&error));
        assert_eq!(victim.ask("?"), "holds");
        victim.end(&members, WAYS[1]);
        let mut first = copy(&home, Isolation::new(), &stored.digest);
        let error = restore.restore(&home.store(), &stored.digest).unwrap_err();
        assert_eq!(error.failure().map(|failure| failure.cause), Some(cause), "{}", explain(&error));
        assert_eq!(first.ask("?"), "holds");
        end(vec![first]);
        if cause == Cause::FileReplaced {
            // A network of its own changes nothing: the file is the same.
            let isolation = || Isolation::new().network(true);
            let mut first = copy(&home, isolation(), &stored.digest);
            for restore in [home.restore(), home.restore().replaced_files(true)] {
                let error = restore.isolated(isolation()).restore(&home.store(), &stored.digest).unwrap_err();
                let failure = error.failure().map(|failure| failure.cause);
                assert_eq!(failure, Some(cause), "{}", explain(&error));
            }
            assert_eq!(first.ask("?"), "holds");
            end(vec![first]);
        }
    }
}

fn a_copy_of_a_shell_is_interrupted_in_its_new_terminal() {
    let home = Home::new();
    let terminal = Terminal::new();
    let mut shell = Command::new("bash");
    let mut program = Program::in_terminal(&terminal, shell.args(["--norc", "--noprofile", "-i"]));
    program.talk.tell("PS1=; PS2=; stty -echo; echo rea''dy");
    program.talk.until("ready");
    program.talk.tell("(trap 'echo interrupted; exit' INT; echo wai''ting; while :; do sleep 1; done)");
    program.talk.until("waiting");
    let stored = WAYS[1].capture(&home, program.pid()).run(&home.store()).or_explain();
    let terminals = [Terminal::new(), Terminal::new()];
    for new in &terminals {
        let restore = home.restore().isolated(Isolation::new());
        let mut copy = new.revive(restore, &home.store(), &stored.digest);
        copy.talk.press("\x03");
        copy.talk.until("interrupted");
        copy.talk.tell("echo tty=$(ps -o tty= -p $$)= answer=$((40+2))");
        let said = copy.talk.until("answer=42");
        assert!(said.contains("tty=pts/"), "{said}");
        end(vec![copy]);
    }
    program.talk.press("\x03");
    program.talk.until("interrupted");
    program.end();
}

fn a_tree_without_a_session_gets_that_of_the_init() {
    let home = Home::new();
    let mut command = Command::new("perl");
    let program = "use POSIX; $| = 1; print \"ready $$\\n\"; \
                   while (<STDIN>) { exit 0 if /exit/; print getpgrp, ' ', syscall(124, 0), \"\\n\" }";
    command.args(["-e", program]);
    let mut victim = Script::by(command);
    let members = victim.members();
    let before = victim.ask("?");
    let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
    assert_eq!(copy(&home, Isolation::new(), &stored.digest).ask("?"), "1 1");
    assert_eq!(victim.ask("?"), before);
    victim.end(&members, WAYS[1]);
}

fn many_copies_leak_nothing() {
    apart("many_copies");
}

/// Some of them are cut short at a random moment.
fn many_copies() {
    const ROUNDS: u64 = 12;
    let home = Home::new();
    let mut victim = Script::perl(COUNTS);
    let members = victim.members();
    let stored = WAYS[1].capture(&home, victim.pid()).run(&home.store()).or_explain();
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    let own = i32::try_from(std::process::id()).unwrap();
    let possessions = || (count("/proc/self/fd"), count("/proc/self/task"), children(own));
    let mut before = None;
    let mut longest = Duration::from_millis(1);
    for round in 0..ROUNDS {
        let (mut talk, input, output) = Talk::through_pipes();
        let restore = home.restore().isolated(Isolation::new()).stdin(input).stdout(output);
        let restore = restore.stderr(fs::File::create("/dev/null").unwrap());
        let limit = longest * u32::try_from(random(100)).unwrap() / 100;
        let restore = if round % 3 == 2 { restore.deadline(limit) } else { restore };
        let began = std::time::Instant::now();
        match restore.restore(&home.store(), &stored.digest) {
            Ok(mut restored) => {
                longest = longest.max(began.elapsed());
                drop(restore);
                assert_eq!(talk.ask("?"), format!("1 {} parent", victim.pid()));
                restored.trees[0].kill_and_wait().unwrap();
            }
            Err(error) => assert!(matches!(error, Error::TimedOut(_) | Error::Overdue { .. }), "{}", explain(&error)),
        }
        drop(talk);
        if round == 1 {
            before = Some(possessions());
        }
    }
    let before = before.unwrap();
    let mut now = possessions();
    wait_until("what was of a copy is gone", || {
        now = possessions();
        now == before
    });
    assert_eq!(now, before);
    victim.end(&members, WAYS[1]);
    home.assert_staging_empty();
}

fn copies_of_two_trees_are_refused() {
    let home = Home::new();
    let victims = [(); 2].map(|()| Script::perl("sub answer { return 1 }"));
    let pids = victims.each_ref().map(Script::pid);
    let stored = home.capture(pids).run(&home.store()).or_explain();
    match home.restore().isolated(Isolation::new()).restore(&home.store(), &stored.digest) {
        Err(Error::Options { option: "isolated", problem, .. }) => {
            assert_eq!(problem, "the capture has 2 trees, and a copy has one");
        }
        other => panic!("{other:?}"),
    }
    for pid in pids {
        signal(pid, Signal::SIGKILL);
    }
}
