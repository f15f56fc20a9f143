//! Builds the index again from the packs.

use std::io;

use super::{Current, Index};
use crate::{
    Until,
    store::{fs::loose::entries, pack::PackId},
};

impl Index {
    /// Sets a damaged index aside and builds it again, unless another process has already. `seen`
    /// is the text of the damaged one.
    pub(super) fn repair(&self, seen: Option<&[u8]>) -> io::Result<()> {
        let doing = || format!("build the index again in {}", self.folder.display());
        let here = *self.holder.lock() == Some(std::thread::current().id());
        let _lock = match here {
            true => None,
            false => Some(self.lock(&Until::forever(), doing).map_err(io::Error::other)?),
        };
        if self.read()?.as_deref() == seen {
            self.set_aside()?;
            self.rebuild()?;
        }
        Ok(())
    }

    /// Moves all files of the index to the folder of damaged data. Needs the lock.
    fn set_aside(&self) -> io::Result<()> {
        self.disk.make_folder(&self.folder)?;
        self.disk.make_folder(&self.aside)?;
        let mut files = entries(&self.folder)?;
        // `current` first: without it, another attempt builds everything anew.
        files.sort_by_key(|path| *path != self.current());
        for path in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.disk.rename(&path, &self.aside.join(format!("{}-{name}", PackId::new().hex())))?;
        }
        self.disk.sync_folder(&self.folder)?;
        self.disk.sync_folder(&self.aside)
    }

    /// Writes a new index of all packs that are not new. Needs the lock.
    pub(in crate::store::fs) fn rebuild(&self) -> io::Result<()> {
        let packs = self.packs.list_settled()?;
        let mut current = Current { packs: packs.len(), ..Current::default() };
        let mut records = Vec::new();
        self.disk.make_folder(&self.folder)?;
        for id in packs {
            match self.read_pack(&id, &mut records, &mut current.segments) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => read?,
            }
        }
        current.segments.extend(self.write_sorted(records)?);
        self.replace(current)?;
        self.tidy()
    }
}
