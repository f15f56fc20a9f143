//! The command line, and the groups of rows in turn.

use std::{env, error::Error, process::ExitCode, time::Instant};

use criu_rpc::Criu;

use crate::{
    agent, changed, frozen, machine, peak, restore, small,
    table::{self, Line},
    victim, whole,
};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures some rows.
type Group = fn(&Settings) -> Result<Vec<Line>>;

/// A program that gets these arguments.
type Part = fn(&[String]) -> Result<()>;

/// The groups of rows, by the names that select them.
const GROUPS: &[(&str, Group)] = &[
    ("frozen", frozen::lines),
    ("whole", whole::lines),
    ("changed", changed::lines),
    ("small", small::lines),
    ("restore", restore::lines),
    ("peak", peak::lines),
    ("agent", agent::lines),
];

/// The other roles of this program when it starts itself.
const PARTS: &[(&str, Part)] =
    &[("--victim", victim::main), ("--one-capture", peak::main), ("--keeper", agent::keeper), ("--touch", machine::main)];

const USAGE: &str = "\
usage: [ROW …] [--SETTING VALUE …]
  rows      frozen whole changed small restore peak agent; without any, all
  --mib N   memory of the large tree (1024)       --small N   of the small one (10)
  --peak N  of the largest (4096)                 --runs N    runs of each, of which the median counts (5)
  --steps N steps of the agent (100)
  --store memory   where it can be, captures go into a store in memory: what is left is not the store's time";

/// The sizes, counts and rows to measure.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) mib: usize,
    pub(crate) small: usize,
    pub(crate) peak: usize,
    pub(crate) runs: usize,
    pub(crate) steps: usize,
    pub(crate) in_memory: bool,
    groups: Vec<String>,
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let part = PARTS.iter().find(|(name, _)| arguments.first().is_some_and(|first| first == name));
    let done = match part {
        Some((_, part)) => part(&arguments[1..]).map(|()| true),
        None => Settings::of(&arguments).and_then(|settings| measure(&settings)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Measures everything, and prints the table. Returns false if a row could not be measured.
fn measure(settings: &Settings) -> Result<bool> {
    let criu = Criu::new().version()?;
    let before = machine::stolen_and_worked();
    let (mut lines, mut all) = (Vec::new(), true);
    for (name, group) in GROUPS {
        if !settings.groups.is_empty() && !settings.groups.iter().any(|wanted| wanted == name) {
            continue;
        }
        let began = Instant::now();
        match group(settings) {
            Ok(more) => lines.extend(more),
            Err(error) => {
                all = false;
                lines.push(Line::left_out(*name, format!("FAILED: {}", explain(&*error))));
            }
        }
        eprintln!("{name}: took {:.0} s", began.elapsed().as_secs_f64());
    }
    let after = machine::stolen_and_worked();
    let (stolen, worked) = (after.0 - before.0, after.1 - before.1);
    println!("{}\n{settings}", machine::describe(&criu.to_string()));
    println!("{:.0} % of the processors' time was not given to this machine\n", 100.0 * stolen / (stolen + worked).max(1.0));
    print!("{}", table::render(&lines));
    Ok(all)
}

impl Settings {
    fn of(arguments: &[String]) -> Result<Settings> {
        let mut settings =
            Settings { mib: 1024, small: 10, peak: 4096, runs: 5, steps: 100, in_memory: false, groups: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let number = match argument.as_str() {
                "--mib" => &mut settings.mib,
                "--small" => &mut settings.small,
                "--peak" => &mut settings.peak,
                "--runs" => &mut settings.runs,
                "--steps" => &mut settings.steps,
                "--store" => {
                    settings.in_memory = arguments.next().is_some_and(|store| store == "memory");
                    continue;
                }
                group if GROUPS.iter().any(|(name, _)| *name == group) => {
                    settings.groups.push(group.to_owned());
                    continue;
                }
                _ => return Err(USAGE.into()),
            };
            let given = arguments.next().and_then(|value| value.parse().ok());
            *number = given.filter(|number| *number > 0).ok_or(USAGE)?;
        }
        Ok(settings)
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "medians of {} runs in turns (small: {}, peak: {})", self.runs, self.runs * 3, self.runs.min(3))?;
        if self.in_memory { write!(f, "; stores in memory, nothing is durable") } else { Ok(()) }
    }
}

/// Formats an error with all its causes on one line.
fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
