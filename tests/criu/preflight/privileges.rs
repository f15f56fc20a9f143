//! Privileges of the caller.

use std::process::Command;

use super::{defaults, dump, look, passes};
use crate::{
    harness::{criu, tests},
    tree::Victim,
};

tests![callers_without_privileges, a_caller_without_privileges_hears_that_criu_lacks_them,];

/// Looks and dumps as another user, and returns the findings and the outcome.
#[track_caller]
fn as_somebody_else(who: &[&str], pid: i32) -> (Vec<String>, String) {
    let output = Command::new("setpriv")
        .args(who)
        .arg(std::env::current_exe().unwrap())
        .args(["--look", &pid.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (lines, last)
}

/// The process that looks as another user.
pub(crate) fn main(arguments: &[String]) {
    if arguments[0] == "ask" {
        let asked = [criu().check(), criu().features().map(drop)];
        for result in asked {
            println!("{:?}", result.unwrap_err().failure().unwrap().cause);
        }
        return;
    }
    let pid = arguments[0].parse().unwrap();
    for finding in look(pid, &defaults()) {
        println!("{:?}: {}", finding.severity, finding.obstacle);
    }
    let dumped = dump(pid, &defaults());
    println!("{}", if dumped.is_ok() { "dumped" } else { "refused" });
    dumped.unwrap_or_else(|error| eprintln!("{error}"));
}

const NOBODY: [&str; 3] = ["--reuid=1000", "--regid=1000", "--clear-groups"];

fn a_caller_without_privileges_hears_that_criu_lacks_them() {
    let mut command = Command::new("setpriv");
    command.args(NOBODY).arg(std::env::current_exe().unwrap()).args(["--look", "ask"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "NotPrivileged\n".repeat(2), "{}", String::from_utf8_lossy(&output.stderr));
}

fn callers_without_privileges() {
    let victim = Victim::start(&[]);
    let (findings, end) = as_somebody_else(&NOBODY, victim.pid());
    let needs = |name: &str| findings.iter().any(|line| line.starts_with("Blocks") && line.contains(name));
    assert!(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"].into_iter().all(needs), "{findings:?}");
    assert_eq!(end, "refused");

    for (name, short) in [("CAP_SYS_ADMIN", "sys_admin"), ("CAP_SYS_PTRACE", "sys_ptrace")] {
        let without = [format!("--bounding-set=-{short}"), format!("--inh-caps=-{short}")];
        let (findings, end) = as_somebody_else(&[&without[0], &without[1]], victim.pid());
        assert_eq!(
            (&findings[..], end.as_str()),
            (&[format!("Blocks: criu would have to run without {name}")][..], "refused")
        );
    }
    passes(victim.pid(), &defaults());
}
