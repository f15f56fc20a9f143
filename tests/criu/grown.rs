//! Files that went on between a capture and its restore: logs that grew, scripts that were edited.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use criu_rpc::{Cause, Digest256, Error, FsBlobStore, GrownFiles, ProcsRestore, Restored, Warning};

use crate::{
    harness::tests,
    places::{Home, wait_until},
    program::{Program, Way, in_each_way, only_tree},
    talk::Talk,
    tree::{OrExplain, Revived, explain, wait_gone},
    warned::{assert_warned, warning},
};

tests![
    a_log_that_grew_goes_on_at_its_end,
    a_log_that_the_tree_may_also_read_goes_on_at_its_end,
    what_tee_writes_goes_on_at_its_end,
    standard_output_in_a_log_goes_on_at_its_end,
    a_file_that_is_followed_may_have_grown,
    a_script_that_was_edited_is_read_on,
    a_script_that_was_replaced_is_refused,
    what_changed_in_a_file_of_the_same_size_is_told,
    a_file_that_is_read_and_written_is_refused_unless_it_is_cut_back_or_kept,
    a_file_that_was_written_in_its_middle_is_refused,
    a_file_that_shrank_is_refused_unless_it_is_kept,
    a_log_is_cut_back_if_that_is_asked_for,
    nothing_is_cut_back_for_a_restore_that_fails,
    a_library_that_changed_is_refused_whatever_is_asked_for,
];

fn append(path: &Path, text: &str) {
    File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Revives on new pipes, and gives the warnings too.
#[track_caller]
fn revived(restore: ProcsRestore, store: &FsBlobStore, digest: &Digest256) -> (Revived, Vec<Warning>) {
    let (talk, input, output) = Talk::through_pipes();
    let errors = File::create("/dev/null").unwrap();
    let restored = restore.stdin(input).stdout(output).stderr(errors).restore(store, digest).or_explain();
    let warnings = restored.warnings.clone();
    (Revived::new(only_tree(restored), talk), warnings)
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[track_caller]
fn assert_refused(restored: criu_rpc::Result<Restored>, path: &Path, why: &str) {
    let error: Error = restored.unwrap_err();
    let report = error.report().to_string();
    let changed = error.failure().is_some_and(|failure| failure.cause == Cause::FileChanged);
    let told = report.contains(&format!("{}: it has ", path.display())) && report.contains(why);
    assert!(changed && told && report.contains("grown_files"), "{why}: {}", explain(&error));
}

/// A script that answers, and writes each line to descriptor 3 as well.
fn writer(home: &Home, open: &str) -> Program {
    let script = format!("cd {}; {open}; while read line; do echo $line >&3; echo said $line; done", home.word());
    Program::bash(&script)
}

/// Captured in this way once it has said `one`; the log has one line more since.
fn written_since(way: Way, home: &Home, mut program: Program, log: &Path) -> (FsBlobStore, Digest256) {
    assert_eq!(program.talk.ask("one"), "said one");
    let (store, pid) = (home.store(), program.pid());
    let digest = way.capture(home, [pid]).capture(&store).or_explain();
    if way.leave_running {
        assert_eq!(program.talk.ask("since"), "said since");
    } else {
        append(log, "since\n");
    }
    program.end();
    assert_eq!(read(log), "one\nsince\n");
    (store, digest)
}

fn a_log_that_grew_goes_on_at_its_end() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let (store, digest) = written_since(way, home, writer(home, "exec 3>log"), &log);
        assert_refused(
            home.restore().grown_files(GrownFiles::Refuse).restore(&store, &digest),
            &log,
            "had 4 at the capture",
        );
        let (mut revived, warnings) = revived(home.restore(), &store, &digest);
        assert_eq!(revived.ask("after"), "said after");
        assert_eq!(read(&log), "one\nsince\nafter\n");
        let path = log.display().to_string();
        assert_warned(&warnings, &[warning!(FileContinued { path, then: 4, now: 10 })], way);
    });
}

fn a_log_that_the_tree_may_also_read_goes_on_at_its_end() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let script = "import sys\nlog = open(sys.argv[1], 'a+', buffering=1)\nfor line in sys.stdin:\n    \
                      print(line.strip(), file=log)\n    print('said', line.strip(), flush=True)";
        let mut command = Command::new("python3");
        command.args(["-u", "-c", script]).arg(&log);
        let (store, digest) = written_since(way, home, Program::on_pipes(&command), &log);
        let (mut revived, _) = revived(home.restore(), &store, &digest);
        assert_eq!(revived.ask("after"), "said after");
        assert_eq!(read(&log), "one\nsince\nafter\n");
    });
}

fn what_tee_writes_goes_on_at_its_end() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let mut command = Command::new("tee");
        command.arg(&log);
        let mut program = Program::on_pipes(&command);
        // It tells its standard output first.
        let wait_for_log = |text: &str| wait_until("tee has written", || read(&log) == text);
        assert_eq!(program.talk.ask("one"), "one");
        wait_for_log("one\n");
        let (store, pid) = (home.store(), program.pid());
        let digest = way.capture(home, [pid]).capture(&store).or_explain();
        if way.leave_running {
            assert_eq!(program.talk.ask("since"), "since");
            wait_for_log("one\nsince\n");
        } else {
            append(&log, "since\n");
        }
        program.end();
        let (mut revived, _) = revived(home.restore(), &store, &digest);
        assert_eq!(revived.ask("after"), "after");
        wait_for_log("one\nsince\nafter\n");
    });
}

/// As of `program > log`: the log is the standard output itself, for which the restore is given
/// nothing.
fn standard_output_in_a_log_goes_on_at_its_end() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let script = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)";
        let mut command = Command::new("python3");
        command.args(["-c", script]);
        let output = File::create(&log).unwrap();
        let mut program = Program::between(&command, None, Some(output));
        let wait_for_log = |text: &str| wait_until("it has written", || read(&log) == text);
        program.talk.tell("one");
        wait_for_log("one\n");
        let (store, pid) = (home.store(), program.pid());
        let digest = way.capture(home, [pid]).capture(&store).or_explain();
        if way.leave_running {
            program.talk.tell("since");
            wait_for_log("one\nsince\n");
        } else {
            append(&log, "since\n");
        }
        program.end();
        let (mut talk, input, _) = Talk::through_pipes();
        let restored = home.restore().stdin(input).restore(&store, &digest).or_explain();
        let path = log.display().to_string();
        assert_warned(&restored.warnings, &[warning!(FileContinued { path, then: 4, now: 10 })], way);
        talk.tell("after");
        wait_for_log("one\nsince\nafter\n");
        drop(Revived::new(only_tree(restored), talk));
    });
}

fn a_file_that_is_followed_may_have_grown() {
    in_each_way(|way, home| {
        let log = home.path("log");
        fs::write(&log, "one\n").unwrap();
        let mut command = Command::new("tail");
        command.args(["---disable-inotify", "-s", "0.02", "-f"]).arg(&log);
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "one");
        let (store, pid) = (home.store(), program.pid());
        let digest = way.capture(home, [pid]).capture(&store).or_explain();
        program.end();
        append(&log, "since\n");
        let (mut revived, warnings) = revived(home.restore(), &store, &digest);
        assert_eq!(revived.talk.hear(), "since");
        append(&log, "after\n");
        assert_eq!(revived.talk.hear(), "after");
        assert_eq!(warnings, []);
        revived.tree().kill().or_explain();
    });
}

/// A script that was captured when its first line was read.
fn script(way: Way, home: &Home) -> (PathBuf, FsBlobStore, Digest256) {
    let path = home.path("script");
    fs::write(&path, "read a; echo got $a\nread b; echo got $b\nread c; echo got $c\n").unwrap();
    let mut command = Command::new("bash");
    command.arg(&path);
    let mut program = Program::on_pipes(&command);
    assert_eq!(program.talk.ask("1"), "got 1");
    let (store, digest) = way.captured(home, program);
    (path, store, digest)
}

fn a_script_that_was_edited_is_read_on() {
    in_each_way(|way, home| {
        let (path, store, digest) = script(way, home);
        append(&path, "read d; echo new $d\n");
        assert_refused(
            home.restore().grown_files(GrownFiles::Refuse).restore(&store, &digest),
            &path,
            "not allowed",
        );
        for choice in [GrownFiles::Continue, GrownFiles::CutBack, GrownFiles::Keep] {
            let (mut revived, warnings) = revived(home.restore().grown_files(choice), &store, &digest);
            assert_eq!(["2", "3", "4"].map(|line| revived.ask(line)), ["got 2", "got 3", "new 4"]);
            assert_eq!(warnings, []);
        }
    });
}

/// A file that is read, one that is read and written, the program, and one that is only written.
fn what_changed_in_a_file_of_the_same_size_is_told() {
    in_each_way(|way, home| {
        let [read, both, written, program] = ["read", "both", "written", "bash"].map(|name| home.path(name));
        for path in [&read, &both, &written] {
            fs::write(path, "one\ntwo\n").unwrap();
        }
        fs::copy("/bin/bash", &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["-c", "exec 3<$0 4<>$1 5<>/dev/null 5>>$2; while read; do read -u 3 l; read -u 4 m; echo $l $m; done"]);
        command.args([&read, &both, &written]);
        let mut victim = Program::on_pipes(&command);
        assert_eq!(victim.talk.ask(""), "one one");
        let (store, digest) = way.captured(home, victim);
        let (same, warnings) = revived(home.restore(), &store, &digest);
        assert_eq!(warnings, []);
        drop(same);
        for path in [&read, &both, &written] {
            fs::write(path, "new\nnow\n").unwrap();
        }
        fs::copy("/bin/bash", home.path("new")).unwrap();
        fs::rename(home.path("new"), &program).unwrap();
        let told = [program, both, read].map(|path| warning!(FileChanged { path }));
        let foresight = home.restore().preflight(&store, &digest).or_explain();
        let risks: Vec<_> = foresight.risks.iter().map(|risk| risk.problem.clone()).collect();
        let (mut changed, warnings) = revived(home.restore(), &store, &digest);
        assert_warned(&warnings, &told, way);
        assert_eq!(risks, warnings.iter().map(Warning::to_string).collect::<Vec<_>>());
        assert_eq!(changed.ask(""), "now now");
    });
}

fn a_script_that_was_replaced_is_refused() {
    let home = Home::new();
    let (path, store, digest) = script(Way { leave_running: true, chunked: false }, &home);
    let (text, before) = (read(&path), inode(&path));
    fs::write(home.path("new"), text.clone() + "read d; echo new $d\n").unwrap();
    fs::rename(home.path("new"), &path).unwrap();
    assert_refused(home.restore().restore(&store, &digest), &path, "it is another file");
    // Some file systems give the number of a removed file to the next.
    for round in 0..20 {
        if inode(&path) == before {
            break;
        }
        fs::write(home.path("new"), format!("{text}# {round}\nread d; echo new $d\n")).unwrap();
        fs::rename(home.path("new"), &path).unwrap();
    }
    assert_refused(home.restore().restore(&store, &digest), &path, "it is another file");
    let (mut kept, _) = revived(home.restore().grown_files(GrownFiles::Keep), &store, &digest);
    assert_eq!(["2", "3", "4"].map(|line| kept.ask(line)), ["got 2", "got 3", "new 4"]);
    drop(kept);
    // criu takes it for the same if it has the size that it had.
    fs::write(home.path("new"), text).unwrap();
    fs::rename(home.path("new"), &path).unwrap();
    let (mut same, warnings) = revived(home.restore(), &store, &digest);
    assert_warned(&warnings, &[warning!(FileChanged { path })], "a script");
    assert_eq!(same.ask("2"), "got 2");
}

fn a_file_that_is_read_and_written_is_refused_unless_it_is_cut_back_or_kept() {
    in_each_way(|way, home| {
        let log = home.path("log");
        let (store, digest) = written_since(way, home, writer(home, "exec 3<>log"), &log);
        assert_refused(home.restore().restore(&store, &digest), &log, "reads and writes it");
        assert_eq!(read(&log), "one\nsince\n");
        let (mut kept, warnings) = revived(home.restore().grown_files(GrownFiles::Keep), &store, &digest);
        assert_eq!(kept.ask("else"), "said else");
        assert_eq!((read(&log).as_str(), warnings), ("one\nelse\n\n", Vec::new()));
        drop(kept);
        let (mut cut, _) = revived(home.restore().grown_files(GrownFiles::CutBack), &store, &digest);
        assert_eq!(read(&log), "one\n");
        assert_eq!(cut.ask("two"), "said two");
        assert_eq!(read(&log), "one\ntwo\n");
    });
}

fn a_file_that_was_written_in_its_middle_is_refused() {
    let home = Home::new();
    let log = home.path("log");
    fs::write(&log, "0123456789").unwrap();
    // Opened for writing alone, and not cut by that.
    let script = "import os, sys\nlog = os.open(sys.argv[1], os.O_WRONLY)\nfor line in sys.stdin:\n    \
                  os.write(log, line.strip().encode())\n    print('said', flush=True)";
    let mut command = Command::new("python3");
    command.args(["-u", "-c", script]).arg(&log);
    let mut program = Program::on_pipes(&command);
    assert_eq!(program.talk.ask("ab"), "said");
    let (store, digest) = Way { leave_running: false, chunked: true }.captured(&home, program);
    append(&log, "more");
    assert_refused(home.restore().restore(&store, &digest), &log, "in the middle of it");
    let (mut kept, _) = revived(home.restore().grown_files(GrownFiles::Keep), &store, &digest);
    assert_eq!(kept.ask("cd"), "said");
    assert_eq!(read(&log), "abcd456789more");
}

fn a_file_that_shrank_is_refused_unless_it_is_kept() {
    for open in ["exec 3>log", "exec 3<>log"] {
        let home = Home::new();
        let log = home.path("log");
        let way = Way { leave_running: true, chunked: true };
        let (store, digest) = written_since(way, &home, writer(&home, open), &log);
        fs::write(&log, "").unwrap();
        for choice in [GrownFiles::Continue, GrownFiles::CutBack, GrownFiles::Refuse] {
            assert_refused(home.restore().grown_files(choice).restore(&store, &digest), &log, "it has 0 bytes");
        }
        let (mut kept, _) = revived(home.restore().grown_files(GrownFiles::Keep), &store, &digest);
        assert_eq!(kept.ask("two"), "said two");
        assert_eq!(read(&log), "\0\0\0\0two\n");
    }
}

fn a_log_is_cut_back_if_that_is_asked_for() {
    for open in ["exec 3>log", "exec 3>>log"] {
        in_each_way(|way, home| {
            let log = home.path("log");
            let (store, digest) = written_since(way, home, writer(home, open), &log);
            let (mut cut, warnings) = revived(home.restore().grown_files(GrownFiles::CutBack), &store, &digest);
            assert_eq!((read(&log).as_str(), warnings), ("one\n", Vec::new()), "{open}");
            assert_eq!(cut.ask("two"), "said two");
            assert_eq!(read(&log), "one\ntwo\n", "{open}");
        });
    }
}

fn nothing_is_cut_back_for_a_restore_that_fails() {
    let home = Home::new();
    let log = home.path("log");
    let mut program = writer(&home, "exec 3>log");
    assert_eq!(program.talk.ask("one"), "said one");
    let store = home.store();
    let digest = home.capture([program.pid()]).capture(&store).or_explain();
    assert_eq!(program.talk.ask("since"), "said since");
    let error = home.restore().grown_files(GrownFiles::CutBack).restore(&store, &digest).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::PidInUse), "{}", explain(&error));
    assert_eq!(read(&log), "one\nsince\n");
    // One that fails when all tasks are there already.
    let pid = program.pid();
    program.end();
    let away = home.path("away");
    fs::rename(&log, &away).unwrap();
    assert!(home.restore().grown_files(GrownFiles::CutBack).restore(&store, &digest).is_err());
    wait_gone(&[pid]);
    fs::rename(&away, &log).unwrap();
    assert_eq!(read(&log), "one\nsince\n");
    drop(revived(home.restore(), &store, &digest));
}

fn a_library_that_changed_is_refused_whatever_is_asked_for() {
    let home = Home::new();
    let copy = home.path("library");
    fs::copy(crate::replaced::library(), &copy).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", "while read line; do echo $line; done"]).env("LD_PRELOAD", &copy);
    let mut program = Program::on_pipes(&command);
    assert_eq!(program.talk.ask("one"), "one");
    let (store, digest) = Way { leave_running: true, chunked: false }.captured(&home, program);
    append(&copy, "more");
    for choice in [GrownFiles::Continue, GrownFiles::CutBack, GrownFiles::Keep] {
        assert_refused(home.restore().grown_files(choice).restore(&store, &digest), &copy, "it mapped, or executes it");
    }
}
