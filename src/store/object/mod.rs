//! [`ObjectBlobStore`]: blobs as objects in somebody's cloud.
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
//! Start with [`remote`], which asks somebody's store from blocking threads; [`upload`] writes what is large, [`find`]
//! reads what is in packs, [`batch`] makes them.

mod batch;
mod catalog;
mod collect;
mod find;
mod open;
mod reader;
mod remote;
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
    collect::Turn,
    find::{Listed, Recent},
    open::{PATIENCE, Secrets},
    reader::Ahead,
    remote::{Remote, as_io},
    upload::Upload,
};
use super::{BlobBatch, BlobStore, BlobWriter, pack::PackId};
use crate::{Digest256, Error, Result};

/// A store in S3, Google Cloud Storage, Azure Blob Storage, on an HTTP server, or in whatever else
/// [`object_store`] knows. This is how a capture moves to another machine.
///
/// A blob that is put by itself is an object. The many small ones of a [`batch`](BlobStore::batch) go into packs of some
/// 64 MiB, each with an index that is written last. Large blobs are sent in parts, several at a time, and read in ranges,
/// several ahead. What breaks off is tried again for as long as there is patience, three minutes unless told otherwise.
///
/// The store blocks, and may be used from any thread, those of a `tokio` runtime included: it works on threads of its own.
/// Any number of programs may share one place.
///
/// # What it needs
///
/// Permission to get, head, put, list and delete objects, and to copy them within the place. An HTTP server must know WebDAV
/// (`PROPFIND`, `COPY` and `MKCOL` as it likes); there, large blobs are kept in memory until they are sent.
///
/// Parts of uploads that were killed cannot be seen and still cost money: give the bucket a rule that ends multipart uploads
/// after a day or so. Objects below `tmp/` that are a day old are removed by whoever writes next.
///
/// # What may go wrong
///
/// Blobs hold the memory of processes, secrets included, and the place's owner can read them: use a place that nobody else
/// has a key to. [`get`](BlobStore::get) gives no byte that it has not verified. A blob that was found to be damaged counts as
/// missing from then on, so that putting it again repairs it.
///
/// Nothing is collected while programs write: without a lock that ends with its holder nothing tells what a capture in progress relies
/// on. [`collect`](ObjectBlobStore::collect) is for an owner who promises that no program does. Without such a moment,
/// [copy](crate::copy_capture) the captures to keep to another prefix, and remove the first one once no program writes there.
///
/// TLS is `rustls` with `ring`. A program that wants other cryptography installs it as its default before it opens a store.
///
/// Indexes of packs are read once, when the store is opened. What others add is found when a blob is not known: then the packs of the last hour
/// are listed, by their names, and all packs if that was not done in the last ten seconds. So a capture that was just committed
/// by another program is found at once, unless that program's clock is more than an hour behind.
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
    /// One at a time looks for new packs.
    refreshing: Mutex<Listed>,
    /// The last collection that had ended when what is known of packs was read.
    turn: Mutex<Option<Turn>>,
    /// Single blobs that were found to be damaged, and not repaired since.
    damaged: Mutex<HashSet<Digest256>>,
    recent: Mutex<Recent>,
    tidied: Once,
    // The last: what is above may still need it.
    _threads: Threads,
}

impl ObjectBlobStore {
    /// Opens the store at a URL, with the credentials and settings of the environment.
    ///
    /// | URL | Is |
    /// |---|---|
    /// | `s3://bucket/prefix` | S3, or what speaks like it; from `AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL` and so on |
    /// | `gs://bucket/prefix` | Google Cloud Storage; from `GOOGLE_SERVICE_ACCOUNT` and so on |
    /// | `az://container/prefix` | Azure Blob Storage; from `AZURE_STORAGE_ACCOUNT_NAME` and so on |
    /// | `https://host/prefix` | a WebDAV server, or one of the above by its host |
    /// | `file:///folder` | a folder; [`FsBlobStore`](crate::FsBlobStore) is the better one, and keeps others out |
    /// | `memory:///` | memory, for tests |
    ///
    /// The variables are those that [`object_store`] reads. To be independent of the environment use
    /// [`open_with`](ObjectBlobStore::open_with).
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the URL is none that is known, or if the store cannot be asked what packs it has.
    pub fn open(url: &str) -> Result<ObjectBlobStore> {
        ObjectBlobStore::open_with(url, [("from_env", "true")])
    }

    /// Opens the store at a URL with these options and nothing of the environment.
    ///
    /// Options are called what [`object_store`] calls them: `access_key_id`, `secret_access_key`, `region`, `endpoint`,
    /// `allow_http`, `timeout`, `proxy_url` and many more. One that is not known is an error. Two are this store's own:
    ///
    /// - `from_env`: whether the environment is read too; what is said here counts more. `false` if it is left out.
    /// - `patience`: how many seconds one request may take, with all that is tried again for it; 180 if it is left out.
    ///   Requests have up to 16 MiB, and four of them go at once: across a slow line more patience is needed. `timeout`, for
    ///   one try, is half of it if it is left out.
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
    /// As [`open`](ObjectBlobStore::open), and for an option that is not known or has no meaning. No error has a value of an
    /// option in it, nor a password or query of a URL.
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

    /// A store below `prefix` in what the caller has made, and knows how to retry.
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
    /// [`Error::Store`] if the prefix is no path, or if the store cannot be asked what packs it has.
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
        // Readers need not wait for a collection.
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

    /// The length of the object of a blob, if there is one.
    fn size_of(&self, digest: &Digest256) -> Result<Option<u64>> {
        let (remote, path) = (Arc::clone(&self.remote), self.path_of(digest));
        let meta = self.remote.wait(async move { remote.head(&path).await })?;
        Ok(meta.map(|meta| meta.size))
    }

    /// Writes an object, whatever was there before.
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

    /// Removes what writers that were killed have left, once, while others go on. A failure is no matter: somebody else
    /// will try.
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

    fn batch(&self) -> Result<Box<dyn BlobBatch + '_>> {
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
    /// Which of these are objects by themselves.
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

    /// All digests, or names, that are objects by themselves.
    fn singles(&self, below: &str) -> Result<HashSet<Digest256>> {
        let (remote, path) = (Arc::clone(&self.remote), self.remote.path(below));
        let found = self.remote.wait(async move { remote.list(&path).await })?;
        let digest = |path: &Path| format!("sha256:{}", path.filename()?).parse().ok();
        Ok(found.iter().filter_map(|meta| digest(&meta.location)).collect())
    }

    /// A part of a blob that is an object, and as long as was asked before.
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

/// A blob on its way: its object gets its name when its digest is known.
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
            // What cannot be removed now is removed as a leftover.
            let _ = store.remote.wait(async move { remote.delete(&temporary).await });
            moved?;
        }
        store.repaired(digest);
        store.check_turn(turn)
    }
}

impl ObjectBlobStore {
    /// Copies an object, within the store if it does that for so long a one.
    fn copy(&self, from: &Path, to: &Path, length: u64) -> Result<()> {
        if length <= COPIED_AT_ONCE {
            let (remote, from, to) = (Arc::clone(&self.remote), from.clone(), to.clone());
            return self.remote.wait(async move {
                remote.ask(|| format!("copy {from} to {to}"), remote.store.copy(&from, &to)).await
            });
        }
        let mut upload = Upload::new(&self.remote, to.clone());
        let mut reader = Ahead::new(&self.remote, from.clone(), length);
        let mut buffer = vec![0; 1024 * 1024];
        loop {
            match reader.read(&mut buffer).map_err(Error::io(format!("copy {from} to {to}")))? {
                0 => return upload.finish(),
                read => upload.write(&buffer[..read])?,
            }
        }
    }
}

/// The threads that everything is done on. They end with the store, without anybody waiting: it may be dropped by a thread
/// of another runtime.
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

/// From so many on, a listing of all is quicker than a question for each.
const MANY: usize = 500;

/// How many questions are asked at a time.
const ASKING: usize = 32;

/// What S3 copies in one request, and a little less.
const COPIED_AT_ONCE: u64 = 4 * 1024 * 1024 * 1024;

/// An object that is not whole, and so old, belongs to nobody.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);
