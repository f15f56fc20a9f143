//! [`Attempt`]: has criu revive a tree that was checked. It tries again where an obstacle passes by
//! itself.

use std::{cell::RefCell, fs::File, os::fd::OwnedFd, time::Duration};

use super::{
    super::{
        files::LastLook, former::Former, pids::Pids, relock::Relock, retry::retry_while_taken,
        settle::Settle, streams::renumber, unsent::Unsent, whole,
    },
    AllOrNone, Reviver,
    rest::{All, Standing},
};
use crate::{
    Error, RestoreOptions, Result, Warning,
    image::{Held, ImageDir, Notes},
    pages::PageFiles,
    platform::ToRevive,
    rpc::{Lend, tree::Tree},
    serve,
    took::Phase,
};

/// A tree that was checked, and everything that criu is to be told of it.
pub(super) struct Attempt<'a> {
    pub(super) reviver: &'a Reviver<'a>,
    pub(super) tree: ToRevive<'a>,
    pub(super) images: &'a ImageDir,
    pub(super) lent: &'a [(String, File)],
    pub(super) held: Vec<Held>,
    pub(super) options: RestoreOptions,
    /// The time to wait for what passes by itself.
    pub(super) patience: Duration,
    pub(super) pids: Pids,
    pub(super) last_look: LastLook,
    pub(super) notes: Option<Notes>,
    pub(super) relock: Option<Relock>,
    /// True if the caller wants the tree stopped.
    pub(super) stays_stopped: bool,
    /// The trees that are to be there before it runs.
    pub(super) rest: Option<&'a dyn All>,
    pub(super) warnings: RefCell<Vec<Warning>>,
}

impl Attempt<'_> {
    /// Revives the tree. Its memory is served from where it is, or written into the folder first
    /// where that cannot be.
    pub(super) fn revive(&self) -> Result<Tree> {
        let Some(pages) = self.tree.pages else { return self.restore_from_folder() };
        if !self.options.needs_files() {
            // `None`, where memory cannot be served.
            if let Some(tree) = self.served(pages)? {
                return Ok(tree);
            }
        }
        self.lap(Phase::Prepare);
        whole::write(self.tree.folder, pages, &self.reviver.until)?;
        self.lap(Phase::Read);
        self.restore_from_folder()
    }

    fn served(&self, pages: &dyn PageFiles) -> Result<Option<Tree>> {
        let folder = self.folder()?;
        self.retried(|| {
            serve::served(self.tree.folder, pages, |images| self.restore(images, &folder)).transpose()
        })
    }

    fn restore_from_folder(&self) -> Result<Tree> {
        let folder = self.folder()?;
        self.retried(|| self.restore(&folder, &folder))
    }

    fn folder(&self) -> Result<OwnedFd> {
        let folder = self.tree.folder;
        let opened = File::open(folder).map_err(Error::io(format!("open {}", folder.display())));
        opened.map(OwnedFd::from)
    }

    /// Restores until what can pass by itself is not in the way any more.
    fn retried<T>(&self, restore: impl Fn() -> Result<T>) -> Result<T> {
        self.lap(Phase::Prepare);
        let former = Former::of(self.images, self.reviver.port_patience(), &self.reviver.until)?;
        retry_while_taken(self.patience, &former, || {
            self.lap(Phase::Wait);
            renumber(self.images)?;
            self.lap(Phase::Prepare);
            self.pids.retry_until_freed(self.patience, || {
                self.lap(Phase::Wait);
                restore()
            })
        })
    }

    /// Asks criu once.
    fn restore(&self, images: &OwnedFd, work: &OwnedFd) -> Result<Tree> {
        let mut lend = Lend::images(images).work(work);
        for (key, file) in self.lent.iter().chain(&self.reviver.revival.inherit) {
            lend = lend.inherit(key.as_str(), file);
        }
        let until = &self.reviver.until;
        until.check(|| "restore the tree".to_owned())?;
        let criu = self.reviver.criu.clone();
        let criu = until.remaining().map_or(criu.clone(), |left| criu.deadline(left));
        let settle = Settle::new(self.notes.clone(), self.last_look.clone());
        let unsent = Unsent { images: self.images, held: &self.held, then: settle };
        let mut hooks = Standing { rest: self.rest, clock: self.reviver.clock, then: unsent };
        self.lap(Phase::Prepare);
        let restored = criu.restore(&self.options, lend, &mut hooks);
        self.lap(Phase::Criu);
        self.warnings.borrow_mut().extend(hooks.then.then.warnings);
        let tree = restored.map_err(|error| self.pids.name_holders(LastLook::own_error(error)))?;
        let mut tree = AllOrNone(vec![tree]);
        if let Some([forking, restoring]) = self.images.restored() {
            let others = self.rest.map_or(Duration::ZERO, |rest| rest.took());
            self.reviver.clock.criu_told(forking, restoring.saturating_sub(others));
        }
        if let Some(relock) = &self.relock {
            let lost = relock.finish(tree.0[0].pid(), self.stays_stopped, until)?;
            self.warnings.borrow_mut().extend(lost);
        }
        Ok(tree.0.remove(0))
    }

    fn lap(&self, phase: Phase) {
        self.reviver.clock.lap(phase);
    }
}
