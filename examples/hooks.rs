//! Dumps a process tree with the raw client, prints criu's events, and lets the tree go on.
//!
//! ```text
//! setsid sleep 1000 & cargo run --example hooks -- $(pgrep -n sleep) [EVENT]
//! ```
//!
//! At the named event, such as `post-dump`, the hook refuses. Then the dump fails, and the tree
//! goes on all the same. The images go into a new folder below the system's folder for temporary
//! files. criu needs root.

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::{env, fs, fs::File, os::unix::fs::DirBuilderExt, process, time::Instant};

    use criu_rpc::{
        Criu, DumpOptions, Error,
        rpc::{Event, Lend},
    };

    let mut arguments = env::args().skip(1);
    let pid: i32 = arguments.next().ok_or("usage: hooks PID [EVENT TO REFUSE]")?.parse()?;
    let refused = arguments.next();

    // Images hold the memory of the tree, so no other user may read them.
    let folder = env::temp_dir().join(format!("images-{}", process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let images = File::open(&folder)?;

    let began = Instant::now();
    let mut came = false;
    let mut hooks = |event: Event<'_>| {
        println!("{:8.1?}  {}", began.elapsed(), event.name());
        match &refused {
            Some(name) if name == event.name() => {
                came = true;
                Err("as the command line wants it".into())
            }
            _ => Ok(()),
        }
    };
    let options = DumpOptions::default().leave_running(true).shell_job(true);
    match Criu::new().dump(pid, &options, Lend::images(&images), &mut hooks) {
        Ok(_) => println!("{:8.1?}  done: {}", began.elapsed(), folder.display()),
        Err(error) => {
            println!("{:8.1?}  {error}", began.elapsed());
            match (&error, error.failure()) {
                (Error::Refused { source, .. }, _) => println!("          {source}"),
                (_, Some(failure)) => print!("{}", failure.report()),
                _ => {}
            }
            fs::remove_dir_all(&folder)?;
        }
    }
    if let Some(name) = refused.filter(|_| !came) {
        println!("          {name} never came: a dump has it only where it needs it");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("criu is for Linux, and this is {}", std::env::consts::OS);
}
