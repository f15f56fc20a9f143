//! A capture into a store that has an earlier one, after a change of 5 % of the tree's memory.

use crate::{
    ours::{self, Store},
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    theirs::{by_hand, timed},
    victim::{PAGE, Victim},
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let mut lines = changed("scatter", "single pages", settings)?;
    lines.extend(changed("stretch", "in a row", settings)?);
    Ok(lines)
}

fn changed(how: &str, name: &str, settings: &Settings) -> Result<Vec<Line>> {
    let mut victim = Victim::with_memory(settings.mib)?;
    let store = Store::empty(settings)?;
    ours::v2(victim.pid(), store.blobs())?;
    let pages = (settings.mib << 20) / PAGE / 20;
    let mut hand = Runs::of("by hand: dump, tar, hash, sync", Unit::Seconds);
    let mut ours = Runs::of("v2, 5 % changed", Unit::Seconds);
    let mut changed = Runs::of("bytes that changed", Unit::MiB);
    let mut new = Runs::of("v2, new bytes", Unit::MiB);
    for _ in 0..settings.runs {
        victim.ask(&format!("{how} {pages}"))?;
        hand.push(by_hand(victim.pid(), settings.mib)?);
        let (stored, seconds) = timed(settings.mib, || ours::v2(victim.pid(), store.blobs()))?;
        ours.push(seconds);
        changed.push((pages * PAGE) as f64);
        new.push(stored.bytes as f64);
    }
    let what = |kind: &str| format!("{kind}, {} MiB, v2, 5 % changed, {name}", settings.mib);
    Ok(vec![
        Line::compare(what("whole capture"), &hand, &ours, Goal::Times(0.15)),
        Line::compare(what("new bytes"), &changed, &new, Goal::Times(1.2)),
    ])
}
