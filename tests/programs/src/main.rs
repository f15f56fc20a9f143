//! Starts real programs as an agent would, captures each of them left running and ended, and
//! revives it. Then it asks a question that only the right memory can answer. Run it by
//! `scripts/test-programs`, which installs the programs and describes the arguments. Start reading
//! at [`Stage`](stage::Stage).

mod failure;
mod options;
mod place;
mod processes;
mod programs;
mod stage;
mod table;
mod talk;

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use failure::{Failure, Result};
use options::Extra;
use programs::Program;
use stage::{Mode, Stage};
use table::Row;

/// The command line.
#[derive(Debug, Default)]
struct Wishes {
    names: Vec<String>,
    tolerate_missing: bool,
    write: Option<PathBuf>,
    list: bool,
    rounds: u32,
    /// A program that fails runs once more, and only the second run counts.
    again: bool,
}

fn main() -> ExitCode {
    let wishes = match wishes() {
        Ok(wishes) => wishes,
        Err(problem) => {
            eprintln!("test-programs: {problem}");
            return ExitCode::from(2);
        }
    };
    let programs = programs::all();
    if wishes.list {
        for program in &programs {
            println!("{}", program.name);
        }
        return ExitCode::SUCCESS;
    }
    match run(&programs, &wishes) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("test-programs: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn wishes() -> std::result::Result<Wishes, String> {
    let mut wishes = Wishes { rounds: 1, ..Wishes::default() };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--tolerate-missing" => wishes.tolerate_missing = true,
            "--again" => wishes.again = true,
            "--list" => wishes.list = true,
            "--write" => {
                wishes.write =
                    Some(arguments.next().ok_or("--write needs the file to write the table into")?.into());
            }
            "--rounds" => {
                let rounds = arguments.next().and_then(|rounds| rounds.parse().ok());
                wishes.rounds = rounds.ok_or("--rounds needs a number")?;
            }
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            name => wishes.names.push(name.to_owned()),
        }
    }
    let known = programs::all();
    let unknown = |name: &&String| !known.iter().any(|program| program.name == **name);
    match wishes.names.iter().find(unknown) {
        Some(name) => Err(format!("there is no program {name:?}; --list names them")),
        None => Ok(wishes),
    }
}

fn run(programs: &[Program], wishes: &Wishes) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::wrong("criu needs root"));
    }
    let folder = Folder::new()?;
    processes::clean_up_on_signals(folder.0.clone())?;
    processes::adopt_orphans()?;

    let wanted =
        |program: &&Program| wishes.names.is_empty() || wishes.names.iter().any(|name| name == program.name);
    let (mut rows, mut flaky) = (Vec::new(), Vec::new());
    for program in programs.iter().filter(wanted) {
        for _ in 0..wishes.rounds {
            let mut row = test(program, &folder.0);
            if wishes.again && row.failed() {
                row = test(program, &folder.0);
                flaky.extend((!row.failed()).then_some(program.name));
            }
            rows.push(row);
        }
    }
    println!("\n{}", table::markdown(&rows));
    if !flaky.is_empty() {
        println!("FLAKY, each of them a bug of the crate or of its test: {}", flaky.join(", "));
    }
    if let Some(file) = &wishes.write {
        table::write(file, &rows)?;
    }
    Ok(verdict(&rows, wishes))
}

fn verdict(rows: &[Row], wishes: &Wishes) -> ExitCode {
    let missing = rows.iter().filter(|row| row.missing.is_some()).count();
    let failed = rows.iter().filter(|row| row.failed()).count();
    let passed = rows.iter().filter(|row| row.passed()).count();
    let known = rows.len() - missing - failed - passed;
    println!("{known} with known limits, {missing} not installed");
    println!("{passed} passed, {failed} failed");
    match (failed, missing) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) if wishes.tolerate_missing => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(4),
        _ => ExitCode::FAILURE,
    }
}

/// Captures a program in both ways, and prints a line for each.
fn test(program: &Program, folder: &Path) -> Row {
    let missing: Vec<_> =
        program.needs.iter().copied().filter(|need| !programs::is_installed(need)).collect();
    if !missing.is_empty() {
        println!("{}: NOT INSTALLED: {}", program.name, missing.join(", "));
        return Row::missing(program.name, missing.join(", "));
    }
    let began = Instant::now();
    let mut extras = Vec::new();
    let running = with_options(program, folder, Mode::Running, &mut extras);
    let ended = with_options(program, folder, Mode::Ended, &mut extras);
    for (mode, outcome) in [("left running", &running), ("ended", &ended)] {
        match outcome {
            Ok(frozen) => {
                println!("{}, {mode}: ok, frozen for {}", program.name, table::milliseconds(*frozen))
            }
            Err(failure) => println!("{}, {mode}: FAILED: {failure}", program.name),
        }
    }
    if let (Ok(_), Ok(_), Some(limit)) = (&running, &ended, program.limit) {
        println!("{}: came back, although: {limit}", program.name);
    }
    println!("{}: {:.1} s", program.name, began.elapsed().as_secs_f64());
    Row {
        name: program.name,
        missing: None,
        limit: program.limit,
        extras,
        running: Some(running),
        ended: Some(ended),
    }
}

/// Captures a program in one way: first without options, then with those that the errors name.
fn with_options(
    program: &Program,
    folder: &Path,
    mode: Mode,
    extras: &mut Vec<Extra>,
) -> Result<Option<Duration>> {
    let mut tries = 0;
    loop {
        let mut stage = Stage::new(folder, program.name, mode, extras)?;
        let result = (program.play)(&mut stage).and_then(|()| stage.end());
        processes::stop_if_ending();
        match result {
            Err(failure) if failure.is_of_others() && tries < 3 => {
                println!("{}: again, because: {failure}", program.name);
                tries += 1;
            }
            Err(Failure::Refused(_, error)) if cure(&error, extras).is_some() => {
                let extra = cure(&error, extras).expect("because it was there just now");
                println!("{}: again with {}, because: {error}", program.name, extra.name());
                extras.push(extra);
            }
            Err(failure) => return Err(failure),
            Ok(()) => return Ok(stage.frozen),
        }
    }
}

/// Returns the option that cures the error, if it was not set.
fn cure(error: &criu_rpc::Error, extras: &[Extra]) -> Option<Extra> {
    Extra::cure(error).filter(|extra| !extras.contains(extra))
}

/// The private folder of this run.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let folder = env::temp_dir().join(format!("test-programs-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if env::var_os("TEST_PROGRAMS_KEEP").is_some() {
            eprintln!("test-programs: kept {}", self.0.display());
        } else if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("test-programs: cannot remove {}: {error}", self.0.display());
        }
    }
}
