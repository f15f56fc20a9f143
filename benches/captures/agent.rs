//! A Python agent at work, captured after every step: disk space and time of all its captures.
//!
//! All keepers capture the same agent at the same steps, in turns.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use criu_rpc::{BlobStore, FsBlobStore, Pid, Stored};

use crate::{
    ours,
    places::{Folder, disk_use, succeed},
    run::{Result, Settings},
    table::{Goal, Line, Unit},
    theirs::{self, timed},
    victim::Victim,
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let (mut ours, mut theirs) = (Vec::new(), vec![Kept::by(Ours::new(ours::v1)?, "v1")]);
    let mut lines = Vec::new();
    ours.push(Kept::by(Ours::new(ours::v2)?, "v2"));
    match env::var_os(COMPRESSED) {
        Some(program) => ours.push(Kept::by(Elsewhere::start(Path::new(&program))?, "v2 compressed")),
        None => lines.push(Line::left_out("agent, v2 compressed", format!("{COMPRESSED} names no program"))),
    }
    for tool in [RESTIC, BORG] {
        match Backup::of(tool) {
            Ok(backup) => theirs.push(Kept::by(backup, tool.name)),
            Err(error) => lines.push(Line::left_out(format!("agent, against {}", tool.name), error.to_string())),
        }
    }
    lines.extend(compare(settings.steps, ours, theirs)?);
    match env::var_os(PF_CORE) {
        Some(program) => {
            let ours = vec![Kept::by(Ours::new(ours::v2)?, "v2")];
            let theirs = vec![Kept::by(Elsewhere::start(Path::new(&program))?, "v2, pf-core's store")];
            lines.extend(compare(settings.steps.min(PF_CORE_STEPS), ours, theirs)?);
        }
        None => {
            lines.push(Line::left_out("agent, against pf-core's store", format!("{PF_CORE} names no program")))
        }
    }
    Ok(lines)
}

/// Captures an agent with all keepers after every step, and compares each of ours with each of
/// theirs.
fn compare(steps: usize, mut ours: Vec<Kept>, mut theirs: Vec<Kept>) -> Result<Vec<Line>> {
    let mut agent = Victim::python(&Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/captures/agent.py"))?;
    for step in 1..=steps {
        let state = agent.ask("step")?;
        if step % 10 == 0 {
            eprintln!("agent: {state}");
        }
        for kept in ours.iter_mut().chain(&mut theirs) {
            kept.seconds += kept.keeper.keep(agent.pid())?;
        }
    }
    drop(agent);
    let pairs = ours.iter().flat_map(|ours| theirs.iter().map(move |theirs| (ours, theirs)));
    let mut lines = Vec::new();
    for (ours, theirs) in pairs {
        let what = |kind: &str| (format!("agent, {steps} captures, {kind}, {}", ours.name), theirs.name);
        let bytes = (disk_use(theirs.keeper.place())? as f64, disk_use(ours.keeper.place())? as f64);
        lines.push(Line::new(what("on disk"), Unit::MiB, bytes, Goal::Less));
        lines.push(Line::new(what("in all"), Unit::Seconds, (theirs.seconds, ours.seconds), Goal::Less));
    }
    Ok(lines)
}

/// The agent's memory in MiB, rounded up.
const AGENT: usize = 32;

/// Environment variable with the path of this program, built with compression.
const COMPRESSED: &str = "CRIU_RPC_BENCH_COMPRESSED";

/// Environment variable with the path of the built `examples/pf-core-adapter`. pf-core's store in a
/// folder compresses with level 19 of zstd.
const PF_CORE: &str = "CRIU_RPC_BENCH_PF_CORE";

/// Level 19 takes minutes for the new data of the first step, and a minute for the next.
const PF_CORE_STEPS: usize = 2;

/// A keeper and the seconds that it has used.
struct Kept {
    name: &'static str,
    keeper: Box<dyn Keeper>,
    seconds: f64,
}

impl Kept {
    fn by(keeper: impl Keeper + 'static, name: &'static str) -> Kept {
        Kept { name, keeper: Box::new(keeper), seconds: 0.0 }
    }
}

/// Keeps successive states of a process.
trait Keeper {
    /// Keeps the current state of the process, and returns the seconds that it took.
    fn keep(&mut self, pid: Pid) -> Result<f64>;

    /// The folder with everything that was kept.
    fn place(&self) -> &Path;
}

/// Captures into a store.
struct Ours {
    capture: fn(Pid, &dyn BlobStore) -> Result<Stored>,
    store: FsBlobStore,
    folder: Folder,
}

impl Ours {
    fn new(capture: fn(Pid, &dyn BlobStore) -> Result<Stored>) -> Result<Ours> {
        let folder = Folder::temporary()?;
        Ok(Ours { capture, store: ours::open(folder.path())?, folder })
    }
}

impl Keeper for Ours {
    fn keep(&mut self, pid: Pid) -> Result<f64> {
        timed(AGENT, || (self.capture)(pid, &self.store)).map(|(_, seconds)| seconds)
    }

    fn place(&self) -> &Path {
        self.folder.path()
    }
}

/// Captures of version 2 by another build of this program, or by another program with the interface
/// of `keeper`. Drop kills and reaps it.
struct Elsewhere {
    program: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    folder: Folder,
}

impl Elsewhere {
    fn start(program: &Path) -> Result<Elsewhere> {
        let folder = Folder::temporary()?;
        let mut command = Command::new(program);
        command.arg("--keeper").arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn()?;
        let (to, from) = (program.stdin.take(), program.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { unreachable!("both are pipes") };
        Ok(Elsewhere { program, to, from: BufReader::new(from), folder })
    }
}

impl Keeper for Elsewhere {
    fn keep(&mut self, pid: Pid) -> Result<f64> {
        let (answer, seconds) = timed(AGENT, || {
            writeln!(self.to, "{pid}")?;
            let mut answer = String::new();
            self.from.read_line(&mut answer)?;
            Ok(answer)
        })?;
        if answer.is_empty() { Err("the other program has failed".into()) } else { Ok(seconds) }
    }

    fn place(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// `--keeper STORE`: captures each pid that a line names, and answers with a line.
pub(crate) fn keeper(arguments: &[String]) -> Result<()> {
    let store = ours::open(arguments.first().ok_or("into which store?")?)?;
    for pid in io::stdin().lines() {
        let pid: i32 = pid?.parse()?;
        println!("{}", ours::v2(pid.into(), &store)?.digest);
    }
    Ok(())
}

/// A backup tool: each run stores what is new in a folder.
#[derive(Clone, Copy)]
struct Tool {
    name: &'static str,
    program: &'static str,
    init: &'static [&'static str],
    /// The arguments before the number of the archive and the folder.
    keep: &'static [&'static str],
}

const RESTIC: Tool = Tool {
    name: "criu dump, restic",
    program: "restic",
    init: &["init", "--quiet"],
    keep: &["backup", "--quiet", "--tag"],
};

const BORG: Tool = Tool {
    name: "criu dump, borg",
    program: "borg",
    init: &["init", "--encryption", "none"],
    keep: &["create", "--comment"],
};

/// `criu dump` into a folder, which a backup tool then stores in its repository.
struct Backup {
    tool: Tool,
    repository: PathBuf,
    images: PathBuf,
    step: u32,
    folder: Folder,
}

impl Backup {
    fn of(tool: Tool) -> Result<Backup> {
        let folder = Folder::temporary()?;
        let repository = folder.path().join("repository");
        let backup = Backup { tool, repository, images: folder.path().join("images"), step: 0, folder };
        succeed(backup.command().args(tool.init).args(backup.named("")))?;
        Ok(backup)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.tool.program);
        let own = |name: &str| self.folder.path().join(name);
        command
            .env("RESTIC_PASSWORD", "benchmark")
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_CACHE_DIR", own("cache"))
            .env("BORG_BASE_DIR", own("borg"))
            .env("BORG_REPO", &self.repository)
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    }

    /// The name of the archive, which borg wants beside `BORG_REPO`.
    fn named(&self, name: &str) -> Option<String> {
        (self.tool.program == "borg").then(|| format!("::{name}"))
    }
}

impl Keeper for Backup {
    fn keep(&mut self, pid: Pid) -> Result<f64> {
        self.step += 1;
        let step = self.step.to_string();
        std::fs::create_dir(&self.images)?;
        let ((), seconds) = timed(AGENT, || {
            theirs::dump(pid, &self.images)?;
            let mut command = self.command();
            command.args(self.tool.keep).arg(&step).args(self.named(&step)).arg(&self.images);
            succeed(&mut command)
        })?;
        std::fs::remove_dir_all(&self.images)?;
        Ok(seconds)
    }

    fn place(&self) -> &Path {
        &self.repository
    }
}
