//! The time that the tree is frozen, by criu's own clock.

use criu_rpc::Pid;

use crate::{
    machine,
    ours::{self, Store},
    places::{Folder, Tmpfs},
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    theirs::{self, timed},
    victim::Victim,
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let victim = Victim::with_memory(settings.mib)?;
    let tmpfs = Tmpfs::mount()?;
    let mut to_disk = Runs::of(format!("criu alone, to {}", machine::disk()), Unit::Seconds);
    let mut to_tmpfs = Runs::of("criu alone, to tmpfs", Unit::Seconds);
    let mut ours = Runs::of("v2, standing still", Unit::Seconds);
    for _ in 0..settings.runs {
        to_disk.push(alone(victim.pid(), &Folder::temporary()?, settings.mib)?);
        to_tmpfs.push(alone(victim.pid(), &Folder::within(tmpfs.path())?, settings.mib)?);
        ours.push(captured(victim.pid(), settings)?);
    }
    let what = format!("tree stands still, {} MiB, v2", settings.mib);
    Ok(vec![
        Line::compare(&what, &to_disk, &ours, Goal::Times(0.7)),
        Line::compare(&what, &to_tmpfs, &ours, Goal::Times(0.4)),
    ])
}

fn alone(pid: Pid, folder: &Folder, mib: usize) -> Result<f64> {
    timed(mib, || theirs::dump(pid, folder.path()))?;
    theirs::frozen(folder.path())
}

fn captured(pid: Pid, settings: &Settings) -> Result<f64> {
    let store = Store::empty(settings)?;
    let (stored, _) = timed(settings.mib, || ours::v2(pid, store.blobs()))?;
    Ok(stored.frozen.ok_or("criu did not say how long the tree stood still")?.as_secs_f64())
}
