//! [`Victim`]: a process to capture. It does what a line tells it and answers with a line. This
//! program is the process, unless a script is.

use std::{
    env,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use criu_rpc::Pid;

use crate::run::Result;

/// A process to capture. Drop kills and reaps it. It also ends when its standard input ends.
#[derive(Debug)]
pub(crate) struct Victim {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts one with so much memory that does not compress.
    pub(crate) fn with_memory(mib: usize) -> Result<Victim> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--victim", &mib.to_string()]);
        Victim::start(command)
    }

    /// Starts a script, which puts itself into a session of its own.
    pub(crate) fn python(script: &Path) -> Result<Victim> {
        let mut command = Command::new("python3");
        // Makes all runs equal, and writes nothing beside the script.
        command.arg(script).env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1");
        Victim::start(command)
    }

    fn start(mut command: Command) -> Result<Victim> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
        let mut child = command.spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { unreachable!("both are pipes") };
        let mut victim = Victim { child, to, from: BufReader::new(from) };
        victim.hear()?;
        Ok(victim)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from(self.child.id())
    }

    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.to, "{line}")?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err("the victim has ended".into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `--victim MIB`. Commands: `scatter PAGES` rewrites single pages in many places, `stretch PAGES`
/// as many in a row.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    nix::unistd::setsid()?;
    let mut memory = Memory::filled(arguments.first().ok_or("how much memory?")?.parse()?);
    println!("ready");
    for line in io::stdin().lines() {
        let line = line?;
        match line.split_once(' ').ok_or("no such command")? {
            ("scatter", pages) => memory.scatter(pages.parse()?),
            ("stretch", pages) => memory.stretch(pages.parse()?),
            _ => return Err("no such command".into()),
        }
        println!("done");
    }
    black_box(memory);
    Ok(())
}

pub(crate) const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

struct Memory {
    words: Vec<u64>,
    /// The first word of the next page that is written.
    first: usize,
    random: Random,
}

impl Memory {
    fn filled(mib: usize) -> Memory {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let words: Vec<u64> = (0..mib << 17).map(|_| random.next()).collect();
        let first = words.as_ptr().align_offset(PAGE);
        Memory { words, first, random }
    }

    fn pages(&self) -> usize {
        (self.words.len() - self.first) / WORDS
    }

    fn rewrite(&mut self, page: usize) {
        let start = self.first + page * WORDS;
        self.words[start..start + WORDS].fill_with(|| self.random.next());
    }

    /// Rewrites one page in each of `count` equal parts.
    fn scatter(&mut self, count: usize) {
        let part = self.pages() / count;
        for start in (0..count).map(|number| number * part) {
            let page = start + self.random.below(part);
            self.rewrite(page);
        }
    }

    fn stretch(&mut self, count: usize) {
        let start = self.random.below(self.pages() - count);
        (start..start + count).for_each(|page| self.rewrite(page));
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        usize::try_from(self.next() % limit).unwrap_or(0)
    }
}
