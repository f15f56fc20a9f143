//! [`ObjectBlobStore`]: blobs as objects in a cloud.
//!
//! ```text
//! <prefix>/blobs/sha256/2c/2cf24dba…   a blob that was put by itself
//! <prefix>/blobs/keyed/2c/2cf24dba…    the same in an encrypted store
//! <prefix>/key/store.key[.copy]        the key record of an encrypted store
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
mod records;
mod remote;
mod turn;
mod upload;

use std::{
    collections::HashSet,
    fmt,
    io::{self, Cursor, Read, Write},
    sync::{Arc, Once},
    time::{Duration, SystemTime},
};

use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use tokio::runtime::{self, Runtime};
use url::Url;

pub use self::collect::NobodyWrites;
use self::{
    batch::ObjectBatch,
    catalog::Catalog,
    find::{Listed, Opened, RECENT},
    open::{PATIENCE, Secrets},
    reader::{Ahead, Object},
    records::ObjectRecords,
    remote::{Remote, as_io},
    turn::Turn,
    upload::Upload,
};
use super::{
    BlobBatch, BlobStore, BlobWriter,
    codec::{Codec, Encoder, Single, StoreOptions, or_io},
    name::Name,
    pack::PackId,
};
use crate::{
    Digest256, Error, Result, Until,
    lock::{Mutex, RwLock},
    wiped::Wiped,
};

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
/// use a bucket to which only you have a key, or encrypt the store with [`StoreOptions`].
/// [`get`](BlobStore::get) returns only verified bytes.
/// A blob that was found damaged counts as missing from then on, so that putting it again repairs
/// it.
///
/// A collection is not possible while programs write: an object store has no lock that ends with
/// its holder, so captures in progress are not visible. [`collect`](ObjectBlobStore::collect) is
/// for an owner who promises that no program writes. Otherwise, [copy](crate::stored::copy_capture)
/// the captures to keep to another prefix, and remove the old prefix once no program writes there.
///
/// TLS is `rustls` with `ring`. To use another cryptography provider, install it as the default
/// before opening a store.
///
/// Indexes of packs are read once, when the store is opened. If a blob is unknown, the store lists
/// the packs of the last hour, by their names, and all packs if it has not listed them in the last
/// ten seconds. So a capture that another program has just committed is found at once, unless that
/// program's clock is more than an hour behind. If another program's collection has replaced a
/// pack, a read finds its blobs in the new one. Blobs that such a collection has removed are
/// missing for reads at once, but [`contains`](BlobStore::contains) may still return true for them.
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
    codec: Codec,
    catalog: Arc<RwLock<Catalog>>,
    /// Held by the thread that searches for new packs.
    refreshing: Mutex<Listed>,
    /// The last collection that had ended when the list of packs was read.
    turn: Mutex<Option<Turn>>,
    /// Single blobs that were found damaged and were not repaired since.
    damaged: Mutex<HashSet<Name>>,
    recent: Opened,
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
        StoreOptions::new().open_url(url)
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
        StoreOptions::new().open_url_with(url, options)
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
        StoreOptions::new().open_objects(store, prefix)
    }

    fn start(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        name: String,
        patience: Duration,
        secrets: Secrets,
        options: &StoreOptions,
    ) -> Result<ObjectBlobStore> {
        let threads = Threads::start().map_err(Error::io(format!("start the threads of {name}")))?;
        let handle = threads.0.as_ref().map(Runtime::handle).cloned();
        let threads_of = handle.expect("because they were just started");
        let remote = Arc::new(Remote { store, name, prefix, patience, secrets, threads: threads_of });
        let codec = options.codec(&|| format!("open {}", remote.name), &ObjectRecords(&remote))?;
        let store = ObjectBlobStore {
            remote,
            codec,
            catalog: Arc::default(),
            refreshing: Mutex::default(),
            turn: Mutex::default(),
            damaged: Mutex::default(),
            recent: Opened::new(RECENT),
            tidied: Once::new(),
            _threads: threads,
        };
        // Reading does not wait for a collection.
        *store.turn.lock() = Some(store.last_turn()?);
        store.refresh()?;
        Ok(store)
    }

    fn path_of(&self, name: &Name) -> Path {
        let hex = name.hex();
        self.remote.path(&format!("{}/{}/{hex}", self.codec.folder(), &hex[..2]))
    }

    /// Returns the length of a blob's object, if it exists.
    fn size_of(&self, name: &Name) -> Result<Option<u64>> {
        let (remote, path) = (Arc::clone(&self.remote), self.path_of(name));
        let meta = self.remote.wait(async move { remote.head(&path).await })?;
        Ok(meta.map(|meta| meta.size))
    }

    /// Writes the object of a blob, replacing an older one.
    fn put_single(&self, name: &Name, bytes: &[u8]) -> Result<()> {
        let mut upload = Upload::new(&self.remote, self.path_of(name));
        let mut encoder = self.codec.encoder()?;
        let sink = &mut |bytes: &[u8]| upload.write(bytes).map_err(as_io);
        let written = encoder.write(bytes, sink).and_then(|()| encoder.finish(name, sink));
        written.map_err(or_io(|| format!("write blob {name}")))?;
        upload.finish()?;
        self.repaired(name);
        Ok(())
    }

    /// Opens the object of a blob, and passes it on with a reader of its bytes. `None` if there is
    /// no object.
    fn with_single<T>(
        &self,
        name: &Name,
        digest: &Digest256,
        read: impl Fn(Single<Object>, Box<dyn Read + Send>) -> io::Result<T>,
    ) -> Result<Option<T>> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let Some(length) = self.size_of(name)? else { return Ok(None) };
            let path = self.path_of(name);
            let what = || format!("blob {path} in {}", self.remote.name);
            let mut object = Object::new(&self.remote, path.clone(), length, digest);
            if !self.codec.is_plain() {
                object = object.fetch_if_small()?;
            }
            let bytes = object.sequential();
            let result = self.codec.open(name, object, what).and_then(|single| read(single, bytes));
            match result.map_err(or_io(|| format!("read {}", what()))) {
                // Another program may have just replaced it; see `fetch_if_small`.
                Err(Error::Corrupt { .. }) if !self.codec.is_plain() && tries > 0 => {}
                result => return result.map(Some),
            }
        }
    }

    fn is_damaged(&self, name: &Name) -> bool {
        self.damaged.lock().contains(name)
    }

    fn repaired(&self, name: &Name) {
        self.damaged.lock().remove(name);
    }

    fn is_packed(&self, name: &Name) -> bool {
        self.catalog.read().has(name)
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

impl StoreOptions {
    /// Opens the store at a URL, as [`ObjectBlobStore::open`] does.
    ///
    /// # Errors
    ///
    /// As [`ObjectBlobStore::open`] and [`open`](StoreOptions::open).
    pub fn open_url(&self, url: &str) -> Result<ObjectBlobStore> {
        self.open_url_with(url, [("from_env", "true")])
    }

    /// Opens the store at a URL, as [`ObjectBlobStore::open_with`] does.
    ///
    /// # Errors
    ///
    /// As [`ObjectBlobStore::open_with`] and [`open`](StoreOptions::open).
    pub fn open_url_with<K: AsRef<str>, V: Into<String>>(
        &self,
        url: &str,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Result<ObjectBlobStore> {
        let options: Vec<(String, String)> =
            options.into_iter().map(|(key, value)| (key.as_ref().to_owned(), value.into())).collect();
        let secrets = Secrets::of(url, &options);
        let parsed = Url::parse(url).map_err(|error| Error::store("open the store at a URL", error))?;
        let name = open::public(&parsed);
        let place = open::open(&parsed, &options, secrets).map_err(|error| {
            let said = Secrets::of(url, &options).redact(&error.to_string());
            Error::store(format!("open {name}"), said)
        })?;
        ObjectBlobStore::start(place.store, place.prefix, name, place.patience, place.secrets, self)
    }

    /// Uses the caller's own object store below `prefix`, as [`ObjectBlobStore::new`] does.
    ///
    /// # Errors
    ///
    /// As [`ObjectBlobStore::new`] and [`open`](StoreOptions::open).
    pub fn open_objects(&self, store: Arc<dyn ObjectStore>, prefix: &str) -> Result<ObjectBlobStore> {
        let name = format!("{store} at {prefix:?}");
        let prefix =
            Path::parse(prefix).map_err(|error| Error::store(format!("keep blobs in {name}"), error))?;
        ObjectBlobStore::start(store, prefix, name, PATIENCE, Secrets::default(), self)
    }
}

impl BlobStore for ObjectBlobStore {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        let digest = Digest256::of(bytes);
        let name = self.codec.name(&digest)?;
        let length = Some(self.codec.encoded_length(bytes.len() as u64));
        self.write_between_turns(|| {
            let there = self.is_packed(&name) || (!self.is_damaged(&name) && self.size_of(&name)? == length);
            if there { Ok(()) } else { self.put_single(&name, bytes) }
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
        let name = &self.codec.name(digest)?;
        if self.is_packed(name) || (!self.is_damaged(name) && self.size_of(name)?.is_some()) {
            return Ok(true);
        }
        self.look_for_news(&|| self.is_packed(name))?;
        Ok(self.is_packed(name))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter + '_>> {
        let temporary = self.remote.path(&format!("tmp/{}", PackId::new().hex()));
        Ok(Box::new(ObjectWriter {
            store: self,
            turn: self.ended_turn()?,
            encoder: self.codec.encoder()?,
            upload: Upload::new(&self.remote, temporary.clone()),
            temporary,
        }))
    }

    fn reader(&self, digest: &Digest256) -> Result<Box<dyn Read + Send + '_>> {
        let name = &self.codec.name(digest)?;
        if !self.is_packed(name)
            && let Some(reader) = self.with_single(name, digest, |single, bytes| Ok(single.reader(bytes)))?
        {
            return Ok(reader);
        }
        Ok(Box::new(Cursor::new(self.get(digest)?)))
    }

    fn missing(&self, digests: &[Digest256]) -> Result<Vec<Digest256>> {
        self.refresh()?;
        let names: Vec<Name> = self.codec.names(digests)?;
        let mut unpacked: Vec<(Name, Digest256)> = {
            let catalog = self.catalog.read();
            names.into_iter().zip(digests.iter().copied()).filter(|(name, _)| !catalog.has(name)).collect()
        };
        let there = self.singles_of(&unpacked.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
        unpacked.retain(|(name, _)| !there.contains(name));
        Ok(unpacked.into_iter().map(|(_, digest)| digest).collect())
    }

    fn read_range(&self, digest: &Digest256, offset: u64, length: usize) -> Result<Vec<u8>> {
        let name = &self.codec.name(digest)?;
        if !self.is_packed(name)
            && let Some(part) = self.with_single(name, digest, |single, _| single.range(offset, length))?
        {
            return Ok(part);
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
}

impl ObjectBlobStore {
    /// Returns the blobs that are single objects.
    fn singles_of(&self, names: &[Name]) -> Result<HashSet<Name>> {
        let mut there = HashSet::new();
        if names.len() > MANY {
            there = self.singles()?;
        } else {
            let ask = |name: Name| {
                let (remote, path) = (Arc::clone(&self.remote), self.path_of(&name));
                async move { Ok((name, remote.head(&path).await?.is_some())) }
            };
            self.remote.parallel(names.iter().copied(), ASKING, ask, |(name, is_there)| {
                if is_there {
                    there.insert(name);
                }
                Ok(())
            })?;
        }
        let damaged = self.damaged.lock();
        there.retain(|name| !damaged.contains(name));
        Ok(there)
    }

    /// Lists all blobs that are single objects.
    fn singles(&self) -> Result<HashSet<Name>> {
        let (remote, path) = (Arc::clone(&self.remote), self.remote.path(self.codec.folder()));
        let found = self.remote.wait(async move { remote.list(&path).await })?;
        Ok(found.iter().filter_map(|meta| Name::parse(meta.location.filename()?)).collect())
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
    encoder: Encoder,
    upload: Upload,
    temporary: Path,
}

impl Write for ObjectWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ObjectWriter { encoder, upload, .. } = self;
        encoder.write(bytes, &mut |bytes| upload.write(bytes).map_err(as_io))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for ObjectWriter<'_> {
    fn commit(self: Box<Self>, digest: &Digest256) -> Result<()> {
        let ObjectWriter { store, turn, encoder, mut upload, temporary } = *self;
        let name = store.codec.name(digest)?;
        let place = store.path_of(&name);
        let finished = encoder.finish(&name, &mut |bytes| upload.write(bytes).map_err(as_io));
        finished.map_err(or_io(|| format!("write {place}")))?;
        let kept = !store.codec.is_plain()
            && !store.is_damaged(&name)
            && store.size_of(&name)? == Some(upload.length());
        if kept {
            // Other programs may be reading that object; see `Object::fetch_if_small`.
            drop(upload);
        } else if !upload.is_sent() {
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
        store.repaired(&name);
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

/// The number of attempts to read an encrypted object that seems to be damaged.
const TRIES: usize = 3;

/// From this number of blobs on, listing all of them is faster than a request for each.
const MANY: usize = 500;

/// The number of concurrent requests.
const ASKING: usize = 32;

/// A little less than S3 copies in one request.
const COPIED_AT_ONCE: u64 = 4 * 1024 * 1024 * 1024;

/// The age after which an incomplete object has no writer.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);
