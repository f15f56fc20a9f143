//! Bytes under names that are not their digests: files like loose blobs, in shards of their own,
//! and entries of packs.
//!
//! A file begins with the SHA-256 of the name and all bytes that follow, so that damage shows, and
//! a misplaced file too. Then comes a stamp. The entry with the highest stamp counts, in files and
//! packs together.

use std::io::Read as _;

use super::{FsBlobStore, loose};
use crate::{
    Digest256, Error, Result,
    digest::Hasher,
    store::pack::{self, Kind},
};

impl FsBlobStore {
    pub(super) fn put_named_loose(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        let (shard, path) = self.names.place(name);
        let doing = || format!("store the name {}", path.display());
        let stamp = self.next_stamp(name)?;
        let head = [check(name, stamp, bytes).as_bytes().as_slice(), &stamp.to_le_bytes()].concat();
        let written = || {
            let (temporary, file) = self.disk.temporary(&self.tmp)?;
            file.write_at(&[&head, bytes].concat(), 0)?;
            file.sync()?;
            self.names.make(&shard)?;
            temporary.rename(file, &path)?;
            self.disk.sync_folder(&shard)
        };
        written().map_err(Error::io(doing()))
    }

    /// Returns a stamp above all stamps of the name.
    pub(super) fn next_stamp(&self, name: &Digest256) -> Result<u64> {
        let mut newest = 0;
        for hit in self.catalog.hits(name, true)? {
            newest = newest.max(stamp_of(hit.frame.entries[hit.index].kind));
        }
        if let Ok(Some((stamp, _))) = self.read_named_loose(name) {
            newest = newest.max(stamp);
        }
        Ok(pack::next_stamp(newest))
    }

    /// Reads the stamp and the bytes of a name's file.
    pub(super) fn read_named_loose(&self, name: &Digest256) -> Result<Option<(u64, Vec<u8>)>> {
        let (_, path) = self.names.place(name);
        let (path, mut file) = match loose::open(&path)? {
            Some(file) => (path, file),
            None => match self.open_condemned("names", name)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(format!("read the name {}", path.display())))?;
        parse(name, bytes).map(Some).ok_or_else(|| {
            Error::corrupt(format!("the name {}", path.display()), "its checksum does not match")
        })
    }

    /// Reads the newest bytes of a name, from files and packs.
    pub(super) fn newest(&self, name: &Digest256) -> Result<Option<Vec<u8>>> {
        let hits = self.catalog.hits(name, true)?;
        let loose = self.read_named_loose(name);
        let stamp = |hit: &super::catalog::Hit| stamp_of(hit.frame.entries[hit.index].kind);
        let packed = hits.iter().map(stamp).max();
        match loose {
            Ok(Some((loose, bytes))) if packed.is_none_or(|packed| loose >= packed) => {
                return Ok(Some(bytes));
            }
            // Its stamp is unreadable; returning another entry could roll the name back.
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let newest = hits.iter().filter(|hit| Some(stamp(hit)) == packed);
        self.first_good(newest)
    }
}

pub(super) fn stamp_of(kind: Kind) -> u64 {
    match kind {
        Kind::Blob => 0,
        Kind::Named { stamp, .. } => stamp,
    }
}

/// Parses the file of a name; `None` if it is damaged.
pub(super) fn parse(name: &Digest256, mut bytes: Vec<u8>) -> Option<(u64, Vec<u8>)> {
    let stamp = u64::from_le_bytes(bytes.get(32..HEAD)?.try_into().ok()?);
    if bytes[..32] != *check(name, stamp, &bytes[HEAD..]).as_bytes() {
        return None;
    }
    bytes.drain(..HEAD);
    Some((stamp, bytes))
}

fn check(name: &Digest256, stamp: u64, bytes: &[u8]) -> Digest256 {
    let mut hasher = Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(&stamp.to_le_bytes());
    hasher.update(bytes);
    hasher.finish()
}

/// The size of the digest and the stamp.
pub(super) const HEAD: usize = 40;
