//! [`Program`]: any program on pipes, captured and gone back to in each way that there is.

use std::{
    fs::{self, File},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Child, Command, Stdio},
};

use nix::{fcntl::OFlag, pty::{grantpt, posix_openpt, ptsname_r, unlockpt}};
use criu_rpc::{Chunking, Digest256, FsBlobStore, ProcsCapture, ProcsRestore, Restored, Warning};

use crate::{
    places::{Home, wait_until},
    talk::Talk,
    tree::{OrExplain, Revived},
};

/// A way to capture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) leave_running: bool,
    pub(crate) chunked: bool,
}

/// Does it in each way, each time with a folder of its own.
#[track_caller]
pub(crate) fn in_each_way(test: impl Fn(Way, &Home)) {
    for (leave_running, chunked) in [(true, false), (false, true), (false, false), (true, true)] {
        let way = Way { leave_running, chunked };
        println!("{way:?}"); // shown if the test fails
        test(way, &Home::new());
    }
}

impl Way {
    pub(crate) fn capture(self, home: &Home, pids: impl IntoIterator<Item = i32>) -> ProcsCapture {
        let capture = home.capture(pids).leave_running(self.leave_running);
        if self.chunked { capture.chunked(Chunking::default()) } else { capture }
    }

    /// Captures the program, and sees to its end.
    #[track_caller]
    pub(crate) fn captured(self, home: &Home, program: Program) -> (FsBlobStore, Digest256) {
        let (store, pid) = (home.store(), program.pid());
        let digest = self.capture(home, [pid]).capture(&store).or_explain();
        home.assert_staging_empty();
        program.end();
        (store, digest)
    }

    /// Captures the program, and revives it on new pipes.
    #[track_caller]
    pub(crate) fn go_back(self, home: &Home, program: Program) -> Revived {
        let (store, digest) = self.captured(home, program);
        on_pipes(home.restore(), &store, &digest)
    }
}

/// Revives a capture of one tree on new pipes, with nothing for its standard error.
#[track_caller]
pub(crate) fn on_pipes(restore: ProcsRestore, store: &FsBlobStore, digest: &Digest256) -> Revived {
    on_pipes_warned(restore, store, digest).0
}

/// The same, with the warnings.
#[track_caller]
pub(crate) fn on_pipes_warned(
    restore: ProcsRestore,
    store: &FsBlobStore,
    digest: &Digest256,
) -> (Revived, Vec<Warning>) {
    let (talk, input, output) = Talk::through_pipes();
    let errors = File::create("/dev/null").unwrap();
    let restore = restore.stdin(input).stdout(output).stderr(errors);
    let foresight = restore.preflight(store, digest).or_explain();
    let mut restored = restore.restore(store, digest).or_explain();
    assert_eq!(foresight.blocks, [], "the restore succeeded");
    let warnings = std::mem::take(&mut restored.warnings);
    (Revived::new(only_tree(restored), talk), warnings)
}

#[track_caller]
pub(crate) fn only_tree(mut restored: Restored) -> criu_rpc::Tree {
    assert_eq!(restored.trees.len(), 1);
    restored.trees.remove(0)
}

/// A program that was started by this one.
#[derive(Debug)]
pub(crate) struct Program {
    root: Option<Child>,
    pub(crate) talk: Talk,
}

impl Program {
    /// Starts a script of bash in a session of its own, on pipes.
    #[track_caller]
    pub(crate) fn bash(script: &str) -> Program {
        Program::on_pipes(Command::new("bash").args(["-c", script]))
    }

    /// Starts a command in a session of its own, with pipes as its standard input and output, and
    /// nothing for its standard error.
    #[track_caller]
    pub(crate) fn on_pipes(command: &Command) -> Program {
        Program::with(command, None, None, Stdio::null())
    }

    /// The same, with this file for its standard error.
    #[track_caller]
    pub(crate) fn with_errors(command: &Command, errors: File) -> Program {
        Program::with(command, None, None, errors.into())
    }

    /// The same, with these files for its standard output and standard error.
    #[track_caller]
    pub(crate) fn with_streams(command: &Command, output: File, errors: File) -> Program {
        Program::with(command, None, Some(output), errors.into())
    }

    /// The same, with a file for its standard input or output, maybe.
    #[track_caller]
    pub(crate) fn between(command: &Command, input: Option<File>, output: Option<File>) -> Program {
        Program::with(command, input, output, Stdio::null())
    }

    /// The same, with any of the streams given.
    #[track_caller]
    pub(crate) fn with(command: &Command, input: Option<File>, output: Option<File>, errors: Stdio) -> Program {
        let mut command = in_own_session(command);
        let command = command.stdin(input.map_or(Stdio::piped(), Stdio::from));
        let command = command.stdout(output.map_or(Stdio::piped(), Stdio::from)).stderr(errors);
        let mut root = command.spawn().unwrap();
        // Without one of the two there is a new one in its place, without a process at its other
        // end.
        let (from, to) = crate::talk::pipe();
        let to = root.stdin.take().map_or(to, |input| std::os::fd::OwnedFd::from(input).into());
        let from = root.stdout.take().map_or(from, |output| std::os::fd::OwnedFd::from(output).into());
        Program { root: Some(root), talk: Talk::new(to, from) }
    }

    /// Starts a command in a terminal, as an agent does: it leads a session, which the terminal
    /// controls.
    #[track_caller]
    pub(crate) fn in_terminal(terminal: &Terminal, command: &Command) -> Program {
        let [.., errors] = terminal.streams();
        Program::in_terminal_with_errors(terminal, command, errors)
    }

    /// The same, with this file for its standard error.
    #[track_caller]
    pub(crate) fn in_terminal_with_errors(terminal: &Terminal, command: &Command, errors: File) -> Program {
        let mut session = Command::new("/proc/self/exe");
        session.args(["--session", "--terminal"]).arg(command.get_program()).args(command.get_args());
        let [input, output, _] = terminal.streams();
        let root = session.stdin(input).stdout(output).stderr(errors).spawn().unwrap();
        Program { root: Some(root), talk: terminal.talk() }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.root.as_ref().map(|root| i32::try_from(root.id()).unwrap()).unwrap()
    }

    /// Ends it with its descendants, if it has not ended, and waits until nothing is left of its
    /// session.
    #[track_caller]
    pub(crate) fn end(mut self) {
        let session = self.pid();
        self.end_now();
        wait_until(&format!("session {session} is gone"), || !members(session));
    }

    fn end_now(&mut self) {
        let Some(mut root) = self.root.take() else { return };
        let _ = criu_rpc::kill_tree(root.id()); // it may have ended
        root.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end_now();
    }
}

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: File,
    pub(crate) side: File,
}

impl Terminal {
    pub(crate) fn new() -> Terminal {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap();
        let no_control = OFlag::O_NOCTTY.bits();
        let side = File::options().read(true).write(true).custom_flags(no_control).open(name).unwrap();
        Terminal { master: std::os::fd::AsFd::as_fd(&master).try_clone_to_owned().unwrap().into(), side }
    }

    /// Its slave, for each standard stream.
    pub(crate) fn streams(&self) -> [File; 3] {
        [(); 3].map(|()| self.side.try_clone().unwrap())
    }

    pub(crate) fn talk(&self) -> Talk {
        Talk::new(self.master.try_clone().unwrap(), self.master.try_clone().unwrap())
    }

    /// Revives a capture of one tree in this terminal.
    #[track_caller]
    pub(crate) fn revive(&self, restore: ProcsRestore, store: &FsBlobStore, digest: &Digest256) -> Revived {
        let [input, output, errors] = self.streams();
        let restored = restore.stdin(input).stdout(output).stderr(errors).restore(store, digest);
        Revived::new(only_tree(restored.or_explain()), self.talk())
    }
}

/// Returns true if a session has members, be they zombies.
fn members(session: i32) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    let sessions = stats.filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse::<i32>().ok());
    sessions.into_iter().any(|one| one == session)
}

/// The command, as the leader of a session of its own.
fn in_own_session(command: &Command) -> Command {
    let mut session = Command::new("/proc/self/exe");
    session.arg("--session").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        value.map(|value| session.env(name, value));
    }
    session
}

/// Becomes the program that the words name, in a session of its own. With `--terminal` first, its
/// standard input is what controls the session.
pub(crate) fn main(words: &[String]) {
    nix::unistd::setsid().unwrap();
    let words = match words {
        [first, rest @ ..] if first == "--terminal" => {
            // The first terminal that a session's leader opens becomes the session's.
            let name = nix::unistd::ttyname(std::io::stdin()).unwrap();
            drop(File::options().read(true).write(true).open(name).unwrap());
            rest
        }
        words => words,
    };
    panic!("{}", Command::new(&words[0]).args(&words[1..]).exec());
}
