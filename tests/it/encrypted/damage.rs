//! Records that were damaged, cut, swapped or rolled back: the store reports all of it.

use std::io::Write;

use criu_rpc::{BlobStore, Digest256, EncryptedBlobStore, Error};

use super::{Glass, MIB, corrupt, key, noise, open, whole_or_corrupt};

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

/// Puts every record under the name of every other: of a blob, of a name, of the header and the
/// parts of a large blob, and of the key records.
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
                    // An overwritten key record is back.
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

    // An old header whose parts were collected is useless.
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
