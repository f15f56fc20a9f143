//! Files that were replaced between a capture and its restore. criu opens paths as root and follows
//! links, so a tree could be given a file that its user may not even read.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
};

use criu_rpc::{Cause, Error, FsBlobStore};

use crate::{
    harness::tests,
    places::{Home, write_program},
    program::{Program, Way, in_each_way, on_pipes},
    tree::{Victim, explain},
};

tests![
    a_tree_gets_no_file_of_anothers_by_a_link,
    a_link_on_the_way_to_any_file_of_the_tree_is_refused,
    a_link_on_the_way_to_a_socket_is_refused,
    a_socket_of_another_program_is_refused,
    a_file_of_another_owner_is_refused,
    files_that_are_the_same_again_are_fine,
    a_file_that_is_replaced_once_it_was_looked_at_is_noticed,
];

const ANSWERS: &str = "while read line; do echo \"$line\"; done";

#[track_caller]
fn assert_replaced(error: &Error, path: &Path, also: &str) {
    let replaced = error.failure().is_some_and(|failure| failure.cause == Cause::FileReplaced);
    let report = error.report().to_string();
    let told = report.contains(&path.display().to_string()) && report.contains(also);
    assert!(replaced && told && report.contains("replaced_files"), "{also}: {}", explain(error));
}

/// A program without capabilities.
fn poor(script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--clear-groups", "bash", "-c", script]);
    command
}

fn a_tree_gets_no_file_of_anothers_by_a_link() {
    in_each_way(|way, home| {
        let (own, theirs) = (home.folder("own"), home.folder("theirs"));
        let (mine, secret) = (own.join("mine"), theirs.join("secret"));
        for (path, text) in [(&mine, "mine..\n"), (&secret, "secret\n")] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        }
        for path in [&secret, &theirs] {
            chown(path, Some(1000), Some(1000)).unwrap();
        }
        let script =
            format!("exec 3<>{}; while read line; do read text <&3; echo \"$text\"; echo CHANGED >&3; done", mine.display());
        let program = Program::on_pipes(&poor(&script));
        let (store, digest) = way.captured(home, program);
        fs::remove_file(&mine).unwrap();
        symlink(&secret, &mine).unwrap();
        let error = home.restore().restore(&store, &digest).unwrap_err();
        assert_replaced(&error, &mine, &format!("is a link to {}", secret.display()));
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
        assert!(error.failure().unwrap().version.is_some());

        fs::remove_file(&mine).unwrap();
        fs::hard_link(&secret, &mine).unwrap();
        let error = home.restore().restore(&store, &digest).unwrap_err();
        assert_replaced(&error, &mine, "belongs to user 1000 and group 1000 now");

        // A caller who knows better may allow it.
        let mut revived = on_pipes(home.restore().replaced_files(true), &store, &digest);
        assert_eq!(revived.ask("go"), "secret");
    });
}

/// Moves a folder away, and puts a link in its place.
fn link_folder(folder: &Path) {
    let away = folder.with_extension("away");
    fs::rename(folder, &away).unwrap();
    symlink(&away, folder).unwrap();
}

fn unlink_folder(folder: &Path) {
    fs::remove_file(folder).unwrap();
    fs::rename(folder.with_extension("away"), folder).unwrap();
}

/// The path of a library that this program has mapped.
pub(crate) fn library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")));
    libraries.into_iter().find(|path| path.contains("libgcc")).expect("because Rust programs unwind by it")
}

fn a_link_on_the_way_to_any_file_of_the_tree_is_refused() {
    let uses = [
        "exec 3<>own/file",
        "exec 3<own/file",
        "exec 3>>own/file",
        "exec 3<>own/fifo",
        "cd own",
        "exec 3<own",
        "exec 3<>own/deleted; rm own/deleted",
        "cp $(command -v bash) own/program; [ $0 = again ] || exec own/program -c \"$ME\" again",
        "cp $LIBRARY own/library; [ $0 = again ] || LD_PRELOAD=$PWD/own/library exec bash -c \"$ME\" again",
    ];
    for (number, used) in uses.into_iter().enumerate() {
        let way = Way { leave_running: number % 2 == 0, chunked: number % 3 == 0 };
        let home = Home::new();
        let own = home.folder("own");
        fs::write(own.join("file"), "text\n").unwrap();
        let script =
            format!("cd {}; [ -p own/fifo ] || mkfifo own/fifo; {used}\necho ready; {ANSWERS}", home.word());
        let mut command = Command::new("bash");
        command.args(["-c", &script, "first"]).env("ME", &script).env("LIBRARY", library());
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "ready", "{used}");
        let (store, digest) = way.captured(&home, program);
        link_folder(&own);
        let error = home.restore().restore(&store, &digest).unwrap_err();
        assert_replaced(&error, &own, "own is a link to");
        home.assert_staging_empty();
        unlink_folder(&own);
        let mut revived = on_pipes(home.restore(), &store, &digest);
        assert_eq!(revived.ask("still there"), "still there", "{used}");
    }
}

fn a_link_on_the_way_to_a_socket_is_refused() {
    let home = Home::new();
    let store = home.store();
    let own = home.folder("own");
    let socket = own.join("socket");
    let victim = Victim::start(&[&format!("listen={}", socket.display())]);
    let digest = home.capture([victim.pid()]).capture(&store).unwrap();
    victim.end();
    let _ = fs::remove_file(&socket); // no process listens there
    link_folder(&own);
    let error = home.restore().restore(&store, &digest).unwrap_err();
    assert_replaced(&error, &socket, "own is a link to");
    unlink_folder(&own);
    crate::tree::Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn captured_with(home: &Home, script: &str) -> (FsBlobStore, criu_rpc::Digest256) {
    let mut program = Program::bash(&format!("cd {}; {script}; echo ready; {ANSWERS}", home.word()));
    assert_eq!(program.talk.hear(), "ready");
    Way { leave_running: true, chunked: false }.captured(home, program)
}

fn a_socket_of_another_program_is_refused() {
    for kind in ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"] {
        in_each_way(|way, home| {
            let folder = home.folder("own");
            let path = folder.join("socket");
            let program = format!(
                "use Socket; chdir '{}'; socket(my $s, PF_UNIX, {kind}, 0); bind($s, sockaddr_un('socket')) or die; \
                 listen($s, 3); $| = 1; while (<STDIN>) {{ print -S 'socket' ? 'there' : 'gone', \"\\n\" }}",
                folder.display()
            );
            let mut command = Command::new("perl");
            command.args(["-e", &program]);
            let mut other = Program::on_pipes(&command);
            assert_eq!(other.talk.ask("?"), "there");
            let (store, digest) = way.captured(home, other);
            // Its own old file is in no program's way.
            drop(on_pipes(home.restore(), &store, &digest));
            fs::remove_file(&path).unwrap();
            let mut other = Program::on_pipes(&command);
            assert_eq!(other.talk.ask("?"), "there");
            let inode = fs::metadata(&path).unwrap().ino();
            let foresight = home.restore().preflight(&store, &digest).unwrap();
            let causes: Vec<_> = foresight.blocks.iter().map(|finding| finding.cause).collect();
            assert_eq!(causes, [Some(Cause::FileReplaced)]);
            let error = home.restore().restore(&store, &digest).unwrap_err();
            assert_replaced(&error, &path, "another program listens on this socket");
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "it was replaced");
            let mut revived = on_pipes(home.restore().replaced_files(true), &store, &digest);
            assert_eq!(revived.ask("?"), "there");
            assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
        });
    }
}

fn a_file_of_another_owner_is_refused() {
    for used in ["exec 3<>own/file", "cd own", "mkfifo own/fifo; exec 3<>own/fifo"] {
        let home = Home::new();
        let own = home.folder("own");
        fs::write(own.join("file"), "text\n").unwrap();
        let (store, digest) = captured_with(&home, used);
        let files = [own.clone(), own.join("file"), own.join("fifo")];
        let there = || files.iter().filter(|file| file.exists());
        for (uid, gid) in [(Some(1000), None), (None, Some(1000))] {
            there().for_each(|file| chown(file, uid, gid).unwrap());
            let error = home.restore().restore(&store, &digest).unwrap_err();
            assert_replaced(&error, &own, "now, and belonged to user 0 and group 0 at the capture");
            there().for_each(|file| chown(file, Some(0), Some(0)).unwrap());
        }
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    }
}

fn files_that_are_the_same_again_are_fine() {
    let home = Home::new();
    let own = home.folder("own");
    fs::write(own.join("file"), "text\n").unwrap();
    let script = "exec 3<>own/file 4</dev/null 5>/dev/full 6</proc/self/status 7</proc/version 8</sys/kernel/mm";
    let (store, digest) = captured_with(&home, script);
    let file = own.join("file");
    let inode = fs::metadata(&file).unwrap().ino();
    fs::copy(&file, own.join("copy")).unwrap();
    fs::rename(own.join("copy"), &file).unwrap();
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
    assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
}

fn a_file_that_is_replaced_once_it_was_looked_at_is_noticed() {
    for (used, chunked) in [("exec 3<>own/file", false), ("cd own", true), ("exec 3>>own/file", true)] {
        let home = Home::new();
        let (own, theirs) = (home.folder("own"), home.folder("theirs"));
        for folder in [&own, &theirs] {
            fs::write(folder.join("file"), "text\n").unwrap();
        }
        let mut program = Program::bash(&format!("cd {}; {used}; echo ready; {ANSWERS}", home.word()));
        assert_eq!(program.talk.hear(), "ready");
        let (store, digest) = Way { leave_running: false, chunked }.captured(&home, program);
        // A criu that comes too late: the files are others by then.
        let (criu, script) = (crate::harness::criu().program().unwrap(), home.path("criu"));
        let text = format!(
            "#!/bin/sh\ncd {} && mv own away && ln -s theirs own\nexec {} \"$@\"\n",
            home.word(),
            criu.display()
        );
        write_program(&script, &text);
        let error = home.restore().criu(&script).restore(&store, &digest).unwrap_err();
        assert_replaced(&error, &own, "while the tree was being restored");
        assert_eq!(fs::read_to_string(theirs.join("file")).unwrap(), "text\n");
        home.assert_staging_empty();
        fs::remove_file(&own).unwrap();
        fs::rename(home.path("away"), &own).unwrap();
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    }
}
