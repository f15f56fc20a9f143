//! A process that captures itself stores nothing of the trees that it captured or revived before.

use std::{
    env,
    fs::File,
    hint::black_box,
    io::{Read, stdin},
    process::{Command, exit},
    thread,
    time::Instant,
};

use criu_rpc::{BlobStore, Chunking, Digest256, FsBlobStore, ProcsBlob, Result, SelfCapture, Stored, stored::reachable};

use nix::sys::signal::Signal;

use crate::{
    apart::random,
    harness::tests,
    places::{Home, names, wait_until},
    talk::pipe,
    tree::{OrExplain, Victim, explain, signal},
    ways::Script,
};

tests![
    a_capture_of_oneself_has_nothing_of_other_trees,
    what_a_killed_capture_leaves_is_gone_after_the_next,
];

/// The number of captures that are killed. `CRIU_SOAK` sets another number.
const KILLS: usize = 12;

fn what_a_killed_capture_leaves_is_gone_after_the_next() {
    let kills = env::var("CRIU_SOAK").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let mut left = 0;
    for kind in &KINDS[..2] {
        let home = Home::new();
        let mut victim = Victim::start(&["children=1", "threads=2", "memory=8"]);
        // As long as a capture takes.
        let begin = Instant::now();
        home.capture([victim.pid()]).capture(&home.store()).or_explain();
        let usual = begin.elapsed();
        for count in 0..kills {
            let mut command = Command::new("/proc/self/exe");
            command.args(["--remnants", kind, &home.word(), &victim.pid().to_string()]);
            let mut program = Victim::start_by(command);
            program.talk.tell("capture");
            thread::sleep(usual.mul_f64(random(1200) as f64 / 1000.0));
            signal(program.pid(), Signal::SIGKILL);
            program.reap_in_place(&[]);
            // The tree goes on, as soon as criu has let it go.
            victim.assert_counts_on(count as u64);
            left += names(&home.staging()).len();
            // Another program sweeps: this one has looked not long ago.
            let mut command = Command::new("/proc/self/exe");
            command.args(["--remnants", kind, &home.word(), &victim.pid().to_string()]);
            let mut next = Victim::start_by(command);
            wait_until("the next capture succeeds", || next.ask("capture").starts_with("sha256:"));
            home.assert_staging_empty();
            next.end();
        }
    }
    println!("{left} captures left something");
}

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
    // It stays open, with what it keeps of earlier reads.
    let store = store(kind, &home);
    for line in stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("capture", _) => match capture(kind, &*store, &home, pid) {
                Ok(stored) => println!("{}", stored.digest),
                // The criu of a program that was killed may be at work still.
                Err(error) => println!("{}", explain(&error).replace('\n', "; ")),
            },
            ("revive", digest) => {
                let digest = digest.parse().unwrap();
                if kind.ends_with("chunked") {
                    read_one_by_one(&*store, &digest);
                }
                revive(&*store, &home, &digest);
            }
            ("itself", _) => {
                let own = FsBlobStore::open(home.path("own")).unwrap();
                match home.capture([i32::try_from(std::process::id()).unwrap()]).run_self(&own).or_explain() {
                    SelfCapture::Stored(stored) => println!("{}", stored.digest),
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
        use criu_rpc::store::{Key, StoreOptions};
        let options = StoreOptions::new().encryption(Key::from_bytes([7; 32]));
        return Box::new(options.open(home.path("sealed")).unwrap());
    }
    let _ = kind;
    Box::new(home.store())
}

/// The number of blobs that are read by themselves: more than the store keeps of them.
const SINGLY: usize = 100;

/// Reads blobs of a capture by themselves, and leaves nothing of them.
fn read_one_by_one(store: &dyn BlobStore, digest: &Digest256) {
    for digest in reachable(store, &[*digest]).unwrap().into_iter().take(SINGLY) {
        let mut blob = store.get(&digest).unwrap();
        blob.fill(0);
        black_box(&mut blob); // otherwise the compiler may remove the write
    }
}

fn capture(kind: &str, store: &dyn BlobStore, home: &Home, pid: i32) -> Result<Stored> {
    let capture = home.capture([pid]);
    let capture = match kind.ends_with("chunked") {
        true => capture.chunked(Chunking::default()),
        false => capture,
    };
    capture.run(store)
}

fn revive(store: &dyn BlobStore, home: &Home, digest: &Digest256) {
    let (input, end) = pipe();
    let nothing = || File::create("/dev/null").unwrap();
    let restore = home.restore().stdin(input).stdout(nothing()).stderr(nothing());
    let mut restored = restore.restore(store, digest).or_explain();
    let mut tree = restored.trees.remove(0);
    tree.kill().unwrap();
    tree.wait().unwrap();
    drop(end);
    println!("revived");
}
