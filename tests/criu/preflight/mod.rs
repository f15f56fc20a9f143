//! Preflight says of a tree what criu then does: criu refuses what blocks, and takes what is clear
//! or cured.

pub(crate) mod files;
pub(crate) mod general;
pub(crate) mod hostile;
pub(crate) mod namespaces;
pub(crate) mod privileges;
pub(crate) mod processes;
pub(crate) mod sockets;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
};

use criu_rpc::{
    DumpOptions, Error, Pid,
    options::NetworkLock,
    preflight::{Finding, Obstacle, Place, Severity},
    rpc::{Lend, NoHooks},
};

use crate::{
    harness::criu,
    places::{Home, state},
    tree::{OrExplain, Victim, explain},
};

fn defaults() -> DumpOptions {
    DumpOptions::default().leave_running(true).network_lock(NetworkLock::Skip)
}

#[track_caller]
fn look(pid: i32, options: &DumpOptions) -> Vec<Finding> {
    criu().preflight(pid, options).or_explain().findings
}

/// Dumps with criu, into a new folder. A process that ran before must not be left stopped.
#[track_caller]
fn dump(pid: i32, options: &DumpOptions) -> Result<(), Error> {
    let home = Home::new();
    let images = File::open(home.folder("images")).unwrap();
    let before = state(pid);
    let dumped = criu().dump(pid, options, Lend::images(&images), &mut NoHooks);
    let stopped = |state: Option<char>| state.is_some_and(|state| matches!(state, 'T' | 't'));
    assert!(stopped(before) || !stopped(state(pid)), "{pid} was left stopped");
    dumped.map(drop)
}

/// Preflight finds this one obstacle, at this place of this process, and criu refuses the dump.
#[track_caller]
fn blocks(
    root: i32,
    options: &DumpOptions,
    pid: i32,
    place: Option<At>,
    is: impl Fn(&Obstacle) -> bool,
) -> Obstacle {
    let findings = look(root, options);
    let refused = dump(root, options);
    let [finding] = &findings[..] else { panic!("{}; criu: {refused:?}", lines(&findings)) };
    assert!(is(&finding.obstacle), "{finding}");
    assert_eq!(finding.severity, Severity::Blocks, "{finding}");
    assert_eq!(finding.pid, Pid::from(pid), "{finding}");
    if let Some(place) = place {
        assert_eq!(finding.place, place, "{finding}");
    }
    let error = refused.expect_err(&format!("criu dumped it, in spite of: {finding}"));
    let cause = error.failure().map(|failure| failure.cause);
    assert_eq!(cause, Some(finding.obstacle.cause()), "{finding}; {}", explain(&error));
    finding.obstacle.clone()
}

/// Preflight finds nothing that blocks, and criu dumps the tree.
#[track_caller]
fn passes(root: i32, options: &DumpOptions) {
    let findings = look(root, options);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Risk), "{}", lines(&findings));
    dump(root, options).unwrap_or_else(|error| panic!("criu refused what is clear: {}", explain(&error)));
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The descriptor whose target starts like this.
#[track_caller]
fn descriptor(pid: i32, start: &str) -> Option<At> {
    let found = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        target.to_str()?.starts_with(start).then_some((fd, target))
    });
    let (fd, target) = found.unwrap_or_else(|| panic!("{pid} has no {start}"));
    Some(At::Descriptor { fd, target })
}

/// An expected place. Only the crate can make a `Place`.
#[derive(Debug, Clone, PartialEq)]
enum At {
    Process,
    Descriptor { fd: i32, target: PathBuf },
}

impl PartialEq<At> for Place {
    fn eq(&self, at: &At) -> bool {
        match (self, at) {
            (Place::Process, At::Process) => true,
            (Place::Descriptor { fd, target, .. }, At::Descriptor { fd: at, target: expected }) => {
                (fd, target) == (at, expected)
            }
            _ => false,
        }
    }
}

/// A victim in perl, for system calls that no safe code makes. It does not see to its children's
/// end; this does.
pub(crate) struct Perl(Victim);

impl std::ops::Deref for Perl {
    type Target = Victim;

    fn deref(&self) -> &Victim {
        &self.0
    }
}

impl std::ops::DerefMut for Perl {
    fn deref_mut(&mut self) -> &mut Victim {
        &mut self.0
    }
}

impl Drop for Perl {
    fn drop(&mut self) {
        for descendant in self.0.members().into_iter().skip(1).rev() {
            crate::tree::signal(descendant, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Runs `before` in a session of its own.
#[track_caller]
pub(crate) fn perl(before: &str) -> Perl {
    perl_by(Command::new("perl"), before)
}

#[track_caller]
pub(crate) fn perl_by(mut command: Command, before: &str) -> Perl {
    command.args(["-e", &perl_program(before)]);
    Perl(Victim::start_by(command))
}

/// A program that runs `before` in a session of its own, and then answers.
pub(crate) fn perl_program(before: &str) -> String {
    format!(
        "use POSIX; POSIX::setsid(); {before}; $| = 1; print \"ready $$\\n\"; while (<STDIN>) {{ print \"here\\n\"; }}"
    )
}

/// A process that was started for a test, and that nothing is to be asked of.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended, then
        let _ = self.0.wait();
    }
}
