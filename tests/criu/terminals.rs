//! A program that is revived in a terminal has what it had: the session that the terminal controls,
//! its modes, its size.

use std::{
    fs,
    os::fd::AsRawFd,
    process::Command,
    sync::Mutex,
};

use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::{
    harness::tests,
    places::{Home, family, state, wait_until},
    program::{Program, Terminal, Way, in_each_way},
    tree::{OrExplain, Revived},
    warned::{assert_warned, warning},
};

tests![
    a_shell_is_interrupted_in_its_new_terminal,
    a_shell_of_another_kind_is_interrupted_in_its_new_terminal,
    a_job_is_stopped_and_goes_on_in_a_new_terminal,
    a_job_lacks_its_controlling_terminal_and_that_is_told,
    single_keys_arrive_in_a_new_terminal,
    a_password_is_not_shown_in_a_new_terminal,
    a_terminal_keeps_its_size_and_tells_of_a_new_one,
    a_second_open_of_a_terminal_is_of_the_new_terminal,
    a_terminal_inside_a_terminal_goes_on,
    controlling_terminals_outside_and_inside_stay_apart,
    a_terminal_that_has_hung_up_is_one_still,
    a_terminal_inside_gets_another_number_if_its_own_is_taken,
    standard_input_is_a_terminal_and_standard_output_a_pipe,
];

/// An interactive shell that says nothing of its own.
fn shell(name: &str) -> Command {
    let mut command = Command::new(name);
    if name == "bash" {
        command.args(["--norc", "--noprofile"]);
    }
    command.arg("-i");
    command
}

fn python(program: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", program]);
    command
}

/// Captures the program that is in a terminal, and revives it in another.
#[track_caller]
fn go_back(way: Way, home: &Home, program: Program, old: Terminal) -> Revived {
    let (store, digest) = way.captured(home, program);
    drop(old);
    Terminal::new().revive(home.restore(), &store, &digest)
}

/// Waits until a descendant of this name sleeps.
#[track_caller]
fn wait_for(program: i32, name: &str) -> i32 {
    let find = || {
        let is_it = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        family(program).into_iter().find(is_it).filter(|pid| state(*pid) == Some('S'))
    };
    wait_until(&format!("{name} sleeps"), || find().is_some());
    find().unwrap()
}

fn is_interrupted(name: &str) {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &shell(name));
        program.talk.tell("PS1=; PS2=; echo rea''dy");
        program.talk.until("ready");
        program.talk.tell("sleep 1000");
        wait_for(program.pid(), "sleep");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.press("\x03");
        revived.talk.until("^C");
        revived.talk.tell("echo answer=$((40+2))");
        revived.talk.until("answer=42");
        revived.talk.tell("echo tty=$(ps -o tty= -p $$)=");
        revived.talk.until("tty=pts/");
    });
}

fn a_shell_is_interrupted_in_its_new_terminal() {
    is_interrupted("bash");
}

fn a_shell_of_another_kind_is_interrupted_in_its_new_terminal() {
    is_interrupted("dash");
}

fn a_job_is_stopped_and_goes_on_in_a_new_terminal() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &shell("bash"));
        program.talk.tell("PS1=; cat");
        wait_for(program.pid(), "cat");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.press("\x1a");
        revived.talk.until("Stopped"); // the key throws away what was typed before it was heard
        revived.talk.tell("echo answer=$((40+2))");
        revived.talk.until("answer=42");
        revived.talk.tell("fg");
        revived.talk.until("cat");
        wait_for(revived.pid(), "cat");
        revived.talk.tell("once");
        revived.talk.until("once\r\nonce\r\n");
        revived.talk.press("\x04");
        revived.talk.tell("echo answer=$((50+2))");
        revived.talk.until("answer=52");
    });
}

fn a_job_lacks_its_controlling_terminal_and_that_is_told() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &shell("bash"));
        program.talk.tell("PS1=; cat");
        let job = wait_for(program.pid(), "cat");
        let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
        let told = warning!(Lost { pid: job, what: "controlling terminal" });
        assert_warned(&stored.warnings, &[told], way);
        program.end();
        drop(terminal);
        let mut revived = Terminal::new().revive(home.restore(), &home.store(), &stored.digest);
        let controls = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(4).unwrap() != "0"
        };
        assert_eq!((controls(revived.pid()), controls(job)), (true, false));
        revived.talk.press("\x03");
        wait_until("the job has ended", || state(job).is_none());
        revived.talk.tell("cat </dev/tty");
        assert!(controls(wait_for(revived.pid(), "cat")));
        revived.talk.press("\x03");
    });
}

fn single_keys_arrive_in_a_new_terminal() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let keys = "stty raw -echo; echo ready; while true; do x=$(dd bs=1 count=1 2>/dev/null); printf 'got<%s>' \"$x\"; done";
        let mut program = Program::in_terminal(&terminal, Command::new("bash").args(["-c", keys]));
        program.talk.until("ready");
        program.talk.press("a");
        assert_eq!(program.talk.until("got<a>").trim(), "got<a>");
        wait_for(program.pid(), "dd");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.press("b");
        assert_eq!(revived.talk.until("got<b>"), "got<b>");
    });
}

fn a_password_is_not_shown_in_a_new_terminal() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let prompt = "import getpass\nprint('got', len(getpass.getpass('Password: ')))\nprint('got', len(input()))";
        let mut program = Program::in_terminal(&terminal, &python(prompt));
        program.talk.until("Password: ");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.tell("secret");
        assert!(!revived.talk.until("got 6").contains("secret"));
        revived.talk.tell("known");
        // The modes from before are known, too.
        assert!(revived.talk.until("got 5").contains("known"));
    });
}

fn a_terminal_keeps_its_size_and_tells_of_a_new_one() {
    const TELLS: &str = "import os, signal, fcntl, termios, struct, sys
def size(signal=None, *_):
    rows, columns = struct.unpack('HHHH', fcntl.ioctl(0, termios.TIOCGWINSZ, b' ' * 8))[:2]
    print('told' if signal else 'size', rows, columns, flush=True)
signal.signal(signal.SIGWINCH, size)
size()
while True:
    if not sys.stdin.readline(): break
    size()";
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &python(TELLS));
        program.talk.until("size 0 0");
        resize(&terminal, 50, 132);
        program.talk.until("told 50 132");
        let (store, digest) = way.captured(home, program);
        drop(terminal);
        let terminal = Terminal::new();
        let mut revived = terminal.revive(home.restore(), &store, &digest);
        revived.talk.tell("");
        revived.talk.until("size 50 132");
        resize(&terminal, 20, 60);
        revived.talk.until("told 20 60");
    });
}

/// Sets the size, by a program that can.
#[track_caller]
fn resize(terminal: &Terminal, rows: u16, columns: u16) {
    let mut stty = Command::new("stty");
    stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
    assert!(stty.stdin(terminal.side.try_clone().unwrap()).status().unwrap().success());
}

fn a_second_open_of_a_terminal_is_of_the_new_terminal() {
    const TWICE: &str = "import os, sys
by_name = open(os.ttyname(0), 'rb', buffering=0)
controlling = os.open('/dev/tty', os.O_WRONLY)
print('ready', flush=True)
while True:
    os.write(controlling, b'got ' + by_name.readline())";
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &python(TWICE));
        program.talk.until("ready");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.tell("one");
        revived.talk.until("got one");
    });
}

/// Held by tests that take the numbers of terminals, or need their own.
static NUMBERS: Mutex<()> = Mutex::new(());

fn a_terminal_inside_a_terminal_goes_on() {
    let _numbers = NUMBERS.lock();
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &python("import pty; pty.spawn(['cat'])"));
        wait_for(program.pid(), "cat");
        // What was typed before that is thrown away.
        wait_until("the terminal outside passes single keys on", || is_raw(&terminal));
        program.talk.tell("one");
        program.talk.until("one\r\none");
        let mut revived = go_back(way, home, program, terminal);
        revived.talk.tell("two");
        revived.talk.until("two\r\ntwo");
        revived.talk.press("\x04");
        revived.tree().wait_timeout(crate::places::PATIENCE).unwrap().unwrap();
    });
}

/// Both shells have `/dev/tty` open.
fn controlling_terminals_outside_and_inside_stay_apart() {
    let _numbers = NUMBERS.lock();
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &shell("dash"));
        program.talk.tell("python3 -c \"import pty; pty.spawn(['dash', '-i']); print('le' 'ft')\"");
        wait_until("the terminal outside passes single keys on", || is_raw(&terminal));
        program.talk.tell("echo in\"ner\"");
        program.talk.until("inner");
        let mut revived = go_back(way, home, program, terminal);
        // ^C reaches the session inside, and that has its terminal.
        revived.talk.tell("echo be\"gun\"; sleep 1000");
        revived.talk.until("begun");
        wait_for(revived.pid(), "sleep");
        revived.talk.press("\x03");
        revived.talk.tell("echo answer=$((40+2)) >/dev/tty");
        revived.talk.until("answer=42");
        revived.talk.tell("exit");
        revived.talk.until("left");
        revived.talk.until("# ");
        revived.talk.tell("echo answer=$((40+3)) >/dev/tty");
        revived.talk.until("answer=43");
    });
}

fn is_raw(terminal: &Terminal) -> bool {
    !tcgetattr(&terminal.side).unwrap().local_flags.contains(LocalFlags::ICANON)
}

fn a_terminal_that_has_hung_up_is_one_still() {
    in_each_way(|way, home| {
        const HUNG: &str = "import os, pty, sys
master, side = pty.openpty()
os.close(master)
print('ready', flush=True)
while sys.stdin.readline():
    try: print('read', os.read(side, 1), flush=True)
    except OSError as error: print('error', error.errno, flush=True)";
        let mut program = Program::on_pipes(&python(HUNG));
        assert_eq!(program.talk.hear(), "ready");
        let before = program.talk.ask("");
        let mut revived = way.go_back(home, program);
        assert_eq!(revived.talk.ask(""), before);
    });
}

fn standard_input_is_a_terminal_and_standard_output_a_pipe() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let mut program = Program::in_terminal(&terminal, &shell("bash"));
        program.talk.tell("PS1=; echo rea''dy");
        program.talk.until("ready");
        let (store, digest) = way.captured(home, program);
        drop(terminal);
        let terminal = Terminal::new();
        let (mut output, _, there) = crate::talk::Talk::through_pipes();
        let restore = home.restore().stdin(terminal.side.try_clone().unwrap()).stdout(there).stderr(terminal.side.try_clone().unwrap());
        let restored = restore.restore(&store, &digest).unwrap();
        let mut revived = Revived::new(crate::program::only_tree(restored), terminal.talk());
        revived.talk.tell("echo tty=$(ps -o tty= -p $$)=");
        assert!(output.until("=\n").starts_with("tty=pts/"));
    });
}

fn a_terminal_inside_gets_another_number_if_its_own_is_taken() {
    let _numbers = NUMBERS.lock();
    in_each_way(|way, home| {
        let mut program = Program::on_pipes(&python(
            "import pty, os, sys\nchild, master = pty.fork()\nif not child: os.execlp('bash', 'bash', '--norc', '--noprofile', '-i')\nwhile line := sys.stdin.buffer.readline(): os.write(master, line); sys.stdout.buffer.write(os.read(master, 4096) + b'.\\n'); sys.stdout.flush()",
        ));
        program.talk.tell("");
        program.talk.hear();
        let inner = wait_for(program.pid(), "bash");
        let name = fs::read_link(format!("/proc/{inner}/fd/0")).unwrap();
        let (store, digest) = way.captured(home, program);
        let mut others: Vec<Terminal> = Vec::new();
        let has_it = |other: &Terminal| {
            fs::read_link(format!("/proc/self/fd/{}", other.side.as_raw_fd())).unwrap() == name
        };
        while !others.last().is_some_and(has_it) {
            // Another test may have it, and may end at any time.
            if others.len() > 100 {
                others.clear();
            }
            others.push(Terminal::new());
        }
        let revived = crate::program::on_pipes(home.restore(), &store, &digest);
        let inner = wait_for(revived.pid(), "bash");
        let other = fs::read_link(format!("/proc/{inner}/fd/0")).unwrap();
        assert!(other.starts_with("/dev/pts") && other != name, "{other:?}");
        let control = Command::new("ps").args(["-o", "tty=", "-p", &inner.to_string()]).output().unwrap();
        assert_eq!(format!("/dev/{}", String::from_utf8_lossy(&control.stdout).trim()), other.display().to_string());
    });
}
