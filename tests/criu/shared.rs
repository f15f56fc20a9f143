//! Files whose position a tree shares with the caller or another tree, and deleted files that both
//! have open: the capture tells of each, and a restore that is given the file loses no line.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
    process::{Command, Stdio},
};

use criu_rpc::{Pid, Shared, Stream, Warning};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{
    harness::tests,
    places::{Home, wait_until},
    program::{Program, Way, in_each_way, only_tree},
    talk::{Talk, pipe},
    tree::{OrExplain, Revived},
    warned::{assert_warned, assert_warned_of, warning},
};

tests![
    a_log_that_the_caller_shares_is_told_and_keeps_every_line_if_it_is_given,
    a_log_that_the_caller_shares_keeps_every_line_by_inherit,
    a_deleted_file_of_the_caller_is_told_and_stays_the_same_if_it_is_given,
    a_memfd_of_the_caller_is_told,
    a_log_that_two_trees_share_is_told_for_each,
    two_trees_write_to_one_log_and_lose_no_line,
    a_list_that_the_caller_shares_is_told_and_every_line_is_read_once_if_it_is_given,
    files_that_are_shared_without_harm_are_not_told,
];

/// Writes each line that it reads.
fn echoing() -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", "while read line; do echo $line; done"]);
    command
}

fn wait_for(log: &Path, text: &str) {
    wait_until("it has written", || fs::read_to_string(log).unwrap() == text);
}

fn a_log_that_the_caller_shares_is_told_and_keeps_every_line_if_it_is_given() {
    in_each_way(|way, home| {
        let path = home.path("log");
        let mut log = File::create(&path).unwrap();
        let mut program = Program::between(&echoing(), None, Some(log.try_clone().unwrap()));
        program.talk.tell("one");
        wait_for(&path, "one\n");
        let pid = program.pid();
        let stored = way.capture(home, [pid]).run(&home.store()).or_explain();
        let told = warning!(FileShared { pid, path, with: Pid::own(), what: Shared::Written });
        assert_warned(&stored.warnings, &[told], way);
        program.end();
        log.write_all(b"caller\n").unwrap();
        let (mut talk, input, _) = Talk::through_pipes();
        let restore = home.restore().stdin(input).stdout(log.try_clone().unwrap());
        let restored = restore.restore(&home.store(), &stored.digest).or_explain();
        log.write_all(b"caller again\n").unwrap();
        talk.tell("after");
        wait_for(&path, "one\ncaller\ncaller again\nafter\n");
        log.write_all(b"last\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ncaller\ncaller again\nafter\nlast\n");
        drop(Revived::new(only_tree(restored), talk));
    });
}

/// As of `caller > log`.
fn a_log_that_the_caller_shares_keeps_every_line_by_inherit() {
    in_each_way(|way, home| {
        let log = File::create(home.path("log")).unwrap();
        let mut caller = Command::new("/proc/self/exe");
        caller.args(["--shares", &home.word()]);
        caller.args([way.leave_running, way.chunked].map(|choice| choice.to_string()));
        let ended = caller.stdin(Stdio::null()).stdout(log).stderr(Stdio::piped()).output();
        let ended = ended.unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    });
}

/// The caller whose standard output is the log.
pub(crate) fn main(words: &[String]) {
    let [folder, leave_running, chunked] = words else { panic!("{words:?}") };
    let way = Way { leave_running: leave_running == "true", chunked: chunked == "true" };
    let home = &Home::of_another(folder);
    let path = home.path("log");
    let mut log = File::from(io::stdout().as_fd().try_clone_to_owned().unwrap());
    log.write_all(b"caller\n").unwrap();
    let mut program = Program::between(&echoing(), None, Some(log.try_clone().unwrap()));
    program.talk.tell("one");
    wait_for(&path, "caller\none\n");
    let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
    assert!(
        matches!(stored.warnings.as_slice(), [Warning::FileShared { what: Shared::Written, .. }]),
        "{:?}",
        stored.warnings
    );
    program.end();
    log.write_all(b"caller again\n").unwrap();
    let (mut talk, input, _) = Talk::through_pipes();
    let restore = home.restore().stdin(input).stdout(Stream::Inherit);
    let restored = restore.restore(&home.store(), &stored.digest).or_explain();
    log.write_all(b"caller on\n").unwrap();
    talk.tell("after");
    wait_for(&path, "caller\none\ncaller again\ncaller on\nafter\n");
    log.write_all(b"last\n").unwrap();
    wait_for(&path, "caller\none\ncaller again\ncaller on\nafter\nlast\n");
    drop(Revived::new(only_tree(restored), talk));
}

fn a_deleted_file_of_the_caller_is_told_and_stays_the_same_if_it_is_given() {
    in_each_way(|way, home| {
        let path = home.path("temporary");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        stays_the_same(way, home, &file, &path);
    });
}

fn a_memfd_of_the_caller_is_told() {
    let home = Home::new();
    let file = File::from(memfd_create("of the caller", MFdFlags::MFD_CLOEXEC).unwrap());
    let program = Program::between(&echoing(), None, Some(file.try_clone().unwrap()));
    let stored = home.capture([program.pid()]).run(&home.store()).or_explain();
    let (pid, path) = (program.pid(), "/memfd:of the caller");
    let told = warning!(FileShared { pid, path, with: Pid::own(), what: Shared::Deleted });
    assert_warned(&stored.warnings, &[told], "a memfd");
    program.end();
}

/// A program writes to a file without a name, which the caller has open as well.
#[track_caller]
fn stays_the_same(way: Way, home: &Home, mut file: &File, path: &Path) {
    let has = |text: &str| {
        wait_until("it has written", || file.metadata().unwrap().len() >= text.len() as u64);
        let mut found = vec![0; text.len() + 1];
        let length = file.read_at(&mut found, 0).unwrap(); // the position stays
        assert_eq!(String::from_utf8_lossy(&found[..length]), text);
    };
    let mut program = Program::between(&echoing(), None, Some(file.try_clone().unwrap()));
    program.talk.tell("one");
    has("one\n");
    let pid = program.pid();
    let stored = way.capture(home, [pid]).run(&home.store()).or_explain();
    let told = warning!(FileShared { pid, path, with: Pid::own(), what: Shared::Deleted });
    assert_warned(&stored.warnings, &[told], way);
    program.end();
    file.write_all(b"caller\n").unwrap();
    let (mut talk, input, _) = Talk::through_pipes();
    let restore = home.restore().stdin(input).stdout(file.try_clone().unwrap());
    let restored = restore.restore(&home.store(), &stored.digest).or_explain();
    talk.tell("after");
    has("one\ncaller\nafter\n");
    drop(Revived::new(only_tree(restored), talk));
}

fn a_log_that_two_trees_share_is_told_for_each() {
    let home = Home::new();
    let path = home.path("log");
    let log = File::create(&path).unwrap();
    let logs = [log.try_clone().unwrap(), log];
    let programs = logs.map(|log| Program::between(&echoing(), None, Some(log)));
    let [one, other] = programs.each_ref().map(|program| Pid::from(program.pid()));
    let stored = home.capture([one, other].map(Pid::as_raw)).run(&home.store()).or_explain();
    let told = |pid: Pid, with: Pid| warning!(FileShared { pid, path, with, what: Shared::Written });
    // The trees are dumped side by side.
    assert_eq!(stored.warnings.len(), 2, "{:?}", stored.warnings);
    assert_warned_of(&stored.warnings, &told(one, other));
    assert_warned_of(&stored.warnings, &told(other, one));
    programs.into_iter().for_each(Program::end);
}

/// A program that numbers lines, and writes them to the log without a pause.
fn numbering(name: &str, log: &Path) -> Program {
    const NUMBERS: &str = "open(my $log, '>>', $ARGV[1]) or die; \
        for (my $n = 0; ; $n++) { syswrite($log, \"$ARGV[0] $n\\n\"); select(undef, undef, undef, 0.0005) }";
    let mut command = Command::new("perl");
    command.args(["-e", NUMBERS, name]).arg(log);
    Program::between(&command, None, None)
}

/// The numbers that one program has written.
fn numbers(log: &Path, name: &str) -> Vec<usize> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse().ok()).collect()
}

/// Neither writes before both are there: the size of the log is checked.
fn two_trees_write_to_one_log_and_lose_no_line() {
    in_each_way(|way, home| {
        let path = home.path("log");
        File::create(&path).unwrap();
        let programs = ["one", "other"].map(|name| numbering(name, &path));
        let count = |name| numbers(&path, name).len();
        let write_on = || {
            let before = ["one", "other"].map(count);
            wait_until("both write", || ["one", "other"].map(count).iter().zip(before).all(|(now, old)| *now > old));
        };
        write_on();
        let pids = programs.each_ref().map(Program::pid);
        let stored = way.capture(home, pids).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, []);
        programs.into_iter().for_each(Program::end);
        let restore = home.restore().grown_files(criu_rpc::GrownFiles::CutBack).stdin(Stream::Null);
        let mut restored = restore.restore(&home.store(), &stored.digest).or_explain();
        assert_eq!(restored.trees.iter().map(criu_rpc::Tree::pid).collect::<Vec<_>>(), stored.roots);
        write_on();
        for tree in &mut restored.trees {
            tree.kill().unwrap();
            tree.wait().unwrap();
        }
        for name in ["one", "other"] {
            let numbers = numbers(&path, name);
            assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "{way:?} {name}");
        }
        home.assert_staging_empty();
    });
}

/// As of `while read line; do tool; done < list`. With a name, and deleted as a here-document is.
fn a_list_that_the_caller_shares_is_told_and_every_line_is_read_once_if_it_is_given() {
    const READS: &str = "while read -u 2; do read line; echo $line; done";
    for deleted in [false, true] {
        in_each_way(|way, home| {
            let path = home.path("list");
            fs::write(&path, "one\ntwo\nthree\nfour\nfive\n").unwrap();
            let list = File::open(&path).unwrap();
            if deleted {
                fs::remove_file(&path).unwrap();
            }
            let mut command = Command::new("bash");
            command.args(["-c", READS]);
            let ((go_on, go), (answers, output)) = (pipe(), pipe());
            let input = list.try_clone().unwrap();
            let program = Program::with(&command, Some(input), Some(output), go_on.into());
            let mut talk = Talk::new(go, answers);
            assert_eq!(talk.ask(""), "one");
            let stored = way.capture(home, [program.pid()]).run(&home.store()).or_explain();
            let pid = program.pid();
            let told = warning!(FileShared { pid, path, with: Pid::own(), what: Shared::Read });
            assert_warned(&stored.warnings, &[told], (way, deleted));
            if way.leave_running {
                assert_eq!(talk.ask(""), "two");
            }
            program.end();
            if !way.leave_running {
                let mut line = [0; 4];
                (&list).read_exact(&mut line).unwrap();
                assert_eq!(line, *b"two\n");
            }
            let ((go_on, go), (answers, output)) = (pipe(), pipe());
            let restore = home.restore().stdin(list.try_clone().unwrap()).stdout(output).stderr(go_on);
            let restored = restore.restore(&home.store(), &stored.digest).or_explain();
            let mut talk = Talk::new(go, answers);
            assert_eq!(talk.ask(""), "three");
            assert_eq!(talk.ask(""), "four");
            drop(Revived::new(only_tree(restored), talk));
        });
    }
}

fn files_that_are_shared_without_harm_are_not_told() {
    let home = Home::new();
    let path = home.path("log");
    let appended = File::options().create(true).append(true).open(&path).unwrap();
    let open_apart = || File::options().write(true).open(&path).unwrap();
    let (apart, read) = (open_apart(), File::open(&path).unwrap());
    // Deleted, and neither can write to it.
    fs::write(home.path("temporary"), "").unwrap();
    let temporary = File::open(home.path("temporary")).unwrap();
    fs::remove_file(home.path("temporary")).unwrap();
    let starts: [(&str, Option<File>, Stdio); 4] = [
        ("appends", Some(appended.try_clone().unwrap()), Stdio::null()),
        ("writes, by an open file of its own", Some(open_apart()), Stdio::null()),
        ("reads", None, read.try_clone().unwrap().into()),
        ("reads a deleted file", None, temporary.try_clone().unwrap().into()),
    ];
    for (what, output, errors) in starts {
        let program = Program::with(&echoing(), None, output, errors);
        let stored = home.capture([program.pid()]).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{what}");
        program.end();
    }
    drop((appended, apart, read, temporary)); // open until here
}
