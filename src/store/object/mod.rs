//! [`ObjectBlobStore`]: blobs as objects in a cloud.
//!
//! ```text
//! <prefix>/blobs/sha256/2c/2cf24dba…   a blob that was put by itself
//! <prefix>/names/2c/2cf24dba…          bytes under a name
//! <prefix>/packs/<id>.pack             the many small blobs of a batch
//! <prefix>/packs/<id>.index            what is in that pack; written last, so that it makes the pack visible
//! <prefix>/tmp/<id>                    a large blob that is not whole yet
//! <prefix>/collections/<n>.begun       a collection, and when it has ended, <n>.done
//! ```
//!
//! Start with [`remote`], which calls the object store from blocking threads. [`upload`] writes
//! large blobs, [`find`] reads from packs, [`batch`] writes packs.

mod batch;
mod catalog;
mod collect;
mod find;
mod open;
mod reader;
mod remote;
mod turn;
mod upload;

use std::{
    collections::HashSet,
    fmt,
    io::{self, Cursor, Read, Write},
    sync::{Arc, Mutex, Once, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::runtime::{self, Runtime};
use url::Url;

pub use self::collect::NobodyWrites;
use self::{
    batch::ObjectBatch,
    catalog::Catalog,
    find::{Listed, Recent},
    open::{PATIENCE, Secrets},
    reader::Ahead,
    remote::{Remote, as_io},
    turn::Turn,
    upload::Upload,
};
use super::{BlobBatch, BlobStore, BlobWriter, pack::PackId};
use crate::{Digest256, Error, Result, Until, wiped::Wiped};

/// A store in S3, Google Cloud Storage, Azure Blob Storage, on an HTTP server, or in another
/// service that [`object_store`] supports. It moves captures to other machines.
///
/// A blob that is put by itself is an object. Small blobs of a [batch](BlobBatch) go into
/// packs of some 64 MiB, each with an index that is written last. Large blobs are sent in parts,
/// several at a time, and read in ranges, several ahead. Failed requests are retried for three
/// minutes by default.
///
/// The calls block, and may come from any thread, including those of a `tokio` runtime: the store
/// has threads of its own. Any number of programs may share one prefix.
///
/// # What it needs
///
/// Permission to get, head, put, list, delete and copy objects. An HTTP server must support WebDAV
/// (`PROPFIND`, and optionally `COPY` and `MKCOL`); for it, large blobs are kept in memory until
/// they are sent.
///
/// Parts of interrupted uploads are invisible and still cost money: give the bucket a rule that
/// aborts multipart uploads after a day or so. The next writer removes objects below `tmp/` that
/// are a day old.
///
/// # What may go wrong
///
/// Blobs hold the memory of processes, secrets included, and the owner of the bucket can read them:
/// use a bucket to which only you have a key. [`get`](BlobStore::get) returns only verified bytes.
/// A blob that was found damaged counts as missing from then on, so that putting it again repairs
/// it.
///
/// A collection is not possible while programs write: an object store has no lock that ends with
/// its holder, so captures in progress are not visible. [`collect`](ObjectBlobStore::collect) is
/// for an owner who promises that no program writes. Otherwise, [copy](crate::store::copy_capture)
/// the captures to keep to another prefix, and remove the old prefix once no program writes there.
///
/// TLS is `rustls` with `ring`. To use another cryptography provider, install it as the default
/// before opening a store.
///
/// Indexes of packs are read once, when the store is opened. If a blob is unknown, the store lists
/// the packs of the last hour, by their names, and all packs if it has not listed them in the last
/// ten seconds. So a capture that another program has just committed is found at once, unless that
/// program's clock is more than an hour behind.
///
/// # Examples
///
/// ```
/// use criu_rpc::{BlobStore, ObjectBlobStore};
///
/// let store = ObjectBlobStore::open("memory:///captures")?;
/// let digest = store.put(b"hello")?;
/// assert_eq!(store.get(&digest)?, b"hello");
/// # Ok::<(), criu_rpc::Error>(())
/// ```
pub struct ObjectBlobStore {
    remote: Arc<Remote>,
    catalog: Arc<RwLock<Catalog>>,
    /// Held by the thread that searches for new packs.
    refreshing: Mutex<Listed>,
    /// The last collection that had ended when the list of packs was read.
    turn: Mutex<Option<Turn>>,
    /// Single blobs that were found damaged and were not repaired since.
    damaged: Mutex<HashSet<Digest256>>,
    recent: Mutex<Recent>,
    tidied: Once,
    // Declared last: the fields above may still need the threads.
    _threads: Threads,
}

impl ObjectBlobStore {
    /// Opens the store at a URL, with the credentials and settings of the environment.
    ///
    /// | URL | Store |
    /// |---|---|
    /// | `s3://bucket/prefix` | S3 or compatible; `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, … |
    /// | `gs://bucket/prefix` | Google Cloud Storage; `GOOGLE_SERVICE_ACCOUNT`, … |
    /// | `az://container/prefix` | Azure Blob Storage; `AZURE_STORAGE_ACCOUNT_NAME`, … |
    /// | `https://host/prefix` | a WebDAV server, or one of the above by its host |
    /// | `file:///folder` | a folder; prefer [`FsBlobStore`](crate::FsBlobStore) |
    /// | `memory:///` | memory, for tests |
    ///
    /// The variables are those that [`object_store`] reads. To be independent of the environment
    /// use [`open_with`](ObjectBlobStore::open_with).
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the URL is unknown, or if the list of packs cannot be read.
    pub fn open(url: &str) -> Result<ObjectBlobStore> {
        ObjectBlobStore::open_with(url, [("from_env", "true")])
    }

    /// Opens the store at a URL with these options and nothing of the environment.
    ///
    /// Options have the names that [`object_store`] gives them: `access_key_id`,
    /// `secret_access_key`, `region`, `endpoint`, `allow_http`, `timeout`, `proxy_url` and many
    /// more. An unknown option is an error. Two options are this store's own:
    ///
    /// - `from_env`: `true` reads the environment as well; these options override it. The default
    ///   is `false`.
    /// - `patience`: the seconds that one request may take, with all retries; the default is 180.
    ///   Requests have up to 16 MiB, and four of them run at once, so a slow line needs more.
    ///   `timeout`, for one try, is half of it by default.
    ///
    /// ```no_run
    /// use criu_rpc::ObjectBlobStore;
    ///
    /// let options =
    ///     [("access_key_id", "me"), ("secret_access_key", "hush"), ("region", "eu-central-1"), ("patience", "60")];
    /// let store = ObjectBlobStore::open_with("s3://captures/machine-7", options)?;
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`open`](ObjectBlobStore::open), and for an unknown or invalid option. Errors never
    /// contain values of options, nor the password or query of a URL.
    pub fn open_with<K: AsRef<str>, V: Into<String>>(
        url: &str,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Result<ObjectBlobStore> {
        let options: Vec<(String, String)> =
            options.into_iter().map(|(key, value)| (key.as_ref().to_owned(), value.into())).collect();
        let secrets = Secrets::of(url, &options);
        let parsed = Url::parse(url).map_err(|error| Error::store("open the store at a URL", error))?;
        let name = open::public(&parsed);
        let place = open::open(&parsed, &options, secrets).map_err(|error| {
            let said = Secrets::of(url, &options).strike(&error.to_string());
            Error::store(format!("open {name}"), said)
        })?;
        ObjectBlobStore::start(place.store, place.prefix, name, place.patience, place.secrets)
    }

    /// Uses the caller's own object store below `prefix`, with its own retries.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use criu_rpc::{BlobStore, ObjectBlobStore};
    ///
    /// let store = ObjectBlobStore::new(Arc::new(object_store::memory::InMemory::new()), "captures")?;
    /// assert_eq!(store.get(&store.put(b"hello")?)?, b"hello");
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the prefix is not a path, or if the list of packs cannot be read.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<ObjectBlobStore> {
        let name = format!("{store} at {prefix:?}");
        let prefix =
            Path::parse(prefix).map_err(|error| Error::store(format!("keep blobs in {name}"), error))?;
        ObjectBlobStore::start(store, prefix, name, PATIENCE, Secrets::default())
    }

    fn start(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        name: String,
        patience: Duration,
        secrets: Secrets,
    ) -> Result<ObjectBlobStore> {
        let threads = Threads::start().map_err(Error::io(format!("start the threads of {name}")))?;
        let handle = threads.0.as_ref().map(Runtime::handle).cloned();
        let threads_of = handle.expect("because they were just started");
        let remote = Remote { store, name, prefix, patience, secrets, threads: threads_of };
        let store = ObjectBlobStore {
            remote: Arc::new(remote),
            catalog: Arc::default(),
            refreshing: Mutex::default(),
            turn: Mutex::default(),
            damaged: Mutex::default(),
            recent: Mutex::default(),
            tidied: Once::new(),
            _threads: threads,
        };
        // Reading does not wait for a collection.
        *store.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(store.last_turn()?);
        store.refresh()?;
        Ok(store)
    }

    fn path_of(&self, digest: &Digest256) -> Path {
        let hex = digest.hex();
        self.remote.path(&format!("blobs/sha256/{}/{hex}", &hex[..2]))
    }

    fn path_of_name(&self, name: &Digest256) -> Path {
        let hex = name.hex();
        self.remote.path(&format!("names/{}/{hex}", &hex[..2]))
    }

    /// Returns the length of a blob's object, if it exists.
    fn size_of(&self, digest: &Digest256) -> Result<Option<u64>> {
        let (remote, path) = (Arc::clone(&self.remote), self.path_of(digest));
        let meta = self.remote.wait(async move { remote.head(&path).await })?;
        Ok(meta.map(|meta| meta.size))
    }

    /// Writes an object, replacing an older one.
    fn write(&self, path: Path, bytes: &[u8]) -> Result<()> {
        let mut upload = Upload::new(&self.remote, path);
        upload.write(bytes)?;
        upload.finish()
    }

    fn put_single(&self, digest: &Digest256, bytes: &[u8]) -> Result<()> {
        self.write(self.path_of(digest), bytes)?;
        self.repaired(digest);
        Ok(())
    }

    fn is_damaged(&self, digest: &Digest256) -> bool {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    fn repaired(&self, digest: &Digest256) {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    fn is_packed(&self, digest: &Digest256) -> bool {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).has(digest)
    }

    /// Removes leftovers of killed writers, once, in the background. A failure does not matter:
    /// another writer will try.
    fn tidy(&self) {
        self.tidied.call_once(|| {
            let remote = Arc::clone(&self.remote);
            self.remote.threads.spawn(async move {
                for meta in remote.list(&remote.path("tmp")).await? {
                    let age = SystemTime::now().duration_since(meta.last_modified.into());
                    if age.is_ok_and(|age| age > LEFTOVER) {
                        remote.delete(&meta.location).await?;
                    }
                }
                Ok::<_, Error>(())
            });
        });
    }
}

impl BlobStore for ObjectBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        self.write_between_turns(|| {
            let there = self.is_packed(&digest)
                || (!self.is_damaged(&digest) && self.size_of(&digest)? == Some(bytes.len() as u64));
            if there { Ok(()) } else { self.put_single(&digest, bytes) }
        })?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        let mut found = Vec::new();
        self.find(&[*digest], &mut |_, bytes| {
            found = bytes.to_vec();
            Ok(())
        })?;
        Ok(found)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        if self.is_packed(digest) || (!self.is_damaged(digest) && self.size_of(digest)?.is_some()) {
            return Ok(true);
        }
        self.look_for_news(&|| self.is_packed(digest))?;
        Ok(self.is_packed(digest))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        let temporary = self.remote.path(&format!("tmp/{}", PackId::new().hex()));
        Ok(Box::new(ObjectWriter {
            store: self,
            turn: self.ended_turn()?,
            upload: Upload::new(&self.remote, temporary.clone()),
            temporary,
        }))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        if !self.is_packed(digest)
            && let Some(length) = self.size_of(digest)?
        {
            return Ok(Box::new(Ahead::new(&self.remote, self.path_of(digest), length)));
        }
        Ok(Box::new(Cursor::new(self.get(digest)?)))
    }

    fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        self.refresh()?;
        let unpacked: Vec<Digest256> = {
            let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
            digests.iter().filter(|digest| !catalog.has(digest)).copied().collect()
        };
        let there = self.singles_of(&unpacked)?;
        let mut missing = unpacked;
        missing.retain(|digest| !there.contains(digest));
        Ok(missing)
    }

    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        if !self.is_packed(digest)
            && let Some(size) = self.size_of(digest)?
        {
            let range = offset.min(size)..offset.saturating_add(length as u64).min(size);
            return self.read_single(digest, range);
        }
        let mut bytes = self.get(digest)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        bytes.drain(..start);
        bytes.truncate(length);
        Ok(bytes)
    }

    fn get_many(
        &self,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.find(digests, each)
    }

    fn batch_until(&self, until: &Until) -> Result<Box<dyn BlobBatch + '_>> {
        until.check(|| "begin a batch".to_owned())?;
        Ok(Box::new(ObjectBatch::begin(self)?))
    }

    fn put_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        self.write_between_turns(|| self.write(self.path_of_name(name), bytes))
    }

    fn get_named(&self, name: &Digest256) -> Result<Vec<u8>> {
        self.find_named(name)
    }

    fn contains_named(&self, name: &Digest256) -> Result<bool> {
        let known = || self.catalog.read().unwrap_or_else(PoisonError::into_inner).name(name).is_some();
        if known() {
            return Ok(true);
        }
        let (remote, path) = (Arc::clone(&self.remote), self.path_of_name(name));
        if self.remote.wait(async move { remote.head(&path).await })?.is_some() {
            return Ok(true);
        }
        self.look_for_news(&known)?;
        Ok(known())
    }
}

impl ObjectBlobStore {
    /// Returns the blobs that are single objects.
    fn singles_of(&self, digests: &[Digest256]) -> Result<HashSet<Digest256>> {
        let mut there = HashSet::new();
        if digests.len() > MANY {
            there = self.singles("blobs/sha256")?;
        } else {
            let ask = |digest: Digest256| {
                let (remote, path) = (Arc::clone(&self.remote), self.path_of(&digest));
                async move { Ok((digest, remote.head(&path).await?.is_some())) }
            };
            self.remote.parallel(digests.iter().copied(), ASKING, ask, |(digest, is_there)| {
                if is_there {
                    there.insert(digest);
                }
                Ok(())
            })?;
        }
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        there.retain(|digest| !damaged.contains(digest));
        Ok(there)
    }

    /// Lists all digests, or names, that are single objects.
    fn singles(&self, below: &str) -> Result<HashSet<Digest256>> {
        let (remote, path) = (Arc::clone(&self.remote), self.remote.path(below));
        let found = self.remote.wait(async move { remote.list(&path).await })?;
        let digest = |path: &Path| format!("sha256:{}", path.filename()?).parse().ok();
        Ok(found.iter().filter_map(|meta| digest(&meta.location)).collect())
    }

    /// Reads a part of a single object, whose length was asked before.
    fn read_single(&self, digest: &Digest256, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        let (remote, path, missing) = (Arc::clone(&self.remote), self.path_of(digest), *digest);
        self.remote.wait(async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            remote.range(&path, range).await?.ok_or(Error::Missing { digest: missing })
        })
    }
}

impl fmt::Debug for ObjectBlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectBlobStore").field(&self.remote.name).finish()
    }
}

/// Writes a blob: its object is renamed when its digest is known.
struct ObjectWriter<'a> {
    store: &'a ObjectBlobStore,
    turn: Turn,
    upload: Upload,
    temporary: Path,
}

impl Write for ObjectWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.upload.write(bytes).map_err(as_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for ObjectWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let ObjectWriter { store, turn, upload, temporary } = *self;
        let place = store.path_of(digest);
        if !upload.is_sent() {
            upload.finish_as(&place)?;
        } else {
            store.tidy();
            let length = upload.length();
            upload.finish()?;
            let moved = store.copy(&temporary, &place, length);
            let remote = Arc::clone(&store.remote);
            // An object that cannot be removed now is removed as a leftover.
            let _ = store.remote.wait(async move { remote.delete(&temporary).await });
            moved?;
        }
        store.repaired(digest);
        store.check_turn(turn)
    }
}

impl ObjectBlobStore {
    /// Copies an object, within the store if the store copies objects of this length.
    fn copy(&self, from: &Path, to: &Path, length: u64) -> Result<()> {
        if length <= COPIED_AT_ONCE {
            let (remote, from, to) = (Arc::clone(&self.remote), from.clone(), to.clone());
            return self.remote.wait(async move {
                remote.ask(|| format!("copy {from} to {to}"), remote.store.copy(&from, &to)).await
            });
        }
        let mut upload = Upload::new(&self.remote, to.clone());
        let mut reader = Ahead::new(&self.remote, from.clone(), length);
        let mut buffer = Wiped::zeroed(1024 * 1024);
        loop {
            match reader.read(&mut buffer).map_err(Error::io(format!("copy {from} to {to}")))? {
                0 => return upload.finish(),
                read => upload.write(&buffer[..read])?,
            }
        }
    }
}

/// The threads of the store. They end with it, without waiting, because a thread of another runtime
/// may drop it.
struct Threads(Option<Runtime>);

impl Threads {
    fn start() -> io::Result<Threads> {
        let mut builder = runtime::Builder::new_multi_thread();
        builder
            .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)));
        builder.thread_name("criu-rpc-object").enable_all().build().map(Some).map(Threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// From this number of blobs on, listing all of them is faster than a request for each.
const MANY: usize = 500;

/// The number of concurrent requests.
const ASKING: usize = 32;

/// A little less than S3 copies in one request.
const COPIED_AT_ONCE: u64 = 4 * 1024 * 1024 * 1024;

/// The age after which an incomplete object has no writer.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);
