//! [`Stage`]: one run of one program. It starts the program and captures it at the moment that the
//! test names. Then the test checks the original and the revived copy.

use std::{
    cell::Cell,
    fmt::Write as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Chunking, DumpOptions, FsBlobStore, ProcsCapture, ProcsRestore, RestoreOptions, Stored, Tree, Warning,
    kill_tree,
};

use crate::{
    failure::{Failure, Result},
    options::Extra,
    place::{Place, Snapshot},
    processes,
    talk::{Kind, PATIENCE, Streams, Talk},
};

/// The two ways to capture a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The program goes on, is asked, ends, and comes back.
    Running,
    /// The capture ends the program, and it comes back.
    Ended,
}

/// One run of one program.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) place: Place,
    mode: Mode,
    extras: Vec<Extra>,
    kind: Kind,
    actor: Option<Actor>,
    /// The time that the program was frozen.
    pub(crate) frozen: Option<Duration>,
}

/// The program, and the conversation with it.
#[derive(Debug)]
struct Actor {
    root: Root,
    talk: Talk,
}

/// The root process of the program's tree.
#[derive(Debug)]
enum Root {
    Started(Child),
    /// A process that the program left in the background, as a daemon.
    Daemon(i32),
    Revived(Tree),
}

impl Root {
    fn pid(&self) -> i32 {
        match self {
            Root::Started(child) => {
                i32::try_from(child.id()).expect("because the kernel's pids are positive integers")
            }
            Root::Daemon(pid) => *pid,
            Root::Revived(tree) => tree.pid().as_raw(),
        }
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        match self {
            Root::Started(child) => Ok(child.try_wait()?),
            Root::Daemon(pid) if processes::lives(*pid) => Ok(None),
            Root::Daemon(_) => Ok(Some(ExitStatus::default())),
            Root::Revived(tree) => {
                tree.wait_timeout(Duration::ZERO).map_err(|error| Failure::Refused("wait", Box::new(error)))
            }
        }
    }
}

impl Stage {
    pub(crate) fn new(parent: &Path, name: &str, mode: Mode, extras: &[Extra]) -> Result<Stage> {
        let place = Place::new(parent, name)?;
        Ok(Stage { place, mode, extras: extras.to_vec(), kind: Kind::Pipes, actor: None, frozen: None })
    }

    /// Builds a command as an agent runs it: in the working directory, with a plain environment. It
    /// leads a session of its own, with the terminal as the session's.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("env");
        // This process blocks some signals, and may have inherited ignored ones.
        command.args(["--default-signal", "setsid"]);
        if self.kind == Kind::Terminal {
            command.arg("--ctty");
        }
        command.args(words);
        self.set_environment(&mut command);
        command
    }

    fn set_environment(&self, command: &mut Command) {
        command.env_clear().current_dir(self.place.work());
        for name in ["PATH", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        for (home, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if let (None, Some(own)) = (std::env::var_os(home), std::env::var_os("HOME")) {
                command.env(home, Path::new(&own).join(folder));
            }
        }
        command
            .env("HOME", self.place.home())
            .env("TMPDIR", self.place.home())
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm")
            .env("PS1", "prompt> ");
    }

    /// Starts the program, with standard streams of this kind.
    pub(crate) fn start(&mut self, kind: Kind, words: &[&str]) -> Result {
        self.kind = kind;
        processes::stop_if_ending();
        let (talk, [input, output, errors]) = Talk::open(kind)?;
        let mut command = self.command(words);
        let child = command.stdin(input).stdout(output).stderr(errors).spawn();
        let child = child.map_err(|error| Failure::wrong(format!("start {words:?}: {error}")))?;
        self.actor = Some(Actor { root: Root::Started(child), talk });
        Ok(())
    }

    /// Sets a daemon, left behind by the started program, as the process to capture.
    pub(crate) fn daemon(&mut self, pid: i32) -> Result {
        self.actor()?.root = Root::Daemon(pid);
        Ok(())
    }

    /// Runs a command beside the program, as a tool of the agent, and returns its output.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        processes::stop_if_ending();
        let mut command = Command::new("env");
        command.arg("--default-signal").args(words).stdin(Stdio::null());
        self.set_environment(&mut command);
        let output = command.output().map_err(|error| Failure::wrong(format!("run {words:?}: {error}")))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Failure::wrong(format!("{words:?} ended with {}: {said}{errors}", output.status)));
        }
        Ok(said)
    }

    fn actor(&mut self) -> Result<&mut Actor> {
        self.actor.as_mut().ok_or_else(|| Failure::wrong("no program was started"))
    }

    pub(crate) fn pid(&mut self) -> Result<i32> {
        Ok(self.actor()?.root.pid())
    }

    /// Types this text.
    pub(crate) fn say(&mut self, text: &str) -> Result {
        self.actor()?.talk.say(text)
    }

    /// Types this line.
    pub(crate) fn line(&mut self, text: &str) -> Result {
        self.say(&format!("{text}\n"))
    }

    /// Waits for this text in the output since the last expected text.
    pub(crate) fn expect(&mut self, text: &str) -> Result {
        self.actor()?.talk.expect(text)
    }

    /// Types a line and waits for this text.
    pub(crate) fn ask(&mut self, line: &str, answer: &str) -> Result {
        self.line(line)?;
        self.expect(answer)
    }

    /// Waits for this text, and returns the rest of its line.
    pub(crate) fn expect_line(&mut self, before: &str) -> Result<String> {
        self.actor()?.talk.expect_line(before)
    }

    /// Waits for this text, and returns the number after it.
    pub(crate) fn expect_number(&mut self, before: &str) -> Result<u64> {
        let line = self.expect_line(before)?;
        line.trim()
            .parse()
            .map_err(|_| Failure::wrong(format!("expected a number after {before:?}, found {line:?}")))
    }

    /// Waits until the program ends with success, and returns the rest of its output.
    pub(crate) fn output_to_end(&mut self) -> Result<String> {
        self.ends_well()?;
        self.actor()?.talk.rest_to_end()
    }

    /// Fails unless the output has this text.
    pub(crate) fn assert_has(&mut self, output: &str, wanted: &str) -> Result {
        if output.contains(wanted) {
            return Ok(());
        }
        let said = self.actor()?.talk.said();
        Err(Failure::wrong(format!("expected {wanted:?} in {output:?}{said}")))
    }

    /// Fails unless all answers are equal.
    pub(crate) fn assert_equal(&mut self, answers: &[String]) -> Result {
        match answers.windows(2).find(|pair| pair[0] != pair[1]) {
            Some(pair) => Err(Failure::wrong(format!("expected {:?}, found {:?}", pair[0], pair[1]))),
            None => Ok(()),
        }
    }

    /// Waits until a process of the program that runs this command has used so many seconds of
    /// processor time.
    pub(crate) fn wait_for_work(&mut self, name: &str, seconds: f64) -> Result {
        let pid = self.pid()?;
        self.wait_until(&format!("{name} has worked for {seconds} s"), |_| {
            let mut all = processes::descendants(pid);
            all.push(pid);
            let works = |pid: &i32| {
                processes::name(*pid).as_deref() == Some(name)
                    && processes::processor_time(*pid).is_some_and(|time| time >= seconds)
            };
            Ok(all.iter().any(works))
        })
    }

    /// Waits until so many processes of the program run this command.
    pub(crate) fn wait_for_command(&mut self, name: &str, count: usize) -> Result {
        let pid = self.pid()?;
        self.wait_until(&format!("{count} processes run {name}"), |_| {
            let named = |pid: &i32| processes::name(*pid).as_deref() == Some(name);
            Ok(processes::descendants(pid).iter().filter(|pid| named(pid)).count() >= count)
        })
    }

    /// Waits until the program has slept for a moment, as one does that waits for input.
    pub(crate) fn wait_for_sleep(&mut self) -> Result {
        const LOOKS: u32 = 10;
        let pid = self.pid()?;
        let looks = Cell::new(0);
        self.wait_until("the program sleeps", |_| {
            looks.set(if processes::sleeps(pid) { looks.get() + 1 } else { 0 });
            Ok(looks.get() >= LOOKS)
        })
    }

    /// Waits until the condition holds.
    pub(crate) fn wait_until(&mut self, what: &str, so: impl Fn(&Stage) -> Result<bool>) -> Result {
        let deadline = Instant::now() + PATIENCE;
        while !so(self)? {
            if Instant::now() > deadline {
                let said = self.actor()?.talk.said();
                return Err(Failure::wrong(format!("waited in vain until {what}{said}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until the program ends, and fails unless it ends with success.
    pub(crate) fn ends_well(&mut self) -> Result {
        let actor = self.actor()?;
        let deadline = Instant::now() + 4 * PATIENCE; // some have much to do
        loop {
            match actor.root.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    // Its last output may still be in the pipe.
                    thread::sleep(Duration::from_millis(50));
                    return Err(Failure::wrong(format!("it ended with {status}{}", actor.talk.said())));
                }
                None if Instant::now() > deadline => {
                    return Err(Failure::wrong(format!("it did not end{}", actor.talk.said())));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Captures the program, and lets `look` check the original, if it goes on, and the revived
    /// copy. The program's files are the same each time.
    pub(crate) fn moment(&mut self, mut look: impl FnMut(&mut Stage) -> Result) -> Result {
        let store = FsBlobStore::open(self.place.store())
            .map_err(|error| Failure::Refused("open", Box::new(error)))?;
        let (stored, files) = self.capture(&store)?;
        self.frozen = stored.frozen;
        if let Some(files) = files {
            look(self).map_err(|failure| failure.context("original after the capture"))?;
            self.end()?;
            files.put_back()?;
        } else {
            self.reap()?;
        }
        self.revive(&store, &stored)?;
        look(self).map_err(|failure| failure.context("revived"))?;
        self.end()
    }

    /// Captures until no file changes meanwhile. Then the copy of the files is of the same moment.
    fn capture(&mut self, store: &FsBlobStore) -> Result<(Stored, Option<Snapshot>)> {
        let options =
            self.extras.iter().fold(DumpOptions::default(), |options, extra| extra.at_dump(options));
        let pid = self.pid()?;
        let capture = ProcsCapture::new([pid])
            .chunked(Chunking::default())
            .options(options)
            .deadline(PATIENCE)
            .leave_running(self.mode == Mode::Running);
        for _ in 0..TRIES {
            processes::stop_if_ending();
            if let Some(status) = self.actor()?.root.try_wait()? {
                let said = self.actor()?.talk.said();
                return Err(Failure::wrong(format!("it ended with {status} before it was captured{said}")));
            }
            let files = self.place.snapshot()?;
            let stored = match capture.run(store) {
                Ok(stored) => stored,
                Err(error) => return Err(Failure::Refused("capture", Box::new(error))),
            };
            if self.mode == Mode::Ended {
                return Ok((stored, None));
            }
            if files.is_current()? {
                return Ok((stored, Some(files)));
            }
        }
        Err(Failure::wrong(format!("its files changed during each of {TRIES} captures")))
    }

    fn revive(&mut self, store: &FsBlobStore, stored: &Stored) -> Result {
        processes::stop_if_ending();
        let (talk, [input, output, errors]): (Talk, Streams) = Talk::open(self.kind)?;
        let options =
            self.extras.iter().fold(RestoreOptions::default(), |options, extra| extra.at_restore(options));
        let restore = ProcsRestore::new()
            .options(options)
            .deadline(PATIENCE)
            .wait_for_pids(PATIENCE)
            .stdin(input)
            .stdout(output)
            .stderr(errors);
        let restored = restore.restore(store, &stored.digest);
        let mut restored = restored.map_err(|error| Failure::Refused("restore", Box::new(error)))?;
        let tree = restored.trees.pop().ok_or_else(|| Failure::wrong("the restore gave no tree"))?;
        self.actor = Some(Actor { root: Root::Revived(tree), talk });
        // The original still writes to its files, and the kernel marks its locks in mapped ones
        // when it ends.
        restored.warnings.retain(|warning| !matches!(warning, Warning::FileChanged { .. }));
        if !restored.warnings.is_empty() {
            let mut words = String::from("the restore warns");
            for warning in &restored.warnings {
                let _ = write!(words, ": {warning}");
            }
            return Err(Failure::wrong(words));
        }
        Ok(())
    }

    /// Reaps the root that the capture has ended.
    fn reap(&mut self) -> Result {
        let mut actor = self.actor.take().ok_or_else(|| Failure::wrong("no program was started"))?;
        let deadline = Instant::now() + PATIENCE;
        while actor.root.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(Failure::wrong("the capture was to end it, and it lives"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        processes::reap_orphans();
        Ok(())
    }

    /// Kills the program with all its processes, and reaps them.
    pub(crate) fn end(&mut self) -> Result {
        let Some(mut actor) = self.actor.take() else { return Ok(()) };
        let pid = actor.root.pid();
        let ended = actor.root.try_wait()?.is_some();
        let killed = match &actor.root {
            _ if ended => Ok(()), // what it left behind has become ours
            Root::Revived(tree) => tree.kill(),
            Root::Started(_) | Root::Daemon(_) => kill_tree(pid),
        };
        match &mut actor.root {
            Root::Started(child) => drop(child.wait()),
            Root::Daemon(_) => {}
            Root::Revived(tree) => drop(tree.wait_timeout(PATIENCE)),
        }
        processes::end_descendants()?;
        killed.map_err(|error| Failure::Refused("kill", Box::new(error)))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            eprintln!("test-programs: {failure}");
        }
    }
}

/// The number of attempts to capture a program whose files change meanwhile.
const TRIES: u32 = 20;
