//! Settings of processes and threads that criu does not carry along: they are as they were, or it
//! is said that they are not.

use std::time::{Duration, Instant};

use criu_rpc::Warning;

use crate::{
    harness::{skip, tests},
    places::{Home, state, wait_until},
    program::Program,
    tree::{OrExplain, Revived},
    ways::{Script, WAYS, comes_back},
    warned::{assert_warned, assert_warned_of, warning},
};

tests![
    settings_of_a_process_and_its_child_come_back,
    settings_that_were_usual_come_back_to_a_restorer_whose_own_are_not,
    what_is_lost_is_told,
    a_sandbox_of_landlock_is_told,
    a_tree_comes_back_into_its_control_group,
    a_system_call_that_ends_early_is_told,
    a_revived_thread_waits_again_where_that_is_exact,
    a_revived_thread_polls_again,
    a_thread_that_polls_without_a_limit_notices_nothing,
    all_threads_poll_on,
    a_thread_that_polls_on_after_a_stop_notices_nothing,
    programs_that_take_eintr_for_an_error_go_on,
    a_thread_that_polls_gets_each_signal,
    a_filtered_thread_is_left_as_it_is,
];

/// The settings of a process, as text.
const STATE: &str = "sub state { my $m = \"\\0\" x 8; syscall(204, 0, 8, $m); open(my $f, '<', '/proc/self/coredump_filter'); \
    my $c = <$f>; chomp $c; open(my $o, '<', '/proc/self/oom_score_adj'); my $a = <$o>; chomp $a; \
    return join(' ', unpack('Q', $m), syscall(252, 1, 0), syscall(157, 30, 0, 0, 0, 0), $c, $a, getpriority(0, 0)); }";

/// A process with unusual settings, and a child with others.
fn unusual() -> String {
    format!(
        "{STATE} my $set = sub {{ my ($mask, $prio, $slack, $filter) = @_; my $m = pack('Q', $mask); syscall(203, 0, 8, $m); \
         syscall(251, 1, 0, $prio); syscall(157, 29, $slack, 0, 0, 0); \
         open(my $f, '>', '/proc/self/coredump_filter'); print $f $filter; close $f; }}; \
         pipe(my $r, my $w); pipe(my $s, my $t); $w->autoflush(1); $t->autoflush(1); \
         if (!fork) {{ close STDIN; close STDOUT; close $w; close $s; setpriority(0, 0, 0); $set->(2, 2 << 13, 777, '0x7f'); \
         while (<$r>) {{ print $t state(), \"\\n\" }} POSIX::_exit(0); }} close $r; close $t; \
         $set->(1, 3 << 13, 12345, '0x11'); setpriority(0, 0, 5); \
         open(my $o, '>', '/proc/self/oom_score_adj'); print $o '123'; close $o; \
         sub answer {{ print $w \"?\\n\"; my $l = <$s>; chomp $l; return state() . ' / ' . $l; }}"
    )
}

const UNUSUAL: &str = "1 24576 12345 00000011 123 5 / 2 16384 777 0000007f 0 0";

fn settings_of_a_process_and_its_child_come_back() {
    comes_back(
        |_| {
            let mut victim = Script::perl(&format!("use IO::Handle; {}", unusual()));
            assert_eq!(victim.ask("?"), UNUSUAL);
            victim
        },
        |talk| assert_eq!(talk.ask("?"), UNUSUAL),
    );
}

/// A thread that is bound to one processor revives a program that was not.
fn settings_that_were_usual_come_back_to_a_restorer_whose_own_are_not() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = Script::perl(&format!("{STATE} sub answer {{ return state(); }}"));
        let members = victim.members();
        let before = victim.ask("?");
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        victim.end(&members, way);
        let bound = std::thread::spawn(move || {
            let own = nix::unistd::gettid().to_string();
            let bind = ["taskset -p 1", "ionice -c 3 -p"].map(|command| format!("{command} {own} >/dev/null"));
            let done = std::process::Command::new("sh").args(["-c", &bind.join("; ")]).status().unwrap();
            assert!(done.success());
            std::fs::write(format!("/proc/{own}/timerslack_ns"), "99999").unwrap();
            let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
            revived.ask("?")
        });
        assert_eq!(bound.join().unwrap(), before, "{way:?}");
    }
}

fn what_is_lost_is_told() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = Script::perl(
            "syscall(135, 0x40000); my $m = pack('Q', 1); syscall(238, 1, $m, 64); sub answer { return 'here'; }",
        );
        let (pid, members) = (victim.pid(), victim.members());
        let foreseen = way.capture(&home, pid).preflight().or_explain();
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        let risks: Vec<_> = foreseen.risks.iter().map(|risk| risk.problem.clone()).collect();
        let warnings: Vec<_> = stored.warnings.iter().map(Warning::to_string).collect();
        assert_eq!((risks, foreseen.blocks), (warnings, vec![]));
        let told: Vec<_> = stored
            .warnings
            .iter()
            .map(|warning| match warning {
                Warning::Lost { pid: of, what, .. } if of.as_raw() == pid => *what,
                other => panic!("{other}"),
            })
            .collect();
        assert!(told.contains(&"personality"), "{told:?}");
        let has_numa = std::path::Path::new("/proc/self/numa_maps").exists();
        assert_eq!(told.contains(&"NUMA memory policy"), has_numa, "{told:?}");
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask("?"), "here");
    }
}

/// The program may not create files, which it may once it is revived.
fn a_sandbox_of_landlock_is_told() {
    const SANDBOXED: &str = "import ctypes, os, struct, sys
lib = ctypes.CDLL(None)
os.setsid()
lib.prctl(38, 1, 0, 0, 0)
rules = lib.syscall(444, ctypes.create_string_buffer(struct.pack('Q', 1 << 8)), 8, 0) # LANDLOCK_ACCESS_FS_MAKE_REG
rules < 0 or lib.syscall(446, rules, 0) or os.close(rules)
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line == 'exit 0\\n': break
    try: open(line.strip(), 'w').close(); print('written', flush=True)
    except OSError: print('refused', flush=True)";
    for way in WAYS {
        let home = Home::new();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", SANDBOXED]);
        let mut victim = Script::by(command);
        let probe = home.path("probe").display().to_string();
        let before = victim.ask(&probe);
        let (pid, members) = (victim.pid(), victim.members());
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        let what = "sandbox of Landlock, if it has one";
        assert_warned(&stored.warnings, &[warning!(Lost { pid, what })], way);
        if !way.ends {
            assert_eq!(victim.ask(&probe), before);
        }
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask(&probe), "written");
    }
}

/// A group of its own in some hierarchy, which ends with this.
struct Group(std::path::PathBuf);

impl Group {
    fn new() -> Group {
        let name = format!("criu-rpc-test-{}", std::process::id());
        let places = ["pids", "freezer", "unified", ""].map(|place| format!("/sys/fs/cgroup/{place}/{name}"));
        let made = places.into_iter().map(std::path::PathBuf::from);
        let mut made = made.filter(|path| std::fs::create_dir(path).is_ok());
        Group(made.next().unwrap_or_else(|| skip("there are no control groups to test with")))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0); // a failed test may have left a process there
    }
}

/// criu makes a group that is gone.
fn a_tree_comes_back_into_its_control_group() {
    let group = Group::new();
    for (number, way) in WAYS.into_iter().enumerate() {
        let home = Home::new();
        let mut victim = Script::perl("sub answer { return 'here'; }");
        let (pid, members) = (victim.pid(), victim.members());
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{way:?}");
        victim.end(&members, way);
        if number % 2 == 1 {
            wait_until("the group is empty", || std::fs::remove_dir(&group.0).is_ok());
        }
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask("?"), "here");
        let within = std::fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
        assert_eq!(within.trim(), pid.to_string(), "{way:?}");
        let restore = home.restore().isolated(criu_rpc::Isolation::new());
        let mut copy = Revived::from(restore, &home.store(), &stored.digest);
        assert_eq!(copy.ask("?"), "here");
        let within = std::fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
        assert!(within.lines().any(|line| line == copy.pid().to_string()), "{way:?}");
    }
}

/// Waits in a system call, and answers with its result and error number.
fn waits_in_a_call(call: &str) -> Script {
    Script::perl(&format!(
        "my ($n, $poll, $time) = (0, pack('l s s', 0, 1, 0), pack('q q', 600, 0)); $| = 1; print \"ready $$\\n\"; \
         $n = {call}; my $e = $n < 0 ? $! + 0 : 0; <STDIN>; \
         sub answer {{ return \"$n $e\"; }} print \"$n $e\\n\";"
    ))
}

#[track_caller]
fn wait_until_in_call(pid: i32, number: u32) {
    let path = format!("/proc/{pid}/syscall");
    wait_until("it waits in the call", || {
        std::fs::read_to_string(&path).unwrap().starts_with(&format!("{number} "))
    });
}

/// criu cannot have the kernel go on with a sleep. The kernel itself ends `epoll_wait`.
fn a_system_call_that_ends_early_is_told() {
    let sleep = (35, "syscall(35, $time, 0)");
    let epoll = (232, "syscall(232, syscall(291, 0), $time, 1, 600000)");
    for (way, (number, call)) in WAYS.into_iter().flat_map(|way| [(way, sleep), (way, epoll)]) {
        let home = Home::new();
        let mut victim = waits_in_a_call(call);
        let (pid, members) = (victim.pid(), victim.members());
        wait_until_in_call(pid, number);
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        assert_warned(&stored.warnings, &[warning!(Interrupted { pid })], (way, call));
        if !way.ends {
            assert_eq!(victim.ask("go on"), "-1 4", "{way:?} {call}");
        }
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask("go on"), "-1 4", "{way:?} {call}");
    }
}

/// A program in python whose threads wait in calls that end with EINTR when a thread is stopped,
/// but have no limit or an absolute one, until they are asked for.
const WAITING_THREADS: &str = "
import ctypes, os, signal, struct, sys, threading, time
lib = ctypes.CDLL(None, use_errno=True)
os.setsid()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signals = struct.pack('Q', 1 << (signal.SIGUSR1 - 1))
later = struct.pack('2q', int(time.monotonic()) + 100000, 0)
room = ctypes.create_string_buffer(100)
word = ctypes.c_int(0)
read, write = os.pipe()
epoll = lib.epoll_create1(0)
lib.epoll_ctl(epoll, 1, read, struct.pack('=IQ', 1, 0))
calls = [(232, epoll, room, 1, -1), (281, epoll, room, 1, -1, 0, 8), (128, signals, 0, 0, 8),
    (202, ctypes.byref(word), 9, 0, later, 0, -1)]
told = [None] * len(calls)
def wait(at):
    result = lib.syscall(*calls[at])
    told[at] = (result, ctypes.get_errno() if result < 0 else 0)
threads = [threading.Thread(target=wait, args=(at,), daemon=True) for at in range(len(calls))]
for thread in threads: thread.start()
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line == 'exit 0\\n': os._exit(0)
    if None in told:
        os.write(write, b'x')
        os.kill(os.getpid(), signal.SIGUSR1)
        lib.syscall(202, ctypes.byref(word), 1, 1, 0, 0, 0)
    for thread in threads: thread.join()
    print(told, flush=True)
";

/// The kernel's words on the threads that wait in these calls.
fn waiting_threads(pid: i32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let calls = threads.map(|thread| waits_in(thread.file_name().to_str().unwrap().parse().unwrap()));
    let is_one = |call: &String| match call.split(' ').collect::<Vec<_>>()[..] {
        ["202", _, command, ..] => command == "0x9",
        [number, ..] => ["128", "232", "281"].contains(&number),
        [] => false,
    };
    let mut found: Vec<_> = calls.filter(is_one).collect();
    found.sort();
    found
}

fn a_revived_thread_waits_again_where_that_is_exact() {
    for way in WAYS {
        let home = Home::new();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", WAITING_THREADS]);
        let mut victim = Script::by(command);
        let (pid, members) = (victim.pid(), victim.members());
        wait_until("all threads wait", || waiting_threads(pid).len() == 4);
        let calls = waiting_threads(pid);
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        let told = (!way.ends).then(|| warning!(Interrupted { pid }));
        assert_warned(&stored.warnings, told.as_slice(), way);
        if !way.ends {
            assert_eq!(victim.ask("go on"), "[(-1, 4), (-1, 4), (-1, 4), (-1, 4)]", "{way:?}");
        }
        victim.end(&members, way);
        for _ in 0..2 {
            let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
            wait_until("all threads wait as before", || waiting_threads(pid) == calls);
            assert_eq!(revived.ask("go on"), "[(1, 0), (1, 0), (10, 0), (0, 0)]", "{way:?}");
        }
    }
}

/// Returns the kernel's words on a thread that waits in a call: its number, its arguments and two
/// registers.
fn waits_in(thread: i32) -> String {
    std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default()
}

fn polls(thread: i32) -> bool {
    waits_in(thread).starts_with("7 ")
}

/// criu lets a `poll` with a limit end in the tree that goes on, but not in the one that is
/// revived.
fn a_revived_thread_polls_again() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = waits_in_a_call("syscall(7, $poll, 1, 600000)");
        let (pid, members) = (victim.pid(), victim.members());
        wait_until_in_call(pid, 7);
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        let told = (!way.ends).then(|| warning!(Interrupted { pid }));
        assert_warned(&stored.warnings, told.as_slice(), way);
        if !way.ends {
            assert_eq!(victim.ask("go on"), "-1 4");
        }
        victim.end(&members, way);
        for _ in 0..2 {
            let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
            wait_until_in_call(pid, 7);
            assert_eq!(revived.ask("go on"), "1 0", "{way:?}");
        }
    }
}

/// The call that the original waits in and that of the revived one are what it was, to the last
/// register.
fn a_thread_that_polls_without_a_limit_notices_nothing() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = waits_in_a_call("syscall(7, $poll, 1, -1)");
        let (pid, members) = (victim.pid(), victim.members());
        wait_until_in_call(pid, 7);
        let call = waits_in(pid);
        for _ in 0..3 {
            let capture = way.capture(&home, pid).leave_running(true);
            let stored = capture.run(&home.store()).or_explain();
            assert_eq!(stored.warnings, [], "{way:?}");
            wait_until(&format!("it waits in the call as before: {call}"), || waits_in(pid) == call);
        }
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{way:?}");
        if !way.ends {
            assert_eq!(victim.ask("go on"), "1 0");
        }
        victim.end(&members, way);
        for _ in 0..2 {
            let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
            wait_until(&format!("it waits in the call as before: {call}"), || waits_in(pid) == call);
            assert_eq!(revived.ask("go on"), "1 0", "{way:?}");
        }
    }
}

/// The kernel makes a `poll` that was stopped go on as another call.
fn a_thread_that_polls_on_after_a_stop_notices_nothing() {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    for way in WAYS {
        let home = Home::new();
        let mut victim = waits_in_a_call("syscall(7, $poll, 1, -1)");
        let (pid, members) = (victim.pid(), victim.members());
        wait_until_in_call(pid, 7);
        crate::tree::signal(pid, SIGSTOP);
        wait_until("it is stopped", || state(pid) == Some('T'));
        crate::tree::signal(pid, SIGCONT);
        wait_until_in_call(pid, 219);
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{way:?}");
        if !way.ends {
            wait_until_in_call(pid, 7);
            assert_eq!(victim.ask("go on"), "1 0", "{way:?}");
        }
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        wait_until_in_call(pid, 7);
        assert_eq!(revived.ask("go on"), "1 0", "{way:?}");
    }
}

/// A program in python whose threads wait in `poll`, each at a pipe of its own, until they are
/// asked for.
const POLLING_THREADS: &str = "
import ctypes, os, select, sys, threading
lib = ctypes.CDLL(None, use_errno=True)
os.setsid()
ends = [os.pipe() for _ in range(4)]
told = []
class Poll(ctypes.Structure): _fields_ = [('fd', ctypes.c_int), ('events', ctypes.c_short), ('revents', ctypes.c_short)]
def wait(end):
    result = lib.poll(ctypes.byref(Poll(end, 1, 0)), 1, -1)
    told.append((result, ctypes.get_errno() if result < 0 else 0))
threads = [threading.Thread(target=wait, args=(r,), daemon=True) for r, _ in ends]
for thread in threads: thread.start()
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line == 'exit 0\\n': os._exit(0)
    for _, w in ends: os.write(w, b'x')
    for thread in threads: thread.join()
    print(told, flush=True)
";

fn all_threads_poll_on() {
    for way in WAYS {
        let home = Home::new();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", POLLING_THREADS]);
        let mut victim = Script::by(command);
        let (pid, members) = (victim.pid(), victim.members());
        let polling = || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let numbers = threads.map(|thread| thread.file_name().to_str().unwrap().parse().unwrap());
            numbers.filter(|thread| polls(*thread)).count()
        };
        wait_until("all threads wait", || polling() == 4);
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{way:?}");
        let all = "[(1, 0), (1, 0), (1, 0), (1, 0)]";
        if !way.ends {
            wait_until("all threads wait again", || polling() == 4);
            assert_eq!(victim.ask("go on"), all, "{way:?}");
        }
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask("go on"), all, "{way:?}");
    }
}

fn programs_that_take_eintr_for_an_error_go_on() {
    crate::program::in_each_way(|way, home| {
        let file = home.path("file");
        let append = |text: &str| {
            let mut file = std::fs::File::options().append(true).create(true).open(&file).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        };
        append("one\n");
        let mut command = std::process::Command::new("tail");
        command.args(["-n", "1", "-f"]).arg(&file);
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "one");
        wait_until("it polls", || polls(program.pid()));
        let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, []);
        if way.leave_running {
            append("two\n");
            assert_eq!(program.talk.hear(), "two");
        }
        program.end();
        let mut revived = crate::program::on_pipes(home.restore(), &home.store(), &stored.digest);
        if !way.leave_running {
            append("two\n");
        }
        append("three\n");
        assert_eq!([revived.talk.hear(), revived.talk.hear()], ["two", "three"]);
        revived.tree().kill().unwrap();
    });
    let home = Home::new();
    let mut command = std::process::Command::new("script");
    command.args(["-q", "-c", "exec cat", "/dev/null"]);
    let mut program = Program::on_pipes(&command);
    program.talk.tell("one");
    program.talk.until("one\r\none\r\n");
    wait_until("it polls", || polls(program.pid()));
    let stored = home.capture([program.pid()]).run(&home.store()).or_explain();
    assert_eq!(stored.warnings, []);
    program.talk.tell("two");
    program.talk.until("two\r\ntwo\r\n");
}

/// The tree is captured again and again, and gets a signal at another moment of each capture. A
/// `poll` that a handler interrupts ends, and each signal has its effect.
fn a_thread_that_polls_gets_each_signal() {
    let home = Home::new();
    let mut victim = Script::perl(
        "my ($n, $poll) = (0, pack('l s s', 0, 1, 0)); $SIG{USR1} = sub { $n++; }; \
         print \"ready $$\\n\"; my $told = 0; \
         while (1) { my $r = syscall(7, $poll, 1, -1); \
         if ($r < 0) { if ($n != $told) { $told = $n; syswrite(STDOUT, \"$n\\n\") } next } \
         my $l = <STDIN>; exit 0 } sub answer {}",
    );
    let pid = victim.pid();
    let mut took = Duration::from_millis(50);
    for number in 1..=CAPTURES {
        // A signal between two calls would have no effect on the next.
        wait_until("it waits", || ["7 ", "219 ", "271 "].iter().any(|call| waits_in(pid).starts_with(call)));
        std::thread::scope(|scope| {
            let capture = scope.spawn(|| {
                let begun = Instant::now();
                home.capture([pid]).run(&home.store()).or_explain();
                begun.elapsed()
            });
            std::thread::sleep(took * (number * 7919 % 1000) / 900);
            crate::tree::signal(pid, nix::sys::signal::Signal::SIGUSR1);
            assert_eq!(victim.hear(), number.to_string());
            took = capture.join().unwrap();
        });
    }
}

const CAPTURES: u32 = 50;

/// Its filter ends it for any call of `ppoll`.
fn a_filtered_thread_is_left_as_it_is() {
    // BPF: load the number of the call; if it is 271, kill the process; else allow the call.
    let filter = "my @f = ([0x20, 0, 0, 0], [0x15, 0, 1, 271], [0x06, 0, 0, 0x80000000], [0x06, 0, 0, 0x7fff0000]); \
         my $f = join('', map { pack('SCCL', @$_) } @f); my $p = pack('S x6 P', 4, $f); \
         syscall(157, 38, 1, 0, 0, 0); syscall(157, 22, 2, $p, 0, 0) == 0 or die;";
    let mut victim = waits_in_a_call(&format!("do {{ {filter} syscall(7, $poll, 1, -1) }}"));
    let pid = victim.pid();
    wait_until_in_call(pid, 7);
    let home = Home::new();
    let stored = home.capture([pid]).run(&home.store()).or_explain();
    assert_warned_of(&stored.warnings, &warning!(Interrupted { pid }));
    assert_eq!(victim.ask("go on"), "-1 4");
}
