//! State that no restore brings back: the capture tells of it.

use std::process::Command;

use criu_rpc::{Pid, Warning};

use crate::{
    harness::{skip, tests},
    places::{Home, wait_until},
    program::{Program, in_each_way},
    tree::OrExplain,
    warned::{assert_warned, assert_warned_of, warning},
};

tests![
    a_thread_with_descriptors_of_its_own,
    a_thread_with_a_folder_of_its_own,
    a_write_that_waits_for_room,
    a_client_of_another_user,
    a_child_that_tells_of_its_end_by_another_signal,
    a_watch_that_tells_once,
    attributes_of_a_deleted_file,
    a_daemon_that_kept_its_session,
    what_is_usual_is_not_told,
];

/// Starts the program in Python, which says `ready`, and captures it in each way. Gives it the
/// warnings but those of streams.
#[track_caller]
fn told(program: &str, check: impl Fn(Pid, &[Warning])) {
    in_each_way(|way, home| {
        let mut victim = start(program);
        let stored = way.capture(home, [victim.pid()]).run(&home.store()).or_explain();
        check(victim.pid().into(), &stored.warnings);
        victim.talk.hang_up();
        victim.end();
    });
}

#[track_caller]
fn start(program: &str) -> Program {
    let mut command = Command::new("python3");
    let start = "import os, pty, sys, threading, socket, ctypes, time\nlibc = ctypes.CDLL(None)";
    command.args(["-c", &format!("{start}\n{program}\nprint('ready', flush=True)\ntime.sleep(1000)")]);
    let mut victim = Program::on_pipes(&command);
    assert_eq!(victim.talk.hear(), "ready");
    victim
}

#[track_caller]
fn is_lost(program: &str, word: &str) {
    told(program, |pid, warnings| {
        let told = |warning: &Warning| matches!(warning, Warning::Lost { pid: of, what, .. } if *of == pid && what.contains(word));
        assert!(warnings.iter().any(told), "{warnings:?}");
    });
}

fn a_thread_with_descriptors_of_its_own() {
    is_lost(
        "def run(): libc.unshare(0x400); apart.set(); time.sleep(1000)\napart = threading.Event()\n\
         threading.Thread(target=run, daemon=True).start(); apart.wait()",
        "thread",
    );
}

fn a_thread_with_a_folder_of_its_own() {
    is_lost(
        "def run(): libc.unshare(0x200); apart.set(); time.sleep(1000)\napart = threading.Event()\n\
         threading.Thread(target=run, daemon=True).start(); apart.wait()",
        "thread",
    );
}

fn a_write_that_waits_for_room() {
    let home = Home::new();
    let program = "r, w = os.pipe()\nthreading.Thread(target=lambda: os.write(w, b'x' * 300000), daemon=True).start()";
    let mut victim = start(program);
    let pid = victim.pid();
    wait_until("a thread writes", || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("syscall")).ok())
            .any(|call| call.starts_with("1 "))
    });
    let stored = home.capture([pid]).run(&home.store()).or_explain();
    assert_warned_of(&stored.warnings, &warning!(Interrupted { pid }));
    victim.talk.hang_up();
    victim.end();
}

fn a_client_of_another_user() {
    is_lost(
        "l = socket.socket(socket.AF_UNIX); l.bind('\\0criu-rpc-' + str(os.getpid())); l.listen()\n\
         c = socket.socket(socket.AF_UNIX); os.setegid(65534); os.seteuid(65534); c.connect(l.getsockname())\n\
         os.seteuid(0); os.setegid(0); d, _ = l.accept()",
        "SO_PEERCRED",
    );
}

fn a_child_that_tells_of_its_end_by_another_signal() {
    for signal in [0, 10] {
        let home = Home::new();
        let program = format!("p = libc.syscall(56, {signal}, 0, 0, 0, 0)\nif p == 0: time.sleep(1000); os._exit(0)");
        let victim = start(&program);
        let [child] = crate::places::children(victim.pid())[..] else { panic!("it has one child") };
        let stored = home.capture([victim.pid()]).run(&home.store()).or_explain();
        let what = "exit signal other than SIGCHLD";
        assert_warned(&stored.warnings, &[warning!(Lost { pid: child, what })], signal);
        crate::tree::signal(child, nix::sys::signal::Signal::SIGKILL);
        victim.end();
    }
}

fn a_watch_that_tells_once() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(5), Some(19)) {
        skip("the kernel shows it since 5.19");
    }
    is_lost("f = libc.inotify_init(); assert libc.inotify_add_watch(f, b'/usr/share', 0x80000100) > 0", "IN_ONESHOT");
}

fn attributes_of_a_deleted_file() {
    is_lost(
        "f = open('/var/tmp/criu-rpc-%d' % os.getpid(), 'w'); os.unlink(f.name); os.setxattr(f.fileno(), 'user.a', b'b')",
        "extended attributes",
    );
}

/// It keeps the number of its session in use.
fn a_daemon_that_kept_its_session() {
    let home = Home::new();
    let program = "r, w = os.pipe()\nif os.fork() == 0:\n    if os.fork() == 0: os.write(w, b'x'); time.sleep(1000)\n    os._exit(0)\n\
                   os.wait(); os.read(r, 1); os.close(r); os.close(w)";
    let victim = start(program);
    let stored = home.capture([victim.pid()]).run(&home.store()).or_explain();
    let held = |warning: &Warning| match warning {
        Warning::SessionHeld { pid, by, .. } if pid.as_raw() == victim.pid() => Some(by.as_raw()),
        _ => None,
    };
    let by: Vec<i32> = stored.warnings.iter().filter_map(held).collect();
    let [by] = by[..] else { panic!("{:?}", stored.warnings) };
    assert!(stored.warnings[0].to_string().contains("kill_session"));
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(by))).unwrap();
    assert_eq!(session.as_raw(), victim.pid());
    crate::tree::signal(by, nix::sys::signal::Signal::SIGKILL);
    victim.end();
}

/// Terminals, threads and sockets of which nothing is lost.
fn what_is_usual_is_not_told() {
    told(
        "m, s = pty.openpty(); a, b = socket.socketpair(); r, w = os.pipe(); os.write(w, b'x')\n\
         threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        |_, warnings| {
            let lost = |warning: &&Warning| matches!(warning, Warning::Lost { .. });
            assert_eq!(warnings.iter().find(lost), None);
        },
    );
}
