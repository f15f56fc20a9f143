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
    gc::name_is_whole,
    loose,
    marks::Entries,
};
use crate::{
    Digest256, Error, Result,
    plain::Plain,
    private,
    store::pack::{Found, Frame, PackId, scan},
};

/// The result of [`FsBlobStore::verify`].
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The number of undamaged blobs. Each copy counts.
    pub blobs: u64,
    /// The number of undamaged names.
    pub names: u64,
    /// The bytes of both.
    pub bytes: u64,
    /// The damage.
    pub damage: Vec<Damage>,
}

/// A damaged blob or name, or a damaged part of a pack.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The digest of the blob, or the name; `None` for a part of a pack whose contents are unknown.
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
    File { path: PathBuf, kind: &'static str },
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
    /// [`Usage::condemned`](crate::store::Usage::condemned) counts them separately. Data that
    /// `quarantine` set aside stays, too, in `damaged`. [`purge`](FsBlobStore::purge) removes both.
    ///
    /// ```no_run
    /// # use criu_rpc::{BlobStore, Digest256, FsBlobStore, store::reachable};
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
        self.look_again()?;
        let mut verified = Verified::default();
        for (digest, path) in self.blobs.list().map_err(reading())? {
            // A collection may have moved the file meanwhile.
            let whole = loose::is_whole(&path, &digest);
            let whole = if whole || path.exists() { Ok(whole) } else { Err(io::ErrorKind::NotFound.into()) };
            verified.file(digest, path, "blobs", whole).map_err(reading())?;
        }
        for (name, path) in self.names.list().map_err(reading())? {
            let whole = name_is_whole(&path, &name);
            verified.file(name, path, "names", whole).map_err(reading())?;
        }
        for (id, path) in self.catalog.live() {
            let file = match private::open_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(reading())?,
            };
            let mut frames = Vec::new();
            let pack = || format!("the pack {}", path.display());
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
        crate::store::pack::ReadAt::read_full(file, &mut header, at).map_err(reading())?;
        let Some(frame) = Frame::parse(&header) else { return Ok(()) };
        let raw = match self.open_frame(file, &frame).map_err(reading())? {
            Err(error @ Error::Store { .. }) => return Err(error),
            raw => raw,
        };
        for (index, entry) in frame.entries.iter().enumerate() {
            if self.catalog.marked(&frame, index).1 {
                continue;
            }
            let problem = |error: &Error| match error {
                Error::Corrupt { problem, .. } => problem.clone(),
                error => error.to_string(),
            };
            let whole = match &raw {
                Ok(raw) => frame.verified(entry, raw).map(drop).map_err(|error| problem(&error)),
                Err(error) => Err(problem(error)),
            };
            match whole {
                Ok(()) => verified.whole(entry.is_named(), entry.length as u64),
                Err(problem) => verified.damage.push(Damage {
                    digest: Some(entry.digest),
                    what: format!("{} in the frame at {at} of {}", entry.digest, pack()),
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
                (Place::File { path, kind }, Some(digest)) => {
                    self.set_aside(path, kind, digest).map_err(doing())?;
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

    fn set_aside(&self, path: &Path, kind: &str, digest: &Digest256) -> io::Result<()> {
        // It may have been put again since.
        let whole = match kind {
            "names" => name_is_whole(path, digest).unwrap_or(false),
            _ => loose::is_whole(path, digest),
        };
        if whole || !path.exists() {
            return Ok(());
        }
        let folder = self.damaged().join(kind);
        self.with_room(|| {
            self.disk.make_folder(&folder)?;
            self.disk.rename(path, &folder.join(digest.hex()))
        })?;
        self.disk.sync_folder(&folder)?;
        path.parent().map_or(Ok(()), |shard| self.disk.sync_folder(shard))
    }
}

impl Verified {
    fn whole(&mut self, named: bool, bytes: u64) {
        *if named { &mut self.names } else { &mut self.blobs } += 1;
        self.bytes += bytes;
    }

    fn file(
        &mut self,
        digest: Digest256,
        path: PathBuf,
        kind: &'static str,
        whole: io::Result<bool>,
    ) -> io::Result<()> {
        let problem = match whole {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error.to_string(),
            Ok(true) => {
                let head = if kind == "names" { super::names::HEAD as u64 } else { 0 };
                let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                self.whole(kind == "names", length.saturating_sub(head));
                return Ok(());
            }
            Ok(false) => "its bytes have another digest".to_owned(),
        };
        let what = format!("the file {}", path.display());
        self.damage.push(Damage { digest: Some(digest), what, problem, place: Place::File { path, kind } });
        Ok(())
    }
}
