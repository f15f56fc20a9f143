//! Encrypted stores keep the contract, and never return wrong data, whatever happens to the files.

mod damage;
mod gc;
mod golden;
mod keys;
mod parts;

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use criu_rpc::{
    BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore, Result,
    store::{Key, Padding, StoreOptions},
};

use crate::stores::{Folder, files_below};

const MIB: usize = 1 << 20;

#[test]
fn what_is_stored_tells_neither_bytes_nor_digests() {
    let folder = Folder::new();
    let store = open(&folder);
    let secret = b"correct horse battery staple".repeat(100);
    let large = b"correct horse battery staple".repeat(100_000);
    let packed = [&secret[..], b" in a pack"].concat();
    let digests = [store.put(&secret).unwrap(), store.put(&large).unwrap(), pack(&store, &packed)];
    let files = data(&folder);
    assert_eq!(files.len(), 3);
    for file in files {
        let bytes = fs::read(&file).unwrap();
        for digest in &digests {
            assert!(!file.to_str().unwrap().contains(&digest.hex()));
            assert!(!bytes.windows(32).any(|window| window == digest.as_bytes()));
        }
        assert!(!bytes.windows(16).any(|window| window == &secret[..16]));
    }
}

#[cfg(feature = "compression")]
#[test]
fn what_is_encrypted_is_compressed_first_if_that_was_asked_for() {
    let words = b"correct horse battery staple".repeat(5_000);
    let length = |options: StoreOptions| {
        let folder = Folder::new();
        let store = options.open(&folder).unwrap();
        let digest = pack(&store, &words);
        assert!(store.get(&digest).unwrap() == words);
        // A program that does not ask for compression reads it, too.
        assert!(open_like(&folder, &options).get(&digest).unwrap() == words);
        fs::metadata(data(&folder).remove(0)).unwrap().len()
    };
    fn open_like(folder: &Path, options: &StoreOptions) -> FsBlobStore {
        options.clone().compression(false).open(folder).unwrap()
    }
    assert!(length(options()) > 140_000 && length(options().compression(true)) < 2000);
    assert!(length(StoreOptions::new()) > 140_000);
    assert!(length(StoreOptions::new().compression(true)) < 2000);
}

#[test]
fn what_is_stored_again_is_encrypted_with_another_nonce() {
    let folder = Folder::new();
    let store = open(&folder);
    store.put(b"a secret").unwrap();
    let file = data(&folder).remove(0);
    let before = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    store.put(b"a secret").unwrap();
    let after = fs::read(&file).unwrap();
    assert_eq!(before.len(), after.len());
    // The magic and the version are the same.
    assert!(
        before[..16] == after[..16] && before[16..32] != after[16..32] && before[32..40] != after[32..40]
    );
}

#[test]
fn padding_leaves_few_lengths() {
    let lengths = |padding: Padding, store_one: fn(&FsBlobStore, &[u8])| {
        let mut lengths = BTreeSet::new();
        for length in (4000..6000).step_by(37) {
            let folder = Folder::new();
            let store = options().padding(padding).open(&folder).unwrap();
            let bytes = noise(length, 12);
            store_one(&store, &bytes);
            assert!(store.get(&Digest256::of(&bytes)).unwrap() == bytes);
            lengths.insert(fs::metadata(data(&folder).remove(0)).unwrap().len());
        }
        lengths.len()
    };
    type Way = fn(&FsBlobStore, &[u8]);
    let ways: [Way; 2] = [
        |store, bytes| {
            let _ = store.put(bytes).unwrap();
        },
        |store, bytes| {
            let _ = pack(store, bytes);
        },
    ];
    for way in ways {
        assert_eq!(lengths(Padding::None, way), 55);
        assert!(lengths(Padding::Padme, way) < 14, "{}", lengths(Padding::Padme, way));
    }
    // Of a large blob only the number of its parts shows.
    let large = |length| {
        let folder = Folder::new();
        options().padding(Padding::Padme).open(&folder).unwrap().put(&noise(length, 13)).unwrap();
        fs::metadata(data(&folder).remove(0)).unwrap().len()
    };
    assert_eq!(large(2 * MIB + 1), large(3 * MIB));
}

pub(crate) fn options() -> StoreOptions {
    StoreOptions::new().encryption(key(1))
}

fn open(folder: &Path) -> FsBlobStore {
    options().open(folder).unwrap()
}

fn key(n: u8) -> Key {
    Key::from_bytes([n; 32])
}

/// Stores a blob in a pack of its own.
fn pack(store: &FsBlobStore, bytes: &[u8]) -> Digest256 {
    let (batch, digest) = (store.batch().unwrap(), Digest256::of(bytes));
    batch.put(&[(digest, bytes)]).unwrap();
    batch.commit().unwrap();
    digest
}

/// Returns the files with blobs, sorted.
fn data(folder: &Path) -> Vec<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| {
        let name = file.strip_prefix(folder).unwrap();
        name.starts_with("blobs") || name.starts_with("packs")
    });
    files
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
    assert!(matches!(&result, Err(Error::Missing { digest, .. }) if digest == asked), "{result:?}");
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
