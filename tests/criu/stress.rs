//! Requests that are given up at whatever moment.

use std::{
    fs,
    fs::File,
    time::{Duration, Instant},
};

use criu_rpc::{
    DumpOptions, Error, RestoreOptions,
    rpc::{Event, Lend, NoHooks},
};

use crate::{
    apart::{Whole, apart, assert_alone_with, given_up, inherit_orphans, random},
    client::dump,
    harness::{Test, criu, tests},
    places::{Home, names, state},
    requests::Images,
    tree::{OrExplain, Victim, explain, wait_gone},
};

tests![
    dumps_given_up_at_any_moment_leave_the_tree_whole,
    restores_given_up_at_any_moment_leave_nothing_or_succeed,
    a_restore_that_hangs_is_given_up_at_the_deadline,
];

pub(crate) const APART: &[Test] =
    &[("dumps", give_up_dumps), ("restores", give_up_restores), ("hanging", give_up_a_hanging_restore)];

fn dumps_given_up_at_any_moment_leave_the_tree_whole() {
    apart("dumps");
}

fn restores_given_up_at_any_moment_leave_nothing_or_succeed() {
    apart("restores");
}

fn a_restore_that_hangs_is_given_up_at_the_deadline() {
    apart("hanging");
}

/// The time for which a row of rounds goes on.
const ROW: Duration = Duration::from_secs(40);

/// The time until all that was given up must have ended. criu's last resort would take longer.
const SOON: Duration = Duration::from_secs(15);

fn give_up_dumps() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=4", "threads=6", "memory=16"]);
    let whole = Whole::of(&victim);
    let begin = Instant::now();
    let (mut rounds, mut given_up_count) = (0, 0);
    while rounds < 200 && begin.elapsed() < ROW {
        let (leave_running, by_thread, heir) = (rounds % 2 == 0, rounds % 4 < 2, rounds % 8 < 4);
        inherit_orphans(heir);
        let moment = Duration::from_micros(random(120_000));
        let after = format!("after round {rounds}: {moment:?} {leave_running} {by_thread} {heir}");
        let name = rounds.to_string();
        let folder = File::open(home.folder(&name)).unwrap();
        let mut refuse = |event: Event<'_>| match event {
            Event::PostDump if !leave_running => Err("the tree is to go on".into()),
            _ => Ok(()),
        };
        let options = DumpOptions::default().leave_running(leave_running);
        let asked = Instant::now();
        let result = given_up(criu(), moment, by_thread, |criu| {
            criu.dump(victim.pid(), &options, Lend::images(&folder), &mut refuse)
        });
        assert!(asked.elapsed() < SOON, "it took {:?} {after}", asked.elapsed());
        match result {
            None => given_up_count += 1,
            Some(Ok(_)) if leave_running => {}
            Some(Err(Error::Refused { .. })) if !leave_running => {}
            Some(Ok(_)) => panic!("the tree was to go on {after}"),
            Some(Err(error)) => panic!("{after}: {}", explain(&error)),
        }
        assert_alone_with(&[victim.pid()], &after);
        whole.assert_kept(&victim, &after);
        victim.assert_counts_on(rounds);
        assert_eq!(victim.ask("check"), "memory ok 4096 pages", "{after}");
        assert_eq!(victim.ask("threads").split(' ').count(), 6, "{after}");
        for child in 0..4 {
            assert_eq!(
                victim.ask(&format!("child {child} tick")),
                format!("count {}", rounds + 1),
                "{after}"
            );
        }
        fs::remove_dir_all(home.path(&name)).unwrap();
        rounds += 1;
    }
    assert!(given_up_count > 0, "all of {rounds} dumps were quick enough");
    println!("{given_up_count} of {rounds} dumps were given up");
}

fn give_up_restores() {
    let home = Home::new();
    let mut victim = Victim::start(&["children=2", "threads=3", "memory=8"]);
    victim.assert_counts_on(0);
    let images = Images::of(&victim, &home.folder("images"));
    dump(&home, "unused", victim.pid(), &DumpOptions::default().leave_running(true), &mut NoHooks)
        .or_explain();
    criu().dump(victim.pid(), &DumpOptions::default(), images.lend(), &mut NoHooks).or_explain();
    victim.reap(&images.members);
    let options = RestoreOptions::default();
    let begin = Instant::now();
    let (mut rounds, mut given_up_count) = (0, 0);
    while rounds < 60 && begin.elapsed() < ROW {
        let (by_thread, heir) = (rounds % 2 == 0, rounds % 4 < 2);
        inherit_orphans(heir);
        let moment = Duration::from_micros(random(200_000));
        let after = format!("after round {rounds}: {moment:?} {by_thread} {heir}");
        let asked = Instant::now();
        match given_up(criu(), moment, by_thread, |criu| images.revive(&criu, &options)) {
            None => given_up_count += 1,
            Some(Ok(mut revived)) => revived.assert_counts_on(1),
            Some(Err(error)) => panic!("{after}: {}", explain(&error)),
        }
        assert!(asked.elapsed() < SOON, "it took {:?} {after}", asked.elapsed());
        assert_alone_with(&[], &after);
        wait_gone(&images.members);
        rounds += 1;
    }
    let mut revived = images.revive(&criu(), &options).or_explain();
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("check"), "memory ok 2048 pages");
    assert_eq!(revived.ask("child 1 check"), "memory ok 256 pages");
    assert!(given_up_count > 0, "all of {rounds} restores were quick enough");
    println!("{given_up_count} of {rounds} restores were given up");
}

fn give_up_a_hanging_restore() {
    let home = Home::new();
    let victim = Victim::start(&["children=1", "memory=4"]);
    let path = home.folder("images");
    let images = Images::of(&victim, &path);
    criu().dump(victim.pid(), &DumpOptions::default(), images.lend(), &mut NoHooks).or_explain();
    victim.reap(&images.members);
    let pages = names(&path).into_iter().find(|name| name.starts_with("pages-")).unwrap();
    let pages = File::options().write(true).open(path.join(pages)).unwrap();
    pages.set_len(pages.metadata().unwrap().len() / 2).unwrap();
    for heir in [false, true] {
        inherit_orphans(heir);
        let asked = Instant::now();
        let criu = criu().deadline(Duration::from_millis(300));
        let error = images.revive(&criu, &RestoreOptions::default()).unwrap_err();
        assert!(error.is_timeout(), "{}", explain(&error));
        assert!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
        assert_alone_with(&[], "after a restore that hung");
        wait_gone(&images.members);
        assert!(images.members.iter().all(|pid| state(*pid).is_none()));
    }
}
