//! Causes, provoked: a real tree that has what criu cannot take, and what criu makes of it. For
//! every cause that an option cures, the cure is tried.
//!
//! [`dumps`], [`forged`], [`kinds`], [`processes`], [`restores`] and [`machine`] are the tests,
//! [`odd`] is the program that has odd things, and [`refusing`] the kernel that has less than this
//! one.

pub(crate) mod dumps;
pub(crate) mod forged;
pub(crate) mod kinds;
pub(crate) mod machine;
pub(crate) mod odd;
pub(crate) mod processes;
pub(crate) mod refusing;
pub(crate) mod restores;

use std::{fs, fs::File, process::Command};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, RestoreOptions, Result, Target,
    rpc::{Dumped, Hooks, Lend, NoHooks},
};

use crate::{
    harness::{criu, tests},
    places::{Home, children, wait_until, write_program},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, wait_gone},
};

tests![every_cause_is_provoked_or_has_a_reason];

/// A victim with odd things.
#[track_caller]
fn odd(things: &[&str]) -> Victim {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--odd").arg("session").args(things);
    Victim::start_by(command)
}

/// A victim with odd things, below a program that starts it.
#[track_caller]
fn odd_below(program: &[&str], things: &[&str]) -> Victim {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(std::env::current_exe().unwrap()).args(["--odd", "below"]).args(things);
    Victim::start_by(command)
}

/// The only child of a victim.
#[track_caller]
fn child(victim: &Victim) -> i32 {
    let [child] = children(victim.pid())[..] else { panic!("{:?}", children(victim.pid())) };
    child
}

/// No options.
fn plain() -> DumpOptions {
    DumpOptions::default()
}

/// A test's folder, with dumps in it.
struct Dumps {
    home: Home,
    criu: Criu,
    count: u32,
}

impl Dumps {
    fn new() -> Dumps {
        Dumps { home: Home::new(), criu: criu(), count: 0 }
    }

    /// With a criu that is started by a script of these lines.
    fn through(lines: &str) -> Dumps {
        let home = Home::new();
        let script = home.path("criu");
        let program = criu().program().unwrap();
        let text = format!("#!/bin/sh\n{}\n", lines.replace("CRIU", &program.display().to_string()));
        write_program(&script, &text);
        // All users may go there.
        fs::set_permissions(home.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Dumps { home, criu: Criu::at(script), count: 0 }
    }

    fn dump(&mut self, pid: i32, options: &DumpOptions) -> Result<Dumped> {
        self.count += 1;
        let folder = File::open(self.home.folder(&format!("images-{}", self.count))).unwrap();
        self.criu.dump(pid, options, Lend::images(&folder), &mut NoHooks)
    }

    /// Dumps it in vain, for this cause, and sees that it runs on.
    #[track_caller]
    fn refused(&mut self, victim: &mut Victim, options: &DumpOptions, cause: Cause) {
        self.refused_of(victim, victim.pid(), options, cause);
    }

    /// Dumps a descendant of the victim in vain.
    #[track_caller]
    fn refused_of(&mut self, victim: &mut Victim, pid: i32, options: &DumpOptions, cause: Cause) {
        assert_cause(self.dump(pid, options), cause, Target::Running);
        victim.ask("tick");
        for member in victim.members() {
            wait_until("it runs on", || !matches!(crate::places::state(member), Some('t' | 'T')));
        }
    }

    /// Dumps it with options that cure the cause, and sees that it runs on.
    #[track_caller]
    fn cured(&mut self, victim: &mut Victim, options: DumpOptions) {
        self.dump(victim.pid(), &options.leave_running(true)).or_explain();
        victim.ask("tick");
    }

    /// Dumps it, and lets it end.
    #[track_caller]
    fn taken(self, victim: Victim, options: &DumpOptions) -> Taken {
        let pid = victim.pid();
        self.taken_of(victim, pid, options)
    }

    /// Dumps a descendant of the victim, and lets all end.
    #[track_caller]
    fn taken_of(mut self, victim: Victim, pid: i32, options: &DumpOptions) -> Taken {
        let members = victim.members();
        let resource = |descriptor| {
            let link = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
            link.display().to_string()
        };
        let keys = [resource(0), resource(1)];
        self.dump(pid, options).or_explain();
        victim.reap(&members);
        Taken { home: self.home, homes: Vec::new(), criu: self.criu, members, keys }
    }
}

/// A tree that was dumped, and has ended.
struct Taken {
    home: Home,
    /// The homes that its criu is started from.
    homes: Vec<Home>,
    criu: Criu,
    members: Vec<i32>,
    keys: [String; 2],
}

impl Taken {
    fn pid(&self) -> i32 {
        self.members[0]
    }

    fn image(&self, name: &str) -> std::path::PathBuf {
        self.home.path("images-1").join(name)
    }

    fn restore(&self, options: &RestoreOptions) -> Result<Revived> {
        self.restore_with(options, &mut NoHooks)
    }

    fn restore_with(&self, options: &RestoreOptions, hooks: &mut impl Hooks) -> Result<Revived> {
        let (talk, input, output) = Talk::through_pipes();
        let folder = File::open(self.home.path("images-1")).unwrap();
        let lend = Lend::images(&folder).inherit(&*self.keys[0], &input).inherit(&*self.keys[1], &output);
        let options = options.clone().rst_sibling(true);
        self.criu.restore(&options, lend, hooks).map(|tree| Revived::new(tree, talk))
    }

    /// Restores it in vain, for this cause, and sees that nothing is left.
    #[track_caller]
    fn refused(&self, options: &RestoreOptions, cause: Cause) {
        assert_cause(self.restore(options), cause, Target::None);
        wait_gone(&self.members);
    }

    /// Restores it with options that cure the cause.
    #[track_caller]
    fn cured(&self, options: &RestoreOptions) -> Revived {
        let mut revived = self.restore(options).or_explain();
        assert!(revived.ask("tick").starts_with("count "));
        revived
    }
}

/// It failed for this cause, and says so in one line and in many.
#[track_caller]
fn assert_cause<T: std::fmt::Debug>(result: Result<T>, cause: Cause, target: Target) {
    let error = match result {
        Err(error) => error,
        Ok(value) => panic!("{cause:?} was not provoked: {value:?}"),
    };
    let Error::Criu(failure) = &error else { panic!("{}", explain(&error)) };
    assert_eq!((failure.cause, failure.target), (cause, target), "{}", explain(&error));
    let (line, report) = (failure.to_string(), failure.report().to_string());
    assert!(!line.contains('\n') && line.starts_with(&cause.to_string()), "{line}");
    assert_eq!(failure.advice(), cause.advice());
    assert_eq!(error.advice(), Some(failure.advice()));
    assert!(report.contains(cause.advice()), "{report}");
    for line in failure.telling_line().into_iter().chain(failure.log.iter().map(String::as_str)) {
        assert!(report.contains(line) && !line.contains("RLIMIT_NOFILE"), "{report}");
    }
    if std::env::var_os("CRIU_TELL").is_some() {
        eprintln!("{report}");
    }
}

/// Causes that no tree and no machine of a test's has brought about, and why.
const NOT_PROVOKED: &[(Cause, &str)] = &[
    (Cause::CriuFault, "said where criu finds a fault in itself, of which there is none that a test can rely on"),
    (
        Cause::ForeignFileLock,
        "said where the kernel does not tell which file a lock is on, before Linux 4.1",
    ),
    (Cause::MacvlanParent, "needs a kernel with macvlan devices, and a tree that has one in its network namespace"),
    (Cause::TunDevice, "needs a kernel with the module tun at the dump, and one without it at the restore"),
    (Cause::TcpMoved, "needs an acknowledgement within the microseconds between two of criu's calls"),
    (Cause::Deprecated, "said of terminals that were replaced by files, and of images of criu before 3.0"),
];

/// Every cause is asserted by a test, or has a reason.
fn every_cause_is_provoked_or_has_a_reason() {
    let tests = [
        include_str!("dumps.rs"),
        include_str!("kinds.rs"),
        include_str!("processes.rs"),
        include_str!("machine.rs"),
        include_str!("restores.rs"),
        include_str!("../beyond.rs"),
        include_str!("../causes.rs"),
        include_str!("../deadline.rs"),
        include_str!("../faults.rs"),
        include_str!("../jobs.rs"),
        include_str!("../locked.rs"),
        include_str!("../preflight/files.rs"),
        include_str!("../preflight/processes.rs"),
        include_str!("../preflight/sockets.rs"),
        include_str!("../replaced.rs"),
        include_str!("../signals.rs"),
    ];
    let provoked = |name: &str| {
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric());
        tests.iter().any(|text| text.split(&format!("Cause::{name}")).skip(1).any(ends))
    };
    // A row of each: `| **Cause**: …`.
    let rows = include_str!("../../../docs/failures.md").lines().filter_map(|line| line.strip_prefix("| **"));
    for name in rows.map(|row| row.split_once("**").unwrap().0) {
        let excused = NOT_PROVOKED.iter().any(|(cause, _)| format!("{cause:?}") == name);
        assert!(provoked(name) != excused, "{name}: either a test provokes it, or NOT_PROVOKED says why none does");
    }
}
