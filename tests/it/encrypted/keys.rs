//! Keys, and the records that distinguish them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Barrier,
    thread,
};

use criu_rpc::{BlobStore, EncryptedBlobStore, Error, MemBlobStore, store::Key};

use super::{Glass, common, corrupt, key, missing, open};

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
fn equal_blobs_have_unequal_names_and_records_in_stores_of_other_keys() {
    let (one, other) = (Glass::default(), Glass::default());
    EncryptedBlobStore::open(&one, key(1)).unwrap().put(b"a secret").unwrap();
    EncryptedBlobStore::open(&other, key(2)).unwrap().put(b"a secret").unwrap();
    let names = |glass: &Glass| glass.records().into_keys().collect::<BTreeSet<_>>();
    let shared: Vec<_> = names(&one).intersection(&names(&other)).copied().collect();
    assert_eq!(shared.len(), 1, "only the key record has a name that everybody knows");
}

#[test]
fn processes_that_open_a_fresh_store_at_once_do_not_break_each_other() {
    for round in 0..50 {
        // One key for all, then two keys: a store that opened must find its blobs again.
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
fn a_store_that_lost_its_key_records_still_opens_with_its_key() {
    let beneath = Glass::default();
    let digest = open(&beneath).put(b"a secret").unwrap();
    let data = beneath.data_names();
    for name in beneath.records().keys().filter(|name| !data.contains(name)) {
        beneath.remove(name);
    }
    // The store has no public record that another key could check. That key finds nothing, and
    // breaks nothing.
    let stranger = EncryptedBlobStore::open(&beneath, key(2)).unwrap();
    missing(stranger.get(&digest), &digest);
    let own = stranger.put(b"of the stranger").unwrap();
    drop(stranger);
    // From here on the public record is the stranger's. The store was ours, but cannot know that.
    let error = EncryptedBlobStore::open(&beneath, key(1)).unwrap_err();
    assert!(matches!(error, Error::WrongKey), "{error:?}");
    assert_eq!(EncryptedBlobStore::open(&beneath, key(2)).unwrap().get(&own).unwrap(), b"of the stranger");

    // Removing the stranger's public record gives the store back.
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
        // The public record is damaged: another key cannot decide, ours repairs it.
        beneath.put_named(&common, &flipped).unwrap();
        corrupt(EncryptedBlobStore::open(&beneath, key(2)).map(drop));
        assert_eq!(open(&beneath).get(&digest).unwrap(), b"a secret");
        assert_eq!(beneath.records()[&common], records[&common]);
        // Both records are damaged: no key can decide.
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
