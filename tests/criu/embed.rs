//! Programs that the crate finds itself in: one that ignores SIGCHLD, one on a machine without
//! criu.

use std::{env::current_exe, os::unix::net::UnixStream, path::Path, process::Command};

use criu_rpc::{BlobStore, Digest256, ProcsBlob, Warning};

use crate::{
    harness::{self, tests},
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, Victim},
};

tests![
    the_status_of_a_tree_arrives_in_a_program_like_any_other,
    a_program_that_ignores_sigchld_captures_revives_and_waits,
    where_there_is_no_criu_a_placeholder_is_stored_and_comes_back_as_a_warning,
];

/// A victim that plays the embedding program, started by this shell script, which ends with `"$@"`.
#[track_caller]
fn program(script: &str) -> Victim {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(current_exe().unwrap()).args(["--victim", "session"]);
    Victim::start_by(command)
}

fn the_status_of_a_tree_arrives_in_a_program_like_any_other() {
    captures_revives_and_waits(r#"exec "$@""#, "exit status: 7");
}

fn a_program_that_ignores_sigchld_captures_revives_and_waits() {
    // ECHILD: the kernel threw the status away.
    captures_revives_and_waits(r#"exec env --ignore-signal=CHLD "$@""#, "error 10");
}

#[track_caller]
fn captures_revives_and_waits(script: &str, end: &str) {
    let home = Home::new();
    let socket = home.path("socket");
    let mut program = program(script);
    let victim = Victim::start(&["children=1", &format!("serve={}", socket.display())]);
    let ask = |line: &str| {
        let connection = UnixStream::connect(&socket).unwrap();
        let mut talk = Talk::new(connection.try_clone().unwrap(), connection);
        talk.tell(line);
        talk.hear_or_end()
    };
    assert_eq!(ask("tick").unwrap(), "count 1");
    let pid = victim.pid();
    let stored = program.ask(&format!("capture run {pid} {}", home.word()));
    let digest = stored.strip_prefix("stored ").unwrap_or_else(|| panic!("{stored}"));
    assert_eq!(ask("tick").unwrap(), "count 2");
    victim.end();

    assert_eq!(program.ask(&format!("revive {digest} {}", home.word())), format!("revived {pid} "));
    assert_eq!(ask("tick").unwrap(), "count 2");
    assert_eq!(ask("child 0 tick").unwrap(), "count 1");
    program.talk.tell("wait");
    assert_eq!(ask("exit 7"), None);
    assert_eq!(program.talk.hear(), end);
    home.assert_staging_empty();
}

fn where_there_is_no_criu_a_placeholder_is_stored_and_comes_back_as_a_warning() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&[]);
    let pid = victim.pid();
    let real = home.capture([pid]).capture(&store).or_explain();
    let mut program = without_criu();

    let stored = program.ask(&format!("capture run {pid} {}", home.word()));
    let digest: Digest256 =
        stored.strip_prefix("stored ").unwrap_or_else(|| panic!("{stored}")).parse().unwrap();
    victim.assert_counts_on(0);
    home.assert_staging_empty();
    match ProcsBlob::from_json(&store.get(&digest).unwrap()).unwrap() {
        ProcsBlob::Unsupported { unsupported_on, note } => {
            assert_eq!(unsupported_on, "linux-no-criu");
            assert!(note.contains(&pid.to_string()) && note.contains("no criu found"), "{note}");
        }
        other => panic!("{other:?}"),
    }

    // Only a caller that asks for it gets one from `run`.
    let refused = program.ask(&format!("capture strict {pid} {}", home.word()));
    assert!(refused.starts_with("error no criu found"), "{refused}");
    let told = program.ask(&format!("capture other {pid} {}", home.word()));
    assert!(told.starts_with("stored "), "{told}");

    // With and without a criu, the placeholder is a warning.
    let restored = home.restore().restore(&store, &digest).or_explain();
    assert!(restored.trees.is_empty());
    assert!(matches!(&restored.warnings[..], [Warning::Unsupported { on, .. }] if on == "linux-no-criu"));
    let revived = program.ask(&format!("revive {digest} {}", home.word()));
    assert!(revived.starts_with("revived 0 no process was captured"), "{revived}");

    // A capture that is not a placeholder cannot be revived there.
    let refused = program.ask(&format!("revive {real} {}", home.word()));
    assert!(refused.starts_with("error no criu found"), "{refused}");
    home.assert_staging_empty();
    victim.end();
    Revived::from(home.restore(), &store, &real).assert_counts_on(0);
}

/// A program that sees nothing executable in any place where criu may be.
#[track_caller]
fn without_criu() -> Victim {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let folders =
        std::env::split_paths(&path).chain(usual.iter().map(|folder| Path::new(folder).to_path_buf()));
    let hide: String = folders
        .map(|folder| folder.join("criu"))
        .filter(|criu| criu.is_file())
        .map(|criu| format!("mount --bind /dev/null {}; ", criu.display()))
        .collect();
    let script = format!(r#"set -e; {hide} exec "$@""#);
    let mut command = Command::new("unshare");
    command.args(["--mount", "/bin/sh", "-c", &script, "sh"]);
    command.arg(current_exe().unwrap()).args(["--victim", "session"]);
    command.env_remove(harness::CRIU);
    Victim::start_by(command)
}
