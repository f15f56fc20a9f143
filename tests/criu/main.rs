//! Tests against a real criu, as root. Each module is about one promise.
//!
//! Where criu cannot work the tests are skipped, and say why; with `CRIU_TESTS=must` that is a failure. `CRIU` names
//! another criu to test with.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[cfg(target_os = "linux")]
mod apart;
#[cfg(target_os = "linux")]
mod capture;
#[cfg(target_os = "linux")]
mod causes;
#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod damage;
#[cfg(target_os = "linux")]
mod deadline;
#[cfg(target_os = "linux")]
mod embed;
#[cfg(target_os = "linux")]
mod ending;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod harness;
#[cfg(target_os = "linux")]
mod leaks;
#[cfg(target_os = "linux")]
mod pids;
#[cfg(target_os = "linux")]
mod places;
#[cfg(target_os = "linux")]
mod requests;
#[cfg(target_os = "linux")]
mod revived;
#[cfg(target_os = "linux")]
mod selfdump;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod stores;
#[cfg(target_os = "linux")]
mod stress;
#[cfg(target_os = "linux")]
mod talk;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(target_os = "linux")]
mod tree;
#[cfg(target_os = "linux")]
mod victim;

#[cfg(target_os = "linux")]
fn main() {
    let parts: &[harness::Part] = &[
        ("--victim", victim::main),
        ("--leaks", leaks::main),
        ("--apart", apart::main),
        ("--dumps-itself", service::dumps_itself),
        ("--waits-in-hook", faults::waits_in_hook),
    ];
    let tests = [
        capture::TESTS,
        causes::TESTS,
        client::TESTS,
        damage::TESTS,
        deadline::TESTS,
        embed::TESTS,
        ending::TESTS,
        faults::TESTS,
        leaks::TESTS,
        pids::TESTS,
        requests::TESTS,
        revived::TESTS,
        selfdump::TESTS,
        service::TESTS,
        stress::TESTS,
        terminal::TESTS,
    ];
    harness::main(parts, &tests);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("no test was run: criu is for Linux");
}
