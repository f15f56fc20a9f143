//! Stores of an earlier build stay readable.

#[cfg(feature = "compression")]
use std::fs;

use criu_rpc::{BlobStore, Digest256, Error, store::StoreOptions};

use super::{key, options};
use crate::stores::{Folder, files_below, unpack};

#[test]
fn an_encrypted_store_of_old_is_read() {
    if std::env::var_os("UPDATE").is_some() {
        return write_store();
    }
    let folder = Folder::new();
    unpack(include_str!("../../data/encrypted-store-v1.txt"), &folder);
    let before = files_below(&folder).len();
    let store = options().open(&folder).unwrap();
    for blob in blobs() {
        let read = store.get(&Digest256::of(&blob));
        // The last one is compressed, too.
        match cfg!(feature = "compression") || blob != blobs()[4] {
            true => assert_eq!(read.unwrap(), blob),
            false => assert!(read.unwrap_err().report().to_string().contains("the feature `compression`")),
        }
    }
    assert_eq!(files_below(&folder).len(), before, "the key records were not known");
    let stranger = StoreOptions::new().encryption(key(2)).open(&folder);
    assert!(matches!(stranger, Err(Error::WrongKey)));
    let locked = StoreOptions::new().without_key().open(&folder).unwrap().verify().unwrap();
    assert_eq!((locked.blobs, locked.damage.len()), (5, 0));
}

/// Writes the store for a new version of the format. Run `UPDATE=1 cargo test --all-features
/// --test it encrypted::golden` twice.
#[cfg(feature = "compression")]
fn write_store() {
    use super::pack;
    use criu_rpc::store::Padding;
    let folder = Folder::new();
    let [single, padded, empty, packed, compressed] = blobs();
    options().open(&folder).unwrap().put(&single).unwrap();
    let store = options().padding(Padding::Padme).open(&folder).unwrap();
    store.put(&padded).unwrap();
    store.put(&empty).unwrap();
    pack(&options().open(&folder).unwrap(), &packed);
    pack(&options().compression(true).padding(Padding::Padme).open(&folder).unwrap(), &compressed);
    let mut files = super::data(&folder);
    files.extend(["store.key", "store.key.copy"].map(|name| folder.join(name)));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = |file: &std::path::PathBuf| {
        let name = file.strip_prefix(&*folder).unwrap().to_str().unwrap();
        format!("{name} {}\n", hex(&fs::read(file).unwrap()))
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/encrypted-store-v1.txt");
    fs::write(path, files.iter().map(line).collect::<String>()).unwrap();
}

#[cfg(not(feature = "compression"))]
fn write_store() {
    panic!("the store has a frame that is compressed");
}

fn blobs() -> [Vec<u8>; 5] {
    [
        b"a secret".to_vec(),
        b"a secret with padding, ".repeat(9),
        Vec::new(),
        b"a secret in a pack".to_vec(),
        b"a compressed secret, ".repeat(50),
    ]
}
