//! A whole capture into an empty store, until it is durable.

use criu_rpc::{BlobStore, Pid, Stored};

use crate::{
    ours::{self, Store},
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    theirs::{by_hand, timed},
    victim::Victim,
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let victim = Victim::with_memory(settings.mib)?;
    let mut hand = Runs::of("by hand: dump, tar, hash, sync", Unit::Seconds);
    let mut v1 = Runs::of("v1, whole", Unit::Seconds);
    let mut v2 = Runs::of("v2, whole, first", Unit::Seconds);
    for _ in 0..settings.runs {
        hand.push(by_hand(victim.pid(), settings.mib)?);
        v1.push(first(victim.pid(), ours::v1, settings)?);
        v2.push(first(victim.pid(), ours::v2, settings)?);
    }
    let what = |kind: &str| format!("whole capture, {} MiB, {kind}", settings.mib);
    Ok(vec![
        Line::compare(what("v1"), &hand, &v1, Goal::Times(0.4)),
        Line::compare(what("v2, first time"), &hand, &v2, Goal::Times(0.3)),
    ])
}

fn first(pid: Pid, capture: fn(Pid, &dyn BlobStore) -> Result<Stored>, settings: &Settings) -> Result<f64> {
    let store = Store::empty(settings)?;
    timed(settings.mib, || capture(pid, store.blobs())).map(|(_, seconds)| seconds)
}
