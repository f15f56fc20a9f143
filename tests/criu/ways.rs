//! Every way to capture a tree and bring it back: left running and ended, as an archive and
//! chunked.

use std::process::Command;

use criu_rpc::Chunking;

use crate::{
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, Victim, signal, wait_gone},
};

/// A victim in perl or in a shell: it says `ready PID`, and then answers each line with one. It
/// does not see to the end of its descendants; this does.
pub(crate) struct Script(Victim);

impl Script {
    /// Runs this perl program in a session of its own. `answer($line)` in it is what it answers.
    #[track_caller]
    pub(crate) fn perl(program: &str) -> Script {
        let mut command = Command::new("perl");
        let program = format!(
            "use POSIX; use strict; POSIX::setsid(); $| = 1; {program}\n print \"ready $$\\n\"; \
             while (my $l = <STDIN>) {{ chomp $l; exit 0 if $l eq 'exit 0'; print answer($l), \"\\n\"; }}"
        );
        command.args(["-e", &program]);
        Script(Victim::start_by(command))
    }

    /// Starts a victim by a command that becomes one.
    #[track_caller]
    pub(crate) fn by(command: Command) -> Script {
        Script(Victim::start_by(command))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.0.ask(line)
    }

    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        self.0.talk.hear()
    }

    pub(crate) fn members(&self) -> Vec<i32> {
        self.0.members()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.pid()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        for descendant in self.0.members().into_iter().skip(1).rev() {
            signal(descendant, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// One way to capture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) ends: bool,
    pub(crate) chunked: bool,
}

pub(crate) const WAYS: [Way; 4] = [
    Way { ends: false, chunked: false },
    Way { ends: false, chunked: true },
    Way { ends: true, chunked: false },
    Way { ends: true, chunked: true },
];

impl Way {
    pub(crate) fn capture(self, home: &Home, pid: i32) -> criu_rpc::ProcsCapture {
        let capture = home.capture([pid]).leave_running(!self.ends);
        if self.chunked { capture.chunked(Chunking::default()) } else { capture }
    }
}

/// Captures a victim in every way without a word about options, ends it, and revives it twice.
/// `check` is asked of the original that goes on, and of both that were revived. It may write to
/// files of the tree.
#[track_caller]
pub(crate) fn comes_back(start: impl Fn(&Home) -> Script, check: impl Fn(&mut Talk)) {
    comes_back_times(2, start, check);
}

/// As [`comes_back`], revived so many times.
#[track_caller]
pub(crate) fn comes_back_times(times: u32, start: impl Fn(&Home) -> Script, check: impl Fn(&mut Talk)) {
    for way in WAYS {
        eprintln!("{way:?}");
        let home = Home::new();
        let mut victim = start(&home);
        let members = victim.0.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        assert_eq!(stored.warnings, [], "{way:?}");
        if !way.ends {
            check(&mut victim.0.talk);
        }
        victim.end(&members, way);
        for _ in 0..times {
            let mut revived = Revived::after_changes(home.restore(), &home.store(), &stored.digest);
            check(&mut revived.talk);
            let members = crate::places::family(revived.pid());
            for descendant in members.iter().skip(1).rev() {
                signal(*descendant, nix::sys::signal::Signal::SIGKILL);
            }
            drop(revived);
            // A grandchild is no descendant any more once its parent has ended.
            wait_gone(&members);
        }
        home.assert_staging_empty();
    }
}

impl Script {
    /// Reaps it, after it was killed if the capture did not end it.
    #[track_caller]
    pub(crate) fn end(&mut self, members: &[i32], way: Way) {
        if !way.ends {
            for member in members.iter().rev() {
                signal(*member, nix::sys::signal::Signal::SIGKILL);
            }
        }
        self.0.reap_in_place(members);
    }
}
