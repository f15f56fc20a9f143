//! Records of an earlier build stay readable. `tests/data/encrypted-v1.txt` has a line for each
//! record: its name and its bytes in hex.

use criu_rpc::{BlobStore, Digest256, EncryptedBlobStore, Error, store::Padding};

use super::{Glass, key, open};

const RECORDS: &str = include_str!("../../data/encrypted-v1.txt");

#[test]
fn records_of_old_are_read() {
    if std::env::var_os("UPDATE").is_some() {
        return write_records();
    }
    let beneath = Glass::default();
    for line in RECORDS.lines() {
        let (name, record) = line.split_once(' ').unwrap();
        let name: Digest256 = format!("sha256:{name}").parse().unwrap();
        beneath.put_named(&name, &from_hex(record)).unwrap();
    }
    let (count, store) = (beneath.records().len(), open(&beneath));
    for blob in blobs() {
        assert_eq!(store.get(&Digest256::of(&blob)).unwrap(), blob);
    }
    assert_eq!(store.get_named(&Digest256::of(b"a name")).unwrap(), b"what has a name");
    assert_eq!(beneath.records().len(), count, "the key records were not known");
    assert!(matches!(EncryptedBlobStore::open(&beneath, key(2)), Err(Error::WrongKey)));
}

/// Writes the records for a new version of the format. Run `UPDATE=1 cargo test --all-features
/// --test it encrypted::golden` twice.
fn write_records() {
    let beneath = Glass::default();
    let store = open(&beneath);
    for blob in blobs() {
        store.put(&blob).unwrap();
    }
    open(&beneath).padding(Padding::Padme).put(&blobs()[1]).unwrap();
    store.put_named(&Digest256::of(b"a name"), b"what has a name").unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = |(name, record): (Digest256, Vec<u8>)| format!("{} {}\n", hex(name.as_bytes()), hex(&record));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/encrypted-v1.txt");
    std::fs::write(path, beneath.records().into_iter().map(line).collect::<String>()).unwrap();
}

/// An empty blob, a small one, and a padded one.
fn blobs() -> [Vec<u8>; 3] {
    [b"a secret".to_vec(), b"a secret with padding, ".repeat(9), Vec::new()]
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
