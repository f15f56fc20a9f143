//! A last look, once criu has opened everything and before the tree runs.

use std::{collections::HashMap, fs, io, os::unix::fs::MetadataExt};

use nix::sys::stat::{FileStat, SFlag};

use super::{
    super::settle::by_inner_number,
    Files, Now,
    grown::Cut,
    path, refuse, shown,
    walk::{Root, Walked, kind},
};
use crate::{
    BoxError, Cause, Error, Pid, Result,
    image::{ImageDir, OpenedAs, Place},
    procfs::is_in_our_pid_namespace,
    rpc::{Event, Hooks},
};

/// Compares what criu opened with what was looked at before: between the two, a file could be
/// replaced. And cuts files back, once nothing else can fail.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct LastLook {
    opened: Vec<Opened>,
    cuts: Vec<Cut>,
}

/// A file that a process has, and what it is to be.
#[derive(Debug, Clone)]
struct Opened {
    /// The process, by its number in its own pid namespace.
    pid: u32,
    /// Its link in the process's folder of `/proc`.
    link: String,
    path: Vec<u8>,
    identity: (u64, u64),
}

impl Files {
    /// The files to check again before the tree runs.
    pub(in super::super) fn last_look(&self, images: &ImageDir, cuts: Vec<Cut>) -> Result<LastLook> {
        if images.has_own_pids()? || self.0.is_empty() {
            return Ok(LastLook { opened: Vec::new(), cuts });
        }
        let mut known = HashMap::new();
        for file in &self.0 {
            let Now::There(now) = &file.now else { continue };
            let plain = matches!(kind(now.st_mode), SFlag::S_IFREG | SFlag::S_IFDIR);
            let made = file.named.path.starts_with(b"/proc/") || file.named.place != Place::Opened;
            if plain && !made && file.named.id != 0 {
                known.insert(file.named.id, (&file.named.path, identity(now)));
            }
        }
        let opened = images.opened()?.into_iter().filter_map(|opened| {
            let (path, identity) = known.get(&opened.file)?;
            let link = match opened.as_what {
                OpenedAs::Descriptor(number) => format!("fd/{number}"),
                OpenedAs::Program => "exe".to_owned(),
                OpenedAs::CurrentFolder => "cwd".to_owned(),
                OpenedAs::RootFolder => "root".to_owned(),
                OpenedAs::Mapped(start, end) => format!("map_files/{start:x}-{end:x}"),
            };
            Some(Opened { pid: opened.pid, link, path: path.to_vec(), identity: *identity })
        });
        Ok(LastLook { opened: opened.collect(), cuts })
    }
}

fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Hooks for LastLook {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        if let Event::PostRestore { pid } = event {
            self.compare(pid)?;
            self.cuts.iter().try_for_each(Cut::cut)?;
        }
        Ok(())
    }

    fn wanted(&self) -> bool {
        !self.opened.is_empty() || !self.cuts.is_empty()
    }
}

impl LastLook {
    /// The error of a look that made criu give up, in the place of the one that says that it
    /// refused.
    pub(in super::super) fn own_error(error: Error) -> Error {
        match error {
            Error::Refused { event, source } => match source.downcast::<Error>() {
                Ok(own) => *own,
                Err(source) => Error::Refused { event, source },
            },
            error => error,
        }
    }

    fn compare(&self, root: Pid) -> Result<()> {
        if self.opened.is_empty() {
            return Ok(());
        }
        let is_ours = is_in_our_pid_namespace(root.as_raw()) != Some(false);
        let processes = if is_ours { HashMap::new() } else { by_inner_number(root.as_raw()) };
        let here = |pid: u32| match is_ours {
            true => i32::try_from(pid).ok(),
            false => processes.get(&pid).copied(),
        };
        let root = Root::open().map_err(Error::io("open the root folder"))?;
        let replaced = |opened: &Opened| opened.replaced(here(opened.pid)?, &root);
        refuse(Cause::FileReplaced, self.opened.iter().filter_map(replaced))
    }
}

impl Opened {
    /// A description of the replaced file, for people. A process that has ended has nothing to
    /// compare.
    fn replaced(&self, process: i32, root: &Root) -> Option<String> {
        let found = fs::metadata(format!("/proc/{process}/{}", self.link)).ok()?;
        let found = (found.dev(), found.ino());
        if found == self.identity {
            return None;
        }
        // Writing to a file of a layered file system can give it another inode, which its path
        // leads to as well.
        if let Ok(Walked::File(now)) = root.walk(path(&self.path), false)
            && identity(&now.stat) == found
        {
            return None;
        }
        Some(format!(
            "{}: it was replaced by another file while the tree was being restored",
            shown(&self.path)
        ))
    }
}

impl Cut {
    /// Gives the file the size that it had.
    fn cut(&self) -> Result<()> {
        let doing = || Error::io(format!("cut {} back", shown(&self.path)));
        let root = Root::open().map_err(doing())?;
        let file = root.open_to_write(path(&self.path)).map_err(doing())?;
        let now = file.metadata().map_err(doing())?;
        if (now.dev(), now.ino()) != self.identity {
            return Err(doing()(io::Error::other("it was replaced by another file")));
        }
        file.set_len(self.size).map_err(doing())
    }
}
