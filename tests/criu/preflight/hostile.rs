//! Trees that make a look hard: processes that come and go, names that look like something else,
//! thousands of everything.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
        process::CommandExt,
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use criu_rpc::{
    Error, ProcessProblem,
    preflight::{Finding, Obstacle},
};

use super::{Helper, blocks, defaults, general::processor_time, lines, look, passes, perl};
use crate::{
    harness::{criu, tests},
    places::{Home, names},
    tree::{OrExplain, Victim, explain},
};

tests![
    processes_that_come_and_go_are_no_error,
    a_process_that_vanishes_is_missing_or_was_seen_whole,
    names_that_look_like_something_else_confuse_nobody,
    a_large_deleted_file_whose_name_is_no_text_is_found,
    thousands_of_descriptors_mappings_and_threads_take_a_moment,
];

/// No look may work longer; the clock says less, where the machine is busy.
const A_MOMENT: Duration = Duration::from_secs(10);

fn processes_that_come_and_go_are_no_error() {
    // Some start children that end, others end once they have started the next. The test
    // cannot stop those: they end by themselves.
    let victim = perl(
        "$SIG{CHLD} = 'IGNORE'; my $end = time + 4; \
         for (1 .. 2) { unless (fork) { while (time < $end) { fork or POSIX::_exit(0) } sleep 1000 } } \
         unless (fork) { syscall(157, 36, 1, 0, 0, 0); \
         unless (fork) { while (time < $end) { fork and POSIX::_exit(0) } POSIX::_exit(0) } sleep 1000 }",
    );
    let end = Instant::now() + Duration::from_secs(2);
    let (mut looks, mut most) = (0, 0);
    let open = names("/proc/self/fd".as_ref()).len();
    while Instant::now() < end {
        let before = processor_time();
        let preflight = criu().preflight(victim.pid(), &defaults()).or_explain();
        assert!(processor_time() - before < A_MOMENT, "{:?}", processor_time() - before);
        assert!(preflight.processes >= 4, "{}", preflight.processes);
        let foreign = |finding: &Finding| finding.pid.as_raw() <= 1;
        assert!(!preflight.findings.iter().any(foreign), "{}", lines(&preflight.findings));
        (looks, most) = (looks + 1, preflight.processes.max(most));
    }
    eprintln!("{looks} looks, at {most} processes at most");
    // Other tests have some open meanwhile, but not one for each look and process.
    let left = names("/proc/self/fd".as_ref()).len().saturating_sub(open);
    assert!(left <= 64, "{left} descriptors were left open by {looks} looks");
}

fn a_process_that_vanishes_is_missing_or_was_seen_whole() {
    let (mut seen, mut missed) = (0, 0);
    for round in 0..400_u64 {
        let mut command = Command::new("/bin/true");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut helper = Helper(command.spawn().unwrap());
        let pid = helper.0.id();
        std::thread::sleep(Duration::from_micros(round * 5));
        // Reaped beside the look.
        let result = std::thread::scope(|scope| {
            scope.spawn(|| helper.0.wait().unwrap());
            criu().preflight(pid, &defaults().shell_job(true))
        });
        match result {
            Ok(preflight) => {
                seen += 1;
                assert_eq!(preflight.findings, [], "{}", lines(&preflight.findings));
            }
            Err(Error::Process { problem: ProcessProblem::Missing | ProcessProblem::Zombie, .. }) => {
                missed += 1
            }
            Err(error) => panic!("{}", explain(&error)),
        }
    }
    eprintln!("{seen} were seen, {missed} had gone");
}

fn names_that_look_like_something_else_confuse_nobody() {
    let home = Home::new();
    for name in [&b"a) Z 0 0"[..], b"(((", b"x\ny: 1\nT", b")", b"\xff\xfe", b"Threads:\t9"] {
        let program = home.path("staging").join(OsStr::from_bytes(name));
        symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new(&program);
        command.arg0("victim").args(["--victim", "session"]);
        let victim = Victim::start_by(command);
        assert!(fs::read(format!("/proc/{}/comm", victim.pid())).unwrap().starts_with(name));
        assert_eq!(look(victim.pid(), &defaults()), [], "{name:?}");
        passes(victim.pid(), &defaults());
        victim.end();
    }
    // Names of files: of sockets, pipes, deleted ones, lines of a table of mappings.
    for name in
        ["socket:[1]", "pipe:[1]", "ptmx", "x (deleted)", "anon_inode:[io_uring]", "a\nlock:\t1: FLOCK"]
    {
        let path = home.path(name);
        File::create(&path).unwrap();
        let victim = Victim::start(&[&format!("file={}", path.display())]);
        assert_eq!(look(victim.pid(), &defaults()), [], "{name:?}");
        passes(victim.pid(), &defaults());
        victim.end();
    }
}

fn a_large_deleted_file_whose_name_is_no_text_is_found() {
    let home = Home::new();
    let path = home.path("staging").join(OsStr::from_bytes(b"gr\xff\xdf"));
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![7; 2 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let link = home.path("link");
    symlink(&path, &link).unwrap();
    let victim = Victim::start(&[&format!("file={}", link.display())]);
    fs::remove_file(&path).unwrap();
    let too_large = |obstacle: &Obstacle| matches!(obstacle, Obstacle::GhostTooLarge { .. });
    blocks(victim.pid(), &defaults(), victim.pid(), None, too_large);
    passes(victim.pid(), &defaults().ghost_limit(8_u32 << 20));
}

fn thousands_of_descriptors_mappings_and_threads_take_a_moment() {
    let limit = "use POSIX; my $l = pack('QQ', 65536, 65536); syscall(160, 7, $l);";
    let victim = perl(&format!(
        "{limit} $^F = 100000; for (1 .. 4000) {{ open(my $f, '<', '/dev/null') or die; push @f, $f }} \
         for (1 .. 500) {{ pipe(my $r, my $w) or die; push @f, $r, $w }} \
         for (1 .. 4000) {{ syscall(9, 0, 4096, $_ % 2 ? 1 : 3, 0x22, -1, 0) }}"
    ));
    let threads = Victim::start(&["threads=400"]);
    let open = names("/proc/self/fd".as_ref()).len();
    for pid in [victim.pid(), threads.pid()] {
        let before = processor_time();
        assert_eq!(look(pid, &defaults()), []);
        eprintln!("a look at {pid} took {:?}", processor_time() - before);
        assert!(processor_time() - before < A_MOMENT, "{:?}", processor_time() - before);
    }
    // Other tests have some open meanwhile, but not one for each look and process.
    let left = names("/proc/self/fd".as_ref()).len().saturating_sub(open);
    assert!(left <= 64, "{left} descriptors were left open");
}
