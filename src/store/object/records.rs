//! The key records of an encrypted store.

use std::sync::Arc;

use object_store::{PutPayload, path::Path};

use super::remote::Remote;
use crate::{
    Result,
    store::codec::{self, Records},
};

/// The key records below the prefix of a store.
pub(super) struct ObjectRecords<'a>(pub(super) &'a Arc<Remote>);

impl ObjectRecords<'_> {
    fn place(&self, name: &str) -> (Arc<Remote>, Path) {
        (Arc::clone(self.0), self.0.path(&format!("{FOLDER}/{name}")))
    }
}

impl Records for ObjectRecords<'_> {
    fn read(&self, names: [&str; 2]) -> Result<[Option<Vec<u8>>; 2]> {
        let (remote, folder) = (Arc::clone(self.0), self.0.path(FOLDER));
        let listed = self.0.wait(async move { remote.list(&folder).await })?;
        let read = |name: &str| {
            if !listed.iter().any(|meta| meta.location.filename() == Some(name)) {
                return Ok(None); // most stores have none, and need no further request
            }
            let (remote, path) = self.place(name);
            self.0.wait(async move { remote.get(&path).await })
        };
        Ok([read(names[0])?, read(names[1])?])
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (remote, path) = self.place(name);
        let payload = PutPayload::from(bytes.to_vec());
        match self.0.wait(async move { remote.create(&path, payload).await }) {
            Ok(_) => Ok(()),
            // A WebDAV server has no conditions: the last of two writers wins.
            Err(_) => self.replace(name, bytes),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (remote, path) = self.place(name);
        let payload = PutPayload::from(bytes.to_vec());
        self.0.wait(async move { remote.put(&path, payload).await })
    }

    fn sync(&self) -> Result<()> {
        Ok(()) // an object is durable once it is visible
    }

    fn has_blobs(&self) -> Result<bool> {
        for folder in ["packs", codec::PLAIN, codec::KEYED] {
            let (remote, path) = (Arc::clone(self.0), self.0.path(folder));
            if !self.0.wait(async move { remote.list(&path).await })?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The folder of the key records.
const FOLDER: &str = "key";
