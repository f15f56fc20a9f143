//! Whole processes: sessions, debuggers, users, threads.

use std::{
    fs,
    process::{Command, Stdio},
};

use criu_rpc::{
    Cause,
    preflight::Obstacle,
};

use super::{At, Helper, blocks, defaults, dump, lines, look, passes, perl};
use crate::{
    harness::{criu, tests},
    places::state,
    talk::Talk,
    tree::{OrExplain, Victim},
};

tests![
    a_root_that_leads_no_session,
    memory_tracking,
    a_tree_with_the_caller_in_it,
    debuggers,
    other_users,
    filters_that_root_may_dump,
    dead_leaders,
    users_of_a_namespace,
    pending_traps,
    sessions_that_are_shared,
    processes_that_share_their_folder,
    processes_that_may_not_map_more,
];

fn processes_that_share_their_folder() {
    let victim = perl("my $c = syscall(56, 0x200 | 17, 0, 0, 0, 0); unless ($c) { sleep 1000 while 1 } $c > 0 or die");
    let [child] = crate::places::children(victim.pid())[..] else { panic!("it has one child") };
    let shares = |obstacle: &Obstacle| matches!(obstacle, Obstacle::SharedState { with, .. } if *with == victim.pid());
    let found = blocks(victim.pid(), &defaults(), child, Some(At::Process), shares);
    assert_eq!(found.cause(), Cause::SharedState);
    // criu knows a child with the same descriptors.
    let victim = perl("my $c = syscall(56, 0x400 | 17, 0, 0, 0, 0); unless ($c) { sleep 1000 while 1 } $c > 0 or die");
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn processes_that_may_not_map_more() {
    let limited = |more: u64| {
        // It needs some memory afterwards, and how much its heap has left is by chance.
        perl(&format!(
            "my $room = 'x' x 60_000; undef $room; \
             open(M, '<', '/proc/self/statm') or die; my ($p) = split(' ', <M>); close M; \
             my $l = pack('QQ', $p * 4096 + {more}, ~0); syscall(302, 0, 9, $l, 0) == 0 or die"
        ))
    };
    let victim = limited(50_000);
    let too_low = |obstacle: &Obstacle| *obstacle == Obstacle::MemoryLimit;
    let found = blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), too_low);
    assert_eq!(found.cause(), Cause::MemoryLimit);
    passes(limited(900_000).pid(), &defaults()); // a risk
    let victim = limited(2 << 20);
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn a_root_that_leads_no_session() {
    let victim = Victim::start_in_our_session(&[]);
    let no_session = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NoSession { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), no_session);
    passes(victim.pid(), &defaults().shell_job(true));
}

fn memory_tracking() {
    let victim = Victim::start(&[]);
    let options = defaults().track_mem(true);
    if criu().features().or_explain().mem_track {
        return passes(victim.pid(), &options);
    }
    let untracked = |obstacle: &Obstacle| *obstacle == Obstacle::NoMemoryTracking;
    blocks(victim.pid(), &options, victim.pid(), Some(At::Process), untracked);
}

fn a_tree_with_the_caller_in_it() {
    let own = i32::try_from(std::process::id()).unwrap();
    let findings = look(own, &defaults().shell_job(true));
    assert!(
        findings.iter().any(|finding| finding.obstacle == Obstacle::CallerInside),
        "{}",
        lines(&findings)
    );
}

fn debuggers() {
    let mut victim = perl("1");
    let mut child = Command::new("perl")
        .args([
            "-e",
            "$| = 1; syscall(101, 0x4206, $ARGV[0] + 0, 0, 0) == 0 or die; print \"ready\\n\"; <STDIN>",
        ])
        .arg(victim.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut talk = Talk::new(child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let debugger = Helper(child);
    assert_eq!(talk.hear(), "ready");
    let traced = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Traced { by, .. } if *by == debugger.0.id());
    blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), traced);
    drop(debugger);
    passes(victim.pid(), &defaults());
    assert_eq!(victim.ask("?"), "here");
}

fn other_users() {
    let victim =
        perl("$( = $) = '1000 1000'; $< = $> = 1000; syscall(157, 4, 1, 0, 0, 0); $> == 1000 or die");
    let bounding = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    if u64::from_str_radix(&bounding, 16).unwrap() & (1 << 24) != 0 {
        return passes(victim.pid(), &defaults());
    }
    let other = |obstacle: &Obstacle| matches!(obstacle, Obstacle::OtherUser { uid: 1000, .. });
    blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), other);
}

fn filters_that_root_may_dump() {
    // One instruction that allows everything.
    let victim = perl(
        "syscall(157, 38, 1, 0, 0, 0) == 0 or die; my $f = pack('SCCL', 6, 0, 0, 0x7fff0000); \
         my $p = pack('Sx6P', 1, $f); syscall(157, 22, 2, $p, 0, 0) == 0 or die",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

fn dead_leaders() {
    let has_threads = Command::new("perl").args(["-Mthreads", "-e", "1"]).stderr(Stdio::null()).status();
    if !has_threads.is_ok_and(|status| status.success()) {
        return eprintln!("this perl has no threads");
    }
    let victim = perl(
        "use threads; threads->create(sub { sleep 1000 }); $| = 1; print \"ready $$\\n\"; syscall(60, 0)",
    );
    crate::places::wait_until("the first thread has ended", || state(victim.pid()) == Some('Z'));
    let dead = |obstacle: &Obstacle| *obstacle == Obstacle::DeadLeader;
    blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), dead);
}

/// The user of a namespace that the caller made is another one, and the caller has all capabilities
/// there.
fn users_of_a_namespace() {
    const OWN_SPACE: &str = "$me = $$; pipe(R, W); pipe(Q, V); unless (fork) { close W; close Q; <R>; \
        for my $m ('uid', 'gid') { open(M, '>', \"/proc/$me/${m}_map\") or die; print M '0 1000 1'; close M } \
        POSIX::_exit(0) } \
        close R; close V; syscall(272, 0x10000000) == 0 or die; close W; <Q>; close Q; wait; \
        syscall(117, 0, 0, 0); syscall(119, 0, 0, 0) == 0 or die; syscall(117, 0, 0, 0) == 0 or die; \
        syscall(157, 4, 1, 0, 0, 0)";
    let victim = perl(OWN_SPACE);
    let status = fs::read_to_string(format!("/proc/{}/status", victim.pid())).unwrap();
    assert!(status.contains("Uid:\t1000\t1000\t1000"), "{status}");
    let findings = look(victim.pid(), &defaults());
    // criu dumps it. No restore can make its namespace, and it does not count as of another user.
    let obstacles: Vec<_> = findings.iter().map(|finding| &finding.obstacle).collect();
    assert_eq!(obstacles, [&Obstacle::UserNamespace], "{}", lines(&findings));
    dump(victim.pid(), &defaults()).or_explain();
}

fn pending_traps() {
    let victim = perl(
        "my $s = POSIX::SigSet->new(5); POSIX::sigprocmask(POSIX::SIG_BLOCK, $s) or die; kill 'TRAP', $$",
    );
    let trap = |obstacle: &Obstacle| *obstacle == Obstacle::PendingTrap;
    blocks(victim.pid(), &defaults(), victim.pid(), Some(At::Process), trap);
    let victim = perl(
        "my $s = POSIX::SigSet->new(10); POSIX::sigprocmask(POSIX::SIG_BLOCK, $s) or die; kill 'USR1', $$",
    );
    assert_eq!(look(victim.pid(), &defaults()), []);
    passes(victim.pid(), &defaults());
}

/// A process that left the tree, and not the session or the group, keeps their number from being
/// free.
fn sessions_that_are_shared() {
    for group in ["", "setpgrp(0, 0);"] {
        let victim = perl(&format!(
            "pipe(R, W); unless (fork) {{ {group} unless (fork) {{ print W \"$$\\n\"; close W; sleep 1000 while 1 }} \
             POSIX::_exit(0) }} wait; close W; $left = <R>; chomp $left; close R; \
             open(L, '>', \"/tmp/criu-rpc-left-$$\"); print L $left; close L"
        ));
        let note = format!("/tmp/criu-rpc-left-{}", victim.pid());
        let left: i32 = fs::read_to_string(&note).unwrap().parse().unwrap();
        fs::remove_file(note).unwrap();
        let findings = look(victim.pid(), &defaults());
        let end = |pid| crate::tree::signal(pid, nix::sys::signal::Signal::SIGKILL);
        let result = std::panic::catch_unwind(|| {
            let [finding] = &findings[..] else { panic!("{}", lines(&findings)) };
            let by_it = matches!(&finding.obstacle, Obstacle::Shared { by, .. } if *by == left);
            assert!(by_it, "{finding}");
            assert_eq!(finding.severity, criu_rpc::preflight::Severity::Risk);
            assert_eq!(finding.pid, victim.pid());
            assert_eq!(finding.place, At::Process);
            assert!(finding.to_string().contains("kill_session"), "{finding}");
            passes(victim.pid(), &defaults());
        });
        end(left);
        result.unwrap();
        crate::places::wait_until("it has ended", || !matches!(state(left), Some('S' | 'R')));
        assert_eq!(look(victim.pid(), &defaults()), []);
    }
}
