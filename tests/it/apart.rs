//! [`Apart`]: a test that concerns a whole process runs in a process of its own.

use std::{
    env,
    fs::{self, File},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::stores::Folder;

/// A test that runs in a process of its own: this binary again, with that test alone.
pub(crate) struct Apart {
    name: String,
    variables: Vec<(String, String)>,
}

impl Apart {
    /// The test of this name in this module, as `module_path!()` names it.
    pub(crate) fn new(module: &str, name: &str) -> Apart {
        let (_, module) = module.split_once("::").unwrap();
        Apart { name: format!("{module}::{name}"), variables: Vec::new() }
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Apart {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the test body in the process of its own; elsewhere starts that process and expects
    /// success.
    #[track_caller]
    pub(crate) fn run(self, act: impl FnOnce()) {
        if env::var(APART).is_ok_and(|name| name == self.name) {
            return act();
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &self.name, "--nocapture", "--test-threads=1"]);
        command.env(APART, &self.name).envs(self.variables);
        let (output, writer) = output_file();
        command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > end => break None,
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = fs::read_to_string(output.join("output")).unwrap();
        assert!(
            text.contains("1 passed") && status.is_some_and(|status| status.success()),
            "{status:?}\n{text}"
        );
    }
}

const APART: &str = "CRIU_RPC_TEST_APART";

fn output_file() -> (Folder, File) {
    let folder = Folder::new();
    let file = File::options().append(true).create(true).open(folder.join("output")).unwrap();
    (folder, file)
}
