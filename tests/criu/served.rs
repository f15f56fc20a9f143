//! Memory that is served to criu while it restores: of large trees, of many at once and one after
//! the other; and what is left if the restore is given up, the store fails, or there is not enough
//! of something.

use std::{
    fmt,
    fs::{self, File},
    io::ErrorKind,
    panic::resume_unwind,
    process::{Command, Stdio, exit},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    BlobStore, Cancel, Chunking, Digest256, Error, MemBlobStore, ProcsRestore, Result,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigHandler, Signal},
};

use crate::{
    apart::{assert_alone_with, inherit_orphans, random},
    harness::{Test, tests},
    places::{Home, names},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, wait_gone},
};

tests![
    trees_of_many_processes_are_revived,
    trees_are_captured_and_revived_at_once,
    restores_in_a_row_leave_nothing,
    restores_given_up_at_any_moment_leave_nothing_or_succeed,
    a_restore_that_lacks_something_fails_or_succeeds,
    a_store_that_stalls_is_waited_for,
    a_store_that_fails_in_the_middle_is_told,
    without_fuse_memory_is_written_first,
    a_full_disk_is_told,
    namespaces_are_revived_from_chunks_as_from_an_archive,
];

const BODIES: &[Test] = &[
    ("many", revive_many),
    ("at-once", revive_at_once),
    ("row", revive_in_a_row),
    ("given-up", give_up),
    ("limits", revive_within_limits),
    ("fails", fail_in_the_middle),
    ("no-fuse", revive_without_fuse),
    ("full-disk", revive_onto_a_full_disk),
    ("namespaces", revive_namespaces),
];

/// Runs the body of this name in a process and a mount namespace of its own.
#[track_caller]
fn apart(name: &str) {
    let mut command = Command::new("timeout");
    // The limit is for a restore that hangs: everything else has a deadline of its own.
    command.args(["--foreground", "--signal=KILL", "120", "unshare", "--mount"]);
    command.arg(std::env::current_exe().unwrap()).args(["--served", name]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("passed\n"), "{}\n{said}{complaints}", output.status);
    print!("{said}");
}

pub(crate) fn main(words: &[String]) {
    let Some((_, body)) = BODIES.iter().find(|(name, _)| *name == words[0]) else { exit(2) };
    body();
    println!("passed");
}

fn trees_of_many_processes_are_revived() {
    apart("many");
}

fn trees_are_captured_and_revived_at_once() {
    apart("at-once");
}

fn restores_in_a_row_leave_nothing() {
    apart("row");
}

fn restores_given_up_at_any_moment_leave_nothing_or_succeed() {
    apart("given-up");
}

fn a_restore_that_lacks_something_fails_or_succeeds() {
    apart("limits");
}

fn a_store_that_fails_in_the_middle_is_told() {
    apart("fails");
}

fn without_fuse_memory_is_written_first() {
    apart("no-fuse");
}

fn namespaces_are_revived_from_chunks_as_from_an_archive() {
    apart("namespaces");
}

fn a_full_disk_is_told() {
    apart("full-disk");
}

/// A victim with these flags, captured in chunks and ended: its capture, and who was in it.
#[track_caller]
fn captured(home: &Home, store: &impl BlobStore, flags: &[&str]) -> (Digest256, Vec<i32>) {
    let victim = Victim::start(flags);
    let members = victim.members();
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(store).or_explain();
    victim.end();
    (digest, members)
}

/// Revives a capture of one tree, if that can be.
fn revive(restore: ProcsRestore, store: &dyn BlobStore, digest: &Digest256) -> Result<Revived> {
    let (talk, input, output) = Talk::through_pipes();
    let errors = File::create("/dev/null").unwrap();
    let mut restored = restore.stdin(input).stdout(output).stderr(errors).restore(store, digest)?;
    Ok(Revived::new(restored.trees.remove(0), talk))
}

fn limit(resource: Resource, soft: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, soft, hard).unwrap();
}

fn revive_many() {
    for count in [20, 200] {
        let (home, store) = (Home::new(), MemBlobStore::new());
        let (digest, members) = captured(&home, &store, &[&format!("children={count}"), "memory=1"]);
        assert_eq!(members.len(), count + 1);
        // Of images there are far more.
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        limit(Resource::RLIMIT_NOFILE, 600);
        let mut revived = Revived::from(home.restore(), &store, &digest);
        limit(Resource::RLIMIT_NOFILE, soft);
        assert_eq!(crate::places::family(revived.pid()), members);
        assert_eq!(revived.ask("check"), "memory ok 256 pages");
        for child in 0..count {
            assert_eq!(revived.ask(&format!("child {child} check")), "memory ok 256 pages");
            assert_eq!(revived.ask(&format!("child {child} tick")), "count 1");
        }
        drop(revived);
        home.assert_staging_empty();
    }
}

fn revive_at_once() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let work = |number: usize| {
        let memory = 2 + number * 3;
        let right = format!("memory ok {} pages", memory * 256);
        let (digest, _) = captured(&home, &store, &["children=2", &format!("memory={memory}")]);
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("check"), right);
        assert_eq!(revived.ask("child 1 check"), "memory ok 256 pages");
        revived.assert_counts_on(0);
        // What was revived is captured as any other, while others are revived.
        let again = home.capture([revived.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
        drop(revived);
        let mut revived = Revived::from(home.restore(), &store, &again);
        assert_eq!(revived.ask("check"), right);
        revived.assert_counts_on(1);
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || work(number))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    home.assert_staging_empty();
}

/// Lists what this program has that may grow: files, threads and mounts.
fn possessions() -> Vec<String> {
    let mut all = Vec::new();
    for number in names("/proc/self/fd".as_ref()) {
        let file = fs::read_link(format!("/proc/self/fd/{number}"));
        // The folder that was listed is closed by now, so its number is skipped.
        all.extend(file.map(|file| format!("{number}: {}", file.display())));
    }
    for thread in names("/proc/self/task".as_ref()) {
        // The thread can have ended.
        all.extend(fs::read_to_string(format!("/proc/self/task/{thread}/comm")));
    }
    all.push(fs::read_to_string("/proc/self/mountinfo").unwrap());
    all
}

/// Returns the possessions once nothing goes away any more: threads that were joined are listed for
/// a moment longer.
fn settled() -> Vec<String> {
    let deadline = Instant::now() + SOON;
    loop {
        let before = possessions();
        thread::sleep(Duration::from_millis(50));
        if possessions() == before {
            return before;
        }
        assert!(Instant::now() < deadline, "it never settles: {before:#?}");
    }
}

/// Nothing of a restore is left: no process, no file, and nothing that this program has.
#[track_caller]
fn assert_nothing_left(home: &Home, members: &[i32], before: &[String], after: &str) {
    assert_alone_with(&[], after);
    wait_gone(members);
    home.assert_staging_empty();
    let deadline = Instant::now() + SOON;
    while possessions() != before {
        assert!(Instant::now() < deadline, "{after} {:#?} became {:#?}", before, possessions());
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the memory of this program, in MiB.
fn memory() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() >> 8
}

fn revive_in_a_row() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=2", "memory=16"]);
    let round = || {
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("check"), "memory ok 4096 pages");
        drop(revived);
        wait_gone(&members);
    };
    (0..4).for_each(|_| round()); // what is made once does not count
    begin_to_reap(&home, &store, &digest, &members);
    let (before, memory_before) = (settled(), memory());
    for _ in 0..8 {
        round();
        assert_nothing_left(&home, &members, &before, "after a restore");
    }
    println!("{memory_before} MiB became {}", memory());
    assert!(memory() < memory_before + 64, "{memory_before} MiB became {}", memory());
}

/// Makes what is made once and stays: the thread that reaps, and what that has, come with the first
/// child that is dropped alive. A restore that was given up need not have one.
fn begin_to_reap(home: &Home, store: &MemBlobStore, digest: &Digest256, members: &[i32]) {
    let (tree, talk) = Revived::from(home.restore(), store, digest).give();
    drop(tree);
    drop(talk); // without which it ends
    wait_gone(members);
    assert!(settled().contains(&"criu-rpc reaper\n".to_owned()), "{:?}", possessions());
}

fn give_up() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=3", "threads=3", "memory=16"]);
    let took = || {
        let begin = Instant::now();
        drop(Revived::from(home.restore(), &store, &digest));
        wait_gone(&members);
        u64::try_from(begin.elapsed().as_micros()).unwrap()
    };
    let usual = (0..3).map(|_| took()).min().unwrap();
    begin_to_reap(&home, &store, &digest, &members);
    let before = settled();
    let count = 8;
    let mut given_up = 0;
    for round in 0..count {
        let (by_thread, heir) = (round % 2 == 0, round % 4 < 2);
        inherit_orphans(heir);
        // No restore is quicker than the first two moments, however busy the machine was before.
        let moment = Duration::from_micros(if round < 2 { 1000 } else { random(usual) });
        let after = format!("after round {round}: {moment:?} {by_thread} {heir}");
        let asked = Instant::now();
        match revive_for(home.restore(), &store, &digest, moment, by_thread) {
            Ok(mut revived) => assert_eq!(revived.ask("check"), "memory ok 4096 pages", "{after}"),
            Err(error) if by_thread && error.is_cancelled() => given_up += 1,
            Err(error) if !by_thread && error.is_timeout() => given_up += 1,
            Err(error) => panic!("{after}: {}", explain(&error)),
        }
        assert!(asked.elapsed() < SOON, "it took {:?} {after}", asked.elapsed());
        assert_nothing_left(&home, &members, &before, &after);
        println!("{after} took {:?}", asked.elapsed());
    }
    println!("{given_up} of {count} restores were given up");
    assert!(given_up > 0, "none was given up, not even at once");
    let mut revived = Revived::from(home.restore(), &store, &digest);
    assert_eq!(revived.ask("check"), "memory ok 4096 pages");
}

/// The time until all that was given up must have ended. criu's last resort would take longer.
const SOON: Duration = Duration::from_secs(15);

/// Revives for so long at most.
fn revive_for(
    restore: ProcsRestore,
    store: &dyn BlobStore,
    digest: &Digest256,
    moment: Duration,
    by_thread: bool,
) -> Result<Revived> {
    if !by_thread {
        return revive(restore.deadline(moment), store, digest);
    }
    let cancel = Cancel::new().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(moment);
            cancel.cancel();
        });
        revive(restore.cancelled_by(&cancel), store, digest)
    })
}

fn revive_within_limits() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=20", "memory=8"]);
    drop(Revived::from(home.restore(), &store, &digest));
    // It would end the program before that could say anything.
    ignore(Signal::SIGXFSZ);
    begin_to_reap(&home, &store, &digest, &members);
    let before = settled();
    let files = names("/proc/self/fd".as_ref()).len() as u64;
    let mut tell = Vec::new();
    let fewer = (0..20).map(|more| (Resource::RLIMIT_NOFILE, files + more));
    for (resource, soft) in fewer.chain([(Resource::RLIMIT_NOFILE, 64), (Resource::RLIMIT_FSIZE, 0), (Resource::RLIMIT_NPROC, 0)]) {
        let after = format!("within {soft} of {resource:?}");
        let (usual, _) = getrlimit(resource).unwrap();
        let (talk, input, output) = Talk::through_pipes();
        let errors = File::create("/dev/null").unwrap();
        let restore = home.restore().stdin(input).stdout(output).stderr(errors).deadline(SOON);
        limit(resource, soft);
        let restored = restore.restore(&store, &digest);
        drop(restore);
        limit(resource, usual);
        match restored {
            Ok(mut restored) => {
                let mut revived = Revived::new(restored.trees.remove(0), talk);
                assert_eq!(revived.ask("check"), "memory ok 2048 pages");
                tell.push(format!("{after}: revived"));
            }
            // Neither is why.
            Err(error) if error.is_timeout() || matches!(error, Error::Corrupt { .. }) => panic!("{after}: {}", explain(&error)),
            Err(error) => {
                tell.push(format!("{after}: {error}"));
                drop(talk);
            }
        }
        assert_nothing_left(&home, &members, &before, &after);
    }
    println!("{}", tell.join("\n"));
    drop(Revived::from(home.restore(), &store, &digest));
}

#[allow(unsafe_code)]
fn ignore(signal: Signal) {
    // SAFETY: nothing is installed that could run.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.unwrap();
}

/// A store that does something before it gives a blob.
struct Odd<'a, F> {
    truth: &'a MemBlobStore,
    before: F,
}

impl<F> fmt::Debug for Odd<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Odd")
    }
}

impl<F: Fn(&Digest256) -> Result<()> + Send + Sync> BlobStore for Odd<'_, F> {
    fn put(&self, _: &[u8]) -> Result<Digest256> {
        Err(Error::store("store a blob", "nobody should"))
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        (self.before)(digest)?;
        self.truth.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.truth.contains(digest)
    }
}

/// Returns the digests that a restore asks the store for, in order.
fn asked_for(home: &Home, store: &MemBlobStore, digest: &Digest256) -> Vec<Digest256> {
    let asked = Mutex::new(Vec::new());
    let before = |digest: &Digest256| {
        asked.lock().unwrap().push(*digest);
        Ok(())
    };
    drop(revive(home.restore(), &Odd { truth: store, before }, digest).or_explain());
    asked.into_inner().unwrap()
}

fn a_store_that_stalls_is_waited_for() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let mut victim = Victim::start(&["children=3", "memory=24"]);
    // Its end is made again too, of which its parent is told by a signal while it waits for its
    // memory.
    victim.ask("zombie");
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let all = asked_for(&home, &store, &digest).len();
    let count = AtomicUsize::new(0);
    // Longer than a reader may wait that was sent a signal.
    let before = |_: &Digest256| {
        if count.fetch_add(1, Ordering::SeqCst) % (all / 2) == all / 4 {
            thread::sleep(Duration::from_millis(1500));
        }
        Ok(())
    };
    let mut revived = revive(home.restore(), &Odd { truth: &store, before }, &digest).or_explain();
    assert_eq!(revived.ask("check"), "memory ok 6144 pages");
    assert_eq!(revived.ask("child 2 check"), "memory ok 256 pages");
    drop(revived);
    home.assert_staging_empty();
}

fn fail_in_the_middle() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=3", "memory=24"]);
    let all = asked_for(&home, &store, &digest);
    begin_to_reap(&home, &store, &digest, &members);
    let before = settled();
    for (round, broken) in all.iter().step_by(all.len() / 4).enumerate() {
        inherit_orphans(round % 2 == 0);
        let fails = |digest: &Digest256| match digest == broken {
            true => Err(Error::store("read a blob", format!("{digest} burns"))),
            false => Ok(()),
        };
        let failing = Odd { truth: &store, before: fails };
        let error = revive(home.restore(), &failing, &digest).expect_err("the store failed");
        let told = matches!(&error, Error::Store { source, .. } if source.to_string() == format!("{broken} burns"));
        assert!(told, "{}", explain(&error));
        assert_nothing_left(&home, &members, &before, &format!("after round {round}"));
    }
    drop(Revived::from(home.restore(), &store, &digest));
}

/// A place where something is mounted, until this is dropped: a test's folder could not be removed
/// else.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        // At the latest, the mount goes with the namespace.
        let _ = Command::new("umount").args(["--lazy", &self.0]).status();
    }
}

#[must_use]
fn mount(words: &[&str]) -> Mounted {
    assert!(Command::new("mount").args(words).status().unwrap().success());
    Mounted(words.last().unwrap().to_string())
}

fn revive_without_fuse() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=3", "memory=24"]);
    begin_to_reap(&home, &store, &digest, &members);
    let empty = home.path("empty");
    File::create(&empty).unwrap();
    // What opens and mounts nothing; what opens no more than that; what cannot even be opened so.
    for instead in [empty.to_str().unwrap(), "/dev/null", "/proc/version"] {
        let _mounted = mount(&["--bind", instead, "/dev/fuse"]);
        let before = settled();
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("check"), "memory ok 6144 pages");
        drop(revived);
        assert_nothing_left(&home, &members, &before, instead);
    }
}

fn revive_onto_a_full_disk() {
    let (home, store) = (Home::new(), MemBlobStore::new());
    let (digest, members) = captured(&home, &store, &["children=3", "memory=24"]);
    begin_to_reap(&home, &store, &digest, &members);
    let disk = home.folder("disk");
    let mut revived = 0;
    for (fuse, size) in [(true, "16k"), (true, "64k"), (true, "256k"), (true, "1m"), (true, "4m"), (false, "4m"), (false, "20m")] {
        let _disk = mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", disk.to_str().unwrap()]);
        let _no_fuse = (!fuse).then(|| mount(&["--bind", "/dev/null", "/dev/fuse"]));
        let (after, before) = (format!("on {size}, {fuse}"), settled());
        match revive(home.restore().staging(&disk).deadline(SOON), &store, &digest) {
            Ok(mut tree) => {
                assert!(fuse, "there was no room");
                assert_eq!(tree.ask("check"), "memory ok 6144 pages");
                revived += 1;
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {}
            Err(error) => panic!("{after}: {}", explain(&error)),
        }
        assert_nothing_left(&home, &members, &before, &after);
        assert_eq!(names(&disk), [""; 0], "{after}");
    }
    assert!(revived > 0, "memory took room");
}

/// A script that makes a container: a root of its own, in which this program is.
const CONTAINER: &str = r#"
    set -e
    mount -t tmpfs tmpfs "$1"
    cd "$1"
    mkdir -p proc dev old tmp
    cp -a /dev/null dev
    unmount=$(which umount)
    for file in "$2" "$unmount" $(ldd "$2" "$unmount" | grep -o '/[^ :]*' | sort -u); do
        mkdir -p ".${file%/*}"
        cp "$file" ".$file"
    done
"#;

/// In its namespaces: goes into its root, and becomes the victim.
const INIT: &str = r#"
    set -e
    cd "$1"
    mount -t proc proc proc
    pivot_root . old
    cd /
    umount -l /old
    exec "$2" --victim session memory=16 children=1
"#;

fn revive_namespaces() {
    let home = Home::new();
    let root = home.folder("root");
    let program = std::env::current_exe().unwrap();
    let shell = |script: &str| {
        let mut words = Command::new("sh");
        words.args(["-c", script, "sh"]).arg(&root).arg(&program);
        words
    };
    assert!(shell(CONTAINER).status().unwrap().success());
    let _mounted = Mounted(root.display().to_string());
    let mut told = Vec::new();
    for chunked in [false, true] {
        let store = MemBlobStore::new();
        let (talk, input, output) = Talk::through_pipes();
        let (_errors, their_errors) = crate::talk::pipe();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc"]);
        command.args(["sh", "-c", INIT, "sh"]).arg(&root).arg(&program);
        let mut unshare = command.stdin(input).stdout(output).stderr(their_errors).spawn().unwrap();
        drop(command);
        let mut talk = talk;
        assert_eq!(talk.hear(), "ready 1");
        let init = crate::places::children(i32::try_from(unshare.id()).unwrap())[0];
        let members = crate::places::family(init);
        let options = criu_rpc::DumpOptions::default().root(root.to_str().unwrap());
        let capture = home.capture([init]).options(options).leave_running(false);
        let capture = if chunked { capture.chunked(Chunking::default()) } else { capture };
        let result = capture.capture(&store);
        if result.is_err() {
            crate::tree::signal(init, Signal::SIGKILL);
        }
        unshare.wait().unwrap();
        let digest = result.or_explain();
        wait_gone(&members);
        let options = criu_rpc::RestoreOptions::default().root(root.to_str().unwrap());
        let restored = revive(home.restore().options(options), &store, &digest);
        told.push(match restored {
            Ok(mut revived) => format!("{}, {}, {}", revived.ask("check"), revived.ask("child 0 check"), revived.ask("tick")),
            Err(error) => explain(&error),
        });
        home.assert_staging_empty();
    }
    assert_eq!(told, ["memory ok 4096 pages, memory ok 256 pages, count 1"; 2]);
}
