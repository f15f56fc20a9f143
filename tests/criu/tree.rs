//! [`Victim`] and [`Revived`]: a test's handles on a victim, before and after. Whatever way a test
//! ends, both kill and reap what they stand for, and nothing else.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, Digest256, ProcsRestore, Tree, Warning};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    places::{PATIENCE, children, family, lives, state, wait_until},
    talk::Talk,
};

/// A victim that this process started.
#[derive(Debug)]
pub(crate) struct Victim {
    root: Child,
    pub(crate) talk: Talk,
    reaped: bool,
}

impl Victim {
    /// Starts a victim in a session of its own, with these flags beside.
    #[track_caller]
    pub(crate) fn start(flags: &[&str]) -> Victim {
        let mut all = vec!["session"];
        all.extend(flags);
        Victim::start_in_our_session(&all)
    }

    /// Starts a victim, with these flags only.
    #[track_caller]
    pub(crate) fn start_in_our_session(flags: &[&str]) -> Victim {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--victim").args(flags);
        Victim::start_by(command)
    }

    /// Starts a victim by a command that becomes one.
    #[track_caller]
    pub(crate) fn start_by(mut command: Command) -> Victim {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut root = command.spawn().unwrap();
        let talk = Talk::new(root.stdin.take().unwrap(), root.stdout.take().unwrap());
        Victim::ready(root, talk)
    }

    /// Waits until a victim that was just started is ready.
    #[track_caller]
    pub(crate) fn ready(root: Child, talk: Talk) -> Victim {
        let mut victim = Victim { root, talk, reaped: false };
        assert_eq!(victim.talk.hear(), format!("ready {}", victim.pid()));
        victim
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.root.id()).unwrap()
    }

    /// It and its descendants.
    pub(crate) fn members(&self) -> Vec<i32> {
        family(self.pid())
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.talk.ask(line)
    }

    /// Counts on from `from`.
    #[track_caller]
    pub(crate) fn assert_counts_on(&mut self, from: u64) {
        assert_eq!(self.talk.ask("tick"), format!("count {}", from + 1));
    }

    /// Ends it with all its descendants, and waits until none of their numbers is taken.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.end_now();
    }

    /// Reaps it after another process killed it, and waits until none of these numbers is taken.
    #[track_caller]
    pub(crate) fn reap(mut self, members: &[i32]) {
        self.reap_in_place(members);
    }

    /// As [`reap`](Victim::reap).
    #[track_caller]
    pub(crate) fn reap_in_place(&mut self, members: &[i32]) {
        wait_until("the victim has ended", || !lives(self.pid()));
        self.root.wait().unwrap();
        self.reaped = true;
        wait_gone(members);
    }

    fn end_now(&mut self) {
        if self.reaped {
            return;
        }
        self.reaped = true;
        let members = self.members();
        self.talk.hang_up();
        let deadline = Instant::now() + POLITE;
        while matches!(self.root.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                kill_family(self.pid());
            }
            thread::sleep(Duration::from_millis(1));
        }
        wait_gone(&members);
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end_now();
    }
}

/// The time that a victim has to end by itself after the test hangs up. It reaps its children then,
/// which init is slow to.
const POLITE: Duration = Duration::from_secs(3);

/// Kills a child of ours and its descendants, those first, while their parents still hold their
/// numbers.
fn kill_family(root: i32) {
    let own = i32::try_from(std::process::id()).unwrap();
    if !children(own).contains(&root) {
        return; // ended and reaped, or never ours
    }
    signal(root, Signal::SIGSTOP);
    for member in family(root).into_iter().rev() {
        signal(member, Signal::SIGKILL);
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    assert!(pid > 1, "{pid} is not a process of ours");
    let _ = kill(Pid::from_raw(pid), signal); // it may have ended
}

/// Waits until none of these numbers is taken. Orphans are for init to reap, which takes its time.
#[track_caller]
pub(crate) fn wait_gone(pids: &[i32]) {
    for pid in pids {
        wait_until(&format!("process {pid} is gone"), || state(*pid).is_none());
    }
}

/// A victim that was revived.
#[derive(Debug)]
pub(crate) struct Revived {
    tree: Option<Tree>,
    pub(crate) talk: Talk,
}

impl Revived {
    /// Revives a capture of one tree, with new pipes to talk through.
    #[track_caller]
    pub(crate) fn from(restore: ProcsRestore, store: &impl BlobStore, digest: &Digest256) -> Revived {
        let (revived, warnings) = Revived::warned(restore, store, digest);
        assert_eq!(warnings, []);
        revived
    }

    /// The same, of a tree whose files were written to since the capture.
    #[track_caller]
    pub(crate) fn after_changes(restore: ProcsRestore, store: &impl BlobStore, digest: &Digest256) -> Revived {
        let (revived, mut warnings) = Revived::warned(restore, store, digest);
        warnings.retain(|warning| !matches!(warning, Warning::FileChanged { .. }));
        assert_eq!(warnings, []);
        revived
    }

    #[track_caller]
    fn warned(restore: ProcsRestore, store: &impl BlobStore, digest: &Digest256) -> (Revived, Vec<Warning>) {
        let (talk, input, output) = Talk::through_pipes();
        // Ours may be a file that grows: what was revived with it could not be captured and revived
        // again.
        let errors = File::create("/dev/null").unwrap();
        let restore = restore.stdin(input).stdout(output).stderr(errors);
        let foresight = restore.preflight(store, digest).or_explain();
        let mut restored = restore.restore(store, digest).or_explain();
        assert_eq!(foresight.blocks, [], "the restore succeeded");
        assert_eq!(restored.trees.len(), 1);
        (Revived::new(restored.trees.remove(0), talk), restored.warnings)
    }

    pub(crate) fn new(tree: Tree, talk: Talk) -> Revived {
        Revived { tree: Some(tree), talk }
    }

    pub(crate) fn tree(&mut self) -> &mut Tree {
        self.tree.as_mut().expect("because only drop and give take it")
    }

    /// Gives the tree out. The caller sees to its end, for which it is enough to hang up.
    pub(crate) fn give(mut self) -> (Tree, Talk) {
        let tree = self.tree.take().expect("because only drop and give take it");
        (tree, std::mem::replace(&mut self.talk, Talk::through_pipes().0))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.tree.as_ref().map(|tree| tree.pid().as_raw()).unwrap()
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.talk.ask(line)
    }

    /// Counts on from `from`.
    #[track_caller]
    pub(crate) fn assert_counts_on(&mut self, from: u64) {
        assert_eq!(self.talk.ask("tick"), format!("count {}", from + 1));
    }
}

impl Drop for Revived {
    fn drop(&mut self) {
        let Some(mut tree) = self.tree.take() else { return };
        let members = family(tree.pid().as_raw());
        self.talk.hang_up();
        if !matches!(tree.wait_timeout(POLITE), Ok(Some(_))) {
            let _ = tree.kill(); // it has ended, then
            let _ = tree.wait_timeout(PATIENCE);
        }
        if !thread::panicking() {
            wait_gone(&members);
        }
    }
}

/// An error with everything that it knows.
pub(crate) fn explain(error: &criu_rpc::Error) -> String {
    match error.failure() {
        Some(failure) => format!("{error}\n{}", failure.report()),
        None => format!("{error}: {error:?}"),
    }
}

/// Returns the value, or panics with everything that the error knows.
pub(crate) trait OrExplain<T> {
    fn or_explain(self) -> T;
}

impl<T> OrExplain<T> for criu_rpc::Result<T> {
    #[track_caller]
    fn or_explain(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{}", explain(&error)),
        }
    }
}
