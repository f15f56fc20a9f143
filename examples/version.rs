//! Finds criu, prints its version, checks that it works, and prints its features.
//!
//! ```text
//! cargo run --example version [-- CRIU]
//! ```

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use criu_rpc::Criu;

    let criu = match std::env::args().nth(1) {
        Some(program) => Criu::at(program),
        None => Criu::new(),
    };
    let program = match criu.program() {
        Ok(program) => program,
        Err(error) => {
            println!("{error}\nwhat to do: {}", error.advice().unwrap_or("nothing we know of"));
            return Ok(());
        }
    };
    println!("criu {} in {}", criu.version()?, program.display());

    match criu.check() {
        Ok(()) => println!("it can work here"),
        Err(error) => match error.failure() {
            Some(failure) => print!("{}", failure.report()),
            None => return Err(error.into()),
        },
    }
    match criu.features() {
        Ok(features) => println!("{features:?}"),
        Err(error) => println!("its features cannot be told: {error}"),
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("criu is for Linux, and this is {}", std::env::consts::OS);
}
