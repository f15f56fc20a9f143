//! [`Rewriter`]: writes a pack that replaces others.

use std::{collections::BTreeMap, io, path::PathBuf};

use super::{
    FsBlobStore,
    condemned::write_list,
    disk::{DiskFile, Temporary},
    marks::Entries,
};
use crate::store::{
    name::Name,
    pack::{self, Builder, PackId},
};

/// A pack that is being written.
pub(super) struct Rewriter<'a> {
    store: &'a FsBlobStore,
    id: PackId,
    // Before `temporary`, so that the file is closed before it is removed.
    file: DiskFile,
    temporary: Temporary,
    end: u64,
    builder: Builder,
    count: usize,
    /// Condemned entries of the frame that is being filled; `lists` has those of finished frames.
    pending: Vec<(PathBuf, usize)>,
    lists: BTreeMap<PathBuf, Entries>,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(store: &'a FsBlobStore) -> io::Result<Rewriter<'a>> {
        let id = PackId::new();
        let (temporary, file) = store.disk.temporary(&store.tmp)?;
        file.write_at(&pack::header(&id), 0)?;
        Ok(Rewriter {
            store,
            id,
            file,
            temporary,
            end: pack::HEADER as u64,
            builder: Builder::new(&store.codec),
            count: 0,
            pending: Vec::new(),
            lists: BTreeMap::new(),
        })
    }

    pub(super) fn push(&mut self, name: &Name, bytes: &[u8], waits: Vec<PathBuf>) -> io::Result<()> {
        if !self.builder.takes(bytes.len()) {
            self.write()?;
        }
        self.builder.push(name, bytes);
        self.pending.extend(waits.into_iter().map(|round| (round, self.count)));
        self.count += 1;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let frame = self.builder.seal().at(&self.id, self.end).map_err(io::Error::other)?;
        let length = frame.len() as u64;
        self.file.write_at(frame, self.end)?;
        for (round, index) in self.pending.drain(..) {
            self.lists.entry(round).or_default().add(self.end, index);
        }
        self.end += length;
        self.count = 0;
        self.builder.clear();
        Ok(())
    }

    /// Publishes the pack, unless it is empty.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.builder.is_empty() {
            self.write()?;
        }
        if self.end == pack::HEADER as u64 {
            return Ok(());
        }
        let Rewriter { store, id, file, temporary, lists, .. } = self;
        file.sync()?;
        for (round, list) in lists {
            write_list(store, &round.join("packs").join(id.hex()), &list)?;
        }
        temporary.rename(file, &store.catalog.files.fresh(&id))?;
        store.disk.sync_folder(store.catalog.folder())?;
        store.refresh().map(drop).map_err(io::Error::other)
    }
}
