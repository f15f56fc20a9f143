//! Captures and restores, compared with criu alone and with the same work by hand: one table.
//!
//! ```text
//! scripts/bench [ROW …] [--SETTING VALUE …]         installs what is missing, and runs this
//! cargo bench --bench captures [-- ROW …]           as root
//! ```
//!
//! Start reading at `run`. Each module is a group of rows. They share `ours`, `theirs`, `victim`,
//! `places` and `table`.

/// The modules, which are for Linux alone.
macro_rules! modules {
    ($($module:ident)*) => { $(#[cfg(target_os = "linux")] mod $module;)* };
}

// Shared by all rows.
modules! { machine ours places run table theirs victim }
// The rows.
modules! { agent changed frozen peak restore small whole }

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("nothing was measured: criu is for Linux");
}
