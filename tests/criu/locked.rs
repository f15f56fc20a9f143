//! Locks of the tree that another process holds at the restore: criu would wait for ever.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use criu_rpc::{Cause, Digest256, DumpOptions, FsBlobStore, RestoreOptions};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::{
    harness::tests,
    places::Home,
    program::{Program, Way, in_each_way, on_pipes},
    tree::{OrExplain, Victim, explain},
};

tests![
    a_lock_that_another_process_has_is_told_at_once,
    a_lock_on_a_range_that_another_process_has_is_told_at_once,
    a_lease_that_another_process_has_is_told_at_once,
    locks_that_do_not_exclude_each_other_are_fine,
    a_tree_whose_processes_share_a_lock_gets_it_back,
    a_lock_on_a_mapped_file_comes_back,
    a_lock_that_a_child_took_by_an_inherited_descriptor_comes_back,
    a_tree_that_got_its_locks_back_goes_on_where_it_waited,
    a_tree_that_is_to_stay_stopped_has_its_locks,
];

const ANSWERS: &str = "while read line; do echo \"$line\"; done";

fn captured(way: Way, home: &Home, mut program: Program) -> (FsBlobStore, Digest256) {
    assert_eq!(program.talk.hear(), "locked");
    let store = home.store();
    let capture = way.capture(home, [program.pid()]).options(DumpOptions::default().file_locks(true));
    let digest = capture.capture(&store).or_explain();
    program.end();
    (store, digest)
}

fn exclusive(path: &Path) -> Result<Flock<File>, nix::errno::Errno> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)
}

#[track_caller]
fn assert_taken(home: &Home, store: &FsBlobStore, digest: &Digest256, path: &Path, holder: u32) {
    // A restore that waits for the lock would end by this.
    let error = home.restore().deadline(Duration::from_secs(40)).restore(store, digest).unwrap_err();
    let report = error.report().to_string();
    let told = report.contains(&format!("{}: it is locked by process {holder}, `", path.display()));
    let taken = error.failure().is_some_and(|failure| failure.cause == Cause::LockTaken);
    assert!(taken && told, "{}", explain(&error));
    home.assert_staging_empty();
}

fn a_lock_that_another_process_has_is_told_at_once() {
    in_each_way(|way, home| {
        let path = home.path("lock");
        let program =
            Program::bash(&format!("exec 5>{}; flock 5; echo locked; {ANSWERS}", path.display()));
        let (store, digest) = captured(way, home, program);
        let taken = exclusive(&path).unwrap();
        assert_taken(home, &store, &digest, &path, std::process::id());
        // Without its locks the tree can do.
        let without = home.restore().options(RestoreOptions::default().file_locks(false));
        assert_eq!(on_pipes(without, &store, &digest).ask("hello"), "hello");
        drop(taken);
        let mut revived = on_pipes(home.restore(), &store, &digest);
        assert_eq!(revived.ask("hello"), "hello");
        assert!(exclusive(&path).is_err(), "the tree has its lock");
        drop(revived);
        exclusive(&path).expect("nothing stays locked");
    });
}

fn a_lease_that_another_process_has_is_told_at_once() {
    in_each_way(|way, home| {
        let path = home.path("leased");
        let program = Program::bash(&format!("exec 5>>{}; echo locked; {ANSWERS}", path.display()));
        let (store, digest) = captured(way, home, program);
        let holder = "import fcntl, os, signal, sys\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                      file = os.open(sys.argv[1], os.O_RDWR)\n\
                      fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\nprint(f'ready {os.getpid()}', flush=True)\n\
                      sys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", holder]).arg(&path);
        let holder = Victim::start_by(command);
        let error = home.restore().deadline(Duration::from_secs(40)).restore(&store, &digest).unwrap_err();
        let told = format!("{}: process {} has a lease on it", path.display(), holder.pid());
        assert!(error.report().to_string().contains(&told), "{}", explain(&error));
        assert_eq!(error.failure().unwrap().cause, Cause::LockTaken);
        holder.end();
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    });
}

/// A program that locks four bytes of a file, from the second on.
fn locks_range(path: &Path, how: &str) -> Program {
    let script = "import fcntl, os, struct, sys\nfile = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)\n\
                  lock = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 1, 4, 0)\n\
                  fcntl.fcntl(file, getattr(fcntl, sys.argv[2]), lock)\nprint('locked', flush=True)\n\
                  for line in sys.stdin:\n    print(line.strip(), flush=True)";
    let mut command = Command::new("python3");
    command.args(["-u", "-c", script]).arg(path).arg(how);
    Program::on_pipes(&command)
}

/// Locks a range of a file for this process, or lets it go.
fn lock_range(file: &File, kind: i32, start: i64, length: i64) {
    let lock = nix::libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
}

fn a_lock_on_a_range_that_another_process_has_is_told_at_once() {
    for (how, chunked) in [("F_SETLK", false), ("F_OFD_SETLK", true)] {
        let home = Home::new();
        let path = home.path("lock");
        let way = Way { leave_running: false, chunked };
        let (store, digest) = captured(way, &home, locks_range(&path, how));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for kind in [nix::libc::F_WRLCK, nix::libc::F_RDLCK] {
            lock_range(&file, kind, 4, 1);
            assert_taken(&home, &store, &digest, &path, std::process::id());
            lock_range(&file, nix::libc::F_UNLCK, 0, 0);
        }
        // Beside it there is room.
        lock_range(&file, nix::libc::F_WRLCK, 5, 0);
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello", "{how}");
    }
}

fn locks_that_do_not_exclude_each_other_are_fine() {
    let home = Home::new();
    let path = home.path("lock");
    fs::write(&path, "").unwrap();
    let script = format!("exec 5<{}; flock -s 5; echo locked; {ANSWERS}", path.display());
    let (store, digest) = captured(Way { leave_running: true, chunked: true }, &home, Program::bash(&script));
    let file = File::open(&path).unwrap();
    let shared = Flock::lock(file, FlockArg::LockSharedNonblock).unwrap();
    assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    drop(shared);
    let _taken = exclusive(&path).unwrap();
    assert_taken(&home, &store, &digest, &path, std::process::id());
}

fn a_tree_whose_processes_share_a_lock_gets_it_back() {
    let home = Home::new();
    let path = home.path("lock");
    let script = format!("exec 5>{}; flock 5; sleep 600 & echo locked; {ANSWERS}", path.display());
    let (store, digest) = captured(Way { leave_running: false, chunked: false }, &home, Program::bash(&script));
    let mut revived = on_pipes(home.restore(), &store, &digest);
    assert_eq!(revived.ask("hello"), "hello");
    assert!(exclusive(&path).is_err());
    revived.tree().kill().or_explain();
}

/// A program that has a lock on the first file, and maps the second. It answers whether it has the
/// lock.
fn locks_and_maps(locked: &Path, mapped: &Path, how: &str) -> Program {
    let script = "import fcntl, mmap, os, sys\nfiles = [os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in sys.argv[1:3]]\n\
                  os.ftruncate(files[1], 4096)\nmemory = mmap.mmap(files[1], 4096, getattr(mmap, sys.argv[3]))\n\
                  fcntl.lockf(files[0], fcntl.LOCK_EX)\nprint('locked', flush=True)\n\
                  for line in sys.stdin:\n    print(line.strip(), flush=True)";
    let mut command = Command::new("python3");
    command.args(["-u", "-c", script]).args([locked, mapped]).arg(how);
    Program::on_pipes(&command)
}

fn a_lock_on_a_mapped_file_comes_back() {
    in_each_way(|way, home| {
        let (locked, other) = (home.path("lock"), home.path("other"));
        for (mapped, how) in [(&locked, "MAP_SHARED"), (&locked, "MAP_PRIVATE"), (&other, "MAP_SHARED")] {
            let mut program = locks_and_maps(&locked, mapped, how);
            assert_eq!(program.talk.hear(), "locked");
            let pid = program.pid();
            let stored = way.capture(home, [pid]).run(&home.store()).or_explain();
            assert_eq!(stored.warnings, [], "{how}");
            program.end();
            let mut revived = on_pipes(home.restore(), &home.store(), &stored.digest);
            assert_eq!(revived.ask("hello"), "hello");
            assert_eq!(is_locked_by(&locked), Some(pid), "{how}");
            revived.tree().kill().or_explain();
        }
    });
}

/// A parent and its child that have locked different ranges by one descriptor, the child also by a
/// copy of it.
const ONE_DESCRIPTOR: &str = r"
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
ready, tell = os.pipe()
fcntl.lockf(file, fcntl.LOCK_EX, 5, 0)
if os.fork() == 0:
    os.close(0)
    fcntl.lockf(os.dup(file), fcntl.LOCK_EX, 5, 10)
    fcntl.lockf(file, fcntl.LOCK_SH, 0, 100)
    os.write(tell, b'x')
    while True: time.sleep(600)
os.read(ready, 1)
print('locked', flush=True)
for line in sys.stdin: print(line.strip(), flush=True)
";

fn a_lock_that_a_child_took_by_an_inherited_descriptor_comes_back() {
    in_each_way(|way, home| {
        let path = home.path("lock");
        let mut command = Command::new("python3");
        command.args(["-u", "-c", ONE_DESCRIPTOR]).arg(&path);
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "locked");
        let before = ranges(&path);
        assert_eq!(before.len(), 3, "{before:?}");
        let digest = way.capture(home, [program.pid()]).capture(&home.store()).or_explain();
        program.end();
        let mut revived = on_pipes(home.restore(), &home.store(), &digest);
        assert_eq!(revived.ask("hello"), "hello");
        assert_eq!(ranges(&path), before);
        revived.tree().kill().or_explain();
    });
}

/// The process that has a lock on a range of the file.
fn is_locked_by(path: &Path) -> Option<i32> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut lock = nix::libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).unwrap();
    (i32::from(lock.l_type) != nix::libc::F_UNLCK).then_some(lock.l_pid)
}

/// Threads that wait in a sleep, a read, a poll and for a futex, with two locked ranges of a mapped
/// file. It tells when each has come out of its wait as it should. Its child has a lock too, and is
/// stopped.
const WAITERS: &str = r"
import fcntl, mmap, os, select, signal, sys, threading, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(file, 4096)
memory = mmap.mmap(file, 4096)
memory[:5] = b'begun'
child = os.fork()
if child == 0:
    fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX, 1, 50)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True: time.sleep(600)
os.waitpid(child, os.WUNTRACED)
fcntl.lockf(file, fcntl.LOCK_EX, 2, 10)
fcntl.lockf(file, fcntl.LOCK_SH, 0, 100)
(read, write), (polled, poke), lock = os.pipe(), os.pipe(), threading.Lock()
lock.acquire()
done = []
def sleeper():
    begun = time.monotonic(); time.sleep(1.5); done.append('sleep' if time.monotonic() - begun >= 1.5 else 'early')
def reader(): done.append('read' if os.read(read, 9) == b'bytes' else 'other')
def poller():
    poll = select.poll(); poll.register(polled, select.POLLIN); done.append('poll' if poll.poll(600000) else 'none')
def locker(): lock.acquire(); done.append('futex')
threads = [threading.Thread(target=t, daemon=True) for t in (sleeper, reader, poller, locker)]
for t in threads: t.start()
time.sleep(0.3)
print('locked', flush=True)
for line in sys.stdin:
    os.write(write, b'bytes'); os.write(poke, b'x'); lock.release()
    for t in threads: t.join(60)
    print(' '.join(sorted(done)), memory[:5].decode(), os.getppid() > 0, os.waitpid(child, os.WNOHANG)[0], flush=True)
";

fn waiters(path: &Path) -> Program {
    let mut command = Command::new("python3");
    command.args(["-u", "-c", WAITERS]).arg(path);
    Program::on_pipes(&command)
}

fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// The ranges of a file that are locked: kind, process, start, end.
fn ranges(path: &Path) -> Vec<String> {
    let inode = format!(":{}", std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap()));
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let of_file = locks.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let of_file = of_file.filter(|words| words[5].ends_with(&inode));
    let mut ranges: Vec<_> =
        of_file.map(|words| [words[3], words[4], words[6], words[7]].join(" ")).collect();
    ranges.sort();
    ranges
}

fn a_tree_that_got_its_locks_back_goes_on_where_it_waited() {
    in_each_way(|way, home| {
        let path = home.path("mapped");
        let mut program = waiters(&path);
        let pid = program.pid();
        assert_eq!(program.talk.hear(), "locked");
        let before = ranges(&path);
        assert_eq!(before.len(), 3, "{before:?}");
        let digest = way.capture(home, [pid]).capture(&home.store()).or_explain();
        program.end();
        let mut revived = on_pipes(home.restore(), &home.store(), &digest);
        assert_eq!(ranges(&path), before);
        let child = crate::places::family(pid)[1];
        assert_eq!(state(child), 'T');
        assert_eq!(revived.ask("go"), "futex poll read sleep begun True 0");
        assert_eq!(ranges(&path), before);
        revived.tree().kill().or_explain();
    });
}

fn a_tree_that_is_to_stay_stopped_has_its_locks() {
    let home = Home::new();
    let path = home.path("mapped");
    let mut program = waiters(&path);
    let pid = program.pid();
    assert_eq!(program.talk.hear(), "locked");
    let before = ranges(&path);
    let digest = Way { leave_running: false, chunked: true }
        .capture(&home, [pid])
        .capture(&home.store())
        .or_explain();
    program.end();
    let restore = home.restore().options(RestoreOptions::default().leave_stopped(true));
    let mut revived = on_pipes(restore, &home.store(), &digest);
    assert_eq!((ranges(&path), state(pid)), (before, 'T'));
    crate::tree::signal(pid, nix::sys::signal::Signal::SIGCONT);
    assert_eq!(revived.ask("go"), "futex poll read sleep begun True 0");
    revived.tree().kill().or_explain();
}
