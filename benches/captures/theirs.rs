//! What captures and restores are held against: criu alone, and what one would do by hand.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Instant,
};

use criu_rpc::{
    Criu, DumpOptions, Pid,
    rpc::{Lend, NoHooks},
};
use prost::Message;

use crate::{
    machine,
    places::{Folder, succeed},
    run::Result,
};

/// criu alone: a dump into an empty folder, through the client. The tree goes on.
pub(crate) fn dump(pid: Pid, folder: &Path) -> Result<()> {
    let images = File::open(folder)?;
    let options = DumpOptions::default().leave_running(true);
    Criu::new().dump(pid, &options, Lend::images(&images), &mut NoHooks)?;
    Ok(())
}

/// How long the tree stood still for the dump in this folder, by criu's clock.
pub(crate) fn frozen(folder: &Path) -> Result<f64> {
    let image = fs::read(folder.join("stats-dump"))?;
    // Two magic numbers, the size of the one entry, the entry.
    let stats = Stats::decode(image.get(12..).ok_or("stats-dump is too short")?)?;
    let frozen = stats.dump.ok_or("stats-dump is of no dump")?.frozen_us;
    Ok(f64::from(frozen) / 1e6)
}

#[derive(Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

#[derive(Message)]
struct DumpStats {
    #[prost(uint32, tag = "2")]
    frozen_us: u32,
}

/// The seconds of `criu dump` into a folder, `tar | tee FILE | sha256sum`, `sync`.
pub(crate) fn by_hand(pid: Pid, mib: usize) -> Result<f64> {
    let folder = Folder::temporary()?;
    let script = "set -e; cd \"$1\"; mkdir images; criu dump -t \"$0\" -D images --leave-running -v1; \
                  tar -C images -cf - . | tee archive.tar | sha256sum >digest; sync archive.tar digest";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(pid.to_string()).arg(folder.path());
    timed(mib, || succeed(&mut shell)).map(|((), seconds)| seconds)
}

/// How long it takes, in seconds, with a tree of so many MiB, once the disk has nothing else to
/// write and the machine has four times as much free memory at hand: images, an archive of them and
/// a copy of that are three.
pub(crate) fn timed<T>(mib: usize, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    nix::unistd::sync();
    machine::provide(4 * mib)?;
    let began = Instant::now();
    let value = work()?;
    Ok((value, began.elapsed().as_secs_f64()))
}
