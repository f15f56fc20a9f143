//! A restore that verifies everything, compared with criu and a ready folder of images. Both read
//! from the page cache.

use std::fs::File;

use criu_rpc::{
    Criu, Digest256, ProcsRestore, RestoreOptions, Tree,
    rpc::{Key, Lend, NoHooks},
};

use crate::{
    ours::{self, Store},
    places::Folder,
    run::{Result, Settings},
    table::{Goal, Line, Runs, Unit},
    theirs::{self, timed},
    victim::Victim,
};

pub(crate) fn lines(settings: &Settings) -> Result<Vec<Line>> {
    let (images, store) = (Folder::temporary()?, Store::empty(settings)?);
    let victim = Victim::with_memory(settings.mib)?;
    let streams = [Key::of_process(victim.pid(), 0)?, Key::of_process(victim.pid(), 1)?];
    theirs::dump(victim.pid(), images.path())?;
    let digest = ours::v2(victim.pid(), store.blobs())?.digest;
    drop(victim);
    let mut alone = Runs::of("criu restore, nothing verified", Unit::Seconds);
    let mut ours = Runs::of("v2, restore", Unit::Seconds);
    for _ in 0..settings.runs {
        alone.push(by_criu(&images, &streams, settings.mib)?);
        ours.push(by_us(&store, &digest, settings.mib)?);
    }
    let what = format!("restore, {} MiB, v2, verified", settings.mib);
    Ok(vec![Line::compare(what, &alone, &ours, Goal::Times(1.7))])
}

fn by_criu(images: &Folder, streams: &[Key; 2], mib: usize) -> Result<f64> {
    let (stdin, stdout, _ours) = pipes()?;
    let images = File::open(images.path())?;
    let options = RestoreOptions::default().rst_sibling(true);
    let lend = Lend::images(&images)
        .inherit(streams[0].to_string(), &stdin)
        .inherit(streams[1].to_string(), &stdout);
    let (_tree, seconds) = timed(mib, || Ok(Revived(Criu::new().restore(&options, lend, &mut NoHooks)?)))?;
    Ok(seconds)
}

fn by_us(store: &Store, digest: &Digest256, mib: usize) -> Result<f64> {
    let (stdin, stdout, _ours) = pipes()?;
    let restore = ProcsRestore::new().stdin(stdin).stdout(stdout);
    let (_trees, seconds) = timed(mib, || {
        let restored = restore.restore(store.blobs(), digest)?;
        Ok(restored.trees.into_iter().map(Revived).collect::<Vec<_>>())
    })?;
    Ok(seconds)
}

/// Creates the tree's standard input and output, and our ends of them. Without our ends the tree
/// would end.
fn pipes() -> Result<(File, File, [File; 2])> {
    let (stdin, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (from, stdout) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((stdin.into(), stdout.into(), [to.into(), from.into()]))
}

/// A revived tree. Drop kills and reaps it, so that the next one can have its pid.
struct Revived(Tree);

impl Drop for Revived {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
