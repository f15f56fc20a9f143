//! Folders of images to process trees.

mod attempt;
mod rest;
mod turn;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use self::{
    attempt::Attempt,
    rest::{All, Rest},
    turn::Turn,
};
use super::{
    checks::{Check, Checked, whole_images},
    files::settle_deleted,
    links::Links,
    pids::Pids,
    relock::Relock,
    staging::Staging,
    streams::{Given, ToLend},
};
use crate::{
    Cause, Criu, Error, Result, Until, Version, Warning,
    image::ImageDir,
    platform::{Revival, Revived, ToRevive, Unread},
    rpc::{check_key, tree::Tree},
    stream::Chosen,
    sys,
    took::{Clock, Phase},
};

/// The time that a slow reaper may take, such as the init of some containers.
const PATIENCE: Duration = Duration::from_secs(5);

/// A little more than the minute for which the kernel keeps a port of an ended connection.
const PORT_PATIENCE: Duration = Duration::from_secs(65);

/// The most trees that stand still at the same time: for each, a criu runs meanwhile.
const MOST_STANDING: usize = 32;

/// A criu that was found, and a private folder for the images that it is to restore.
#[derive(Debug)]
pub(crate) struct Reviver<'a> {
    pub(super) revival: &'a Revival,
    pub(super) chosen: &'a [Option<Chosen>; 3],
    pub(super) until: Until,
    pub(super) clock: &'a Clock,
    pub(super) criu: Criu,
    /// Descriptors to remove the folder with, if there are no others by then. They are given free
    /// before that.
    _reserve: [OwnedFd; 2],
    staging: Staging,
}

impl<'a> Reviver<'a> {
    pub(crate) fn new(
        revival: &'a Revival,
        chosen: &'a [Option<Chosen>; 3],
        until: &Until,
        clock: &'a Clock,
    ) -> Result<Reviver<'a>> {
        revival.inherit.iter().try_for_each(|(key, _)| check_key("inherit", key))?;
        let mut criu = revival.means.criu.as_ref().map_or_else(Criu::new, Criu::at);
        if let Some(cancel) = &revival.means.cancel {
            criu = criu.cancelled_by(cancel);
        }
        criu = criu.isolated(revival.isolation.clone());
        criu.program()?;
        let null = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
        // Not in the place of a standard stream that the program closed: the tree would be given
        // it.
        let reserve = || sys::duplicate_above(null.as_fd(), 3).map_err(Error::io("keep a descriptor"));
        let _reserve = [reserve()?, reserve()?];
        Ok(Reviver {
            revival,
            chosen,
            until: until.clone(),
            clock,
            criu,
            _reserve,
            staging: Staging::new(revival.means.staging.as_deref())?,
        })
    }

    /// Asks criu its release, in the time that is left.
    pub(super) fn version(&self) -> Result<Version> {
        let criu = self.criu.clone();
        self.until.remaining().map_or(criu.clone(), |left| criu.deadline(left)).version()
    }

    /// The criu that revived, as it calls itself.
    pub(crate) fn criu(&self) -> String {
        self.criu.last_version().as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// The folder for the images.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.path()
    }

    /// Revives all the trees or none.
    pub(crate) fn revive(&self, trees: &[ToRevive<'_>]) -> Result<Revived> {
        let images = whole_images(trees)?;
        self.check_isolation(&images)?;
        images.iter().try_for_each(settle_deleted)?;
        let links = Links::between(&images)?;
        let mut all_lent = Vec::new();
        for (place, images) in images.iter().enumerate() {
            all_lent.push(Given::new(self.revival, self.chosen, links.of(place))?.lend(images)?);
        }
        if trees.len() > 1 {
            self.check_all(&images, &all_lent)?;
        }
        let ready: Vec<_> = trees
            .iter()
            .zip(&images)
            .zip(&all_lent)
            .map(|((tree, images), lent)| Ready { tree: *tree, images, files: &lent.files })
            .collect();
        let (mut revived, mut warnings) = (AllOrNone(Vec::new()), Vec::new());
        for ready in ready.chunks(MOST_STANDING) {
            let (mut more, told) = self.revive_each(ready)?;
            revived.0.append(&mut more.0);
            warnings.extend(told);
        }
        let (mut unread, mut used) = (Vec::new(), [false; 3]);
        for ((tree, more), mut lent) in revived.0.iter().zip(&mut warnings).zip(all_lent) {
            unread.extend(lent.unread.drain(..).map(|(descriptor, bytes)| Unread {
                tree: tree.pid(),
                descriptor,
                bytes,
            }));
            used.iter_mut().zip(lent.used).for_each(|(used, more)| *used |= more);
            if lent.input_unused {
                used[0] = true; // and its own warning tells of it
                more.insert(0, Warning::InputEnded { pid: tree.pid() });
            }
        }
        let mut warnings: Vec<_> = warnings.into_iter().flatten().collect();
        if let Some(first) = revived.0.first() {
            let unused = (0..).zip(used).filter(|(_, used)| !used);
            warnings.extend(unused.map(|(stream, _)| Warning::StreamUnused { pid: first.pid(), stream }));
        }
        Ok(Revived { trees: std::mem::take(&mut revived.0), warnings, unread })
    }

    /// Revives the trees in their order, with the warnings of each.
    ///
    /// Each stands still until those after it are there: the files that they share must be as they
    /// were, and their pids must be free.
    fn revive_each(&self, trees: &[Ready<'_>]) -> Result<(AllOrNone, Vec<Vec<Warning>>)> {
        let (mut revived, mut warnings) = (AllOrNone(Vec::new()), Vec::new());
        let Some((first, others)) = trees.split_first() else { return Ok((revived, warnings)) };
        let rest = Rest::new(|| self.revive_each(others));
        let (tree, more) = match others.is_empty() {
            true => self.revive_one(first, None),
            false => self.revive_one(first, Some(&rest)),
        }
        .map_err(|error| rest.own_error(error))?;
        revived.0.push(tree);
        warnings.push(more);
        if let Some((mut others, more)) = rest.take() {
            revived.0.append(&mut others.0);
            warnings.extend(more);
        }
        Ok((revived, warnings))
    }

    /// Returns the numbers that the tree needs here.
    pub(super) fn pids(&self, images: &ImageDir) -> Result<Pids> {
        match self.revival.isolation {
            Some(_) => Ok(Pids::of_copy()),
            None => Pids::of(images),
        }
    }

    /// Refuses a copy of trees that cannot be put into one pid namespace.
    pub(super) fn check_isolation(&self, images: &[ImageDir]) -> Result<()> {
        if self.revival.isolation.is_none() {
            return Ok(());
        }
        let refused = |problem: String| Err(Error::Options { option: "isolated", problem });
        if !sys::Init::is_built() {
            return refused("the crate was built without the init of copies".to_owned());
        }
        if images.len() > 1 {
            return refused(format!("the capture has {} trees, and a copy has one", images.len()));
        }
        if images.iter().map(ImageDir::has_own_pids).collect::<Result<Vec<_>>>()?.contains(&true) {
            return refused("the tree has a pid namespace of its own already".to_owned());
        }
        Ok(())
    }

    /// Checks each of several trees before the first of them runs: what it does cannot be undone.
    fn check_all(&self, images: &[ImageDir], lent: &[ToLend]) -> Result<()> {
        for (images, lent) in images.iter().zip(lent) {
            let pids = self.pids(images)?;
            pids.wait_for_zombies(self.patience());
            let check = Check { revival: self.revival, images, lent: &lent.files, pids: &pids };
            // A process of another tree, whose files in /proc this one has open, is not there yet.
            let mut problems = |error: Error| match error.failure() {
                Some(failure) if failure.cause == Cause::ProcFile => Ok(()),
                _ => Err(error),
            };
            check.run(&mut problems).map_err(|error| self.tell_version(error))?;
        }
        Ok(())
    }

    /// Returns the time to wait for what passes by itself.
    fn patience(&self) -> Duration {
        let patience = self.revival.patience.unwrap_or(PATIENCE);
        self.until.remaining().map_or(patience, |left| patience.min(left))
    }

    /// Returns the time to wait until the kernel gives a port free.
    fn port_patience(&self) -> Duration {
        let patience = self.revival.patience.unwrap_or(PORT_PATIENCE);
        self.until.remaining().map_or(patience, |left| patience.min(left))
    }

    fn revive_one(&self, ready: &Ready<'_>, rest: Option<&dyn All>) -> Result<(Tree, Vec<Warning>)> {
        let &Ready { tree, images, files: lent } = ready;
        images.order_sockets()?;
        images.repeat_calls()?;
        images.mend_timers()?;
        let held = images.hold_unsent()?;
        let pids = self.pids(images)?;
        let patience = self.patience();
        self.clock.lap(Phase::Prepare);
        let waiting = Instant::now();
        pids.wait_for_zombies(patience);
        let patience = patience.saturating_sub(waiting.elapsed());
        let _turn = Turn::for_copy(self, images)?;
        self.clock.lap(Phase::Wait);

        let check = Check { revival: self.revival, images, lent, pids: &pids };
        let Checked { options, files, grown } =
            check.run(&mut Err).map_err(|error| self.tell_version(error))?;
        let (last_look, warnings) = files.settle(images, grown)?;
        let relock = if options.carries_file_locks() { Relock::of(images)? } else { None };
        let attempt = Attempt {
            reviver: self,
            tree,
            images,
            lent,
            held: if options.closes_tcp() { Vec::new() } else { held },
            patience,
            pids,
            last_look,
            stays_stopped: options.leaves_stopped(),
            options: if relock.is_some() { options.leave_stopped(true) } else { options },
            relock,
            notes: images.notes()?,
            rest,
            warnings: warnings.into(),
        };
        let tree = attempt.revive()?;
        self.clock.lap(Phase::Finish);
        Ok((tree, attempt.warnings.into_inner()))
    }
}

impl Reviver<'_> {
    /// Adds the release of criu to a failure that came before criu was asked.
    fn tell_version(&self, error: Error) -> Error {
        match error {
            Error::Criu(mut failure) if failure.version.is_none() => {
                failure.version = self.version().ok();
                Error::Criu(failure)
            }
            error => error,
        }
    }
}

/// A tree that can be revived, and the files that it is lent.
struct Ready<'a> {
    tree: ToRevive<'a>,
    images: &'a ImageDir,
    files: &'a [(String, File)],
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
