//! The measured side: captures into a store.

use std::{path::Path, sync::LazyLock};

use criu_rpc::{
    BlobStore, BufferPool, Chunking, FsBlobStore, MemBlobStore, Pid, ProcsCapture, Stored, store::StoreOptions,
};

use crate::{
    places::Folder,
    run::{Result, Settings},
};

/// An empty store, removed on drop.
#[derive(Debug)]
pub(crate) struct Store {
    blobs: Box<dyn BlobStore>,
    _folder: Option<Folder>,
}

impl Store {
    pub(crate) fn empty(settings: &Settings) -> Result<Store> {
        if settings.in_memory {
            return Ok(Store { blobs: Box::new(MemBlobStore::new()), _folder: None });
        }
        let folder = Folder::temporary()?;
        Ok(Store { blobs: Box::new(open(folder.path())?), _folder: Some(folder) })
    }

    pub(crate) fn blobs(&self) -> &dyn BlobStore {
        &*self.blobs
    }
}

/// Opens a store. It compresses if the program was built with `compression`: `scripts/bench` builds
/// it twice.
pub(crate) fn open(folder: impl AsRef<Path>) -> Result<FsBlobStore> {
    let options = StoreOptions::new();
    #[cfg(feature = "compression")]
    let options = options.compression(true);
    Ok(options.open(folder)?)
}

/// A capture of version 1, the archive.
pub(crate) fn v1(pid: Pid, store: &dyn BlobStore) -> Result<Stored> {
    stored(&ProcsCapture::new([pid]), store)
}

/// A capture of version 2, the chunks, with default settings. All share one pool, as repeated
/// captures should; the first one warms it up.
pub(crate) fn v2(pid: Pid, store: &dyn BlobStore) -> Result<Stored> {
    static ONE: LazyLock<BufferPool> = LazyLock::new(BufferPool::default);
    v2_by(pid, &ONE, store)
}

pub(crate) fn v2_by(pid: Pid, pool: &BufferPool, store: &dyn BlobStore) -> Result<Stored> {
    stored(&ProcsCapture::new([pid]).chunked(Chunking::default()).buffers(pool), store)
}

fn stored(capture: &ProcsCapture, store: &dyn BlobStore) -> Result<Stored> {
    Ok(capture.run(store)?)
}
