//! The encrypted store keeps the contract, and never returns wrong data, whatever happens to the
//! store beneath.

mod damage;
mod gc;
mod golden;
mod keys;
mod parts;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use criu_rpc::{
    BlobStore, BlobStoreExt, Digest256, EncryptedBlobStore, Error, FsBlobStore, MemBlobStore, Result,
    store::{Key, Padding, conformance},
};

use crate::stores::{Folder, fresh};

const MIB: usize = 1 << 20;

#[test]
fn the_encrypted_store_conforms() {
    conforms_over(MemBlobStore::new);
    conforms_over(Glass::default);
}

/// In a folder, records are entries of packs.
#[test]
fn the_encrypted_store_conforms_over_a_folder() {
    let folder = Folder::new();
    conforms_over(|| fresh(&folder));
}

#[cfg(feature = "object-store")]
#[test]
fn the_encrypted_store_conforms_over_objects() {
    conforms_over(|| criu_rpc::ObjectBlobStore::open("memory:///encrypted").unwrap());
}

#[test]
fn the_encrypted_store_conforms_with_padding() {
    let make = || open(Glass::default()).padding(Padding::Padme);
    conformance::check(make);
    conformance::check_names(make);
}

#[test]
fn an_encrypted_store_may_be_encrypted_again() {
    conforms_over(|| open(MemBlobStore::new()));
}

fn conforms_over<S: BlobStore>(make: impl Fn() -> S) {
    conformance::check(|| open(make()));
    conformance::check_names(|| open(make()));
}

#[test]
fn a_store_without_names_is_refused_when_it_is_opened() {
    #[derive(Debug)]
    struct Nameless(MemBlobStore);
    impl BlobStore for Nameless {
        fn put(&self, bytes: &[u8]) -> Result<Digest256> {
            self.0.put(bytes)
        }
        fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
            self.0.get(digest)
        }
        fn contains(&self, digest: &Digest256) -> Result<bool> {
            self.0.contains(digest)
        }
    }
    let error = EncryptedBlobStore::open(Nameless(MemBlobStore::new()), key(1)).unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
}

#[test]
fn what_is_stored_tells_neither_bytes_nor_digests() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let secret = b"correct horse battery staple".repeat(100);
    let large = b"correct horse battery staple".repeat(100_000);
    let digests = [store.put(&secret).unwrap(), store.put(&large).unwrap()];
    store.put_named(&Digest256::of(b"name"), &secret).unwrap();
    for (name, record) in beneath.records() {
        assert!(!digests.contains(&name) && name != Digest256::of(b"name"));
        for needle in [&secret[..16], digests[0].as_bytes(), digests[1].as_bytes()] {
            assert!(!record.windows(needle.len()).any(|window| window == needle));
        }
    }
    assert!(beneath.blobs.is_empty(), "a blob went past the encryption");
}

#[test]
fn what_is_put_again_is_encrypted_with_another_nonce() {
    let beneath = Glass::default();
    let store = open(&beneath);
    store.put(b"a secret").unwrap();
    let before = beneath.records();
    store.put(b"a secret").unwrap();
    let changed = before.iter().filter(|(name, record)| beneath.records()[name] != **record).count();
    assert_eq!(changed, 1);
}

#[test]
fn a_batch_that_could_not_store_everything_is_not_committed() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let blob = noise(100, 10);
    let batch = store.batch().unwrap();
    beneath.full.store(1, Ordering::Relaxed);
    assert!(batch.put(&[(Digest256::of(&blob), &blob)]).is_err());
    beneath.full.store(0, Ordering::Relaxed);
    assert!(batch.commit().is_err());
    let batch = store.batch().unwrap();
    assert_eq!(batch.put(&[(Digest256::of(&blob), &blob)]).unwrap(), 100);
    batch.commit().unwrap();
    assert_eq!(store.get(&Digest256::of(&blob)).unwrap(), blob);
}

#[test]
fn padding_leaves_few_lengths() {
    let lengths = |padding: Padding| {
        let beneath = Glass::default();
        let store = open(&beneath).padding(padding);
        let digests: Vec<_> =
            (4000..6000).step_by(7).map(|length| store.put(&noise(length, 12)).unwrap()).collect();
        let data = beneath.data_names();
        let records = beneath.records();
        for (digest, length) in digests.iter().zip((4000..6000).step_by(7)) {
            assert!(store.get(digest).unwrap() == noise(length, 12));
        }
        data.iter().map(|name| records[name].len()).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(lengths(Padding::None), 286);
    assert!(lengths(Padding::Padme) < 14, "{}", lengths(Padding::Padme));
    // Of a large blob only the number of its parts shows.
    let large = |length| {
        let beneath = Glass::default();
        open(&beneath).padding(Padding::Padme).put(&noise(length, 13)).unwrap();
        let mut lengths: Vec<_> = beneath.records().values().map(Vec::len).collect();
        lengths.sort_unstable();
        lengths
    };
    assert_eq!(large(2 * MIB + 1), large(3 * MIB));
}

#[test]
fn the_encrypted_store_goes_over_a_pointer() {
    let folder = Folder::new();
    let beneath: Box<dyn BlobStore> = Box::new(Glass::default());
    let store = EncryptedBlobStore::open(beneath, key(1)).unwrap();
    let digest = store.put(b"a secret").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"a secret");
    let _: Result<EncryptedBlobStore<FsBlobStore>> =
        EncryptedBlobStore::open(FsBlobStore::open(&*folder).unwrap(), key(1));
}

/// A store whose records a test can read, change and count.
#[derive(Debug, Default)]
struct Glass {
    blobs: MemBlobStore,
    names: Mutex<BTreeMap<Digest256, Vec<u8>>>,
    /// The bytes that were read by name.
    read: AtomicUsize,
    /// If not 0, the store refuses writes.
    full: AtomicUsize,
}

impl BlobStore for Glass {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        self.blobs.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        self.blobs.get(digest)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.blobs.contains(digest)
    }

    fn put_named(&self, name: &Digest256, bytes: &[u8]) -> Result<()> {
        if self.full.load(Ordering::Relaxed) != 0 {
            return Err(Error::store("take more", "it is full"));
        }
        self.names.lock().unwrap().insert(*name, bytes.to_vec());
        Ok(())
    }

    fn get_named(&self, name: &Digest256) -> Result<Vec<u8>> {
        let names = self.names.lock().unwrap();
        let bytes = names.get(name).cloned().ok_or(Error::Missing { digest: *name })?;
        self.read.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes)
    }

    fn contains_named(&self, name: &Digest256) -> Result<bool> {
        Ok(self.names.lock().unwrap().contains_key(name))
    }
}

impl Glass {
    fn records(&self) -> BTreeMap<Digest256, Vec<u8>> {
        self.names.lock().unwrap().clone()
    }

    /// The names of all records except key records.
    fn data_names(&self) -> Vec<Digest256> {
        let records = self.records();
        let key_record = |record: &[u8]| record.starts_with(b"crKEYv1\n");
        records.into_iter().filter(|(_, record)| !key_record(record)).map(|(name, _)| name).collect()
    }

    fn remove(&self, name: &Digest256) {
        self.names.lock().unwrap().remove(name).unwrap();
    }

    fn swap(&self, one: &Digest256, other: &Digest256) {
        let mut names = self.names.lock().unwrap();
        let (first, second) = (names[one].clone(), names[other].clone());
        names.insert(*one, second);
        names.insert(*other, first);
    }
}

fn open<S: BlobStore>(beneath: S) -> EncryptedBlobStore<S> {
    EncryptedBlobStore::open(beneath, key(1)).unwrap()
}

fn key(n: u8) -> Key {
    Key::from_bytes([n; 32])
}

/// The name of the public key record.
fn common(beneath: &Glass) -> Digest256 {
    let name = Digest256::of(b"criu-rpc encrypted store v1: key record");
    assert!(beneath.contains_named(&name).unwrap());
    name
}

/// Reads the blob in every way. Each gives its bytes or reports damage. Returns whether it was
/// damaged.
#[track_caller]
fn whole_or_corrupt(store: &dyn BlobStore, bytes: &[u8]) -> bool {
    let digest = Digest256::of(bytes);
    let mut read = Vec::new();
    let reader = store.reader(&digest).and_then(|mut reader| {
        let read = reader.read_to_end(&mut read);
        read.map(drop).map_err(|error| error.downcast::<Error>().unwrap())
    });
    assert!(bytes.starts_with(&read), "the reader gives wrong bytes out");
    let many = store.get_many(&[digest], &mut |_, got| {
        assert!(got == bytes, "get_many gives wrong bytes out");
        Ok(())
    });
    let got = store.get(&digest).map(|got| assert!(got == bytes, "get gives wrong bytes out"));
    let results = [reader, many, got];
    let corrupt = results.iter().filter(|result| matches!(result, Err(Error::Corrupt { .. }))).count();
    assert!(corrupt == 3 || results.iter().all(|result| result.is_ok()), "{results:?}");
    corrupt == 3
}

#[track_caller]
fn corrupt<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
}

#[track_caller]
fn missing<T: std::fmt::Debug>(result: Result<T>, asked: &Digest256) {
    assert!(matches!(&result, Err(Error::Missing { digest }) if digest == asked), "{result:?}");
}

/// Returns bytes without a pattern.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed << 32 | length as u64 | 1 << 63;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}
