//! The baselines for captures and restores: criu alone, and the same work by hand.

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

/// Dumps into an empty folder by criu alone, through the client. The tree goes on.
pub(crate) fn dump(pid: Pid, folder: &Path) -> Result<()> {
    let images = File::open(folder)?;
    let options = DumpOptions::default().leave_running(true);
    Criu::new().dump(pid, &options, Lend::images(&images), &mut NoHooks)?;
    Ok(())
}

/// Returns the seconds that the tree was frozen for the dump in this folder, by criu's clock.
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

/// Measures `criu dump` into a folder, `tar | tee FILE | sha256sum`, `sync`, in seconds.
pub(crate) fn by_hand(pid: Pid, mib: usize) -> Result<f64> {
    let folder = Folder::temporary()?;
    let script = "set -e; cd \"$1\"; mkdir images; criu dump -t \"$0\" -D images --leave-running -v1; \
                  tar -C images -cf - . | tee archive.tar | sha256sum >digest; sync archive.tar digest";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(pid.to_string()).arg(folder.path());
    timed(mib, || succeed(&mut shell)).map(|((), seconds)| seconds)
}

/// Measures the work in seconds, for a tree of so many MiB. First it waits until the disk is idle,
/// and makes the machine provide four times the tree's memory. Images, an archive of them and a
/// copy of that need three.
pub(crate) fn timed<T>(mib: usize, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    nix::unistd::sync();
    machine::provide(4 * mib)?;
    let began = Instant::now();
    let value = work()?;
    Ok((value, began.elapsed().as_secs_f64()))
}
