//! Asks eight copies of one Python interpreter eight questions, side by side.
//!
//! ```text
//! cargo run --example branch
//! ```
//!
//! The interpreter computes a table first, which takes it a while. No copy does that again. criu
//! needs root.

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
        time::Instant,
    };

    use criu_rpc::{Chunking, Isolation, MemBlobStore, ProcsCapture, ProcsRestore, Stream};

    const PROGRAM: &str = "
import math, sys
digits = {n: len(str(math.factorial(n))) for n in range(1500)}
print('ready', flush=True)
for question in sys.stdin:
    print(eval(question), flush=True)
";

    fn hear(from: &mut impl BufRead) -> std::io::Result<String> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    let mut python = Command::new("python3");
    python.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let began = Instant::now();
    let mut python = python.spawn()?;
    let (Some(mut questions), Some(answers)) = (python.stdin.take(), python.stdout.take()) else {
        unreachable!("both are pipes")
    };
    let mut answers = BufReader::new(answers);
    println!("the interpreter is {} after {:.0?}", hear(&mut answers)?, began.elapsed());

    let (store, began) = (MemBlobStore::default(), Instant::now());
    let stored = ProcsCapture::new([python.id()]).chunked(Chunking::default()).run(&store)?;
    println!("captured in {:.0?}, and it goes on\n", began.elapsed());

    let mut copies = Vec::new();
    for number in 1..=8 {
        let began = Instant::now();
        let restore = ProcsRestore::new().isolated(Isolation::new());
        let mut copy = restore.stdin(Stream::Piped).stdout(Stream::Piped).restore(&store, &stored.digest)?;
        let (Some(mut to), Some(from)) = (copy.stdin.take(), copy.stdout.take()) else {
            unreachable!("both are pipes")
        };
        let mut from = BufReader::new(from);
        writeln!(to, "f'{number}00! has {{digits[{number}00]:4}} digits'")?;
        println!("copy {number}: {}, answered after {:.0?}", hear(&mut from)?, began.elapsed());
        copies.push((copy, to, from));
    }
    writeln!(questions, "'still here'")?;
    println!("original: {}", hear(&mut answers)?);

    for (mut copy, to, _) in copies {
        drop(to); // the end of its input
        for tree in &mut copy.trees {
            tree.wait()?;
        }
    }
    drop(questions);
    python.wait()?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("criu is for Linux, and this is {}", std::env::consts::OS);
}
