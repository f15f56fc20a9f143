//! Pipes inside a tree are restored as they were, those too of which one side has ended; pipes that
//! lead out get a new other side.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    process::Command,
};

use criu_rpc::{Stream, Warning};

use crate::{
    harness::tests,
    places::{Home, children, wait_until},
    program::{Program, Way, in_each_way, on_pipes, only_tree},
    talk::Talk,
    tree::OrExplain,
};

tests![
    a_reader_whose_writer_has_ended_reads_to_the_end_and_nothing_else,
    a_writer_whose_reader_has_ended_writes_to_nobody,
    a_here_document_is_read_to_its_end,
    a_child_whose_output_leads_elsewhere_keeps_it,
    standard_output_that_was_saved_is_given_anew,
    standard_output_and_error_that_were_saved_are_given_anew,
    a_child_has_the_stream_of_the_root_that_it_shares,
    a_childs_output_in_a_file_stays_there,
    input_that_has_ended_has_ended_after_the_restore,
    input_that_was_not_read_is_handed_back,
    trees_that_are_connected_stay_so,
    what_is_between_two_trees_is_neither_lost_nor_there_twice,
    an_event_loop_whose_input_is_nothing_hears_its_end,
    an_event_loop_whose_output_is_a_file_is_told,
    sockets_between_trees_stay_connected,
    scripts_with_pipes_go_on_to_their_ends,
    input_from_a_socket_that_has_ended_has_ended_after_the_restore,
    an_input_that_is_given_in_vain_is_told,
    streams_that_were_told_are_given_anew_wherever_they_are,
    streams_that_only_a_child_has_are_given_anew_if_they_were_told,
    a_socket_that_was_told_is_given_anew_wherever_it_is,
    streams_that_are_not_told_are_taken_in_the_order_of_their_numbers,
    new_pipes_are_given_and_their_other_ends_handed_back,
    nothing_is_given_as_an_input_at_its_end,
];

/// A file that the program waits for, before which it does not go on.
fn gate(home: &Home) -> (String, impl FnOnce()) {
    let path = home.path("gate");
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", path.display());
    (wait, move || drop(File::create(path).unwrap()))
}

fn a_reader_whose_writer_has_ended_reads_to_the_end_and_nothing_else() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("seq 1 200 | {{ read x; echo first $x; {wait}; while read x; do echo got $x; done; }}; echo END; read x; echo $x");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "first 1");
        wait_for_children(&program, 1);
        let mut revived = way.go_back(home, program);
        revived.talk.tell("mine");
        open();
        for number in 2..=200 {
            assert_eq!(revived.talk.hear(), format!("got {number}"));
        }
        assert_eq!(revived.talk.hear(), "END");
        assert_eq!(revived.talk.hear(), "mine");
    });
}

fn a_writer_whose_reader_has_ended_writes_to_nobody() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("trap '' PIPE; echo ready; {{ {wait}; echo GARBAGE; }} | true; echo END; read x; echo $x");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "ready");
        wait_for_children(&program, 1);
        let mut revived = way.go_back(home, program);
        open();
        revived.talk.tell("mine");
        assert_eq!(revived.talk.hear(), "END");
        assert_eq!(revived.talk.hear(), "mine");
    });
}

fn a_here_document_is_read_to_its_end() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("{{ read x; echo $x; {wait}; cat; }} <<-end\n\tone\n\ttwo\n\tthree\n\tend\necho END");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "one");
        let mut revived = way.go_back(home, program);
        open();
        assert_eq!([(); 3].map(|()| revived.talk.hear()), ["two", "three", "END"]);
    });
}

/// Waits until only so many processes of the pipeline are left.
#[track_caller]
fn wait_for_children(program: &Program, count: usize) {
    wait_until("a side of the pipe has ended", || children(program.pid()).len() == count);
}

fn a_child_whose_output_leads_elsewhere_keeps_it() {
    in_each_way(|way, home| {
        let (mut results, _, there) = Talk::through_pipes();
        let key = pipe_key(&there);
        let mut program = with_file_3("(while read l; do echo result $l; done) >&3; echo END", there);
        program.talk.tell("one");
        assert_eq!(results.hear(), "result one");
        let (store, digest) = way.captured(home, program);
        let (mut results, _, there) = Talk::through_pipes();
        let mut revived = on_pipes(home.restore().inherit(key, there), &store, &digest);
        revived.talk.tell("two");
        assert_eq!(results.hear(), "result two");
    });
}

/// criu's name of a pipe.
fn pipe_key(end: &File) -> String {
    format!("pipe:[{}]", std::os::unix::fs::MetadataExt::ino(&end.metadata().unwrap()))
}

/// A script of bash with one file more.
#[track_caller]
fn with_file_3(script: &str, file: File) -> Program {
    // The standard error becomes the file.
    let script = format!("exec 3>&2 2>/dev/null; {script}");
    Program::with_errors(Command::new("bash").args(["-c", &script]), file)
}

fn standard_output_that_was_saved_is_given_anew() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let script = format!("exec 3>&1 >>{} 2>&1; while read l; do echo hidden; echo shown $l >&3; done", log.display());
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.ask("one"), "shown one");
        let mut revived = way.go_back(home, program);
        assert_eq!(revived.talk.ask("two"), "shown two");
        assert_eq!(fs::read_to_string(log).unwrap(), "hidden\nhidden\n");
    });
}

fn standard_output_and_error_that_were_saved_are_given_anew() {
    in_each_way(|way, home| {
        let (mut errors, _, there) = Talk::through_pipes();
        let script = "exec 5>&1 6>&2 >/dev/null 2>&1; while read l; do echo out $l >&5; echo error $l >&6; done";
        let mut program = Program::with_errors(Command::new("bash").args(["-c", script]), there);
        assert_eq!((program.talk.ask("one"), errors.hear()), ("out one".to_owned(), "error one".to_owned()));
        let (store, digest) = way.captured(home, program);
        let (mut errors, _, there) = Talk::through_pipes();
        let (mut talk, input, output) = Talk::through_pipes();
        let restore = home.restore().stdin(input).stdout(output).stderr(there);
        let _tree = only_tree(restore.restore(&store, &digest).or_explain());
        assert_eq!((talk.ask("two"), errors.hear()), ("out two".to_owned(), "error two".to_owned()));
        talk.hang_up();
    });
}

fn a_child_has_the_stream_of_the_root_that_it_shares() {
    in_each_way(|way, home| {
        let (mut errors, _, there) = Talk::through_pipes();
        let script = "(while read l; do echo to errors $l; done) >&2";
        let mut program = Program::with_errors(Command::new("bash").args(["-c", script]), there);
        program.talk.tell("one");
        assert_eq!(errors.hear(), "to errors one");
        let (store, digest) = way.captured(home, program);
        let (mut errors, _, there) = Talk::through_pipes();
        let (mut talk, input, output) = Talk::through_pipes();
        let restore = home.restore().stdin(input).stdout(output).stderr(there);
        let _tree = only_tree(restore.restore(&store, &digest).or_explain());
        talk.tell("two");
        assert_eq!(errors.hear(), "to errors two");
        talk.hang_up();
    });
}

fn a_childs_output_in_a_file_stays_there() {
    in_each_way(|way, home| {
        let file = home.path("file");
        let script = format!("(while read l; do echo kept $l; [ $l = two ] && break; done) >>{}; echo END", file.display());
        let mut program = Program::bash(&script);
        program.talk.tell("one");
        wait_until("it was kept", || fs::read_to_string(&file).is_ok_and(|text| text == "kept one\n"));
        let mut revived = way.go_back(home, program);
        assert_eq!(revived.talk.ask("two"), "END");
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept one\nkept two\n");
    });
}

fn input_that_has_ended_has_ended_after_the_restore() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let mut program = Program::bash(&format!("echo ready; {wait}; cat; echo END"));
        assert_eq!(program.talk.hear(), "ready");
        program.talk.tell("the rest");
        program.talk.close();
        let mut revived = way.go_back(home, program);
        open();
        assert_eq!(revived.talk.hear(), "the rest");
        assert_eq!(revived.talk.hear(), "END");
    });
}

fn input_that_was_not_read_is_handed_back() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let mut program = Program::bash(&format!("read x; echo $x; {wait}; while read x; do echo got $x; done"));
        assert_eq!(program.talk.ask("one"), "one");
        program.talk.tell("two");
        program.talk.tell("three");
        let (store, digest) = way.captured(home, program);
        let (mut talk, input, output) = Talk::through_pipes();
        let restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
        assert_eq!(restored.unread.len(), 1);
        let unread = &restored.unread[0];
        assert_eq!((unread.tree, unread.descriptor), (restored.trees[0].pid(), 0));
        assert_eq!(unread.bytes, b"two\nthree\n");
        open();
        talk.press(std::str::from_utf8(&unread.bytes).unwrap());
        assert_eq!(talk.hear(), "got two");
        assert_eq!(talk.hear(), "got three");
        talk.close();
    });
}

fn trees_that_are_connected_stay_so() {
    in_each_way(|way, home| {
        let (reader, writer) = crate::talk::pipe();
        let mut first = Command::new("bash");
        first.args(["-c", "n=0; while read l; do n=$((n+1)); echo item $n $l; done"]);
        let mut second = Command::new("bash");
        second.args(["-c", "while read l; do echo second got $l; done"]);
        let mut first = Program::between(&first, None, Some(writer));
        let mut second = Program::between(&second, Some(reader), None);
        first.talk.tell("a");
        assert_eq!(second.talk.hear(), "second got item 1 a");
        let store = home.store();
        let digest = way.capture(home, [first.pid(), second.pid()]).capture(&store).or_explain();
        first.end();
        second.end();
        let (mut talk, input, output) = Talk::through_pipes();
        let restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
        assert_eq!(restored.trees.len(), 2);
        talk.tell("b");
        assert_eq!(talk.hear(), "second got item 2 b");
        talk.close();
        assert_eq!(talk.hear_or_end(), None);
    });
}

fn what_is_between_two_trees_is_neither_lost_nor_there_twice() {
    in_each_way(|way, home| {
        let (reader, writer) = crate::talk::pipe();
        let mut first = Command::new("bash");
        first.args(["-c", "n=0; while sleep 0.001; do n=$((n+1)); echo item $n; done"]);
        let mut second = Command::new("bash");
        second.args(["-c", "while read l; do echo got $l; done"]);
        let first = Program::between(&first, None, Some(writer));
        let mut second = Program::between(&second, Some(reader), None);
        assert_eq!(second.talk.hear(), "got item 1");
        let store = home.store();
        let digest = way.capture(home, [first.pid(), second.pid()]).capture(&store).or_explain();
        first.end();
        let mut last = 1;
        while let Some(line) = second.talk.hear_or_end() {
            last = line.strip_prefix("got item ").unwrap().parse().unwrap();
        }
        second.end();
        let (mut talk, input, output) = Talk::through_pipes();
        let mut restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
        let number = |line: String| line.strip_prefix("got item ").unwrap().parse::<u64>().unwrap();
        let first: u64 = number(talk.hear());
        // What was heard before the capture is not told, but no more than that is missing, and
        // nothing comes again.
        assert!(way.leave_running || first <= last + 1, "{first} after {last}");
        for next in first + 1..first + 50 {
            assert_eq!(number(talk.hear()), next);
        }
        for tree in &mut restored.trees {
            tree.kill_and_wait().unwrap();
        }
    });
}

fn an_event_loop_whose_input_is_nothing_hears_its_end() {
    const LOOP: &str = "import asyncio, sys
async def main():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline(): print('got', line.decode().strip(), flush=True)
    print('end', flush=True)
asyncio.run(main())";
    in_each_way(|way, home| {
        let mut program = Program::on_pipes(Command::new("python3").args(["-c", LOOP]));
        assert_eq!(program.talk.ask("one"), "got one");
        let (store, digest) = way.captured(home, program);
        let (mut talk, _input, output) = Talk::through_pipes();
        let restore = home.restore().stdin(File::open("/dev/null").unwrap()).stdout(output);
        let mut tree = only_tree(restore.restore(&store, &digest).or_explain());
        assert_eq!(talk.hear(), "end");
        assert!(tree.wait().unwrap().success());
        // It goes on with a pipe, too.
        let mut revived = on_pipes(home.restore(), &store, &digest);
        assert_eq!(revived.talk.ask("two"), "got two");
        revived.talk.close();
        assert_eq!(revived.talk.hear(), "end");
    });
}

/// The loop waits for the end of its reader.
fn an_event_loop_whose_output_is_a_file_is_told() {
    const LOOP: &str = "import asyncio, sys
async def main():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
    while line := await reader.readline(): transport.write(b'got ' + line)
asyncio.run(main())";
    in_each_way(|way, home| {
        let mut program = Program::on_pipes(Command::new("python3").args(["-c", LOOP]));
        assert_eq!(program.talk.ask("one"), "got one");
        let (store, digest) = way.captured(home, program);
        let file = File::create(home.path("file")).unwrap();
        let nothing = File::options().write(true).open("/dev/null").unwrap();
        for output in [file, nothing] {
            let (_talk, input, _) = Talk::through_pipes();
            let error = home.restore().stdin(input).stdout(output).restore(&store, &digest).unwrap_err();
            let failure = error.failure().unwrap();
            assert_eq!(failure.cause, criu_rpc::Cause::EpollOnFile);
            assert!(failure.advice().contains("ProcsRestore::stdout"));
        }
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("two"), "got two");
    });
}

fn sockets_between_trees_stay_connected() {
    const FIRST: &str = "import sys, os
for line in sys.stdin: os.write(1, ('passed ' + line).encode())";
    const SECOND: &str = "import sys
for line in sys.stdin: print('second ' + line, end='', flush=True)";
    in_each_way(|way, home| {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = |end: std::os::unix::net::UnixStream| File::from(std::os::fd::OwnedFd::from(end));
        let python = |program| { let mut command = Command::new("python3"); command.args(["-uc", program]); command };
        let mut first = Program::between(&python(FIRST), None, Some(file(here)));
        let mut second = Program::between(&python(SECOND), Some(file(there)), None);
        first.talk.tell("a");
        assert_eq!(second.talk.hear(), "second passed a");
        let store = home.store();
        let digest = way.capture(home, [first.pid(), second.pid()]).capture(&store).or_explain();
        first.end();
        second.end();
        let (mut talk, input, output) = Talk::through_pipes();
        let _restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
        talk.tell("b");
        assert_eq!(talk.hear(), "second passed b");
        talk.close();
        assert_eq!(talk.hear_or_end(), None);
    });
}

/// More ways to have pipes inside, all of which go on to their ends.
fn scripts_with_pipes_go_on_to_their_ends() {
    const SCRIPTS: [(&str, &[&str]); 5] = [
        // Process substitution, once its process has ended.
        ("exec 4< <(echo one; echo two); read x <&4; echo $x; WAIT; read x <&4; echo $x; read x <&4 || echo END", &["two", "END"]),
        // A process that goes on writing into one.
        ("exec 4> >(while read l; do echo inner $l; done); echo one; WAIT; echo two >&4; exec 4>&-; wait $!; echo END", &["inner two", "END"]),
        ("coproc cat; echo one; WAIT; echo two >&${COPROC[1]}; read x <&${COPROC[0]}; echo $x; echo END", &["two", "END"]),
        ("seq 3 | { read x; echo one; WAIT; tac; } | cat; echo END", &["3", "2", "END"]),
        ("{ echo one; WAIT; echo two; echo END; } | tee /dev/null | cat", &["two", "END"]),
    ];
    for (number, (script, rest)) in SCRIPTS.iter().enumerate() {
        let way = Way { leave_running: number % 2 == 0, chunked: number % 3 == 0 };
        let home = &Home::new();
        let (wait, open) = gate(home);
        let mut program = Program::bash(&script.replace("WAIT", &wait));
        assert_eq!(program.talk.hear(), "one", "{script}");
        let mut revived = way.go_back(home, program);
        open();
        for line in *rest {
            assert_eq!(revived.talk.hear(), *line, "{script}");
        }
    }
}

fn input_from_a_socket_that_has_ended_has_ended_after_the_restore() {
    in_each_way(|way, home| {
        for gone in [false, true] {
            let (wait, open) = gate(home);
            let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            let script = format!("echo ready; {wait}; cat; echo END");
            let there = File::from(std::os::fd::OwnedFd::from(there));
            let mut bash = Command::new("bash");
            let mut program = Program::between(bash.args(["-c", &script]), Some(there), None);
            assert_eq!(program.talk.hear(), "ready");
            std::io::Write::write_all(&mut here, b"the rest\n").unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
            let here = (!gone).then_some(here);
            let mut revived = way.go_back(home, program);
            drop(here);
            open();
            assert_eq!(revived.talk.hear(), "the rest");
            assert_eq!(revived.talk.hear(), "END");
            fs::remove_file(home.path("gate")).unwrap();
            let _ = fs::remove_dir_all(home.path("store"));
        }
    });
}

fn an_input_that_is_given_in_vain_is_told() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        // The shell keeps its own input elsewhere meanwhile.
        let mut program = Program::bash(&format!("{{ read x; echo $x; {wait}; cat; }} <<-end\n\tone\n\ttwo\n\tend\nread x; echo $x"));
        assert_eq!(program.talk.hear(), "one");
        let (store, digest) = way.captured(home, program);
        open();
        let (mut talk, input, output) = Talk::through_pipes();
        let mut restored = home.restore().stdin(input).stdout(output).restore(&store, &digest).or_explain();
        assert_eq!(restored.warnings, []);
        talk.tell("three");
        assert_eq!((talk.hear(), talk.hear()), ("two".to_owned(), "three".to_owned()));
        restored.trees[0].wait().unwrap();
        fs::remove_file(home.path("gate")).unwrap();

        let (wait, open) = gate(home);
        let mut program = Program::bash(&format!("echo ready; {wait}; cat; echo END"));
        assert_eq!(program.talk.hear(), "ready");
        program.talk.close();
        let digest = way.capture(home, [program.pid()]).capture(&store).or_explain();
        program.end();
        open();
        let nothing = || File::open("/dev/null").unwrap();
        for (input, told) in [(crate::talk::pipe().0, true), (nothing(), false)] {
            let (mut talk, _, output) = Talk::through_pipes();
            let mut restored =
                home.restore().stdin(input).stdout(output).stderr(nothing()).restore(&store, &digest).or_explain();
            let is_told = matches!(&restored.warnings[..], [Warning::InputEnded { pid, .. }] if *pid == restored.trees[0].pid());
            assert_eq!(is_told, told, "{:?}", restored.warnings);
            assert_eq!(talk.hear(), "END");
            restored.trees[0].wait().unwrap();
        }
    });
}

/// Saves its streams elsewhere, in an order that is not that of their numbers.
const SAVES: &str = "exec 5>&2 6>&1 >/dev/null 2>&1; while read l; do echo error $l >&5; echo out $l >&6; done";

fn streams_that_were_told_are_given_anew_wherever_they_are() {
    in_each_way(|way, home| {
        let (mut errors, _, there) = Talk::through_pipes();
        let (error_key, (from, to)) = (pipe_key(&there), crate::talk::pipe());
        let output_key = pipe_key(&to);
        let mut program = Program::with_streams(Command::new("bash").args(["-c", SAVES]), to, there);
        let mut output = Talk::new(crate::talk::pipe().1, from);
        program.talk.tell("one");
        assert_eq!((output.hear(), errors.hear()), ("out one".to_owned(), "error one".to_owned()));
        // While bash writes to 6, that is its standard output for a moment.
        let output_of = format!("/proc/{}/fd/1", program.pid());
        wait_until("it reads again", || fs::read_link(&output_of).is_ok_and(|file| file == *"/dev/null"));
        let unnamed = way.capture(home, [program.pid()]).preflight().or_explain();
        let cure = format!("ProcsCapture::stdout(\"{output_key}\")");
        assert!(unnamed.risks.iter().any(|risk| risk.to_string().contains(&cure)), "{unnamed:#?}");
        let capture = way.capture(home, [program.pid()]).stdout(output_key).stderr(error_key);
        assert_eq!(capture.preflight().or_explain().risks, []);
        let stored = capture.run(&home.store()).or_explain();
        assert_eq!(stored.warnings, []);
        program.end();
        says_both(home, &stored.digest, ["out two", "error two"]);
    });
}

/// Revives it on new pipes, and hears this from its standard output and its standard error.
#[track_caller]
fn says_both(home: &Home, digest: &criu_rpc::Digest256, words: [&str; 2]) {
    let (mut errors, _, there) = Talk::through_pipes();
    let (mut talk, input, output) = Talk::through_pipes();
    let restore = home.restore().stdin(input).stdout(output).stderr(there);
    let _tree = only_tree(restore.restore(&home.store(), digest).or_explain());
    talk.tell("two");
    assert_eq!([talk.hear(), errors.hear()], words);
    talk.close();
}

fn streams_that_only_a_child_has_are_given_anew_if_they_were_told() {
    const SCRIPT: &str = "(exec 7>&2 8>&1 >/dev/null 2>&1; while read l; do echo error $l >&7; echo out $l >&8; done) <&0 & \
                          exec </dev/null >/dev/null 2>&1; wait";
    in_each_way(|way, home| {
        let (mut errors, _, there) = Talk::through_pipes();
        let (error_key, (from, to)) = (pipe_key(&there), crate::talk::pipe());
        let output_key = pipe_key(&to);
        let mut program = Program::with_streams(Command::new("bash").args(["-c", SCRIPT]), to, there);
        let mut output = Talk::new(crate::talk::pipe().1, from);
        program.talk.tell("one");
        assert_eq!((output.hear(), errors.hear()), ("out one".to_owned(), "error one".to_owned()));
        let capture = way.capture(home, [program.pid()]).stdout(output_key).stderr(error_key);
        let stored = capture.run(&home.store()).or_explain();
        program.end();
        says_both(home, &stored.digest, ["out two", "error two"]);
    });
}

fn a_socket_that_was_told_is_given_anew_wherever_it_is() {
    const SCRIPT: &str = "exec 9>&1 >/dev/null; while read l; do echo out $l >&9; done";
    in_each_way(|way, home| {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let there = File::from(std::os::fd::OwnedFd::from(there));
        let key = criu_rpc::rpc::Key::of(&there).or_explain();
        let mut program = Program::between(Command::new("bash").args(["-c", SCRIPT]), None, Some(there));
        let mut output = Talk::new(crate::talk::pipe().1, std::os::fd::OwnedFd::from(here));
        program.talk.tell("one");
        assert_eq!(output.hear(), "out one");
        let capture = way.capture(home, [program.pid()]).stdout(key);
        let stored = capture.run(&home.store()).or_explain();
        program.end();
        let mut revived = on_pipes(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.talk.ask("two"), "out two");
        revived.talk.close();
    });
}

/// `ProcsCapture::stdout` documents this order.
fn streams_that_are_not_told_are_taken_in_the_order_of_their_numbers() {
    in_each_way(|way, home| {
        let (mut errors, _, there) = Talk::through_pipes();
        let mut program = Program::with_errors(Command::new("bash").args(["-c", SAVES]), there);
        assert_eq!((program.talk.ask("one"), errors.hear()), ("out one".to_owned(), "error one".to_owned()));
        let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
        let assumed = |warning: &Warning| match warning {
            Warning::StreamAssumed { descriptor, stream, .. } => (*descriptor, *stream),
            other => panic!("{other:?}"),
        };
        assert_eq!(stored.warnings.iter().map(assumed).collect::<Vec<_>>(), [(5, 1), (6, 2)]);
        program.end();
        says_both(home, &stored.digest, ["error two", "out two"]);
    });
}

fn new_pipes_are_given_and_their_other_ends_handed_back() {
    in_each_way(|way, home| {
        let mut program = Program::bash("while read x; do echo got $x; done; echo end; echo error >&2");
        assert_eq!(program.talk.ask("one"), "got one");
        let (store, digest) = way.captured(home, program);
        let restore = home.restore().stdin(Stream::Piped).stdout(Stream::Piped).stderr(Stream::Piped);
        assert_eq!(restore.preflight(&store, &digest).or_explain().blocks, []);
        let mut restored = restore.restore(&store, &digest).or_explain();
        let mut input = restored.stdin.take().unwrap();
        let mut output = BufReader::new(restored.stdout.take().unwrap()).lines();
        let mut errors = restored.stderr.take().unwrap();
        writeln!(input, "two").unwrap();
        assert_eq!(output.next().unwrap().unwrap(), "got two");
        drop(input);
        // What the restore keeps open, though it is not over, would keep them from their ends.
        assert_eq!(output.next().unwrap().unwrap(), "end");
        assert!(output.next().is_none());
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        assert_eq!(text, "error\n");
        assert!(only_tree(restored).wait().unwrap().success());
        drop(restore);
    });
}

fn nothing_is_given_as_an_input_at_its_end() {
    in_each_way(|way, home| {
        let mut program = Program::bash("while read x; do echo got $x; done; echo end; echo error >&2");
        assert_eq!(program.talk.ask("one"), "got one");
        let (store, digest) = way.captured(home, program);
        let restore = home.restore().stdin(Stream::Null).stdout(Stream::Piped).stderr(Stream::Null);
        let mut restored = restore.restore(&store, &digest).or_explain();
        assert!(restored.stdin.is_none() && restored.stderr.is_none());
        let mut text = String::new();
        restored.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "end\n");
        assert!(only_tree(restored).wait().unwrap().success());
    });
}
