//! [`Check`]: everything about a tree that can be known before criu is asked to revive it.
//!
//! A restore and its preflight make the same checks. The restore ends at the first problem, the
//! preflight collects all.

use std::{collections::HashSet, fs::File};

use super::{
    files::{Files, Grown, refuse},
    fit,
    host::checked_page_size,
    pids::Pids,
};
use crate::{
    Cause, Error, Request, RestoreOptions, Result,
    image::{ImageDir, MemoryIn, check_complete, check_version},
    pages::PageFiles,
    platform::{Revival, ToRevive},
};

/// Takes a problem that keeps a tree from being revived. `Err` ends the checks.
pub(super) type Problems<'a> = &'a mut dyn FnMut(Error) -> Result<()>;

/// The images of the trees. Refuses those that are not whole, or of an unknown version.
pub(super) fn whole_images(trees: &[ToRevive<'_>]) -> Result<Vec<ImageDir>> {
    let whole = |tree: &ToRevive<'_>| {
        let images = ImageDir::new(tree.folder);
        let memory = if tree.pages.is_some() { MemoryIn::Blobs } else { MemoryIn::Folder };
        check_version(&images, Request::Restore)?;
        let page_size = checked_page_size(&images, tree.pages.and_then(PageFiles::page_size))?;
        check_complete(&images, memory, page_size)?;
        Ok(images)
    };
    trees.iter().map(whole).collect()
}

/// A tree that is to be revived, and the files that it is lent.
pub(super) struct Check<'a> {
    pub(super) revival: &'a Revival,
    pub(super) images: &'a ImageDir,
    pub(super) lent: &'a [(String, File)],
    pub(super) pids: &'a Pids,
}

/// A tree that was checked.
pub(super) struct Checked {
    pub(super) options: RestoreOptions,
    pub(super) files: Files,
    pub(super) grown: Grown,
}

impl Check<'_> {
    /// Checks everything, and hands each problem over.
    pub(super) fn run(&self, problems: Problems<'_>) -> Result<Checked> {
        let Check { revival, images, lent, pids } = self;
        let mut check = |checked: Result<()>| checked.or_else(&mut *problems);
        let options = fit::for_restore(&revival.options, images)?;
        for (cause, problem) in images.never_restored()? {
            check(refuse(cause, [problem].into_iter()))?;
        }
        check(root_folder(&options, images))?;
        let lent = lent.iter().chain(&revival.inherit).map(|(key, _)| key.as_bytes()).collect();
        check(external_files(images, &lent))?;
        let files = Files::look(images, &lent)?;
        if !revival.replaced_files {
            check(files.check_replaced())?;
        }
        check(files.check_missing())?;
        check(files.check_leases())?;
        if options.carries_file_locks() {
            check(files.check_locks(images))?;
        }
        let grown = files.grown(revival.grown_files);
        check(grown.check())?;
        check(pids.check())?;
        // If the original goes on, the sockets are its own. Its pids tell, unless this is a copy.
        if !revival.replaced_files || revival.isolation.is_some() {
            check(files.check_listeners())?;
        }
        Ok(Checked { options, files, grown })
    }
}

/// Refuses to begin without the root folder that a mount namespace needs.
fn root_folder(options: &RestoreOptions, images: &ImageDir) -> Result<()> {
    let lacks = !options.can_make_mounts() && images.has_own_mounts()?;
    let problem = "the tree has a mount namespace of its own, and `root` is not set".to_owned();
    refuse(Cause::RootFolderNeeded, lacks.then_some(problem).into_iter())
}

/// Refuses to begin while a file from outside has no replacement.
fn external_files(images: &ImageDir, lent: &HashSet<&[u8]>) -> Result<()> {
    let missing = images.external_files()?.into_iter().filter(|name| !lent.contains(name.as_slice()));
    let problem = |name: Vec<u8>| {
        format!("{}: it was external at the dump, and no file is lent for it", String::from_utf8_lossy(&name))
    };
    refuse(Cause::InheritedFile, missing.map(problem))
}
