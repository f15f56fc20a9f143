//! The other end of a standard stream has leaked into the tree: the stream leads to the capturing
//! process all the same.
//!
//! The programs get that end as their standard error, and keep it under another number. Real
//! callers forget `O_CLOEXEC`.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Command,
};

use criu_rpc::{ProcsCapture, Warning, rpc::Key};

use crate::{
    harness::tests,
    places::{Home, state, wait_until},
    program::{Program, Terminal, Way, in_each_way, on_pipes, only_tree},
    talk::{Talk, pipe},
    tree::OrExplain,
    warned::{assert_warned, assert_warned_of, warning},
};

tests![
    an_input_whose_writer_has_leaked_is_given_anew,
    an_output_whose_reader_has_leaked_is_given_anew,
    pipes_that_leaked_and_were_told_are_given_anew,
    a_terminal_whose_master_has_leaked_is_given_anew,
    a_terminal_that_leaked_and_was_told_is_given_anew,
    a_terminal_whose_master_has_leaked_becomes_pipes,
    a_pipe_of_the_tree_stays_and_what_was_given_for_it_is_told,
    a_socket_whose_other_end_has_leaked_is_given_anew,
    an_input_whose_writer_has_leaked_into_another_tree_is_given_anew,
    streams_that_leaked_and_were_moved_are_given_anew,
    a_socket_that_leaked_and_was_moved_is_given_anew,
    a_pipe_that_leaked_and_is_no_stream_is_told,
];

/// Answers lines, and holds what it got as standard error as descriptor 9.
const ANSWERS: &str = "exec 9>&2 2>/dev/null; x=5; echo ready; while read l; do echo $l $((x += 1)); done; echo END";

fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    command
}

fn key(file: &File) -> String {
    Key::of(file).or_explain().to_string()
}

/// Captures the program, which `talk` talks to, and revives it on new pipes. All of it answers.
#[track_caller]
fn comes_back(way: Way, home: &Home, program: Program, mut talk: Talk, told: impl Fn(ProcsCapture) -> ProcsCapture) {
    let capture = told(way.capture(home, [program.pid()]));
    let stored = capture.run(&home.store()).or_explain();
    assert_eq!(stored.warnings, []);
    if way.leave_running {
        assert_eq!(talk.ask("old"), "old 6");
    }
    program.end();
    let mut revived = on_pipes(home.restore(), &home.store(), &stored.digest);
    assert_eq!(revived.talk.ask("new"), "new 6");
    assert_eq!(revived.talk.ask("again"), "again 7");
    revived.talk.close();
    assert_eq!(revived.talk.hear(), "END");
}

fn an_input_whose_writer_has_leaked_is_given_anew() {
    in_each_way(|way, home| {
        let (program, talk, _) = with_leaked_writer();
        comes_back(way, home, program, talk, |capture| capture);
    });
}

/// A program that has the writer of its standard input, and the name of that pipe.
fn with_leaked_writer() -> (Program, Talk, String) {
    let ((input, to), (from, output)) = (pipe(), pipe());
    let (input_key, leaked) = (key(&input), to.try_clone().unwrap());
    let program = Program::with(&bash(ANSWERS), Some(input), Some(output), leaked.into());
    let mut talk = Talk::new(to, from);
    assert_eq!(talk.hear(), "ready");
    (program, talk, input_key)
}

/// A program that has the reader of its standard output, and the name of that pipe.
fn with_leaked_reader() -> (Program, Talk, String) {
    let ((input, to), (from, output)) = (pipe(), pipe());
    let (output_key, leaked) = (key(&output), from.try_clone().unwrap());
    let program = Program::with(&bash(ANSWERS), Some(input), Some(output), leaked.into());
    let mut talk = Talk::new(to, from);
    assert_eq!(talk.hear(), "ready");
    (program, talk, output_key)
}

fn an_output_whose_reader_has_leaked_is_given_anew() {
    in_each_way(|way, home| {
        let (program, talk, _) = with_leaked_reader();
        comes_back(way, home, program, talk, |capture| capture);
    });
}

fn pipes_that_leaked_and_were_told_are_given_anew() {
    in_each_way(|way, home| {
        let (program, talk, input) = with_leaked_writer();
        comes_back(way, home, program, talk, |capture| capture.stdin(input.clone()));
    });
    in_each_way(|way, home| {
        let (program, talk, output) = with_leaked_reader();
        comes_back(way, home, program, talk, |capture| capture.stdout(output.clone()));
    });
}

/// A program in a terminal, whose session it leads, that has the terminal's master.
fn with_leaked_master(terminal: &Terminal) -> Program {
    let script = format!("stty -echo; {}", ANSWERS.replace("2>/dev/null", "2>&1"));
    let errors = terminal.master.try_clone().unwrap();
    let mut program = Program::in_terminal_with_errors(terminal, &bash(&script), errors);
    program.talk.until("ready\r\n");
    program
}

/// Captures a program in a terminal, and revives it in another one.
#[track_caller]
fn comes_back_in_another_terminal(way: Way, home: &Home, told: impl Fn(ProcsCapture, String) -> ProcsCapture) {
    let terminal = Terminal::new();
    let mut program = with_leaked_master(&terminal);
    let capture = told(way.capture(home, [program.pid()]), key(&terminal.side));
    let stored = capture.run(&home.store()).or_explain();
    assert_eq!(stored.warnings, []);
    if way.leave_running {
        assert_eq!(program.talk.ask("old"), "old 6");
    }
    program.end();
    drop(terminal);
    let terminal = Terminal::new();
    let mut revived = terminal.revive(home.restore(), &home.store(), &stored.digest);
    assert_eq!(revived.talk.ask("new"), "new 6");
    assert_eq!(std::fs::read_link(format!("/proc/{}/fd/2", revived.pid())).unwrap(), name(&terminal));
    // The terminal controls the session: a shell that runs a script ends by this.
    revived.talk.press("\x03");
    wait_until("the shell has ended", || state(revived.pid()).is_none_or(|state| state == 'Z'));
}

fn name(terminal: &Terminal) -> std::path::PathBuf {
    nix::unistd::ttyname(&terminal.side).unwrap()
}

fn a_terminal_whose_master_has_leaked_is_given_anew() {
    in_each_way(|way, home| comes_back_in_another_terminal(way, home, |capture, _| capture));
}

fn a_terminal_that_leaked_and_was_told_is_given_anew() {
    in_each_way(|way, home| {
        comes_back_in_another_terminal(way, home, |capture, key| {
            capture.stdin(key.clone()).stdout(key.clone()).stderr(key)
        });
    });
}

fn a_terminal_whose_master_has_leaked_becomes_pipes() {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let program = with_leaked_master(&terminal);
        let talk = terminal.talk();
        comes_back(way, home, program, talk, |capture| capture);
    });
}

fn a_pipe_of_the_tree_stays_and_what_was_given_for_it_is_told() {
    in_each_way(|way, home| {
        let ((input, to), (from, output)) = (pipe(), pipe());
        let script = "exec 9>&2 2>/dev/null; echo ready; while read l; do echo $l; [ $l = again ] || echo again >&9; done";
        let program = Program::with(&bash(script), Some(input), Some(output), to.into());
        let mut talk = Talk::new(pipe().1, from);
        assert_eq!(talk.hear(), "ready");
        let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, []);
        program.end();
        let nothing = || File::open("/dev/null").unwrap();
        for (input, is_told) in [(pipe().0, true), (nothing(), false)] {
            let restore = home.restore().stdin(input).stdout(pipe().1).stderr(nothing());
            let restored = restore.restore(&home.store(), &stored.digest).or_explain();
            let pid = restored.trees[0].pid();
            let told = is_told.then(|| warning!(StreamUnused { pid, stream: 0 }));
            assert_warned(&restored.warnings, told.as_slice(), is_told);
            let _ended = crate::tree::Revived::new(only_tree(restored), Talk::new(pipe().1, pipe().0));
        }
    });
}

fn a_socket_whose_other_end_has_leaked_is_given_anew() {
    for told in [false, true] {
        in_each_way(|way, home| {
            let (here, there) = UnixStream::pair().unwrap();
            let there = File::from(OwnedFd::from(there));
            let (socket, leaked) = (key(&there), File::from(OwnedFd::from(here.try_clone().unwrap())));
            let output = there.try_clone().unwrap();
            let program = Program::with(&bash(ANSWERS), Some(there), Some(output), leaked.into());
            let mut talk = Talk::new(here.try_clone().unwrap(), here);
            assert_eq!(talk.hear(), "ready");
            comes_back(way, home, program, talk, |capture| match told {
                true => capture.stdin(socket.clone()).stdout(socket.clone()),
                false => capture,
            });
        });
    }
}

/// The root keeps its stream under another number, and has a file in its place.
fn streams_that_leaked_and_were_moved_are_given_anew() {
    for stream in [0, 1] {
        in_each_way(|way, home| {
            let ((input, to), (from, output)) = (pipe(), pipe());
            let (moved, leaked) = match stream {
                0 => ("exec 7<&0 8>&1 </dev/null", to.try_clone().unwrap()),
                _ => ("exec 7<&0 8>&1 >/dev/null", from.try_clone().unwrap()),
            };
            let script = format!(
                "exec 9>&2 2>/dev/null; {moved}; x=5; echo ready >&8; \
                 while read -u 7 l; do echo $l $((x += 1)) >&8; done; echo END >&8"
            );
            let program = Program::with(&bash(&script), Some(input), Some(output), leaked.into());
            let mut talk = Talk::new(to, from);
            assert_eq!(talk.hear(), "ready");
            let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
            let pid = criu_rpc::Pid::from(program.pid());
            if way.leave_running {
                assert_eq!(talk.ask("old"), "old 6");
            }
            program.end();
            let (mut talk, input, output) = Talk::through_pipes();
            let restore = home.restore().stdin(input).stdout(output).stderr(File::open("/dev/null").unwrap());
            let restored = restore.restore(&home.store(), &stored.digest).or_explain();
            let _ended = crate::tree::Revived::new(only_tree(restored), Talk::new(pipe().1, pipe().0));
            let told = |warning: &Warning| {
                matches!(warning, Warning::StreamAssumed { pid: of, stream: one, .. } if *of == pid && *one == stream)
            };
            assert!(stored.warnings.iter().any(told), "{:?}", stored.warnings);
            assert_eq!(talk.ask("new"), "new 6");
            talk.close();
            assert_eq!(talk.hear(), "END");
        });
    }
}

/// A socket leads both ways, so it is taken for the first stream that is a file.
fn a_socket_that_leaked_and_was_moved_is_given_anew() {
    for stream in [0, 1] {
        in_each_way(|way, home| {
            let (here, there) = UnixStream::pair().unwrap();
            let leaked = File::from(OwnedFd::from(here.try_clone().unwrap()));
            let there = File::from(OwnedFd::from(there));
            let files = ["</dev/null", ">/dev/null"][stream as usize];
            let (input, output) = match stream {
                0 => (Some(there), None),
                _ => (None, Some(there)),
            };
            let script = format!(
                "exec 9>&2 2>/dev/null 7<&{stream} {files}; x=5; echo ready >&7; \
                 while read -u 7 l; do echo $l $((x += 1)) >&7; done; echo END >&7"
            );
            let program = Program::with(&bash(&script), input, output, leaked.into());
            let mut talk = Talk::new(here.try_clone().unwrap(), here);
            assert_eq!(talk.hear(), "ready");
            let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
            let pid = criu_rpc::Pid::from(program.pid());
            let told = |warning: &Warning| {
                matches!(warning, Warning::StreamAssumed { pid: of, stream: one, .. } if *of == pid && *one == stream)
            };
            assert!(stored.warnings.iter().any(told), "{:?}", stored.warnings);
            if way.leave_running {
                assert_eq!(talk.ask("old"), "old 6");
            }
            program.end();
            let (here, there) = UnixStream::pair().unwrap();
            let (there, nothing) = (OwnedFd::from(there), || File::open("/dev/null").unwrap());
            let restore = match stream {
                0 => home.restore().stdin(there).stdout(nothing()),
                _ => home.restore().stdin(nothing()).stdout(there),
            };
            let restored = restore.stderr(nothing()).restore(&home.store(), &stored.digest).or_explain();
            let _ended = crate::tree::Revived::new(only_tree(restored), Talk::new(pipe().1, pipe().0));
            let mut talk = Talk::new(here.try_clone().unwrap(), here);
            assert_eq!(talk.ask("new"), "new 6");
            talk.close();
        });
    }
}

/// All streams of the root lead elsewhere, so no stream is assumed.
fn a_pipe_that_leaked_and_is_no_stream_is_told() {
    in_each_way(|way, home| {
        let ((input, to), (from, output)) = (pipe(), pipe());
        let (input_key, leaked) = (key(&input), to.try_clone().unwrap());
        let script = "exec 9>&2 7<&0 < <(exec sleep 1000) 2>&1; echo ready; \
                      while read -u 7 l; do echo $l; done";
        let program = Program::with(&bash(script), Some(input), Some(output), leaked.into());
        let mut talk = Talk::new(to, from);
        assert_eq!(talk.hear(), "ready");
        let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
        let told = warning!(LeadsOut { pid: program.pid(), descriptor: 7, key: input_key });
        assert_warned_of(&stored.warnings, &told);
        program.end();
        let (mut talk, input, output) = Talk::through_pipes();
        let nothing = || File::open("/dev/null").unwrap();
        let restore = home.restore().stdin(nothing()).stdout(output).stderr(nothing());
        let restored = restore.inherit(&input_key, input).restore(&home.store(), &stored.digest);
        let mut tree = only_tree(restored.or_explain());
        assert_eq!(talk.ask("new"), "new");
        tree.kill().unwrap();
        tree.wait().unwrap();
    });
}

fn an_input_whose_writer_has_leaked_into_another_tree_is_given_anew() {
    in_each_way(|way, home| {
        let ((input, to), (from, output)) = (pipe(), pipe());
        let (into_first, into_second) = (to.try_clone().unwrap(), to.try_clone().unwrap());
        let first = Program::with(&bash(ANSWERS), Some(input), Some(output), into_first.into());
        let mut talk = Talk::new(to, from);
        assert_eq!(talk.hear(), "ready");
        let script = "exec 9>&2 2>/dev/null </dev/null; echo ready; exec sleep 1000";
        let mut second = Program::with(&bash(script), None, None, into_second.into());
        assert_eq!(second.talk.hear(), "ready");
        let stored = way.capture(home, [first.pid(), second.pid()]).run(&home.store()).or_explain();
        let pid = criu_rpc::Pid::from(second.pid());
        let told = |warning: &Warning| {
            matches!(warning, Warning::StreamAssumed { pid: of, descriptor: 9, .. } if *of == pid)
        };
        assert!(stored.warnings.iter().any(told), "{:?}", stored.warnings);
        first.end();
        second.end();
        let (mut talk, input, output) = Talk::through_pipes();
        let restore = home.restore().stdin(input).stdout(output).stderr(File::open("/dev/null").unwrap());
        let mut restored = restore.restore(&home.store(), &stored.digest).or_explain();
        assert_eq!(restored.warnings, []);
        talk.tell("new");
        assert_eq!(talk.hear(), "new 6");
        for tree in &mut restored.trees {
            tree.kill().unwrap();
            tree.wait().unwrap();
        }
    });
}
