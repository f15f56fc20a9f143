//! A capture leaves the tree as it was, and a revived tree goes on from there.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::net::UnixStream,
    thread,
};

use criu_rpc::{Cause, ProcsCapture};
use nix::sys::signal::Signal;

use crate::{
    harness::{dumps_tcp, tests},
    places::{Home, family, state, wait_until},
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain, signal},
};

tests![
    a_rich_tree_goes_on_after_its_capture_and_again_when_it_is_revived,
    eight_captures_at_once_do_not_disturb_each_other,
    a_capture_can_be_revived_again_and_again,
    two_captures_of_one_tree_at_once_leave_it_whole,
    a_stopped_tree_stays_stopped_and_is_revived_stopped,
    a_tree_with_a_zombie_is_revived_with_it,
];

fn a_rich_tree_goes_on_after_its_capture_and_again_when_it_is_revived() {
    a_rich_tree(|capture| capture);
}

/// A tree with children, threads, memory of all kinds, files, pipes and sockets, captured in some
/// way.
pub(crate) fn a_rich_tree(how: impl Fn(ProcsCapture) -> ProcsCapture) {
    let home = Home::new();
    let store = home.store();
    let lines: String = (0..100).map(|number| format!("line {number:02}\n")).collect();
    fs::write(home.path("file"), lines).unwrap();
    let file = format!("file={}", home.path("file").display());
    let socket = home.path("socket").display().to_string();
    let listen = if dumps_tcp() { "listen=tcp".to_owned() } else { format!("listen={socket}") };
    let mut victim = Victim::start(&["children=2", "threads=3", "memory=64", &file, &listen]);
    let members = victim.members();
    assert_eq!(members.len(), 3);
    for count in 0..5 {
        victim.assert_counts_on(count);
    }
    assert_eq!(victim.ask("child 0 tick"), "count 1");
    assert_eq!(victim.ask("file"), "line 00");
    assert_eq!(victim.ask("child 0 pass before"), "passed");
    let port = dumps_tcp().then(|| victim.ask("port"));

    let digest = how(home.capture([victim.pid()])).capture(&store).or_explain();
    home.assert_staging_empty();

    // The original never noticed.
    victim.assert_counts_on(5);
    assert_eq!(victim.ask("check"), "memory ok 16384 pages");
    assert_eq!(victim.ask("child 0 tick"), "count 2");
    assert_eq!(victim.ask("child 1 take"), "before");
    assert_eq!(victim.ask("file"), "line 01");
    assert_threads_count(&mut victim.talk);
    assert_accepts(&mut victim.talk, port.as_deref(), &socket);
    assert_eq!(victim.members(), members);
    let threads = counts(&mut victim.talk);
    victim.end();

    let mut revived = Revived::from(home.restore(), &store, &digest);
    home.assert_staging_empty();
    assert_eq!(family(revived.pid()), members);
    revived.assert_counts_on(5);
    assert_eq!(revived.ask("check"), "memory ok 16384 pages");
    assert_eq!(revived.ask("child 0 tick"), "count 2");
    assert_eq!(revived.ask("child 0 check"), "memory ok 256 pages");
    assert_eq!(revived.ask("child 1 tick"), "count 1");
    assert_eq!(revived.ask("child 1 take"), "before"); // it was in the pipe
    assert_eq!(revived.ask("child 0 pass after"), "passed");
    assert_eq!(revived.ask("child 1 take"), "after");
    assert_eq!(revived.ask("file"), "line 01");
    assert!(
        counts(&mut revived.talk).iter().zip(&threads).all(|(count, original)| count <= &(original + 500))
    );
    assert_threads_count(&mut revived.talk);
    assert_accepts(&mut revived.talk, port.as_deref(), &socket);
}

fn counts(talk: &mut Talk) -> Vec<u64> {
    talk.ask("threads").split(' ').map(|count| count.parse().unwrap()).collect()
}

#[track_caller]
fn assert_threads_count(talk: &mut Talk) {
    let before = counts(talk);
    assert!(before.iter().all(|count| *count > 0));
    wait_until("every thread counts on", || {
        thread::yield_now();
        counts(talk).iter().zip(&before).all(|(now, before)| now > before)
    });
}

#[track_caller]
fn assert_accepts(talk: &mut Talk, port: Option<&str>, socket: &str) {
    let connection: Box<dyn std::io::Read> = match port {
        Some(port) => Box::new(TcpStream::connect(format!("127.0.0.1:{port}")).unwrap()),
        None => Box::new(UnixStream::connect(socket).unwrap()),
    };
    assert_eq!(talk.ask("accept"), "accepted");
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
}

fn eight_captures_at_once_do_not_disturb_each_other() {
    let home = Home::new();
    let store = home.store();
    let mut victims: Vec<_> = (0..8).map(|_| Victim::start(&["children=1", "memory=4"])).collect();
    for (number, victim) in (0..).zip(&mut victims) {
        (0..number).for_each(|count| victim.assert_counts_on(count));
    }
    let digests: Vec<_> = thread::scope(|scope| {
        let (home, store) = (&home, &store);
        let captures = victims.iter().map(|victim| home.capture([victim.pid()]));
        let captures: Vec<_> = captures.map(|capture| scope.spawn(move || capture.capture(store))).collect();
        captures.into_iter().map(|capture| capture.join().unwrap().or_explain()).collect()
    });
    home.assert_staging_empty();
    for (number, victim) in (0..).zip(&mut victims) {
        victim.assert_counts_on(number);
    }
    victims.into_iter().for_each(Victim::end);

    let mut revived: Vec<_> = thread::scope(|scope| {
        let (home, store) = (&home, &store);
        let restores =
            digests.iter().map(|digest| scope.spawn(move || Revived::from(home.restore(), store, digest)));
        let restores: Vec<_> = restores.collect();
        restores.into_iter().map(|restore| restore.join().unwrap()).collect()
    });
    home.assert_staging_empty();
    for (number, revived) in (0..).zip(&mut revived) {
        revived.assert_counts_on(number);
        assert_eq!(revived.ask("check"), "memory ok 1024 pages");
        assert_eq!(revived.ask("child 0 tick"), "count 1");
    }
}

fn a_capture_can_be_revived_again_and_again() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["children=1"]);
    victim.assert_counts_on(0);
    let first = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.assert_counts_on(1);
    victim.end();
    let mut last = first;
    // And what was revived can be captured in its turn.
    for generation in 1..4 {
        let mut revived = Revived::from(home.restore(), &store, &last);
        revived.assert_counts_on(generation);
        last = home.capture([revived.pid()]).capture(&store).or_explain();
        drop(revived);
    }
    Revived::from(home.restore(), &store, &first).assert_counts_on(1);
    Revived::from(home.restore(), &store, &last).assert_counts_on(4);
}

fn two_captures_of_one_tree_at_once_leave_it_whole() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["children=2", "threads=4", "memory=4"]);
    let mut stored = Vec::new();
    for count in 0..5 {
        let capture = home.capture([victim.pid()]);
        let attempt = || capture.capture(&store);
        let results = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(attempt));
            both.map(|one| one.join().unwrap())
        });
        for result in results {
            match result {
                Ok(digest) => stored.push((digest, count)),
                Err(error) => {
                    let cause = error.failure().map(|failure| failure.cause);
                    // As the other criu had the tree already, or was about to take it.
                    let beaten = matches!(cause, Some(Cause::NoSuchProcess | Cause::Untraceable));
                    assert!(beaten, "{}", explain(&error));
                }
            }
        }
        victim.assert_counts_on(count);
        assert_eq!(victim.ask("check"), "memory ok 1024 pages");
        assert_eq!(victim.ask("child 1 tick"), format!("count {}", count + 1));
        assert_threads_count(&mut victim.talk);
    }
    home.assert_staging_empty();
    victim.end();
    for (digest, count) in stored {
        Revived::from(home.restore(), &store, &digest).assert_counts_on(count);
    }
}

fn a_stopped_tree_stays_stopped_and_is_revived_stopped() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&["memory=1"]);
    victim.assert_counts_on(0);
    let pid = victim.pid();
    let stopped = || wait_until("it is stopped", || state(pid) == Some('T'));
    signal(pid, Signal::SIGSTOP);
    stopped();
    let digest = home.capture([pid]).capture(&store).or_explain();
    stopped();
    signal(pid, Signal::SIGCONT);
    victim.assert_counts_on(1);
    victim.end();

    let mut revived = Revived::from(home.restore(), &store, &digest);
    stopped();
    signal(pid, Signal::SIGCONT);
    revived.assert_counts_on(1);
}

fn a_tree_with_a_zombie_is_revived_with_it() {
    let home = Home::new();
    let store = home.store();
    let mut victim = Victim::start(&[]);
    let zombie: i32 = victim.ask("zombie").parse().unwrap();
    wait_until("there is a zombie", || state(zombie) == Some('Z'));
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.assert_counts_on(0);
    victim.end();
    let mut revived = Revived::from(home.restore(), &store, &digest);
    revived.assert_counts_on(0);
    assert_eq!((state(zombie), family(revived.pid())), (Some('Z'), vec![revived.pid(), zombie]));
}
