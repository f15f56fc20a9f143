//! Folders of images to process trees.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{fit, pids::Pids, staging::Staging};
use crate::{
    Criu, Error, Host, Result,
    archive::Trees,
    image::{ImageDir, MemoryIn, check_complete, detach_streams},
    platform::Revival,
    rpc::{Lend, NoHooks, tree::Tree},
};

/// How long a reaper may take that is slow, as the init of some containers is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A criu that was found, and a private folder for the images that it is to restore.
#[derive(Debug)]
pub(crate) struct Reviver<'a> {
    revival: &'a Revival,
    criu: Criu,
    staging: Staging,
}

impl<'a> Reviver<'a> {
    pub(crate) fn new(revival: &'a Revival) -> Result<Reviver<'a>> {
        let mut criu = revival.criu.as_ref().map_or_else(Criu::new, Criu::at);
        if let Some(deadline) = revival.deadline {
            criu = criu.deadline(deadline);
        }
        if let Some(cancel) = &revival.cancel {
            criu = criu.cancelled_by(cancel);
        }
        criu.program()?;
        Ok(Reviver { revival, criu, staging: Staging::new(revival.staging.as_deref())? })
    }

    /// This machine, with its criu.
    pub(crate) fn host(&self) -> Result<Host> {
        Ok(Host { criu: self.criu.version()?.to_string(), ..super::host() })
    }

    /// Where the images are to be put.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.path()
    }

    /// Revives all the trees or none.
    pub(crate) fn revive(self, trees: &Trees) -> Result<Vec<Tree>> {
        let folders: Vec<&PathBuf> = match trees {
            Trees::One(folder) => vec![folder],
            Trees::Several(folders) => folders.values().collect(),
        };
        let mut revived: Vec<Tree> = Vec::new();
        for folder in folders {
            match self.revive_one(folder) {
                Ok(tree) => revived.push(tree),
                Err(error) => {
                    for mut tree in revived {
                        let _ = tree.kill().and_then(|()| tree.wait()); // the first error is the one to tell
                    }
                    return Err(error);
                }
            }
        }
        Ok(revived)
    }

    fn revive_one(&self, folder: &Path) -> Result<Tree> {
        let revival = self.revival;
        let images = ImageDir::new(folder);
        check_complete(&images, MemoryIn::Folder)?;
        let options = fit::for_restore(&revival.options, &images)?;
        let pids = Pids::of(&images)?;
        pids.wait_for_zombies(revival.patience.unwrap_or(PATIENCE));

        let given = given(&revival.streams)?;
        let folder =
            File::open(images.path()).map_err(Error::io(format!("open {}", images.path().display())))?;
        let mut lend = Lend::images(&folder);
        let chosen = revival.streams.each_ref().map(|file| file.is_some() || revival.own_streams);
        for (stream, key) in detach_streams(&images, chosen)? {
            lend = lend.inherit(key, &given[stream]);
        }
        for (key, file) in &revival.inherit {
            lend = lend.inherit(key.as_str(), file);
        }
        self.criu.restore(&options, lend, &mut NoHooks).map_err(|error| pids.name_holders(error))
    }
}

/// The standard streams to give to a tree: those that the caller chose, else its own, else nothing.
fn given(streams: &[Option<File>; 3]) -> Result<[File; 3]> {
    let own = [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ];
    let mut given = Vec::new();
    for (chosen, own) in streams.iter().zip(own) {
        let file = match (chosen, own) {
            (Some(chosen), _) => chosen.try_clone(),
            (None, Ok(own)) => Ok(File::from(own)),
            // A daemon has closed its own.
            (None, Err(_)) => File::options().read(true).write(true).open("/dev/null"),
        };
        given.push(file.map_err(Error::io("lend a standard stream"))?);
    }
    Ok(given.try_into().expect("because there were three"))
}
