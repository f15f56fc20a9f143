//! [`ObjectBlobStore::collect`]: removes unneeded blobs, if the owner promises that no program
//! writes meanwhile.
//!
//! An object store has no lock that ends with its holder. So a collection creates an object,
//! `collections/<number>.begun`, on the condition that it does not exist yet, and `<number>.done`
//! when it has ended. Writers check these objects before they report that something is stored. They
//! fail while a collection is under way, and if one has begun since they looked for existing blobs.
//! So a broken promise shows as an error of the writer. A collection that died stays under way
//! until another one takes it over.

use std::{
    collections::HashSet,
    fs, process,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use object_store::{PutPayload, path::Path};

use super::{
    ObjectBlobStore,
    batch::ObjectBatch,
    find::{load, path},
    remote::Remote,
    turn::Turn,
};
use crate::{
    Digest256, Error, Result,
    store::{
        BlobBatch as _, Gc,
        codec::locked,
        name::Name,
        pack::{Frame, PackId},
    },
};

/// A promise of the caller of [`ObjectBlobStore::collect`].
///
/// ```
/// use criu_rpc::store::NobodyWrites;
///
/// let promise = NobodyWrites::until_it_ends();
/// // If a collection died on the way, and certainly does not go on:
/// let promise = promise.and_the_last_one_died();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct NobodyWrites {
    take_over: bool,
}

impl NobodyWrites {
    /// Promises that no program stores or captures anything below the prefix until the collection
    /// ends.
    pub fn until_it_ends() -> NobodyWrites {
        NobodyWrites { take_over: false }
    }

    /// Promises that the program of an unfinished collection died. This collection takes its place.
    pub fn and_the_last_one_died(self) -> NobodyWrites {
        NobodyWrites { take_over: true }
    }
}

/// The contents of a pack.
struct Contents {
    id: PackId,
    frames: Vec<Frame>,
}

impl ObjectBlobStore {
    /// As [`collect`](ObjectBlobStore::collect), with the blobs to keep.
    ///
    /// # Errors
    ///
    /// As [`collect`](ObjectBlobStore::collect).
    pub fn collect_all_but(&self, keep: &HashSet<Digest256>, promise: NobodyWrites) -> Result<Gc> {
        if self.codec.is_locked() {
            return Err(locked("collect unneeded blobs"));
        }
        let keep = self.codec.names(keep)?;
        let turn = self.begin_turn(promise.take_over)?;
        let mut gc = Gc::default();
        let removed = self.sweep(&keep, turn, &mut gc);
        // Whatever happened until an error is consistent, so writers may continue.
        let ended = self.end_turn(turn);
        removed?;
        ended?;
        self.refresh()?;
        Ok(gc)
    }

    /// Returns the last collection, if any.
    pub(super) fn last_turn(&self) -> Result<Turn> {
        let remote = Arc::clone(&self.remote);
        let listed = self.remote.wait(async move { remote.list(&remote.path("collections")).await })?;
        let mut turn = Turn { number: 0, ended: true };
        for meta in &listed {
            let Some((number, kind)) = meta.location.filename().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Ok(number) = u64::from_str_radix(number, 16) else { continue };
            let ended = kind == "done";
            if number > turn.number {
                turn = Turn { number, ended };
            } else if number == turn.number {
                turn.ended |= ended;
            }
        }
        Ok(turn)
    }

    /// Returns the last collection; fails if it has not ended, because nothing may be written then.
    pub(super) fn ended_turn(&self) -> Result<Turn> {
        let turn = self.last_turn()?;
        match turn.ended {
            true => Ok(turn),
            false => Err(Error::store(
                format!("write to {}", self.remote.name),
                format!(
                    "{} is under way, and what is written meanwhile may be removed",
                    self.who_collects(turn)
                ),
            )),
        }
    }

    /// Fails if a collection has begun since this one.
    pub(super) fn check_turn(&self, since: Turn) -> Result<()> {
        match self.ended_turn()? == since {
            true => Ok(()),
            false => Err(Error::store(
                format!("write to {}", self.remote.name),
                "a collection has removed objects meanwhile, maybe some that this relies on: begin again",
            )),
        }
    }

    /// Runs `write`; runs it again if a collection has happened since this handle last looked.
    pub(super) fn write_between_turns<T>(&self, write: impl Fn() -> Result<T>) -> Result<T> {
        let known = || self.turn.lock();
        for _ in 0..TRIES {
            let before = *known();
            let written = write()?;
            let after = self.ended_turn()?;
            if before == Some(after) {
                return Ok(written);
            }
            // The blobs in the catalog may be gone.
            self.refresh()?;
            *known() = Some(after);
        }
        Err(Error::store(
            format!("write to {}", self.remote.name),
            "one collection after the other is under way",
        ))
    }

    fn who_collects(&self, turn: Turn) -> String {
        let (remote, begun) = (Arc::clone(&self.remote), self.turn_path(turn, "begun"));
        let text =
            self.remote.wait(async move { remote.get(&begun).await }).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(200)]);
        format!("collection {} ({})", turn.number, text.lines().next().unwrap_or_default().escape_debug())
    }

    fn turn_path(&self, turn: Turn, kind: &str) -> Path {
        self.remote.path(&format!("collections/{:016x}.{kind}", turn.number))
    }

    fn begin_turn(&self, take_over: bool) -> Result<Turn> {
        let doing = format!("collect in {}", self.remote.name);
        self.require_conditions(&doing)?;
        let last = self.last_turn()?;
        if !last.ended && !take_over {
            let problem =
                format!("{} is under way; if its program died, take it over", self.who_collects(last));
            return Err(Error::store(doing, problem));
        }
        let turn = Turn { number: last.number + 1, ended: false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "a host".to_owned());
        let text = format!(
            "by process {} of {}, begun {now} seconds after 1970\n{}\n",
            process::id(),
            host.trim(),
            PackId::new().hex()
        );
        // If the answer to a request is lost, the retry finds the object of the first request.
        let (remote, begun) = (Arc::clone(&self.remote), self.turn_path(turn, "begun"));
        let created = self.create(begun.clone(), text.clone().into_bytes())?
            || self.remote.wait(async move { remote.get(&begun).await })? == Some(text.into_bytes());
        match created {
            true => Ok(turn),
            false => {
                Err(Error::store(doing, format!("{} has begun at the same time", self.who_collects(turn))))
            }
        }
    }

    /// Tests whether the store supports conditional creation of objects.
    fn require_conditions(&self, doing: &str) -> Result<()> {
        let probe = self.remote.path(&format!("tmp/{}", PackId::new().hex()));
        let fresh = self.create(probe.clone(), b"a probe".to_vec());
        let again =
            fresh.as_ref().is_ok_and(|fresh| *fresh).then(|| self.create(probe.clone(), b"a probe".to_vec()));
        let remote = Arc::clone(&self.remote);
        let removed = self.remote.wait(async move { remote.delete(&probe).await });
        let reason = match (fresh, again.transpose()) {
            (Ok(true), Ok(Some(false))) => return removed,
            (Ok(_), Ok(_)) => "the store does not heed conditions".to_owned(),
            (Err(error), _) | (_, Err(error)) => {
                format!("an object cannot be created on the condition that there is none: {}", error.report())
            }
        };
        Err(Error::store(doing, format!("two collections could not exclude each other: {reason}")))
    }

    fn create(&self, path: Path, bytes: Vec<u8>) -> Result<bool> {
        let remote = Arc::clone(&self.remote);
        self.remote.wait(async move { remote.create(&path, PutPayload::from(bytes)).await })
    }

    /// Lets writers continue, and removes objects of earlier collections.
    fn end_turn(&self, turn: Turn) -> Result<()> {
        let begun = self.turn_path(turn, "begun").filename().unwrap_or_default().to_owned();
        self.create(self.turn_path(turn, "done"), Vec::new())?;
        let remote = Arc::clone(&self.remote);
        let older = self.remote.wait(async move { remote.list(&remote.path("collections")).await })?;
        let older = older.into_iter().map(|meta| meta.location);
        self.delete_all(older.filter(|path| path.filename().is_some_and(|name| *name < *begun)).collect())
    }

    /// Fails if another collection has taken this one over.
    fn still_mine(&self, turn: Turn) -> Result<()> {
        match self.last_turn()? == turn {
            true => Ok(()),
            false => Err(Error::store(
                format!("collect in {}", self.remote.name),
                "another collection has taken over",
            )),
        }
    }

    fn sweep(&self, keep: &HashSet<Name>, turn: Turn, gc: &mut Gc) -> Result<()> {
        self.refresh()?;
        let packs = self.contents()?;
        let needs_work = |pack: &&Contents| entries(pack).any(|entry| !keep.contains(&entry.name));
        let (mut gone, mut moved) = (Vec::new(), Vec::new());
        for pack in packs.iter().filter(needs_work) {
            let lives = entries(pack).any(|entry| keep.contains(&entry.name));
            if lives { &mut moved } else { &mut gone }.push(pack);
        }
        let moved = self.move_living(&moved, keep, turn, gc)?;
        gone.extend(moved);
        self.still_mine(turn)?;
        for pack in &gone {
            for entry in entries(pack).filter(|entry| !keep.contains(&entry.name)) {
                gc.removed.add(entry.length as u64);
            }
            gc.packs += 1;
        }
        // Remove indexes first: a pack without an index is invisible.
        let of = |kind| gone.iter().map(|pack| path(&self.remote, pack.id, kind)).collect();
        self.delete_all(of("index"))?;
        self.delete_all(of("pack"))?;
        self.still_mine(turn)?;
        self.sweep_singles(keep, gc)?;
        self.sweep_stray(&packs)
    }

    /// The contents of each pack of the store.
    fn contents(&self) -> Result<Vec<Contents>> {
        let remote = Arc::clone(&self.remote);
        let listed = self.remote.wait(async move { remote.list(&remote.path("packs")).await })?;
        let id = |path: &Path| PackId::parse(path.filename()?.strip_suffix(".pack")?);
        let packs: Vec<_> = listed.iter().filter_map(|meta| Some((id(&meta.location)?, meta.size))).collect();
        let mut contents = Vec::new();
        let ask = |(id, length): (PackId, u64)| {
            let remote = Arc::clone(&self.remote);
            async move { Ok((id, load(&remote, id, length).await?)) }
        };
        self.remote.parallel(packs, AT_ONCE, ask, |(id, frames)| {
            contents.extend(frames.map(|frames| Contents { id, frames }));
            Ok(())
        })?;
        Ok(contents)
    }

    /// Moves the living entries of these packs to new ones; returns the packs that are not needed
    /// any more.
    fn move_living<'p>(
        &self,
        packs: &[&'p Contents],
        keep: &HashSet<Name>,
        turn: Turn,
        gc: &mut Gc,
    ) -> Result<Vec<&'p Contents>> {
        let batch = ObjectBatch::rewriting(self);
        let (mut written, mut moved) = (HashSet::new(), Vec::new());
        for pack in packs {
            match self.copy_living(pack, keep, &batch, &mut written) {
                Ok(()) => moved.push(*pack),
                // A damaged pack is kept: its owner may still repair it.
                Err(Error::Corrupt { .. } | Error::Missing { .. }) => {
                    for entry in entries(pack).filter(|entry| !keep.contains(&entry.name)) {
                        gc.postponed.add(entry.length as u64);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.still_mine(turn)?;
        Box::new(batch).commit()?;
        Ok(moved)
    }

    fn copy_living(
        &self,
        pack: &Contents,
        keep: &HashSet<Name>,
        batch: &ObjectBatch<'_>,
        written: &mut HashSet<Name>,
    ) -> Result<()> {
        let living = entries(pack).map(|entry| entry.name).filter(|name| keep.contains(name));
        let wanted: Vec<_> = living.filter(|name| !written.contains(name)).collect();
        let take = &mut |place: usize, bytes: &[u8]| batch.take(&wanted[place], bytes);
        self.find_named(&wanted, take, |place| wanted[place].digest())?;
        // Only now: another pack may have an intact copy of an unreadable blob.
        written.extend(wanted);
        Ok(())
    }

    /// Removes objects of single blobs that are not needed.
    fn sweep_singles(&self, keep: &HashSet<Name>, gc: &mut Gc) -> Result<()> {
        let (remote, folder) = (Arc::clone(&self.remote), self.remote.path(self.codec.folder()));
        let listed = self.remote.wait(async move { remote.list(&folder).await })?;
        let mut gone = Vec::new();
        for meta in listed {
            let name = meta.location.filename().and_then(Name::parse);
            if name.is_some_and(|name| !keep.contains(&name)) {
                gc.removed.add(meta.size);
                gone.push(meta.location);
            }
        }
        self.delete_all(gone)
    }

    /// Removes objects that no reader sees: leftovers of dead writers, and packs without an index
    /// that are not in `known`.
    fn sweep_stray(&self, known: &[Contents]) -> Result<()> {
        let known: HashSet<_> = known.iter().map(|pack| pack.id).collect();
        let known_now = self.catalog.read().packs();
        let remote = Arc::clone(&self.remote);
        let stray = self.remote.wait(async move {
            let mut stray = remote.list(&remote.path("tmp")).await?;
            stray.extend(remote.list(&remote.path("packs")).await?.into_iter().filter(|meta| {
                let name = meta.location.filename().and_then(|name| name.split_once('.'));
                let id = name.and_then(|(id, _)| PackId::parse(id));
                id.is_some_and(|id| !known.contains(&id) && !known_now.contains(&id))
            }));
            Ok(stray)
        })?;
        self.delete_all(stray.into_iter().map(|meta| meta.location).collect())
    }

    fn delete_all(&self, paths: Vec<Path>) -> Result<()> {
        let delete = |path: Path| {
            let remote: Arc<Remote> = Arc::clone(&self.remote);
            async move { remote.delete(&path).await }
        };
        self.remote.parallel(paths, AT_ONCE, delete, |()| Ok(()))
    }
}

fn entries(pack: &Contents) -> impl Iterator<Item = &crate::store::pack::Entry> {
    pack.frames.iter().flat_map(|frame| &frame.entries)
}

/// The number of requests under way.
const AT_ONCE: usize = 16;

/// The number of attempts to write while collections come and go.
const TRIES: usize = 4;

#[cfg(test)]
mod tests {
    use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory};

    use super::*;
    use crate::{BlobStore as _, BlobStoreExt as _};

    type Blobs = Vec<(Digest256, Vec<u8>)>;

    fn blobs(count: u32, seed: u32) -> Blobs {
        let blob = |n: u32| [seed, n].map(u32::to_le_bytes).concat().repeat(100);
        (0..count).map(blob).map(|bytes| (Digest256::of(&bytes), bytes)).collect()
    }

    fn put(store: &ObjectBlobStore, sets: &[&Blobs]) {
        let batch = store.batch().unwrap();
        for blobs in sets {
            let pairs: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
            batch.put(&pairs).unwrap();
        }
        batch.commit().unwrap();
    }

    fn assert_there(store: &ObjectBlobStore, blobs: &Blobs) {
        assert!(blobs.iter().all(|(digest, bytes)| store.get(digest).unwrap() == *bytes));
    }

    fn assert_gone(store: &ObjectBlobStore, blobs: &Blobs) {
        assert!(blobs.iter().all(|(digest, _)| matches!(store.get(digest), Err(Error::Missing { .. }))));
    }

    fn digests(blobs: &Blobs) -> HashSet<Digest256> {
        blobs.iter().map(|(digest, _)| *digest).collect()
    }

    /// Tests two handles on one store, in memory and in a folder.
    fn each_kind(test: impl Fn(&dyn Fn() -> ObjectBlobStore)) {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        test(&|| ObjectBlobStore::new(Arc::clone(&memory), "some/prefix").unwrap());
        let folder = std::env::temp_dir().join(format!("criu-rpc-collect-{}", PackId::new().hex()));
        fs::create_dir(&folder).unwrap();
        let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&folder).unwrap());
        test(&|| ObjectBlobStore::new(Arc::clone(&local), "").unwrap());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_not_kept_is_gone_and_nothing_else() {
        each_kind(|open| {
            let (store, other) = (open(), open());
            let (kept, mixed, lost) = (blobs(50, 1), blobs(50, 2), blobs(50, 3));
            put(&store, &[&kept]);
            put(&store, &[&mixed, &lost]);
            let (single, gone) = (store.put(b"single").unwrap(), store.put(b"gone").unwrap());
            assert_there(&other, &lost);
            let mut keep: HashSet<_> = digests(&kept).into_iter().chain(digests(&mixed)).collect();
            keep.insert(single);
            let gc = store.collect_all_but(&keep, NobodyWrites::until_it_ends()).unwrap();
            assert_eq!((gc.removed.blobs, gc.postponed.blobs), (51, 0), "{gc:?}");
            for store in [&store, &other, &open()] {
                // A handle that has read the blob lately has it cached until it lists the packs.
                assert_eq!(store.missing(&[lost[0].0]).unwrap(), [lost[0].0]);
                assert_there(store, &kept);
                assert_there(store, &mixed);
                assert_gone(store, &lost);
                assert_eq!(store.get(&single).unwrap(), b"single");
                assert!(store.get(&gone).is_err());
            }
            // A second collection finds nothing to do, and writers continue.
            assert_eq!(other.collect_all_but(&keep, NobodyWrites::until_it_ends()).unwrap(), Gc::default());
            put(&other, &[&lost]);
            assert_there(&store, &lost);
        });
    }

    #[test]
    fn writers_are_refused_while_a_collection_is_under_way_and_readers_are_not() {
        each_kind(|open| {
            let (store, other) = (open(), open());
            let kept = blobs(50, 1);
            put(&store, &[&kept]);
            let early = other.batch().unwrap();
            let mut writer = other.writer().unwrap();
            std::io::Write::write_all(&mut writer, b"written").unwrap();
            let turn = store.begin_turn(false).unwrap();
            for store in [&store, &other, &open()] {
                assert_there(store, &kept);
                let refused = |result: Result<()>| {
                    let said = result.unwrap_err().report().to_string();
                    assert!(said.contains("collection 1 (by process"), "{said}");
                };
                refused(store.put(b"new").map(drop));
                refused(store.put(&kept[0].1).map(drop));
                refused(store.batch().map(drop));
                refused(store.writer().map(drop));
            }
            store.end_turn(turn).unwrap();
            // A batch that began before the collection may rely on removed blobs.
            early.put(&[(kept[0].0, &kept[0].1)]).unwrap();
            assert!(early.commit().is_err() && writer.commit(&Digest256::of(b"written")).is_err());
            assert_eq!(other.put(b"new").unwrap(), Digest256::of(b"new"));
            put(&other, &[&blobs(3, 9)]);
        });
    }

    #[test]
    fn a_handle_that_knows_what_is_gone_stores_it_anew() {
        each_kind(|open| {
            let (store, other) = (open(), open());
            let lost = blobs(20, 1);
            put(&store, &[&lost]);
            assert_there(&other, &lost);
            store.collect_all_but(&HashSet::new(), NobodyWrites::until_it_ends()).unwrap();
            other.put(&lost[0].1).unwrap();
            assert_eq!(open().get(&lost[0].0).unwrap(), lost[0].1);
            put(&other, &[&lost]);
            assert_there(&open(), &lost);
        });
    }

    #[test]
    fn a_collection_that_died_is_taken_over_and_goes_on_no_more() {
        each_kind(|open| {
            let (store, other) = (open(), open());
            let (kept, lost) = (blobs(20, 1), blobs(20, 2));
            put(&store, &[&kept, &lost]);
            let turn = store.begin_turn(false).unwrap();
            let error = other.collect_all_but(&digests(&kept), NobodyWrites::until_it_ends()).unwrap_err();
            let said = error.report().to_string();
            assert!(said.contains("take it over"), "{said}");
            assert_there(&other, &lost);
            let promise = NobodyWrites::until_it_ends().and_the_last_one_died();
            assert_eq!(other.collect_all_but(&digests(&kept), promise).unwrap().removed.blobs, 20);
            // The first collection was not dead: it stops before it removes anything.
            assert!(store.sweep(&HashSet::new(), turn, &mut Gc::default()).is_err());
            assert_there(&open(), &kept);
            assert_gone(&open(), &lost);
            put(&other, &[&lost]);
        });
    }

    #[test]
    fn of_two_that_begin_at_once_one_collects() {
        each_kind(|open| {
            let handles: Vec<_> = (0..4).map(|_| open()).collect();
            let began = std::thread::scope(|scope| {
                let begin = |store| scope.spawn(move || ObjectBlobStore::begin_turn(store, false));
                let threads: Vec<_> = handles.iter().map(begin).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count()
            });
            assert_eq!(began, 1);
        });
    }
}
