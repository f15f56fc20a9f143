//! A small tree that is left running, until its capture is durable, compared with criu's dump
//! alone.

use criu_rpc::Pid;

use crate::{
    ours::{self, Store},
    places::Folder,
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    theirs::{self, timed},
    victim::Victim,
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let victim = Victim::with_memory(settings.small)?;
    let store = Store::empty(settings)?;
    ours::v2(victim.pid(), store.blobs())?;
    let mut bare = Runs::of("bare criu dump through swrk", Unit::Milliseconds);
    let mut first = Runs::of("v2, small, first", Unit::Milliseconds);
    let mut again = Runs::of("v2, small, again", Unit::Milliseconds);
    for _ in 0..settings.runs * 3 {
        bare.push(dump(victim.pid(), settings.small)?);
        first.push(capture(victim.pid(), &Store::empty(settings)?, settings.small)?);
        again.push(capture(victim.pid(), &store, settings.small)?);
    }
    let what = |kind: &str| format!("small tree, {} MiB, v2, {kind}", settings.small);
    Ok(vec![
        Line::compare(what("first time"), &bare, &first, Goal::More(8e-3)),
        Line::compare(what("again"), &bare, &again, Goal::More(8e-3)),
    ])
}

fn dump(pid: Pid, mib: usize) -> Result<f64> {
    let folder = Folder::temporary()?;
    timed(mib, || theirs::dump(pid, folder.path())).map(|((), seconds)| seconds)
}

fn capture(pid: Pid, store: &Store, mib: usize) -> Result<f64> {
    timed(mib, || ours::v2(pid, store.blobs())).map(|(_, seconds)| seconds)
}
