//! Everything that can break: criu by its own faults, criu by a signal, its caller, its disk.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, RestoreOptions, Result, Target,
    rpc::{Event, Lend, NoHooks},
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

use crate::{
    apart::{Whole, apart, apart_by, assert_alone_with, inherit_orphans, random},
    harness::{Test, criu, tests},
    places::{Home, children, lives, state, wait_until},
    requests::{Images, own},
    talk::Talk,
    tree::{OrExplain, Victim, explain, signal, wait_gone},
};

tests![
    a_dump_with_any_of_criu_s_own_faults_leaves_the_tree_whole,
    a_restore_with_any_of_criu_s_own_faults_succeeds_or_leaves_nothing,
    a_criu_that_dies_in_a_dump_is_told_and_leaves_nothing_of_ours,
    a_criu_that_dies_in_a_restore_leaves_nothing,
    a_criu_that_dies_in_a_restore_after_the_root_leaves_nothing,
    a_caller_that_dies_in_a_hook_lets_the_tree_go_on,
    a_disk_that_is_full_leaves_the_tree_whole,
    a_large_caller_with_many_files_dumps_as_any_other,
];

pub(crate) const APART: &[Test] = &[
    ("faults-of-dumps", dump_with_faults),
    ("faults-of-restores", restore_with_faults),
    ("killed-dumps", kill_dumps),
    ("killed-restores", kill_restores),
    ("killed-roots", kill_roots),
    ("full-disk", dump_onto_a_full_disk),
    ("large-caller", dump_from_a_large_caller),
];

fn a_dump_with_any_of_criu_s_own_faults_leaves_the_tree_whole() {
    apart("faults-of-dumps");
}

fn a_restore_with_any_of_criu_s_own_faults_succeeds_or_leaves_nothing() {
    apart("faults-of-restores");
}

fn a_criu_that_dies_in_a_dump_is_told_and_leaves_nothing_of_ours() {
    apart("killed-dumps");
}

fn a_criu_that_dies_in_a_restore_leaves_nothing() {
    apart("killed-restores");
}

fn a_criu_that_dies_in_a_restore_after_the_root_leaves_nothing() {
    apart("killed-roots");
}

fn a_disk_that_is_full_leaves_the_tree_whole() {
    let mut command = Command::new("unshare");
    command.args(["--mount", "timeout"]);
    apart_by(command, "full-disk");
}

fn a_large_caller_with_many_files_dumps_as_any_other() {
    apart("large-caller");
}

/// criu's faults that make it fail, then its special ways of working.
fn faults() -> impl Iterator<Item = u32> {
    (1..=6).chain(127..=138)
}

fn with_fault(fault: u32) -> Criu {
    criu().variable("CRIU_FAULT", fault.to_string()).deadline(Duration::from_secs(60))
}

fn dump_with_faults() {
    let home = Home::new();
    let (mut failed, mut died) = (Vec::new(), Vec::new());
    inherit_orphans(true);
    for fault in faults() {
        let after = format!("after fault {fault}");
        let mut victim = Victim::start(&["children=2", "threads=3", "memory=4"]);
        let whole = Whole::of(&victim);
        let folder = File::open(home.folder(&fault.to_string())).unwrap();
        let options = DumpOptions::default().leave_running(true);
        let result = with_fault(fault).dump(victim.pid(), &options, Lend::images(&folder), &mut NoHooks);
        let ended = match result {
            Ok(_) => true,
            Err(Error::Criu(failure)) => {
                assert!(matches!(failure.target, Target::Running), "{after}: {}", failure.report());
                failed.push(fault);
                true
            }
            // It ended itself. What it mapped into the tree stays there then.
            Err(Error::Gone(failure)) => {
                assert!(matches!(failure.target, Target::Running), "{after}: {}", failure.report());
                died.push(fault);
                end_orphans(&whole.members);
                false
            }
            Err(error) => panic!("{after}: {}", explain(&error)),
        };
        assert_alone_with(&[victim.pid()], &after);
        if ended {
            // Where it could not talk to its code in the tree, it leaves that there.
            whole.assert_runs(&victim, &after);
        }
        victim.assert_counts_on(0);
        assert_eq!(victim.ask("check"), "memory ok 1024 pages", "{after}");
        assert_eq!(victim.ask("child 1 tick"), "count 1", "{after}");
    }
    println!("failed: {failed:?}, died: {died:?}");
    assert!(!failed.is_empty() && !died.is_empty(), "no fault made a dump fail");
}

fn restore_with_faults() {
    let home = Home::new();
    let (images, mut failed) = (dumped(&home), Vec::new());
    // Who keeps what is left of an earlier tree has no claim on what gets its number later.
    let (mut former, _talk) = images.revive(&criu(), &RestoreOptions::default()).or_explain().give();
    former.kill().or_explain();
    former.wait().or_explain();
    for (count, fault) in faults().enumerate() {
        let after = format!("after fault {fault}");
        inherit_orphans(count % 2 == 0);
        match images.revive(&with_fault(fault), &RestoreOptions::default()) {
            Ok(mut revived) => revived.assert_counts_on(1),
            Err(Error::Criu(_)) => failed.push(fault),
            Err(error) => panic!("{after}: {}", explain(&error)),
        }
        assert_alone_with(&[], &after);
        wait_gone(&images.members);
    }
    drop(former);
    println!("failed: {failed:?}");
    assert!(failed.contains(&2), "no fault made a restore fail");
}

/// The images of a victim that has counted to one, and ended.
fn dumped(home: &Home) -> Images {
    let mut victim = Victim::start(&["children=2", "threads=3", "memory=4"]);
    victim.assert_counts_on(0);
    let images = Images::of(&victim, &home.folder("images"));
    criu().dump(victim.pid(), &DumpOptions::default(), images.lend(), &mut NoHooks).or_explain();
    victim.reap(&images.members);
    images
}

/// Asks, while another thread kills criu at a random moment, or comes too late. criu is the only
/// child of ours beside these.
fn killed_within<T>(limit: Duration, others: &[i32], ask: impl FnOnce() -> Result<T>) -> Result<T> {
    let answered = AtomicBool::new(false);
    let moment = Duration::from_micros(random(limit.as_micros().try_into().unwrap()));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(moment);
            for pid in children(own()).into_iter().filter(|pid| !others.contains(pid)) {
                if !answered.load(Ordering::SeqCst) {
                    signal(pid, Signal::SIGKILL);
                }
            }
        });
        let result = ask();
        answered.store(true, Ordering::SeqCst);
        result
    })
}

fn kill_dumps() {
    let home = Home::new();
    let begin = Instant::now();
    let (mut rounds, mut gone, mut damaged) = (0, 0, 0);
    inherit_orphans(true);
    while rounds < 40 && begin.elapsed() < ROW {
        let leave_running = rounds % 2 == 0;
        let victim = Victim::start(&["children=2", "threads=3", "memory=2"]);
        let (pid, members) = (victim.pid(), victim.members());
        let folder = File::open(home.folder(&rounds.to_string())).unwrap();
        let criu = criu().deadline(Duration::from_secs(60));
        let options = DumpOptions::default().leave_running(leave_running);
        let result = killed_within(Duration::from_millis(80), &members, || {
            criu.dump(pid, &options, Lend::images(&folder), &mut NoHooks)
        });
        let seen = state(pid);
        match &result {
            Ok(_) => {}
            Err(Error::Gone(failure) | Error::Criu(failure)) => {
                gone += 1;
                // The other way round: a tree that criu died over can end of that a moment after it
                // was seen to live.
                assert!(failure.target != Target::Gone || !lives(pid), "{seen:?}: {}", failure.report());
            }
            Err(error) => panic!("{}", explain(error)),
        }
        if let Err(Error::Gone(failure)) = &result {
            let report = failure.report();
            assert_eq!(failure.cause, Cause::CriuKilled, "{report}");
            let all_live = members.iter().all(|pid| lives(*pid));
            match failure.target {
                Target::Running => assert!(all_live, "{report}"),
                Target::Damaged => assert!(!all_live && !failure.findings.is_empty(), "{report}"),
                Target::Gone => assert!(!lives(pid), "{report}"),
                other => panic!("{other:?}: {report}"),
            }
            damaged += u32::from(!all_live);
        }
        end_orphans(&members);
        assert_alone_with(&[pid], "after a killed dump");
        // A tree that criu died over may be past answering.
        for member in members.iter().filter(|pid| lives(**pid)) {
            signal(*member, Signal::SIGKILL);
        }
        victim.reap(&[]);
        assert_alone_with(&[], "after the victim was killed");
        wait_gone(&members);
        rounds += 1;
    }
    println!("{gone} of {rounds} criu were killed in time, {damaged} trees were damaged");
    assert!(gone > 0);
}

/// Ends children of a killed criu with which it tries the kernel out. They are orphans at once, and
/// only their heir can find them. Processes of the tree are not ended here.
fn end_orphans(tree: &[i32]) {
    for pid in children(own()).into_iter().filter(|pid| !tree.contains(pid)) {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.ends_with("\0swrk\x003\0") {
            signal(pid, Signal::SIGKILL);
        }
    }
}

fn kill_restores() {
    let home = Home::new();
    let images = dumped(&home);
    let begin = Instant::now();
    inherit_orphans(true);
    let (mut rounds, mut gone) = (0, 0);
    while rounds < 60 && begin.elapsed() < ROW {
        let after = format!("after round {rounds}");
        let criu = criu().deadline(Duration::from_secs(60));
        match killed_within(Duration::from_millis(120), &images.members, || {
            images.revive(&criu, &RestoreOptions::default())
        }) {
            Ok(mut revived) => revived.assert_counts_on(1),
            Err(Error::Gone(_) | Error::Criu(_)) => gone += 1,
            Err(error) => panic!("{after}: {}", explain(&error)),
        }
        end_orphans(&images.members);
        assert_alone_with(&[], &after);
        wait_gone(&images.members);
        rounds += 1;
    }
    images.revive(&criu(), &RestoreOptions::default()).or_explain().assert_counts_on(1);
    println!("{gone} of {rounds} criu were killed in time");
    assert!(gone > 0);
}

/// A root whose tracer has died may end by the tracer's own breakpoint. No process keeps track of
/// its children then.
fn kill_roots() {
    let home = Home::new();
    let images = dumped(&home);
    for (round, heir) in [true, false, true, false].into_iter().enumerate() {
        inherit_orphans(heir);
        let after = format!("after round {round}");
        let mut killed = Vec::new();
        let mut hooks = |event: Event<'_>| {
            let is_it = if round < 2 { event.name() == "post-restore" } else { event.name() == "pre-resume" };
            if is_it {
                let root = images.members[0];
                killed = children(own()).into_iter().filter(|pid| *pid != root).collect();
                assert!(images.members.iter().all(|pid| lives(*pid)), "it is not made yet");
                signal(root, Signal::SIGKILL);
                wait_until("the root has ended", || !lives(root));
                killed.iter().for_each(|criu| signal(*criu, Signal::SIGKILL));
            }
            Ok(())
        };
        let error = images.revive_by(&criu(), &mut hooks).expect_err("criu was killed");
        assert!(matches!(error, Error::Gone(_)), "{}", explain(&error));
        assert_eq!(killed.len(), 1, "it is criu");
        assert_alone_with(&[], &after);
        wait_gone(&images.members);
    }
    inherit_orphans(true);
    images.revive(&criu(), &RestoreOptions::default()).or_explain().assert_counts_on(1);
}

/// The time for which a row of rounds goes on.
const ROW: Duration = Duration::from_secs(30);

/// `PID FOLDER`: dumps the tree, and stays in the hook.
pub(crate) fn waits_in_hook(words: &[String]) {
    let folder = File::open(&words[1]).unwrap();
    let pid: i32 = words[0].parse().unwrap();
    let mut hooks = |event: Event<'_>| {
        println!("{}", event.name());
        if matches!(event, Event::PostDump) {
            // This lasts until the test ends.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        Ok(())
    };
    // The test kills this process before the dump returns.
    let _ = criu().dump(pid, &DumpOptions::default(), Lend::images(&folder), &mut hooks);
}

fn a_caller_that_dies_in_a_hook_lets_the_tree_go_on() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=2", "threads=3", "memory=1"]);
    let whole = Whole::of(&victim);
    let mut command = Command::new("/proc/self/exe");
    command.args(["--waits-in-hook", &victim.pid().to_string()]).arg(home.folder("images"));
    let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut talk = Talk::new(caller.stdin.take().unwrap(), caller.stdout.take().unwrap());
    while talk.hear() != "post-dump" {}
    let its = children(i32::try_from(caller.id()).unwrap());
    assert_eq!(its.len(), 1, "it has no criu");
    caller.kill().unwrap();
    caller.wait().unwrap();
    wait_gone(&its);
    victim.assert_counts_on(0);
    assert_eq!(victim.ask("child 1 check"), "memory ok 256 pages");
    whole.assert_kept(&victim, "after the caller died");
}

/// In a mount namespace of its own.
fn dump_onto_a_full_disk() {
    let home = Home::new();
    let disk = home.folder("disk");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk);
    assert!(mount.status().unwrap().success());
    let _mounted = Mounted(&disk);
    let mut victim = Victim::start(&["children=1", "threads=2", "memory=8"]);
    let whole = Whole::of(&victim);
    for (count, leave_running) in [(0, true), (1, false)] {
        let name = format!("images-{count}");
        fs::create_dir(disk.join(&name)).unwrap();
        let folder = File::open(disk.join(&name)).unwrap();
        let options = DumpOptions::default().leave_running(leave_running);
        let error = criu().dump(victim.pid(), &options, Lend::images(&folder), &mut NoHooks).unwrap_err();
        assert!(matches!(error, Error::Criu(_)), "{}", explain(&error));
        assert_alone_with(&[victim.pid()], "after the disk was full");
        whole.assert_kept(&victim, "after the disk was full");
        victim.assert_counts_on(count);
        assert_eq!(victim.ask("check"), "memory ok 2048 pages");
        fs::remove_dir_all(disk.join(&name)).unwrap();
    }
}

/// A mounted folder.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // At the latest, the mount goes with the namespace.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

fn dump_from_a_large_caller() {
    let home = Home::new();
    let mut victim = Victim::start(&["memory=1"]);
    let pid = victim.pid();
    let folder = |name: &str| File::open(home.folder(name)).unwrap();
    let options = DumpOptions::default().leave_running(true);
    let dump = |folder: &File| criu().dump(pid, &options, Lend::images(folder), &mut NoHooks).or_explain();
    dump(&folder("small"));
    let small = best_of_ten();

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    let files: Vec<_> = (0..1000).map(|_| File::open("/dev/null").unwrap()).collect();
    let mut memory = vec![0_u8; 2 << 30];
    memory.iter_mut().step_by(4096).for_each(|page| *page = 1);
    let then = best_of_ten();
    dump(&folder("large"));
    victim.assert_counts_on(0);
    assert_eq!((files.len(), memory[1 << 30]), (1000, 1));
    // A fork would take the page tables of two gigabytes along, which is many times the rest.
    assert!(then < small * 4 + Duration::from_millis(10), "{small:?} became {then:?}");
    println!("{small:?} and {then:?}");
    wait_until("no criu is left", || children(own()) == [pid]);
}

/// Returns the shortest time of ten that it takes to start criu and hear it.
fn best_of_ten() -> Duration {
    let once = |_| {
        let begin = Instant::now();
        criu().version().or_explain();
        begin.elapsed()
    };
    (0..10).map(once).min().unwrap()
}
