//! An agent that works with two tools, captures them after each step, and takes them back to an
//! earlier step. `examples/container/run` runs it in a container.
//!
//! ```text
//! cargo run --example agent
//! ```
//!
//! The captures go into the folder `captures`, or `$CAPTURES`. criu needs root.

use std::{
    env,
    error::Error,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    process::{self, Child, Command, ExitCode},
};

use criu_rpc::{Chunking, Digest256, FsBlobStore, ProcsCapture, ProcsRestore, Stream, Tree};

/// Numbers its lines, and adds its numbers: each keeps its state in memory alone.
const NOTES: &str = r#"n=0; while read -r note; do n=$((n + 1)); echo "note $n: $note"; done"#;
const SUM: &str = r#"sum=0; while read -r number; do sum=$((sum + number)); echo "sum: $sum"; done"#;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<criu_rpc::Error>() {
                Some(error) => eprint!("error: {}", error.report()),
                None => eprintln!("error: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let store = FsBlobStore::open(env::var_os("CAPTURES").unwrap_or("captures".into()))?;
    let (mut notes, mut sum) = (Tool::start(NOTES)?, Tool::start(SUM)?);
    println!("agent {}: my tools are {} and {}", process::id(), notes.pid, sum.pid);

    let mut steps = Vec::new();
    for note in ["one", "two", "three", "four"] {
        println!("{:14} {}", notes.ask(note)?, sum.ask("10")?);
        steps.push((notes.capture(&store)?, sum.capture(&store)?));
    }

    println!("agent {}: back to \"two\"", process::id());
    let (notes_then, sum_then) = &steps[1];
    let (mut notes, mut sum) = (notes.back_to(&store, notes_then)?, sum.back_to(&store, sum_then)?);
    println!("{:14} {}", notes.ask("another three")?, sum.ask("5")?);
    for tool in [notes, sum] {
        let pid = tool.pid;
        println!("process {pid} ended: {}", tool.end()?);
    }
    Ok(())
}

/// A program that answers each line with a line.
struct Tool {
    pid: u32,
    input: PipeWriter,
    output: BufReader<PipeReader>,
    process: Process,
    capture: ProcsCapture,
}

/// The first process of a tool: started by this program, or revived.
enum Process {
    Started(Child),
    Revived(Tree),
}

impl Tool {
    fn start(program: &str) -> Result<Tool, Box<dyn Error>> {
        let ((tools_input, input), (output, tools_output)) = (io::pipe()?, io::pipe()?);
        let child =
            Command::new("sh").args(["-c", program]).stdin(tools_input).stdout(tools_output).spawn()?;
        Ok(Tool::new(child.id(), input, output, Process::Started(child)))
    }

    fn new(pid: u32, input: PipeWriter, output: PipeReader, process: Process) -> Tool {
        let capture = ProcsCapture::new([pid]).chunked(Chunking::default());
        Tool { pid, input, output: BufReader::new(output), process, capture }
    }

    fn ask(&mut self, line: &str) -> io::Result<String> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    fn capture(&self, store: &FsBlobStore) -> criu_rpc::Result<Digest256> {
        Ok(self.capture.run(store)?.digest)
    }

    /// Kills the tool, and revives it as it was then. It gets new pipes, and the same pid.
    fn back_to(self, store: &FsBlobStore, then: &Digest256) -> Result<Tool, Box<dyn Error>> {
        criu_rpc::kill_tree(self.pid)?;
        self.process.wait()?;
        let mut restored =
            ProcsRestore::new().stdin(Stream::Piped).stdout(Stream::Piped).restore(store, then)?;
        let input = restored.stdin.take().ok_or("the tool was captured without an input")?;
        let output = restored.stdout.take().ok_or("the tool was captured without an output")?;
        let tree = restored.into_tree().ok_or("nothing was captured")?;
        Ok(Tool::new(self.pid, input, output, Process::Revived(tree)))
    }

    /// Closes the tool's input, and waits for its end.
    fn end(self) -> Result<String, Box<dyn Error>> {
        drop(self.input);
        self.process.wait()
    }
}

impl Process {
    fn wait(self) -> Result<String, Box<dyn Error>> {
        Ok(match self {
            Process::Started(mut child) => child.wait()?.to_string(),
            Process::Revived(mut tree) => tree.wait()?.to_string(),
        })
    }
}
