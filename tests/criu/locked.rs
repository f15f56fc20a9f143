//! Locks that somebody else has when the tree is to get them back: criu would wait, for ever.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use criu_rpc::{Capture, Cause, Digest256, DumpOptions, FsBlobStore, RestoreOptions, Warning};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::{
    harness::tests,
    places::Home,
    program::{Program, Way, in_each_way, on_pipes},
    tree::{OrExplain, explain},
};

tests![
    a_lock_that_another_process_has_is_told_at_once,
    a_lock_on_a_range_that_another_process_has_is_told_at_once,
    locks_that_do_not_exclude_each_other_are_fine,
    a_tree_whose_processes_share_a_lock_gets_it_back,
    a_lock_on_a_mapped_file_is_told_to_be_lost,
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

/// A program that has a lock on the first file, and maps the second. It answers whether it has the lock.
fn locks_and_maps(locked: &Path, mapped: &Path, how: &str) -> Program {
    let script = "import fcntl, mmap, os, sys\nfiles = [os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in sys.argv[1:3]]\n\
                  os.ftruncate(files[1], 4096)\nmemory = mmap.mmap(files[1], 4096, getattr(mmap, sys.argv[3]))\n\
                  fcntl.lockf(files[0], fcntl.LOCK_EX)\nprint('locked', flush=True)\n\
                  for line in sys.stdin:\n    print(line.strip(), flush=True)";
    let mut command = Command::new("python3");
    command.args(["-u", "-c", script]).args([locked, mapped]).arg(how);
    Program::on_pipes(&command)
}

fn a_lock_on_a_mapped_file_is_told_to_be_lost() {
    in_each_way(|way, home| {
        let (locked, other) = (home.path("lock"), home.path("other"));
        for (mapped, how) in [(&locked, "MAP_SHARED"), (&locked, "MAP_PRIVATE"), (&other, "MAP_SHARED")] {
            let mut program = locks_and_maps(&locked, mapped, how);
            assert_eq!(program.talk.hear(), "locked");
            let pid = program.pid();
            let capture = way.capture(home, [pid]).run(&home.store()).or_explain();
            let Capture::Stored(stored) = capture else { panic!("{capture:?}") };
            let lost = Warning::LockLost { pid: pid.into(), path: locked.clone() };
            let expected = if mapped == &locked { vec![lost] } else { vec![] };
            assert_eq!(stored.warnings, expected, "{how}");
            program.end();
            let mut revived = on_pipes(home.restore(), &home.store(), &stored.digest);
            assert_eq!(revived.ask("hello"), "hello");
            let file = File::options().read(true).write(true).open(&locked).unwrap();
            assert_eq!(is_locked(&file), mapped != &locked, "{how}");
        }
    });
}

/// Whether a process has a lock on a range of the file.
fn is_locked(file: &File) -> bool {
    let mut lock = nix::libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).unwrap();
    i32::from(lock.l_type) != nix::libc::F_UNLCK
}
