//! The encrypted store keeps the contract, and gives nothing wrong out, whatever is done to the store beneath.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    sync::{
        Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use criu_rpc::{
    BlobStore, Digest256, EncryptedBlobStore, Error, FsBlobStore, Key, MemBlobStore, Padding, Result,
    conformance,
};

use crate::stores::Folder;

const MIB: usize = 1 << 20;

#[test]
fn the_encrypted_store_conforms() {
    conforms_over(MemBlobStore::new);
    conforms_over(Glass::default);
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
fn a_key_and_a_store_do_not_print_the_key() {
    let key = Key::from_bytes([0xAB; 32]);
    let store = EncryptedBlobStore::open(MemBlobStore::new(), key.clone()).unwrap();
    let printed = format!("{key:?} {store:?}").to_lowercase();
    assert!(!printed.contains("171") && !printed.contains("abab"), "{printed}");
}

#[test]
fn keys_are_drawn_anew() {
    assert_ne!(Key::random().unwrap().as_bytes(), Key::random().unwrap().as_bytes());
}

#[test]
fn another_key_is_told_when_the_store_is_opened() {
    let beneath = Glass::default();
    let digest = open(&beneath).put(b"a secret").unwrap();
    let error = EncryptedBlobStore::open(&beneath, key(2)).unwrap_err();
    assert!(matches!(error, Error::WrongKey), "{error:?}");
    assert_eq!(open(&beneath).get(&digest).unwrap(), b"a secret");
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
fn equal_blobs_have_unequal_names_and_records_in_stores_of_other_keys() {
    let (one, other) = (Glass::default(), Glass::default());
    EncryptedBlobStore::open(&one, key(1)).unwrap().put(b"a secret").unwrap();
    EncryptedBlobStore::open(&other, key(2)).unwrap().put(b"a secret").unwrap();
    let names = |glass: &Glass| glass.records().into_keys().collect::<BTreeSet<_>>();
    let shared: Vec<_> = names(&one).intersection(&names(&other)).copied().collect();
    assert_eq!(shared.len(), 1, "only the key record has a name that everybody knows");
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
fn processes_that_open_a_fresh_store_at_once_do_not_break_each_other() {
    for round in 0..50 {
        // One key for all, and then two keys: whoever got in has to find the way back.
        let keys = if round % 2 == 0 { [3, 3, 3, 3] } else { [3, 4, 3, 4] };
        let (beneath, start) = (Glass::default(), Barrier::new(keys.len()));
        let stored: Vec<_> = thread::scope(|scope| {
            let work = |n: u8| {
                start.wait();
                let store = EncryptedBlobStore::open(&beneath, key(n))?;
                store.put(&[n; 100])
            };
            let threads: Vec<_> = keys.iter().map(|n| scope.spawn(move || work(*n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (n, stored) in keys.iter().zip(stored) {
            match stored {
                Ok(digest) => {
                    let store = EncryptedBlobStore::open(&beneath, key(*n)).unwrap();
                    assert_eq!(store.get(&digest).unwrap(), [*n; 100]);
                }
                Err(Error::WrongKey) => assert!(round % 2 == 1),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[test]
fn any_bit_flipped_is_told_of_and_put_again_repairs_it() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(b"a secret").unwrap();
    let name = Digest256::of(b"name");
    store.put_named(&name, b"another secret").unwrap();
    let record = beneath.data_names();
    assert_eq!(record.len(), 2);
    for record in record {
        let whole = beneath.records()[&record].clone();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            beneath.put_named(&record, &flipped).unwrap();
            let told = [
                store.get(&digest).err(),
                store.get_named(&name).err(),
                store.read_range(&digest, 0, 3).err(),
                store.reader(&digest).err(),
                store
                    .get_many(&[digest], &mut |_, bytes| {
                        assert_eq!(bytes, b"a secret");
                        Ok(())
                    })
                    .err(),
            ];
            let told: Vec<_> = told.into_iter().flatten().collect();
            assert!(told.len() == 1 || told.len() == 4, "bit {bit}: {told:?}");
            assert!(told.iter().all(|error| matches!(error, Error::Corrupt { .. })), "bit {bit}: {told:?}");
        }
        store.put(b"a secret").unwrap();
        store.put_named(&name, b"another secret").unwrap();
        assert_eq!(store.get(&digest).unwrap(), b"a secret");
        assert_eq!(store.get_named(&name).unwrap(), b"another secret");
    }
}

#[test]
fn a_record_cut_short_or_made_longer_is_told_of() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(b"a secret").unwrap();
    let name = beneath.data_names()[0];
    let whole = beneath.records()[&name].clone();
    for length in 0..whole.len() {
        for cut in [&whole[..length], &whole[whole.len() - length..]] {
            beneath.put_named(&name, cut).unwrap();
            corrupt(store.get(&digest));
        }
    }
    for longer in [[&whole[..], b"x"].concat(), [b"x", &whole[..]].concat(), [&whole[..], &whole].concat()] {
        beneath.put_named(&name, &longer).unwrap();
        corrupt(store.get(&digest));
    }
}

/// Every record under the name of every other: of a blob, of a name, of the header and of the parts of a large one, the
/// key records.
#[test]
fn a_record_under_the_name_of_another_is_told_of() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let blobs = [b"a secret".to_vec(), b"b secret".to_vec(), noise(MIB + 5, 1)];
    for bytes in &blobs {
        store.put(bytes).unwrap();
    }
    let name = Digest256::of(b"a secret"); // a digest, so that only the kind tells them apart
    store.put_named(&name, b"under a name").unwrap();
    let whole = beneath.records();
    assert_eq!(whole.len(), 2 + 2 + 3 + 1);
    for (to, kept) in &whole {
        for (from, record) in whole.iter().filter(|(from, _)| *from != to) {
            if whole[from] == *kept {
                continue; // the two key records
            }
            beneath.put_named(to, record).unwrap();
            match EncryptedBlobStore::open(&beneath, key(1)) {
                Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error:?}"),
                Ok(store) => {
                    let mut damaged = 0;
                    for bytes in &blobs {
                        damaged += usize::from(whole_or_corrupt(&store, bytes));
                    }
                    match store.get_named(&name) {
                        Ok(bytes) => assert_eq!(bytes, b"under a name"),
                        Err(error) => damaged += usize::from(matches!(error, Error::Corrupt { .. })),
                    }
                    // A key record that was overwritten is there again.
                    assert!(damaged == 1 || beneath.records()[to] == *kept, "{damaged}");
                }
            }
            beneath.put_named(to, kept).unwrap();
        }
    }
}

#[test]
fn two_records_that_change_places_are_told_of() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let digests = [store.put(b"one secret").unwrap(), store.put(b"two secret").unwrap()];
    let [one, other] = beneath.data_names()[..] else { panic!() };
    beneath.swap(&one, &other);
    for digest in &digests {
        corrupt(store.get(digest));
        corrupt(store.read_range(digest, 0, 1));
        corrupt(store.reader(digest).map(drop));
    }
}

#[test]
fn parts_of_a_large_blob_that_change_places_are_told_of() {
    let bytes = noise(3 * MIB, 3);
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    let parts = &names[names.len() - 3..];
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        beneath.swap(&parts[one], &parts[other]);
        corrupt(store.get(&digest));
        assert!(whole_or_corrupt(&store, &bytes));
        // The part that is where it belongs is still there to be read.
        let untouched = 3 - one - other;
        let read = store.read_range(&digest, (untouched * MIB) as u64, MIB).unwrap();
        assert!(read == bytes[untouched * MIB..][..MIB]);
        beneath.swap(&parts[one], &parts[other]);
    }
    // A part that lies where another writer of the same bytes had one.
    let old = beneath.records();
    store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    beneath.put_named(&names[names.len() - 2], &old[&parts[1]]).unwrap();
    corrupt(store.get(&digest));
}

#[test]
fn a_blob_of_which_a_part_is_gone_is_damaged_and_one_without_a_header_is_missing() {
    let bytes = noise(3 * MIB + 1, 4);
    let beneath = Glass::default();
    let store = open(&beneath);
    let digest = store.put(&bytes).unwrap();
    let names = store.names_of(&[digest]).unwrap();
    let whole = beneath.records();
    for part in &names[names.len() - 4..] {
        beneath.remove(part);
        corrupt(store.get(&digest));
        let error = store.reader(&digest).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        let error = error.downcast::<Error>().unwrap();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        beneath.put_named(part, &whole[part]).unwrap();
    }
    let header = names[names.len() - 5];
    beneath.remove(&header);
    missing(store.get(&digest), &digest);
    missing(store.reader(&digest).map(drop), &digest);
    missing(store.read_range(&digest, 0, 1), &digest);
    assert!(!store.contains(&digest).unwrap());
    store.put(&bytes).unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn an_older_record_of_a_blob_is_the_same_blob() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let large = noise(2 * MIB, 5);
    let digests = [store.put(b"a secret").unwrap(), store.put(&large).unwrap()];
    let older = beneath.records();
    store.put(b"a secret").unwrap();
    store.put(&large).unwrap();
    for (name, record) in &older {
        beneath.put_named(name, record).unwrap();
    }
    assert_eq!(store.get(&digests[0]).unwrap(), b"a secret");
    assert!(store.get(&digests[1]).unwrap() == large);

    // An old header whose parts were collected leads to nothing.
    let old_parts = store.names_of(&digests[1..]).unwrap();
    old_parts[old_parts.len() - 2..].iter().for_each(|part| beneath.remove(part));
    corrupt(store.get(&digests[1]));
}

#[test]
fn a_digest_that_a_writer_lied_about_is_found_out() {
    let store = open(Glass::default());
    for bytes in [noise(100, 6), noise(2 * MIB, 6)] {
        let digest = Digest256::of(b"the truth");
        let mut writer = store.writer().unwrap();
        writer.write_all(&bytes).unwrap();
        writer.commit(&digest).unwrap();
        corrupt(store.get(&digest));
        corrupt(store.get_many(&[digest], &mut |_, _| panic!("bytes of another digest were given out")));
    }
}

#[test]
fn a_store_that_lost_its_key_records_still_opens_with_its_key() {
    let beneath = Glass::default();
    let digest = open(&beneath).put(b"a secret").unwrap();
    let data = beneath.data_names();
    for name in beneath.records().keys().filter(|name| !data.contains(name)) {
        beneath.remove(name);
    }
    // Another key has nothing to be told by. It finds nothing, and breaks nothing.
    let stranger = EncryptedBlobStore::open(&beneath, key(2)).unwrap();
    missing(stranger.get(&digest), &digest);
    let own = stranger.put(b"of the stranger").unwrap();
    drop(stranger);
    // From here on the store has the stranger's record, where everybody looks. It was ours once, but does not know.
    let error = EncryptedBlobStore::open(&beneath, key(1)).unwrap_err();
    assert!(matches!(error, Error::WrongKey), "{error:?}");
    assert_eq!(EncryptedBlobStore::open(&beneath, key(2)).unwrap().get(&own).unwrap(), b"of the stranger");

    // Whoever removes what the stranger wrote there gets the store back.
    beneath.remove(&common(&beneath));
    assert_eq!(open(&beneath).get(&digest).unwrap(), b"a secret");
    assert_eq!(EncryptedBlobStore::open(&beneath, key(2)).unwrap().get(&own).unwrap(), b"of the stranger");
}

#[test]
fn a_damaged_key_record_is_told_from_another_key() {
    let beneath = Glass::default();
    let digest = open(&beneath).put(b"a secret").unwrap();
    let data = beneath.data_names();
    let records: BTreeMap<_, _> =
        beneath.records().into_iter().filter(|(name, _)| !data.contains(name)).collect();
    assert_eq!(records.len(), 2);
    let common = common(&beneath);
    for bit in 0..records[&common].len() * 8 {
        let mut flipped = records[&common].clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // Where everybody looks: another key cannot tell, ours repairs it.
        beneath.put_named(&common, &flipped).unwrap();
        corrupt(EncryptedBlobStore::open(&beneath, key(2)).map(drop));
        assert_eq!(open(&beneath).get(&digest).unwrap(), b"a secret");
        assert_eq!(beneath.records()[&common], records[&common]);
        // Both: nobody can tell.
        records.keys().for_each(|name| beneath.put_named(name, &flipped).unwrap());
        corrupt(EncryptedBlobStore::open(&beneath, key(1)).map(drop));
        corrupt(EncryptedBlobStore::open(&beneath, key(2)).map(drop));
        records.iter().for_each(|(name, record)| beneath.put_named(name, record).unwrap());
    }
    for length in 0..records[&common].len() {
        beneath.put_named(&common, &records[&common][..length]).unwrap();
        corrupt(EncryptedBlobStore::open(&beneath, key(2)).map(drop));
    }
    let error = {
        open(&beneath);
        EncryptedBlobStore::open(&beneath, key(2)).unwrap_err()
    };
    assert!(matches!(error, Error::WrongKey), "{error:?}");
}

#[test]
fn a_range_reads_only_the_parts_that_it_needs() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let bytes = noise(5 * MIB, 7);
    let digest = store.put(&bytes).unwrap();
    let read = |offset: usize, length: usize| {
        beneath.read.store(0, Ordering::Relaxed);
        assert!(store.read_range(&digest, offset as u64, length).unwrap() == bytes[offset..][..length]);
        beneath.read.load(Ordering::Relaxed) / MIB
    };
    assert_eq!(read(MIB + 5, 100), 1);
    assert_eq!(read(2 * MIB - 1, 2), 2);
    assert_eq!(read(2 * MIB, MIB), 1);
    assert_eq!(read(7, 0), 0);
}

#[test]
fn a_writer_that_is_dropped_leaves_no_blob_and_names_of_tells_what_to_keep() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let (large, small) = (noise(3 * MIB + 9, 8), noise(10, 8));
    let digests = [store.put(&large).unwrap(), store.put(&small).unwrap()];
    let mut writer = store.writer().unwrap();
    writer.write_all(&noise(4 * MIB, 9)).unwrap();
    drop(writer);
    store.put(&large).unwrap();

    let keep: BTreeSet<_> = store.names_of(&digests).unwrap().into_iter().collect();
    let all = beneath.records();
    // What the writer left, and the older parts of the blob that was put again.
    assert_eq!(all.keys().filter(|name| !keep.contains(name)).count(), 3 + 4);
    all.keys().filter(|name| !keep.contains(name)).for_each(|name| beneath.remove(name));
    let store = open(&beneath);
    assert!(store.get(&digests[0]).unwrap() == large);
    assert!(store.get(&digests[1]).unwrap() == small);
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
fn a_large_blob_in_a_batch_is_not_seen_before_its_parts_are_committed() {
    let beneath = Glass::default();
    let store = open(&beneath);
    let bytes = noise(2 * MIB, 11);
    let digest = Digest256::of(&bytes);
    let batch = store.batch().unwrap();
    batch.put(&[(digest, &bytes)]).unwrap();
    assert!(!store.contains(&digest).unwrap());
    batch.commit().unwrap();
    assert!(store.get(&digest).unwrap() == bytes);
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
    // Of a large blob only the number of its parts is told.
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

/// A store whose names can be looked at, changed and counted.
#[derive(Debug, Default)]
struct Glass {
    blobs: MemBlobStore,
    names: Mutex<BTreeMap<Digest256, Vec<u8>>>,
    /// How many bytes were given out under names.
    read: AtomicUsize,
    /// Not 0: it takes nothing in.
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
            return Err(Error::Unsupported { what: "take more" });
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

    /// The names of what is no key record.
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

/// The name of the key record that everybody finds.
fn common(beneath: &Glass) -> Digest256 {
    let name = Digest256::of(b"criu-rpc encrypted store v1: key record");
    assert!(beneath.contains_named(&name).unwrap());
    name
}

/// Every way to read the blob gives its bytes, or says that it is damaged. Tells whether it does the latter.
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

/// Bytes without a pattern.
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
