//! Folders of images to process trees.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use super::{
    attempt::Attempt,
    files::{Files, LastLook},
    fit,
    links::Links,
    pids::Pids,
    relock::Relock,
    staging::Staging,
    streams::Given,
};
use crate::{
    Cause, Criu, Error, Failure, Request, RestoreOptions, Result, Until, Warning,
    image::{ImageDir, MemoryIn, check_complete, check_version},
    platform::{Revival, Revived, ToRevive, Unread},
    rpc::tree::Tree,
    sys,
    took::{Clock, Phase},
};

/// How long a reaper may take that is slow, as the init of some containers is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A criu that was found, and a private folder for the images that it is to restore.
#[derive(Debug)]
pub(crate) struct Reviver<'a> {
    pub(super) revival: &'a Revival,
    pub(super) until: Until,
    pub(super) clock: &'a Clock,
    pub(super) criu: Criu,
    /// Descriptors to remove the folder with, if there are no others by then. They are given free before that.
    _reserve: [OwnedFd; 2],
    staging: Staging,
}

impl<'a> Reviver<'a> {
    pub(crate) fn new(revival: &'a Revival, until: &Until, clock: &'a Clock) -> Result<Reviver<'a>> {
        let mut criu = revival.criu.as_ref().map_or_else(Criu::new, Criu::at);
        if let Some(cancel) = &revival.cancel {
            criu = criu.cancelled_by(cancel);
        }
        criu.program()?;
        let null = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
        // Not in the place of a standard stream that the program closed: the tree would be given it.
        let reserve = || sys::duplicate_above(null.as_fd(), 3).map_err(Error::io("keep a descriptor"));
        let _reserve = [reserve()?, reserve()?];
        Ok(Reviver {
            revival,
            until: until.clone(),
            clock,
            criu,
            _reserve,
            staging: Staging::new(revival.staging.as_deref())?,
        })
    }

    /// The criu that revived, as it calls itself.
    pub(crate) fn criu(&self) -> String {
        self.criu.told().as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Where the images are to be put.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.path()
    }

    /// Revives all the trees or none.
    pub(crate) fn revive(&self, trees: &[ToRevive<'_>]) -> Result<Revived> {
        let images: Vec<_> = trees.iter().map(|tree| ImageDir::new(tree.folder)).collect();
        for (tree, images) in trees.iter().zip(&images) {
            let memory = if tree.pages.is_some() { MemoryIn::Blobs } else { MemoryIn::Folder };
            check_version(images, Request::Restore)?;
            check_complete(images, memory)?;
        }
        let links = Links::between(&images)?;
        let (mut revived, mut warnings, mut unread) = (AllOrNone(Vec::new()), Vec::new(), Vec::new());
        for (place, (tree, images)) in trees.iter().zip(&images).enumerate() {
            let given = Given::new(self.revival, links.of(place))?;
            let mut lent = given.lend(images)?;
            images.keep_unsent()?;
            order_sockets(images).map_err(|error| self.tell_version(error))?;
            let (tree, more) = self.revive_one(*tree, images, &lent.files)?;
            unread.extend(lent.unread.drain(..).map(|(descriptor, bytes)| Unread {
                tree: tree.pid(),
                descriptor,
                bytes,
            }));
            if lent.input_unused {
                warnings.push(Warning::InputEnded { pid: tree.pid() });
            }
            revived.0.push(tree);
            warnings.extend(more);
        }
        Ok(Revived { trees: std::mem::take(&mut revived.0), warnings, unread })
    }

    fn revive_one(
        &self,
        tree: ToRevive<'_>,
        images: &ImageDir,
        lent: &[(String, File)],
    ) -> Result<(Tree, Vec<Warning>)> {
        let options = fit::for_restore(&self.revival.options, images)?;
        check_root_folder(&options, images).map_err(|error| self.tell_version(error))?;
        let pids = Pids::of(images)?;
        let patience = self.revival.patience.unwrap_or(PATIENCE);
        let patience = self.until.remaining().map_or(patience, |left| patience.min(left));
        self.clock.lap(Phase::Prepare);
        pids.wait_for_zombies(patience);
        self.clock.lap(Phase::Wait);

        let checked = self.check_files(images, lent, options.carries_file_locks());
        let (last_look, warnings) = checked.map_err(|error| self.tell_version(error))?;
        let relock = if options.carries_file_locks() { Relock::of(images)? } else { None };
        let attempt = Attempt {
            reviver: self,
            tree,
            images,
            lent,
            patience,
            pids,
            last_look,
            stays_stopped: options.leaves_stopped(),
            options: if relock.is_some() { options.leave_stopped(true) } else { options },
            relock,
            notes: images.notes()?,
            warnings: warnings.into(),
        };
        let tree = attempt.revive()?;
        self.clock.lap(Phase::Finish);
        Ok((tree, attempt.warnings.into_inner()))
    }
}

impl Reviver<'_> {
    /// Looks at the tree's files before criu is asked.
    fn check_files(
        &self,
        images: &ImageDir,
        lent: &[(String, File)],
        locks: bool,
    ) -> Result<(LastLook, Vec<Warning>)> {
        let streams = lent.iter().map(|(key, _)| key);
        let lent =
            streams.chain(self.revival.inherit.iter().map(|(key, _)| key)).map(String::as_bytes).collect();
        let files = Files::look(images, &lent)?;
        if !self.revival.replaced_files {
            files.check_replaced()?;
        }
        files.check_missing()?;
        if locks {
            files.check_locks(images)?;
        }
        let (last_look, warnings) = files.settle(images, self.revival.grown_files)?;
        Ok((last_look, warnings))
    }

    /// Adds the release of criu to a failure that came before criu was asked.
    fn tell_version(&self, error: Error) -> Error {
        match error {
            Error::Criu(mut failure) if failure.version.is_none() => {
                failure.version = self.criu.version().ok();
                Error::Criu(failure)
            }
            error => error,
        }
    }
}

/// Makes criu restore the unix sockets as they were, and refuses to begin where it would not.
fn order_sockets(images: &ImageDir) -> Result<()> {
    let problems = images.order_sockets()?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Criu(Failure::foreseen(Request::Restore, Cause::UnixSocketBusy, problems).into()))
}

/// Refuses to begin without the root folder that a mount namespace needs: criu would stumble over that.
fn check_root_folder(options: &RestoreOptions, images: &ImageDir) -> Result<()> {
    if options.can_make_mounts() || !images.has_own_mounts()? {
        return Ok(());
    }
    let findings = vec!["the tree has a mount namespace of its own, and `root` is not set".to_owned()];
    Err(Error::Criu(Failure::foreseen(Request::Restore, Cause::RootFolderNeeded, findings).into()))
}

/// Trees that end when this is dropped, by a panic too, unless they are taken out.
pub(super) struct AllOrNone(pub(super) Vec<Tree>);

impl Drop for AllOrNone {
    fn drop(&mut self) {
        for tree in &mut self.0 {
            let _ = tree.kill().and_then(|()| tree.wait()); // what failed first is to be told
        }
    }
}
