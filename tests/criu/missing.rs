//! Files that are gone when their tree is to be revived: told by path before criu is asked.

use std::{
    fs::{self, File},
    process::Command,
};

use criu_rpc::Cause;

use crate::{
    harness::tests,
    places::Home,
    program::{Program, Way, in_each_way, on_pipes},
    tree::{OrExplain, Revived, Victim, explain},
};

tests![files_that_are_gone_are_told_by_path, a_folder_that_a_socket_was_in_is_told_by_path, a_file_that_is_given_anew_may_be_gone, a_named_pipe_that_is_a_standard_stream_may_be_given_anew];

const ANSWERS: &str = "while read line; do echo \"$line\"; done";

fn files_that_are_gone_are_told_by_path() {
    let uses = [
        ("exec 3<>own/file", "file"),
        ("exec 3>>own/file", "file"),
        ("exec 3<>own/fifo", "fifo"),
        ("exec 3<own", ""),
        ("cd own", ""),
        ("cp $(command -v bash) own/program; [ $0 = again ] || exec own/program -c \"$ME\" again", "program"),
    ];
    for (number, (used, name)) in uses.into_iter().enumerate() {
        let way = Way { leave_running: number % 2 == 0, chunked: number % 3 == 0 };
        let home = Home::new();
        let own = home.folder("own");
        fs::write(own.join("file"), "text\n").unwrap();
        let script =
            format!("cd {}; [ -p own/fifo ] || mkfifo own/fifo; {used}\necho ready; {ANSWERS}", home.word());
        let mut command = Command::new("bash");
        command.args(["-c", &script, "first"]).env("ME", &script);
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "ready", "{used}");
        let (store, digest) = way.captured(&home, program);
        let away = home.path("away");
        fs::rename(&own, &away).unwrap();
        let error = home.restore().restore(&store, &digest).unwrap_err();
        let failure = error.failure().unwrap();
        let path = own.join(name);
        let path = path.to_str().unwrap().trim_end_matches('/');
        let told = failure.to_string().contains(&format!("{path}: there is no such file"));
        assert!(failure.cause == Cause::FileChanged && told, "{used}: {}", explain(&error));
        fs::rename(&away, &own).unwrap();
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    }
}

fn a_folder_that_a_socket_was_in_is_told_by_path() {
    let home = Home::new();
    let store = home.store();
    let own = home.folder("own");
    let socket = own.join("socket");
    let victim = Victim::start(&[&format!("listen={}", socket.display())]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    fs::remove_dir_all(&own).unwrap();
    let error = home.restore().restore(&store, &digest).unwrap_err();
    let told = format!("{}: there is no folder to make it in", socket.display());
    let changed = error.failure().is_some_and(|failure| failure.cause == Cause::FileChanged);
    assert!(changed && error.report().to_string().contains(&told), "{}", explain(&error));
    fs::create_dir(&own).unwrap();
    Revived::from(home.restore(), &store, &digest).assert_counts_on(0);
}

fn a_file_that_is_given_anew_may_be_gone() {
    let home = Home::new();
    let file = home.path("file");
    let script = format!("exec 3>>{0} 2>>{0}; while read line; do echo $line >&3; echo said; done", file.display());
    let mut program = Program::bash(&script);
    assert_eq!(program.talk.ask("first"), "said");
    let (store, digest) = Way { leave_running: true, chunked: true }.captured(&home, program);
    fs::remove_file(&file).unwrap();
    let other = File::create(home.path("other")).unwrap();
    // The one by its path; the other, a standard stream, by itself (on_pipes gives it).
    let key = file.to_str().unwrap().trim_start_matches('/').to_owned();
    let mut revived = on_pipes(home.restore().inherit(key, other), &store, &digest);
    assert_eq!(revived.ask("hello"), "said");
    assert_eq!(fs::read_to_string(home.path("other")).unwrap(), "hello\n");
}

fn a_named_pipe_that_is_a_standard_stream_may_be_given_anew() {
    in_each_way(|way, home| {
        let fifo = home.path("fifo");
        let script = format!("mkfifo {0}; exec 0<>{0}; echo ready; {ANSWERS}", fifo.display());
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "ready");
        let (store, digest) = way.captured(home, program);
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
        fs::remove_file(&fifo).unwrap();
        let error = home.restore().restore(&store, &digest).unwrap_err();
        let told = error.report().to_string();
        assert!(told.contains("fifo: there is no such file") && told.contains("stdin"), "{}", explain(&error));
        assert_eq!(on_pipes(home.restore(), &store, &digest).ask("hello"), "hello");
    });
}
