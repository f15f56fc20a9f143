//! [`FsBlobStore::verify`] reads all data, [`FsBlobStore::quarantine`] sets damaged data aside.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    FsBlobStore,
    condemned::{read_list, write_list},
    marks::Entries,
    read::read_stored,
};
use crate::{
    Digest256, Error, Result,
    plain::Plain,
    store::{
        name::Name,
        pack::{Found, Frame, PackId, Scratch, scan},
        read_at::ReadAt as _,
    },
};

/// The result of [`FsBlobStore::verify`].
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The number of undamaged blobs. Each copy counts.
    pub blobs: u64,
    /// Their bytes: as they were put, or as they are stored in an encrypted store.
    pub bytes: u64,
    /// The damage.
    pub damage: Vec<Damage>,
}

/// A damaged blob, or a damaged part of a pack.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The digest of the blob; `None` for a part of a pack whose contents are unknown. In an
    /// encrypted store it is the blob's name, from which no digest can be derived.
    pub digest: Option<Digest256>,
    /// The place of the damage.
    pub what: String,
    /// The problem.
    pub problem: String,
    #[serde(skip)]
    place: Place,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Plain(f), "{}: {}", self.what, self.problem)
    }
}

#[derive(Debug, Clone)]
enum Place {
    File { path: PathBuf },
    Entry { pack: PackId, at: u64, index: usize },
    Region { pack: PackId, bytes: Range<u64> },
}

impl FsBlobStore {
    /// Reads all data and reports the damage.
    ///
    /// It changes nothing: see [`quarantine`](FsBlobStore::quarantine). Damage that was set aside
    /// before is not reported again. A compressed frame of a pack is damaged as a whole, with all
    /// its blobs.
    ///
    /// Once the damage is set aside, the affected captures lack blobs; the example finds them. It
    /// also finds blobs whose file is gone altogether, which this call cannot see. Later captures
    /// store missing blobs again, and so repair the others. Until damage is set aside, batches, and
    /// so chunked captures, assume that existing blobs are undamaged: so verify regularly.
    ///
    /// This does not prove that removed data is gone. After [`gc`](FsBlobStore::gc) the blobs of a
    /// removed capture stay on the disk until the grace period is over, and longer in a pack that
    /// is mostly needed. They are read and counted like others;
    /// [`Usage::marked`](crate::store::Usage::marked) counts them separately. Data that
    /// `quarantine` set aside stays, too, in `damaged`. [`purge`](FsBlobStore::purge) removes both.
    ///
    /// ```no_run
    /// # use criu_rpc::{BlobStore, Digest256, FsBlobStore, stored::reachable};
    /// # fn example(store: &FsBlobStore, captures: &[Digest256]) -> criu_rpc::Result<()> {
    /// let verified = store.verify()?;
    /// verified.damage.iter().for_each(|damage| eprintln!("{damage}"));
    /// store.quarantine(&verified)?;
    /// for capture in captures {
    ///     match reachable(store, &[*capture]) {
    ///         Ok(needed) => match store.missing(&needed.into_iter().collect::<Vec<_>>())?.as_slice() {
    ///             [] => println!("{capture} is whole"),
    ///             missing => println!("{capture} misses {} blobs", missing.len()),
    ///         },
    ///         Err(error) => println!("{}", error.report()),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// ```
    /// use criu_rpc::{BlobStore, FsBlobStore};
    ///
    /// # let folder = std::env::temp_dir().join(format!("criu-rpc-doc-verify-{}", std::process::id()));
    /// let store = FsBlobStore::open(&folder)?;
    /// store.put(b"hello")?;
    /// let verified = store.verify()?;
    /// assert_eq!((verified.blobs, verified.damage.len()), (1, 0));
    /// # std::fs::remove_dir_all(folder).unwrap();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Store`] if the store cannot be read at all.
    pub fn verify(&self) -> Result<Verified> {
        let reading = || Error::io(format!("verify the blob store in {}", self.root.display()));
        self.refresh()?;
        let mut verified = Verified::default();
        for (name, path) in self.blobs.list().map_err(reading())? {
            if self.is_whole(&path, &name) {
                verified.whole(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
            } else if path.exists() {
                // Otherwise a collection has moved the file meanwhile.
                let what = format!("the file {}", path.display());
                let problem = "its bytes have another digest".to_owned();
                let (digest, place) = (Some(name.digest()), Place::File { path });
                verified.damage.push(Damage { digest, what, problem, place });
            }
        }
        for id in self.catalog.files.list().map_err(reading())? {
            let file = match self.catalog.open(&id) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(reading())?,
            };
            let mut frames = Vec::new();
            let pack = || format!("the pack {}", self.catalog.shown(&id));
            let scanned = scan(&file, |found| match found {
                Found::Frame(frame) => frames.push((frame.at, frame.head)),
                Found::Damaged(bytes) if self.catalog.is_lost(&id, &bytes) => {}
                Found::Damaged(bytes) => verified.damage.push(Damage {
                    digest: None,
                    what: format!("bytes {} to {} of {}", bytes.start, bytes.end, pack()),
                    problem: "they are not a frame".to_owned(),
                    place: Place::Region { pack: id, bytes },
                }),
            });
            scanned.map_err(reading())?;
            for (at, head) in frames {
                self.verify_frame(&file, at, head, &pack, &mut verified)?;
            }
        }
        Ok(verified)
    }

    fn verify_frame(
        &self,
        file: &File,
        at: u64,
        head: usize,
        pack: &dyn Fn() -> String,
        verified: &mut Verified,
    ) -> Result<()> {
        let reading = || Error::io(format!("verify {}", pack()));
        let mut header = vec![0; head];
        file.read_full(&mut header, at).map_err(reading())?;
        let Some(frame) = Frame::parse(&header) else { return Ok(()) };
        let stored = read_stored(file, &frame).map_err(reading())?;
        let mut scratch = Scratch::default();
        let checked = !frame.is_sealed() || frame.has_checksum(&stored);
        let opened = match frame.open(&self.codec, &stored, &mut scratch) {
            _ if !checked => Err(Error::corrupt("", "the checksum of its frame is wrong")),
            Err(Error::Store { .. }) if self.codec.is_locked() => Ok(None),
            Err(error @ Error::Store { .. }) => return Err(error),
            opened => opened.map(Some),
        };
        for (index, entry) in frame.entries.iter().enumerate() {
            if self.catalog.marked(&frame, index).1 {
                continue;
            }
            let problem = |error: &Error| match error {
                Error::Corrupt { problem, .. } => problem.clone(),
                error => error.to_string(),
            };
            let whole = match &opened {
                Ok(Some(opened)) => frame.verified(&self.codec, index, opened).map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(Error::corrupt("", problem(error))),
            };
            match whole.map_err(|error| problem(&error)) {
                Ok(()) => verified.whole(entry.length as u64),
                Err(problem) => verified.damage.push(Damage {
                    digest: Some(entry.name.digest()),
                    what: format!("{} in the frame at {at} of {}", entry.name, pack()),
                    problem,
                    place: Place::Entry { pack: frame.pack, at, index },
                }),
            }
        }
        Ok(())
    }

    /// Sets the damaged copies aside. From then on these blobs are [`Error::Missing`], unless there
    /// is another copy. Putting them again repairs the store; captures do that for blobs that they
    /// need.
    ///
    /// Files are moved to the folder `damaged`. Damage in a pack is only noted there. The next
    /// [`gc`](FsBlobStore::gc) writes the undamaged blobs to another pack and moves this one to
    /// that folder. Then the folder may be deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be changed.
    pub fn quarantine(&self, verified: &Verified) -> Result<()> {
        let doing = || Error::io(format!("set damaged data aside in {}", self.root.display()));
        let mut packs: BTreeMap<PackId, Entries> = BTreeMap::new();
        for damage in &verified.damage {
            match (&damage.place, &damage.digest) {
                (Place::File { path }, Some(name)) => {
                    self.set_aside(path, &Name::plain(*name)).map_err(doing())?;
                }
                (Place::Entry { pack, at, index }, _) => packs.entry(*pack).or_default().add(*at, *index),
                (Place::Region { pack, bytes }, _) => packs.entry(*pack).or_default().add_region(bytes),
                (Place::File { .. }, None) => {}
            }
        }
        for (pack, mut entries) in packs {
            let path = self.damaged().join("packs").join(pack.hex());
            read_list(&path, &mut entries)
                .and_then(|()| self.with_room(|| write_list(self, &path, &entries)))
                .map_err(doing())?;
        }
        self.load_marks().map(drop)
    }

    fn set_aside(&self, path: &Path, name: &Name) -> io::Result<()> {
        // It may have been put again since.
        if self.is_whole(path, name) || !path.exists() {
            return Ok(());
        }
        let folder = self.damaged().join("blobs");
        self.with_room(|| {
            self.disk.make_folder(&folder)?;
            self.disk.rename(path, &folder.join(name.hex()))
        })?;
        self.disk.sync_folder(&folder)?;
        path.parent().map_or(Ok(()), |shard| self.disk.sync_folder(shard))
    }
}

impl Verified {
    fn whole(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes += bytes;
    }
}
