//! Finds blobs: in known packs first, then as single objects, then in packs that other processes
//! have made since.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use object_store::path::Path;

use super::{
    ObjectBlobStore,
    catalog::{self, Spot},
    remote::{PART, Remote},
};
use crate::{
    Digest256, Error, Result,
    recent::Recent,
    store::{
        codec::{Codec, or_io},
        name::Name,
        pack::{self, Copied, Found, Frame, PackId, Scratch},
    },
};

impl ObjectBlobStore {
    /// Looks for new packs of other processes, until `found` returns true. Listing all packs takes
    /// a request for each five hundred, and many blobs may be missing. So the newest packs are
    /// listed first, and all of them now and then.
    pub(super) fn look_for_news(&self, found: &dyn Fn() -> bool) -> Result<()> {
        let packs = self.catalog.read().packs().len();
        if packs <= FEW {
            return self.refresh();
        }
        let since = SystemTime::now().checked_sub(RECENTLY).unwrap_or(UNIX_EPOCH);
        self.refresh_since(Some(&PackId::beginning(since)))?;
        let all = self.refreshing.lock().all;
        match found() || all.is_some_and(|all| all.elapsed() < SOON) {
            true => Ok(()),
            false => self.refresh(),
        }
    }

    /// Adds the packs of other processes, and forgets those that are gone.
    pub(super) fn refresh(&self) -> Result<()> {
        self.refresh_since(None)
    }

    /// Adds packs whose names come after this one. Without a name it lists all packs, and forgets
    /// those that are gone.
    fn refresh_since(&self, since: Option<&str>) -> Result<()> {
        let mut alone = self.refreshing.lock();
        let begun = Instant::now();
        // Packs that we add from here on may be missing in the listing.
        let known = self.catalog.read().packs();
        let remote = Arc::clone(&self.remote);
        let after = since.map(|since| self.remote.path(&format!("packs/{since}")));
        let listed = self
            .remote
            .wait(async move { remote.list_after(&remote.path("packs"), after.as_ref()).await })?;

        let mut packs = HashMap::new();
        let mut indexes = Vec::new();
        for meta in &listed {
            let Some((hex, kind)) = meta.location.filename().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Some(id) = PackId::parse(hex) else { continue };
            match kind {
                "pack" => drop(packs.insert(id, meta.size)),
                "index" => indexes.push((meta.last_modified, id)),
                _ => {}
            }
        }
        indexes.retain(|(_, id)| packs.contains_key(id));
        let there: HashSet<PackId> = indexes.iter().map(|(_, id)| *id).collect();
        let gone: HashSet<PackId> = known.difference(&there).copied().collect();
        // The newest pack comes last: it may have been made to repair an older one.
        indexes.sort_unstable();
        indexes.retain(|(_, id)| !known.contains(id));

        // Some at a time, so that memory does not hold the headers of all packs at once.
        for some in indexes.chunks(INDEXES) {
            let mut found = HashMap::new();
            let load = |id: PackId| {
                let (remote, length) = (Arc::clone(&self.remote), packs[&id]);
                async move { Ok((id, load(&remote, id, length).await?)) }
            };
            self.remote.parallel(some.iter().map(|(_, id)| *id), INDEXES, load, |(id, frames)| {
                found.insert(id, frames);
                Ok(())
            })?;
            let mut catalog = self.catalog.write();
            for (_, id) in some {
                if let Some(Some(frames)) = found.get(id) {
                    catalog.add(*id, frames);
                }
            }
        }
        if since.is_none() {
            self.catalog.write().remove(&gone);
            alone.all = Some(begun);
        }
        Ok(())
    }

    /// Finds and verifies the blobs, and hands each to `each`.
    pub(super) fn find(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<_> = self.codec.names(digests)?;
        self.find_named(&names, each, |place| digests[place])
    }

    /// Finds the blobs of these names. `digest_of` returns the digest of a missing blob.
    pub(super) fn find_named(
        &self,
        names: &[Name],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
        digest_of: impl Fn(usize) -> Digest256,
    ) -> Result<()> {
        self.find_by(&|found| self.look_for_news(found), names, each, digest_of)
    }

    /// Finds the blobs of these names. `look` looks for new packs.
    fn find_by(
        &self,
        look: &dyn Fn(&dyn Fn() -> bool) -> Result<()>,
        names: &[Name],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
        digest_of: impl Fn(usize) -> Digest256,
    ) -> Result<()> {
        let mut search = Search { store: self, names, damaged: HashMap::new(), gone: false };
        let mut places: Vec<usize> = (0..names.len()).collect();
        places = search.in_packs(places, each)?;
        places = search.singly(places, each)?;
        // A collection can replace a pack between the look and the read.
        for _ in 0..LOOKS {
            if places.is_empty() {
                break;
            }
            let known = |place: &usize| self.is_packed(&names[*place]);
            look(&|| places.iter().all(known))?;
            search.gone = false;
            places = search.in_packs(places, each)?;
            if !search.gone {
                break;
            }
        }
        match places.first() {
            None => Ok(()),
            Some(place) => {
                let damage = search.damaged.remove(&names[*place]);
                Err(damage.unwrap_or_else(|| Error::Missing { digest: digest_of(*place) }))
            }
        }
    }

    /// Reads a frame, or takes it from the cache. `None` if its pack is gone; an inner error if it
    /// is damaged.
    fn frame(&self, spot: Spot) -> Result<Option<Result<Arc<OpenFrame>>>> {
        if let Some(frame) = self.recent.get(&spot) {
            return Ok(Some(Ok(frame)));
        }
        let (remote, codec) = (Arc::clone(&self.remote), self.codec.clone());
        let Some(mut frames) = self.remote.wait(async move { frames(&remote, &codec, vec![spot]).await })?
        else {
            return Ok(None);
        };
        let frame = frames.pop().map(|(_, frame)| frame.map(Arc::new));
        if let Some(Ok(frame)) = &frame
            && frame.contents.length() <= RECENT_LENGTH
        {
            self.recent.keep(spot, Arc::clone(frame));
        }
        Ok(frame)
    }
}

/// A search for many blobs.
struct Search<'a> {
    store: &'a ObjectBlobStore,
    names: &'a [Name],
    /// The blobs that were found damaged.
    damaged: HashMap<Name, Error>,
    /// True if a pack was gone that the catalog has.
    gone: bool,
}

impl Search<'_> {
    /// Hands out the blobs in packs; returns those that are missing or damaged.
    fn in_packs(
        &mut self,
        places: Vec<usize>,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        let mut wanted: BTreeMap<Spot, Vec<usize>> = BTreeMap::new();
        {
            let catalog = self.store.catalog.read();
            for place in places {
                match catalog.blob(&self.names[place]) {
                    Some(spot) => wanted.entry(spot).or_default().push(place),
                    None => left.push(place),
                }
            }
        }
        // A single frame is read through the cache.
        if wanted.len() == 1 {
            let (spot, places) = wanted.into_iter().next().expect("because there is one");
            let frame = self.store.frame(spot)?;
            self.give(spot, frame, places, each, &mut left)?;
            return Ok(left);
        }
        let jobs = runs(&wanted.keys().copied().collect::<Vec<_>>());
        let store = self.store;
        let fetch = |run: Vec<Spot>| {
            let (remote, codec) = (Arc::clone(&store.remote), store.codec.clone());
            async move { Ok((run.clone(), frames(&remote, &codec, run).await?)) }
        };
        store.remote.parallel(jobs, RUNS, fetch, |(run, frames)| {
            match frames {
                Some(frames) => {
                    for (spot, frame) in frames {
                        let places = wanted.remove(&spot).unwrap_or_default();
                        self.give(spot, Some(frame.map(Arc::new)), places, each, &mut left)?;
                    }
                }
                None => {
                    for spot in run {
                        let places = wanted.remove(&spot).unwrap_or_default();
                        self.give(spot, None, places, each, &mut left)?;
                    }
                }
            }
            Ok(())
        })?;
        Ok(left)
    }

    /// Hands out the intact blobs of a frame; leaves the others.
    fn give(
        &mut self,
        spot: Spot,
        frame: Option<Result<Arc<OpenFrame>>>,
        places: Vec<usize>,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
        left: &mut Vec<usize>,
    ) -> Result<()> {
        let gone = frame.is_none();
        self.gone |= gone;
        let frame = match frame {
            Some(Ok(frame)) => Some(frame),
            // A frame that this program cannot decompress is not damaged.
            Some(Err(error @ Error::Store { .. })) => return Err(error),
            Some(Err(error)) => {
                if let Some(place) = places.first() {
                    self.damaged.entry(self.names[*place]).or_insert(error);
                }
                None
            }
            None => None,
        };
        for place in places {
            let name = &self.names[place];
            let verified = match &frame {
                Some(frame) => frame.blob(&self.store.codec, name),
                None => Err(Error::corrupt(
                    format!("blob {name}"),
                    format!(
                        "the frame at {} of pack {} in {} is damaged or gone",
                        spot.at,
                        spot.pack.hex(),
                        self.store.remote.name
                    ),
                )),
            };
            match verified {
                Ok(bytes) => each(place, bytes)?,
                Err(error) => {
                    self.store.catalog.write().forget(name, &spot);
                    // Blobs that a collection removed are missing, not damaged.
                    if !gone {
                        self.damaged.entry(*name).or_insert(error);
                    }
                    left.push(place);
                }
            }
        }
        Ok(())
    }

    /// Hands out the blobs that are single objects; returns those that are missing or damaged.
    fn singly(
        &mut self,
        places: Vec<usize>,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        let (store, names) = (self.store, self.names);
        let fetch = |place: usize| {
            let (remote, name, path) =
                (Arc::clone(&store.remote), names[place], store.path_of(&names[place]));
            let codec = store.codec.clone();
            async move {
                let what = || format!("blob {path} in {}", remote.name);
                let mut tries = TRIES;
                loop {
                    tries -= 1;
                    let Some(bytes) = remote.get(&path).await? else { return Ok((place, None)) };
                    match decode(&codec, &name, bytes, what) {
                        // Another program may have replaced it between two requests.
                        Err(_) if !codec.is_plain() && tries > 0 => {}
                        verified => return Ok((place, Some(verified))),
                    }
                }
            }
        };
        store.remote.parallel(places, SINGLES, fetch, |(place, found)| match found {
            Some(Ok(bytes)) => each(place, &bytes),
            Some(Err(error)) => {
                store.damaged.lock().insert(names[place]);
                self.damaged.entry(names[place]).or_insert(error);
                left.push(place);
                Ok(())
            }
            None => {
                left.push(place);
                Ok(())
            }
        })?;
        Ok(left)
    }
}

/// A frame with its raw bytes, which are not verified yet.
#[derive(Debug)]
pub(super) struct OpenFrame {
    head: Frame,
    contents: Copied,
}

impl OpenFrame {
    /// Returns the verified bytes of a blob.
    fn blob(&self, codec: &Codec, name: &Name) -> Result<&[u8]> {
        let index = self.head.find(name, usize::MAX).ok_or_else(|| {
            let what = format!("the frame at {} of pack {}", self.head.at, self.head.pack.hex());
            Error::corrupt(what, format!("its index lists {name}, which it does not contain"))
        })?;
        self.head.verified(codec, index, &self.contents.opened())
    }
}

/// Cached frames, for callers that read one blob after the other.
pub(super) type Opened = Recent<Spot, OpenFrame>;

/// Reads the frames of a pack from its index, or from the pack if the index is damaged. `None` if
/// it is gone.
pub(super) async fn load(remote: &Remote, id: PackId, length: u64) -> Result<Option<Vec<Frame>>> {
    let Some(index) = remote.get(&path(remote, id, "index")).await? else { return Ok(None) };
    if let Some(frames) = catalog::parse_index(&id, &index, length) {
        return Ok(Some(frames));
    }
    let Some(bytes) = remote.get(&path(remote, id, "pack")).await? else { return Ok(None) };
    let mut frames = Vec::new();
    let scanned = pack::scan(&bytes[..], |found| match found {
        Found::Frame(frame) if frame.pack == id && frame.end() <= length => frames.push(frame),
        Found::Frame(_) | Found::Damaged(_) => {}
    });
    scanned.map_err(|error| Error::store(format!("read the pack {} in {}", id.hex(), remote.name), error))?;
    Ok(Some(frames))
}

/// Returns the path of a pack or of its index.
pub(super) fn path(remote: &Remote, id: PackId, kind: &str) -> Path {
    remote.path(&format!("packs/{}.{kind}", id.hex()))
}

/// A frame, or the error in reading it.
type Read = (Spot, Result<OpenFrame>);

/// Returns the verified bytes of a single object.
fn decode(codec: &Codec, name: &Name, bytes: Vec<u8>, what: impl Fn() -> String) -> Result<Vec<u8>> {
    let bytes = match codec.is_plain() {
        true => bytes,
        false => {
            let opened = codec.open(name, &bytes[..], &what).and_then(|blob| blob.range(0, usize::MAX));
            opened.map_err(or_io(|| format!("read {}", what())))?
        }
    };
    codec.verify(name, &bytes, what)?;
    Ok(bytes)
}

/// Reads frames of one pack in one request. `None` if the pack is gone.
async fn frames(remote: &Remote, codec: &Codec, run: Vec<Spot>) -> Result<Option<Vec<Read>>> {
    let (first, last) = (run[0], run[run.len() - 1]);
    let whole = first.at..last.at + u64::from(last.length);
    let Some(bytes) = remote.read_at_most(&path(remote, first.pack, "pack"), whole).await? else {
        return Ok(None);
    };
    let opened = run.into_iter().map(|spot| {
        let start = usize::try_from(spot.at - first.at).expect("because the run is in memory");
        let left = bytes.get(start..).unwrap_or_default();
        let frame = open(spot, &left[..left.len().min(spot.length as usize)], codec, &remote.name);
        (spot, frame)
    });
    Ok(Some(opened.collect()))
}

fn open(spot: Spot, bytes: &[u8], codec: &Codec, name: &str) -> Result<OpenFrame> {
    let head = Frame::parse(bytes).filter(|frame| frame.pack == spot.pack && frame.at == spot.at);
    let whole = head.filter(|frame| frame.head + frame.stored == bytes.len());
    let head = whole.ok_or_else(|| {
        let what = format!("the frame at {} of pack {} in {name}", spot.at, spot.pack.hex());
        Error::corrupt(what, "it has an invalid frame header")
    })?;
    let mut scratch = Scratch::default();
    let contents = head.open(codec, &bytes[head.head..], &mut scratch)?.copied();
    Ok(OpenFrame { head, contents })
}

/// Groups frames that are near each other in one pack, to read each group in one request.
fn runs(spots: &[Spot]) -> Vec<Vec<Spot>> {
    let place = |spot: &Spot| (spot.pack, spot.at..spot.at + u64::from(spot.length));
    let mut runs = Vec::new();
    let mut rest = spots;
    while !rest.is_empty() {
        let (run, later) = rest.split_at(pack::run_of(rest, place, GAP, PART));
        runs.push(run.to_vec());
        rest = later;
    }
    runs
}

/// The time of the last listing of all packs.
#[derive(Debug, Default)]
pub(super) struct Listed {
    all: Option<Instant>,
}

/// The number of packs whose listing takes one request or two.
const FEW: usize = 500;

/// New packs are listed from this long ago on, since clocks of other machines may be slow.
const RECENTLY: Duration = Duration::from_secs(3600);

/// The minimum time between two listings of all packs.
const SOON: Duration = Duration::from_secs(10);

/// The largest gap between two frames that is read along, since another request costs more.
const GAP: u64 = 512 * 1024;

/// The number of concurrent requests for frames.
const RUNS: usize = 6;

/// The number of concurrent requests for single objects.
const SINGLES: usize = 16;

/// The number of attempts to read an encrypted object that seems to be damaged.
const TRIES: usize = 3;

/// The maximum number of looks for packs, if those that were found are gone when they are read.
const LOOKS: usize = 4;

/// The number of concurrent requests for indexes.
const INDEXES: usize = 16;

/// The number of cached frames, and their maximum length.
pub(super) const RECENT: usize = 32;
const RECENT_LENGTH: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore as _, BlobStoreExt as _};

    #[test]
    fn what_another_handle_has_just_stored_is_found_among_many_packs() {
        let memory: Arc<dyn object_store::ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let open = || ObjectBlobStore::new(Arc::clone(&memory), "p").unwrap();
        let store = open();
        let put = |n: u32| {
            let batch = store.batch().unwrap();
            batch.put(&[(Digest256::of(&n.to_le_bytes()), &n.to_le_bytes())]).unwrap();
            batch.commit().unwrap();
        };
        (0..520_u32).for_each(put);
        assert!(store.catalog.read().packs().len() > FEW);
        let other = open();
        for n in 1000..1010_u32 {
            put(n);
            let digest = Digest256::of(&n.to_le_bytes());
            if n % 2 == 0 {
                assert!(other.contains(&digest).unwrap());
            }
            assert_eq!(other.get(&digest).unwrap(), n.to_le_bytes());
        }
        assert!(matches!(other.get(&Digest256::of(b"no")), Err(Error::Missing { .. })));
    }

    #[test]
    fn a_pack_that_is_replaced_between_listing_and_read_is_looked_for_again() {
        for collections in 1..LOOKS {
            let memory: Arc<dyn object_store::ObjectStore> = Arc::new(object_store::memory::InMemory::new());
            let open = || ObjectBlobStore::new(Arc::clone(&memory), "p").unwrap();
            let (reader, owner) = (open(), open());
            let blobs: Vec<_> = (0..20_u32).map(|n| n.to_le_bytes().repeat(1000)).collect();
            let pairs: Vec<_> = blobs.iter().map(|blob| (Digest256::of(blob), blob.as_slice())).collect();
            let batch = owner.batch().unwrap();
            batch.put(&pairs).unwrap();
            batch.commit().unwrap();
            let looks = std::cell::Cell::new(0);
            let look = |_: &dyn Fn() -> bool| {
                reader.refresh()?;
                looks.set(looks.get() + 1);
                if looks.get() <= collections {
                    let keep = pairs[..pairs.len() / (1 << looks.get())].iter().map(|(digest, _)| *digest);
                    owner.collect_all_but(&keep.collect(), super::super::NobodyWrites::until_it_ends())?;
                }
                Ok(())
            };
            let find = |place: usize| {
                looks.set(0);
                let names: Vec<Name> = reader.codec.names([pairs[place].0]).unwrap();
                let mut found = Vec::new();
                let each = &mut |_, bytes: &[u8]| {
                    found = bytes.to_vec();
                    Ok(())
                };
                reader.find_by(&look, &names, each, |_| pairs[place].0).map(|()| found)
            };
            assert_eq!(find(0).unwrap(), blobs[0]);
            assert_eq!(looks.get(), collections + 1);
            assert!(matches!(find(19), Err(Error::Missing { .. })));
        }
    }

    #[test]
    fn a_store_in_memory_conforms() {
        crate::store::conformance::check(|| ObjectBlobStore::open("memory:///").unwrap());
    }

    #[test]
    fn what_compresses_comes_back_from_packs() {
        let options = crate::store::StoreOptions::new();
        #[cfg(feature = "compression")]
        let options = options.compression(true);
        let store = options.open_url("memory:///").unwrap();
        let blobs: Vec<Vec<u8>> = (0..1000_u32).map(|n| n.to_le_bytes().repeat(1024)).collect();
        let pairs: Vec<_> = blobs.iter().map(|blob| (Digest256::of(blob), blob.as_slice())).collect();
        let batch = store.batch().unwrap();
        assert_eq!(batch.put(&pairs).unwrap(), 4096 * 1000);
        batch.commit().unwrap();
        let digests: Vec<_> = pairs.iter().map(|(digest, _)| *digest).collect();
        let mut came = 0;
        let each = &mut |place: usize, bytes: &[u8]| {
            assert_eq!(bytes, blobs[place]);
            came += 1;
            Ok(())
        };
        store.get_many(&digests, each).unwrap();
        assert_eq!(came, 1000);
        assert_eq!(store.read_range(&digests[7], 4000, 1000).unwrap(), blobs[7][4000..]);
    }
}
