//! A process that captures itself stores nothing of the trees that it captured or revived before.

use std::{
    fs::File,
    io::{Read, stdin},
    process::{Command, exit},
};

use criu_rpc::{BlobStore, Capture, Chunking, Digest256, FsBlobStore, ProcsBlob, Stored};

use crate::{
    harness::tests,
    places::Home,
    talk::pipe,
    tree::{OrExplain, Victim},
    ways::Script,
};

tests![a_capture_of_oneself_has_nothing_of_other_trees];

/// The ways to capture another tree.
const KINDS: &[&str] = if cfg!(feature = "encryption") {
    &["archive", "chunked", "sealed-archive", "sealed-chunked"]
} else {
    &["archive", "chunked"]
};

fn a_capture_of_oneself_has_nothing_of_other_trees() {
    for kind in KINDS {
        let home = Home::new();
        // Only the other tree and this test know it.
        let mut secret = String::new();
        File::open("/proc/sys/kernel/random/uuid").unwrap().read_to_string(&mut secret).unwrap();
        let secret = secret.trim();
        let mut keeper = keeper(secret);
        assert_eq!(keeper.ask("length"), (SECRETS * 64).to_string());

        let mut command = Command::new("/proc/self/exe");
        command.args(["--remnants", kind, &home.word(), &keeper.pid().to_string()]);
        let mut program = Victim::start_by(command);
        let digest = program.ask("capture");
        if *kind == "archive" {
            let there = found(&home.store(), &digest.parse().unwrap(), secret);
            assert!(there.len() >= SECRETS, "the tree's own capture has its secret {} times", there.len());
        }
        drop(keeper);
        assert_eq!(program.ask(&format!("revive {digest}")), "revived");
        let digest = program.ask("itself").parse().unwrap();
        program.end();
        let found = found(&FsBlobStore::open(home.path("own")).unwrap(), &digest, secret);
        assert!(found.is_empty(), "{kind}: the secret is there {} times, at {:?}", found.len(), first(&found));
    }
}

fn first(found: &[usize]) -> &[usize] {
    &found[..found.len().min(20)]
}

const SECRETS: usize = 50_000;

/// A program whose memory is full of a secret, with enough between its copies to be of no two equal
/// pages.
fn keeper(secret: &str) -> Script {
    assert_eq!(secret.len(), 36);
    // The program reads its secret: no other process has it among its arguments.
    let mut keeper = Script::perl(&format!(
        "my $m = ''; sub answer {{ my $l = shift; return length $m if $l eq 'length'; \
         $m .= $l . sprintf('%014x%014x', int(rand(2 ** 52)), int(rand(2 ** 52))) for 1 .. {SECRETS}; return 'kept' }}"
    ));
    assert_eq!(keeper.ask(secret), "kept");
    keeper
}

/// Returns the places at which this text is in the archive of a capture.
fn found(store: &FsBlobStore, digest: &Digest256, text: &str) -> Vec<usize> {
    let ProcsBlob::Criu { criu_dump, .. } = ProcsBlob::from_json(&store.get(digest).unwrap()).unwrap() else {
        panic!("it is no archive")
    };
    let (archive, text) = (store.get(&criu_dump).unwrap(), text.as_bytes());
    let starts = archive.iter().enumerate().filter(|(_, byte)| **byte == text[0]).map(|(at, _)| at);
    starts.filter(|at| archive[*at..].starts_with(text)).collect()
}

/// The program that captures: the way, the home, the pid of the other tree.
pub(crate) fn main(words: &[String]) {
    let [kind, home, pid] = words else { exit(2) };
    nix::unistd::setsid().unwrap();
    println!("ready {}", std::process::id());
    let (home, pid) = (Home::of_another(home), pid.parse().unwrap());
    for line in stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("capture", _) => println!("{}", capture(kind, &home, pid).digest),
            ("revive", digest) => revive(kind, &home, &digest.parse().unwrap()),
            ("itself", _) => {
                let own = FsBlobStore::open(home.path("own")).unwrap();
                match home.capture([i32::try_from(std::process::id()).unwrap()]).run(&own).or_explain() {
                    Capture::Stored(stored) => println!("{}", stored.digest),
                    _ => exit(0),
                }
            }
            _ => exit(2),
        }
    }
}

fn store(kind: &str, home: &Home) -> Box<dyn BlobStore> {
    #[cfg(feature = "encryption")]
    if kind.starts_with("sealed") {
        let key = criu_rpc::Key::from_bytes([7; 32]);
        return Box::new(criu_rpc::EncryptedBlobStore::open(home.store(), key).unwrap());
    }
    let _ = kind;
    Box::new(home.store())
}

fn capture(kind: &str, home: &Home, pid: i32) -> Stored {
    let capture = home.capture([pid]);
    let capture = match kind.ends_with("chunked") {
        true => capture.chunked(Chunking::default()),
        false => capture,
    };
    match capture.run(&*store(kind, home)).or_explain() {
        Capture::Stored(stored) => stored,
        _ => exit(3),
    }
}

fn revive(kind: &str, home: &Home, digest: &Digest256) {
    let (input, end) = pipe();
    let nothing = || File::create("/dev/null").unwrap();
    let restore = home.restore().stdin(input).stdout(nothing()).stderr(nothing());
    let mut restored = restore.restore(&*store(kind, home), digest).or_explain();
    let mut tree = restored.trees.remove(0);
    tree.kill().unwrap();
    tree.wait().unwrap();
    drop(end);
    println!("revived");
}
