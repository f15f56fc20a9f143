//! A terminal of which a tree has both sides keeps its unread bytes, one for one: in the tree that
//! goes on, and in the one that is revived.

use std::{io::Write, process::Command};

use criu_rpc::{BlobStore, Digest256, Error, Result, Warning};

use crate::{
    harness::tests,
    places::Home,
    program::{Program, Terminal, in_each_way, on_pipes},
    talk::Talk,
    tree::OrExplain,
};

tests![
    output_waits_as_it_was_written,
    input_waits_line_by_line,
    input_without_lines_waits,
    a_half_line_of_input_waits,
    any_byte_of_input_waits,
    ends_of_file_wait,
    a_line_that_was_read_in_part_waits,
    a_full_terminal_is_full_still,
    the_modes_are_as_they_were,
    packets_are_as_they_were,
    stopped_output_stays_stopped,
    output_of_an_ended_program_is_read_and_then_ends,
    the_end_of_an_ended_program_stays,
    a_terminal_that_was_never_opened_is_none_that_has_ended,
    twenty_captures_change_nothing,
    a_capture_that_fails_changes_nothing,
    a_capture_that_fails_beside_a_busy_writer_loses_nothing,
    a_busy_terminal_comes_back_full,
    a_reader_that_waits_reads_on,
    many_terminals_wait,
    a_capture_that_is_not_stored_changes_nothing,
    a_locked_terminal_is_told,
    news_of_a_terminal_are_told,
    a_terminal_whose_master_leaked_is_not_touched,
];

/// Makes terminals, and reads what waits in them.
const START: &str = "import os, pty, sys, termios, tty, time, fcntl, struct, select
def opened():
    m, s = os.openpty(); os.set_blocking(m, False); os.set_blocking(s, False); return m, s
def once(fd, most=65536):
    try: return os.read(fd, most)
    except OSError as error: return error.errno
def every(fd):
    parts = []
    while isinstance(part := once(fd), bytes): parts.append(part)
    return parts
def whole(fd): return b''.join(every(fd))
def fill(fd, bytes):
    count = 0
    try:
        while True: count += os.write(fd, bytes)
    except BlockingIOError: return count
def modes(fd, off=0, on=0):
    new = termios.tcgetattr(fd); new[3] = new[3] & ~off | on; termios.tcsetattr(fd, termios.TCSANOW, new)
def look(fd): return select.select([fd], [], [], 0.1)[0] != []
";

/// Starts the program, which has a function `check` then. Asked for anything, it calls that and
/// says whether the result is right.
#[track_caller]
fn start(program: &str) -> Program {
    let end = "print('ready', flush=True)
for _ in sys.stdin:
    got, wanted = check()
    print('right' if got == wanted else 'got %r instead of %r' % (got, wanted), flush=True)";
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{START}{program}\ntime.sleep(0.1)\n{end}")]);
    let mut program = Program::on_pipes(&command);
    assert_eq!(program.talk.hear(), "ready");
    program
}

#[track_caller]
fn assert_right(talk: &mut Talk) {
    assert_eq!(talk.ask("check"), "right");
}

/// Captures the program in each way. Its check must succeed in the original and in the revived
/// program.
#[track_caller]
fn survives(program: &str) {
    survives_with(program, assert_no_loss);
}

/// The same. `told` is given the warnings.
#[track_caller]
fn survives_with(program: &str, told: impl Fn(&[Warning])) {
    in_each_way(|way, home| {
        let mut victim = start(program);
        let stored = way.capture(home, [victim.pid()]).run(&home.store()).or_explain();
        told(&stored.warnings);
        if way.leave_running {
            assert_right(&mut victim.talk);
        }
        victim.end();
        let mut revived = on_pipes(home.restore(), &home.store(), &stored.digest);
        assert_right(&mut revived.talk);
    });
}

fn assert_no_loss(warnings: &[Warning]) {
    let lost = warnings.iter().any(|warning| matches!(warning, Warning::Lost { .. } | Warning::NotSet { .. }));
    assert!(!lost, "{warnings:?}");
}

fn output_waits_as_it_was_written() {
    survives(
        "m, s = opened(); os.write(s, b'one\\ntwo\\nhalf')\n\
         def check(): return whole(m), b'one\\r\\ntwo\\r\\nhalf'",
    );
}

fn input_waits_line_by_line() {
    survives(
        "m, s = opened(); os.write(m, b'one\\rtwo\\n\\n\\x16\\x03three\\n')\n\
         def check(): return (every(s), whole(m)), ([b'one\\n', b'two\\n', b'\\n', b'\\x03three\\n'], b'one\\r\\ntwo\\r\\n\\r\\n^C\\x08\\x08^Cthree\\r\\n'.replace(b'^C\\x08\\x08', b'^\\x08'))",
    );
}

fn input_without_lines_waits() {
    survives(
        "m, s = opened(); modes(s, off=termios.ICANON | termios.ECHO); os.write(m, b'\\x16\\x04\\r\\n\\x11z\\xff\\0')\n\
         def check(): return whole(s), b'\\x16\\x04\\n\\nz\\xff\\0'",
    );
}

fn a_half_line_of_input_waits() {
    survives(
        "m, s = opened(); modes(s, off=termios.ECHO); os.write(m, b'one\\nhalf')\n\
         l, t = opened(); modes(t, off=termios.ECHO); os.write(l, b'h' * 3000)\n\
         k, u = opened(); modes(u, off=termios.ECHO); os.write(k, b'o' * 500 + b'\\n' + b'h' * 3000)\n\
         def check():\n\
         \x20   before = every(s), every(t), every(u)\n\
         \x20   for o in m, l, k: os.write(o, b' end\\n')\n\
         \x20   look(s), look(t), look(u)\n\
         \x20   return (before, every(s), every(t), every(u)), (([b'one\\n'], [], [b'o' * 500 + b'\\n']), [b'half end\\n'], \
                 [b'h' * 3000 + b' end\\n'], [b'h' * 3000 + b' end\\n'])",
    );
}

fn any_byte_of_input_waits() {
    survives(
        "m, s = opened(); modes(s, off=termios.ECHO)\n\
         line = bytes(n for n in range(256) if n not in (10, 13))\n\
         os.write(m, b''.join(b'\\x16' + bytes([n]) for n in line) + b'\\n' + b'\\x16\\nquoted\\n')\n\
         l, t = opened(); tty.setraw(t); os.write(l, bytes(range(256)))\n\
         def check(): return (every(s), every(t)), ([line + b'\\n', b'\\nquoted\\n'], [bytes(range(256))])",
    );
}

fn ends_of_file_wait() {
    survives(
        "m, s = opened(); modes(s, off=termios.ECHO); os.write(m, b'last\\x04\\x04next\\n\\x04rest')\n\
         def check():\n\
         \x20   before = every(s); os.write(m, b'\\n'); look(s)\n\
         \x20   return (before, every(s)), ([b'last', b'', b'next\\n', b''], [b'rest\\n'])",
    );
}

fn a_line_that_was_read_in_part_waits() {
    survives(
        "m, s = opened(); modes(s, off=termios.ECHO); os.write(m, b'abcdef\\nghi\\n'); time.sleep(0.05); os.read(s, 3)\n\
         def check(): return every(s), [b'def\\n', b'ghi\\n']",
    );
}

fn a_full_terminal_is_full_still() {
    survives(
        "m, s = opened(); tty.setraw(s)\n\
         out = fill(s, b'o'), fill(m, b'i')\n\
         l, t = opened(); modes(t, off=termios.ECHO); cooked = fill(t, b'line\\n' * 100)\n\
         k, u = opened(); tty.setraw(u); large = fill(u, b'o' * 65536), fill(k, b'i' * 65536)\n\
         def check(): return [(len(got), set(got)) for got in (whole(m), whole(s), whole(l).replace(b'\\r', b''), whole(k), whole(u))], \
             [(out[0], set(b'o')), (out[1], set(b'i')), (cooked, set(b'line\\n')), (large[0], set(b'o')), (large[1], set(b'i'))]",
    );
}

fn the_modes_are_as_they_were() {
    survives(
        "m, s = opened(); os.write(m, b'one\\nhalf'); os.write(s, b'out\\n')\n\
         new = termios.tcgetattr(s); new[0] |= termios.IXON | termios.ISTRIP | 0o1000; new[6][termios.VEOL] = b'#'\n\
         termios.tcsetattr(s, termios.TCSANOW, new); was = termios.tcgetattr(s)\n\
         def check(): return termios.tcgetattr(s), was",
    );
}

fn packets_are_as_they_were() {
    survives(
        "m, s = opened(); fcntl.ioctl(m, termios.TIOCPKT, struct.pack('i', 1)); os.write(s, b'one\\n'); os.write(m, b'in\\n')\n\
         l, t = opened(); fcntl.ioctl(l, termios.TIOCPKT, struct.pack('i', 1))\n\
         def check():\n\
         \x20   before = every(m), every(l), every(s)\n\
         \x20   termios.tcflush(t, termios.TCIFLUSH)\n\
         \x20   return (before, every(l)), (([b'\\0one\\r\\nin\\r\\n'], [], [b'in\\n']), [b'\\x01'])",
    );
}

fn stopped_output_stays_stopped() {
    survives(
        "m, s = opened(); os.write(s, b'before'); os.write(m, b'\\x13'); time.sleep(0.1)\n\
         l, t = opened(); os.write(t, b'before'); termios.tcflow(t, termios.TCOOFF)\n\
         def write(fd):\n\
         \x20   try: return os.write(fd, b'after')\n\
         \x20   except OSError as error: return error.errno\n\
         def check():\n\
         \x20   stopped = write(s), write(t), whole(m), whole(l)\n\
         \x20   os.write(m, b'\\x11'); termios.tcflow(t, termios.TCOON); time.sleep(0.1)\n\
         \x20   return (stopped, write(s), write(t), whole(m), whole(l)), ((11, 11, b'before', b'before'), 5, 5, b'after', b'after')",
    );
}

fn output_of_an_ended_program_is_read_and_then_ends() {
    survives(
        "p, m = pty.fork()\n\
         if p == 0: os.write(1, b'build ok\\n'); os._exit(0)\n\
         os.waitpid(p, 0); os.set_blocking(m, False)\n\
         q, n = pty.fork()\n\
         if q == 0: os.write(1, b'x' * 3000); os._exit(0)\n\
         os.waitpid(q, 0); os.set_blocking(n, False)\n\
         def check(): return (whole(m), once(m), whole(n), once(n)), (b'build ok\\r\\n', 5, b'x' * 3000, 5)",
    );
}

fn the_end_of_an_ended_program_stays() {
    survives(
        "p, m = pty.fork()\n\
         if p == 0: os._exit(0)\n\
         os.waitpid(p, 0); once(m)\n\
         def check(): return once(m), 5",
    );
}

fn a_terminal_that_was_never_opened_is_none_that_has_ended() {
    survives_with(
        "m = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)\n\
         def check(): return once(m), 11",
        |_| {},
    );
}

fn twenty_captures_change_nothing() {
    let mut victim = start(
        "m, s = opened(); os.write(m, b'one\\n\\x04half'); time.sleep(0.1); os.write(s, b'out\\n')\n\
         l, t = opened(); tty.setraw(t); filled = fill(t, b'o'), fill(l, b'i')\n\
         def check():\n\
         \x20   before = every(s), whole(m); os.write(m, b'\\n'); look(s)\n\
         \x20   return (before, every(s), len(whole(l)), len(whole(t))), (([b'one\\n', b''], b'one\\r\\nhalfout\\r\\n'), [b'half\\n'], filled[0], filled[1])",
    );
    let home = Home::new();
    for _ in 0..20 {
        assert_no_loss(&home.capture([victim.pid()]).run(&home.store()).or_explain().warnings);
    }
    assert_right(&mut victim.talk);
    victim.end();
}

/// Has criu refuse what the program has, after it has frozen it.
#[track_caller]
fn fails_to_capture(program: &str) -> Program {
    let home = Home::new();
    let victim = start(&format!("refused = os.pipe2(os.O_DIRECT)\n{program}"));
    for leave_running in [true, false] {
        let capture = home.capture([victim.pid()]).leave_running(leave_running);
        let error = capture.capture(&home.store()).unwrap_err();
        assert!(matches!(error, criu_rpc::Error::Criu(_)), "{error:?}");
    }
    victim
}

fn a_capture_that_fails_changes_nothing() {
    let mut victim = fails_to_capture(
        "m, s = opened(); os.write(m, b'one\\n\\x04half'); time.sleep(0.1); os.write(s, b'out\\n')\n\
         l, t = opened(); tty.setraw(t); filled = fill(t, b'o'), fill(l, b'i'); was = termios.tcgetattr(s)\n\
         def check():\n\
         \x20   before = every(s), whole(m); os.write(m, b'\\n'); look(s)\n\
         \x20   return (before, every(s), len(whole(l)), len(whole(t)), termios.tcgetattr(s)), (([b'one\\n', b''], b'one\\r\\nhalfout\\r\\n'), [b'half\\n'], filled[0], filled[1], was)",
    );
    assert_right(&mut victim.talk);
    victim.end();
}

fn a_capture_that_fails_beside_a_busy_writer_loses_nothing() {
    let mut victim = fails_to_capture(
        "p, m = pty.fork()\n\
         if p == 0: os.execvp('seq', ['seq', '1', '50000'])\n\
         def check():\n\
         \x20   got = b''\n\
         \x20   try:\n\
         \x20       while part := os.read(m, 4096): got += part\n\
         \x20   except OSError: pass\n\
         \x20   lines = got.split(b'\\r\\n'); wrong = [(n, line) for n, line in enumerate(lines, 1) if line != b'%d' % n]\n\
         \x20   return (len(lines), wrong[:3]), (50001, [(50001, b'')])",
    );
    assert_right(&mut victim.talk);
    victim.end();
}

/// A reader that is late is read to all the same, and the writer goes on.
fn a_busy_terminal_comes_back_full() {
    survives(
        "p, m = pty.fork()\n\
         if p == 0: os.execvp('yes', ['yes'])\n\
         time.sleep(0.5)\n\
         def check():\n\
         \x20   got = b''.join(os.read(m, 4096) for n in range(50))\n\
         \x20   return got, (b'y\\r\\n' * len(got))[:len(got)]",
    );
}

/// One waits for a line, one for any byte, and one for a byte that a program writes.
fn a_reader_that_waits_reads_on() {
    survives(
        "m, s = opened(); l, t = opened(); k, u = opened(); modes(s, off=termios.ECHO); tty.setraw(t)\n\
         r, w = os.pipe()\n\
         for fd in s, t, k:\n\
         \x20   os.set_blocking(fd, True)\n\
         \x20   if os.fork() == 0: os.close(0); os.write(w, b'%d,' % fd + os.read(fd, 99) + b';'); time.sleep(1000)\n\
         time.sleep(0.2); os.write(m, b'half')\n\
         def check():\n\
         \x20   os.write(m, b' end\\n'); first = os.read(r, 99); os.write(l, b'x'); second = os.read(r, 99); os.write(u, b'out')\n\
         \x20   return (first, second, os.read(r, 99)), (b'%d,half end\\n;' % s, b'%d,x;' % t, b'%d,out;' % k)",
    );
}

fn many_terminals_wait() {
    let mut victim = start(
        "all = [opened() for _ in range(100)]\n\
         for n, (m, s) in enumerate(all): os.write(m, b'in %d\\nhalf' % n); os.write(s, b'out\\n')\n\
         def check(): return [every(s) for _, s in all], [[b'in %d\\n' % n] for n in range(100)]",
    );
    assert_no_loss(&Home::new().capture([victim.pid()]).run(&Home::new().store()).or_explain().warnings);
    assert_right(&mut victim.talk);
    victim.end();
}

/// A store that takes nothing.
#[derive(Debug)]
struct Refusing;

impl BlobStore for Refusing {
    fn put(&self, _: &[u8]) -> Result<Digest256> {
        Err(Error::store("store a blob", "it is full"))
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        Err(Error::store("read a blob", format!("no {digest}")))
    }

    fn contains(&self, _: &Digest256) -> Result<bool> {
        Ok(false)
    }
}

fn a_capture_that_is_not_stored_changes_nothing() {
    in_each_way(|way, home| {
        let mut victim = start(
            "m, s = opened(); os.write(m, b'one\\nhalf'); look(s); os.write(s, b'out\\n')\n\
             def check():\n\
             \x20   before = every(s), whole(m); os.write(m, b'\\n'); look(s)\n\
             \x20   return (before, every(s)), (([b'one\\n'], b'one\\r\\nhalfout\\r\\n'), [b'half\\n'])",
        );
        way.capture(home, [victim.pid()]).run(&Refusing).unwrap_err();
        assert_right(&mut victim.talk);
        victim.end();
    });
}

/// The preflight and the capture tell of a loss with these words.
#[track_caller]
fn is_told(program: &str, words: &str) {
    in_each_way(|way, home| {
        let victim = start(&format!("{program}\ndef check(): return 1, 1"));
        let capture = way.capture(home, [victim.pid()]);
        let foresight = capture.preflight().or_explain();
        assert!(foresight.risks.iter().any(|risk| risk.to_string().contains(words)), "{foresight:?}");
        let warnings = capture.run(&home.store()).or_explain().warnings;
        let told = |warning: &Warning| matches!(warning, Warning::Lost { what, .. } if what.contains(words));
        assert!(warnings.iter().any(told), "{warnings:?}");
        victim.end();
    });
}

fn a_locked_terminal_is_told() {
    let terminal = "m, s = opened(); os.write(s, b'out')";
    // TIOCSPTLCK and TIOCSLCKTRMIOS.
    for lock in ["m, 0x40045431, struct.pack('i', 1)", "s, 0x5457, b'\\xff' * 64"] {
        is_told(&format!("{terminal}; fcntl.ioctl({lock})"), "waits in a terminal");
    }
}

fn news_of_a_terminal_are_told() {
    is_told(
        "m, s = opened(); fcntl.ioctl(m, termios.TIOCPKT, struct.pack('i', 1)); termios.tcflush(s, termios.TCIFLUSH)",
        "TIOCPKT",
    );
}

/// Another process reads from it, so nothing of it belongs to the tree.
fn a_terminal_whose_master_leaked_is_not_touched() {
    let program = "m = os.dup(2); os.close(2); modes(0, off=termios.ECHO); print('ready', flush=True)\n\
                   def count(): return struct.unpack('i', fcntl.ioctl(m, termios.FIONREAD, b'1234'))[0]\n\
                   for line in sys.stdin: print(count(), flush=True)";
    in_each_way(|way, home| {
        let mut terminal = Terminal::new();
        let mut command = Command::new("python3");
        command.args(["-c", &format!("{START}{program}")]);
        let leaked = terminal.master.try_clone().unwrap();
        let mut victim = Program::in_terminal_with_errors(&terminal, &command, leaked);
        victim.talk.until("ready\r\n");
        terminal.side.write_all(b"unread").unwrap();
        let stored = way.capture(home, [victim.pid()]).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, []);
        if way.leave_running {
            assert_eq!(victim.talk.ask("count").get(..6), Some("unread"));
        }
        victim.end();
        let other = Terminal::new();
        let mut revived = other.revive(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.talk.ask("count"), "0");
    });
}
