//! Folders of images to process trees.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{fit, staging::Staging};
use crate::{
    Criu, Error, RestoreOptions, Result,
    archive::Trees,
    image::{ImageDir, check_complete, detach_streams},
    platform::Streams,
    rpc::{Lend, NoHooks, Tree},
};

/// A criu that was found, and a private folder for the images that it is to restore.
#[derive(Debug)]
pub(crate) struct Reviver {
    criu: Criu,
    staging: Staging,
}

impl Reviver {
    pub(crate) fn new(
        criu: Option<PathBuf>,
        staging: Option<PathBuf>,
        deadline: Option<Duration>,
    ) -> Result<Reviver> {
        let mut criu = criu.map_or_else(Criu::new, Criu::at);
        if let Some(deadline) = deadline {
            criu = criu.deadline(deadline);
        }
        criu.program()?;
        Ok(Reviver { criu, staging: Staging::new(staging.as_deref())? })
    }

    /// Where the images are to be put.
    pub(crate) fn folder(&self) -> &Path {
        self.staging.path()
    }

    /// Revives all the trees or none.
    pub(crate) fn revive(
        self,
        trees: &Trees,
        options: &RestoreOptions,
        streams: &Streams,
    ) -> Result<Vec<Tree>> {
        let folders: Vec<&PathBuf> = match trees {
            Trees::One(folder) => vec![folder],
            Trees::Several(folders) => folders.values().collect(),
        };
        let mut revived: Vec<Tree> = Vec::new();
        for folder in folders {
            match self.revive_one(folder, options, streams) {
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

    fn revive_one(&self, folder: &Path, options: &RestoreOptions, streams: &Streams) -> Result<Tree> {
        let images = ImageDir::new(folder);
        check_complete(&images)?;
        let options = fit::for_restore(options, &images)?;
        let given = given(streams)?;
        let folder =
            File::open(images.path()).map_err(Error::io(format!("open {}", images.path().display())))?;
        let mut lend = Lend::images(&folder);
        let chosen = streams.chosen.each_ref().map(|file| file.is_some() || streams.inherited);
        for (stream, key) in detach_streams(&images, chosen)? {
            lend = lend.inherit(key, &given[stream]);
        }
        self.criu.restore(&options, lend, &mut NoHooks)
    }
}

/// The standard streams to give to a tree: those that the caller chose, else its own, else nothing.
fn given(streams: &Streams) -> Result<[File; 3]> {
    let own = [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ];
    let mut given = Vec::new();
    for (chosen, own) in streams.chosen.iter().zip(own) {
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
