//! Files that were damaged, cut, swapped or combined: the store reports all of it.

use std::{fs, io::Write};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error};

use super::{MIB, corrupt, data, noise, open, pack, whole_or_corrupt};
use crate::stores::Folder;

/// A file by itself and a pack with one frame: every bit of both is covered by a checksum, and
/// every bit but those of the checksums by the key.
#[test]
fn any_bit_flipped_is_told_of_and_put_again_repairs_it() {
    let folder = Folder::new();
    let store = open(&folder);
    let digest = store.put(b"a secret").unwrap();
    let file = data(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    let checksum = whole.len() - 32;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, flipped).unwrap();
        assert_eq!(whole_or_corrupt(&store, b"a secret"), bit / 8 < checksum, "bit {bit}");
        assert_eq!(store.read_range(&digest, 0, 3).is_err(), bit / 8 < checksum, "bit {bit}");
        assert_eq!(store.verify().unwrap().damage.len(), 1, "bit {bit}");
    }
    store.put(b"a secret").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"a secret");
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn a_bit_flipped_anywhere_in_a_pack_is_told_of() {
    let folder = Folder::new();
    let digest = pack(&open(&folder), b"a secret");
    let file = data(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    let checksum = whole.len() - 16;
    for bit in (0..whole.len()).map(|byte| byte * 8 + byte % 8) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, flipped).unwrap();
        let store = open(&folder);
        let (read, damage) = (store.get(&digest), store.verify().unwrap().damage);
        match read {
            // The head of a pack is needed only to tell its id, and the checksum without a key.
            Ok(bytes) => assert!(bytes == b"a secret" && (bit / 8 < 48 || bit / 8 >= checksum), "bit {bit}"),
            Err(Error::Corrupt { .. } | Error::Missing { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(!damage.is_empty(), "bit {bit}");
    }
}

#[test]
fn a_file_cut_short_or_made_longer_is_told_of() {
    let folder = Folder::new();
    let store = open(&folder);
    store.put(b"a secret").unwrap();
    let file = data(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        for cut in [&whole[..length], &whole[whole.len() - length..]] {
            fs::write(&file, cut).unwrap();
            assert!(whole_or_corrupt(&store, b"a secret"));
        }
    }
    for longer in [[&whole[..], b"x"].concat(), [b"x", &whole[..]].concat(), [&whole[..], &whole].concat()] {
        fs::write(&file, &longer).unwrap();
        assert!(whole_or_corrupt(&store, b"a secret"));
    }
}

/// Puts every file in the place of every other: small and large blobs, key records and packs.
#[test]
fn a_file_under_the_name_of_another_is_told_of() {
    let folder = Folder::new();
    let store = open(&folder);
    let blobs = [b"a secret".to_vec(), b"b secret".to_vec(), noise(MIB + 5, 1)];
    for bytes in &blobs {
        store.put(bytes).unwrap();
    }
    pack(&store, b"c secret");
    let mut files = data(&folder);
    assert_eq!(files.len(), 4);
    files.push(folder.join("store.key"));
    let whole: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for to in (0..4).filter(|to| files[*to].starts_with(folder.join("blobs"))) {
        for from in (0..5).filter(|from| *from != to) {
            fs::write(&files[to], &whole[from]).unwrap();
            let damaged = blobs.iter().filter(|bytes| whole_or_corrupt(&store, bytes)).count();
            assert_eq!((damaged, store.verify().unwrap().damage.len()), (1, 1), "{from} at {to}");
            fs::write(&files[to], &whole[to]).unwrap();
        }
    }
}

/// A file of a store that is not encrypted, under the right name.
#[test]
fn a_blob_that_is_not_encrypted_is_told_of() {
    let (folder, other) = (Folder::new(), Folder::new());
    let store = open(&folder);
    store.put(b"a secret").unwrap();
    fs::write(data(&folder).remove(0), b"a secret").unwrap();
    assert!(whole_or_corrupt(&store, b"a secret"));
    let plain = criu_rpc::FsBlobStore::open(&other).unwrap();
    let digest = pack(&plain, b"b secret");
    let packed = data(&other).remove(0);
    fs::copy(&packed, folder.join("packs").join(packed.file_name().unwrap())).unwrap();
    assert!(matches!(store.get(&digest), Err(Error::Missing { .. })));
    assert_eq!(store.verify().unwrap().damage.len(), 2);
}

/// A frame that was moved into another pack of the same store, with everything that is not
/// encrypted made to fit.
#[test]
fn packs_that_swap_their_names_or_their_frames_tell_nothing_wrong() {
    let folder = Folder::new();
    let store = open(&folder);
    let digests = [pack(&store, b"one secret"), pack(&store, b"two secret")];
    let files = data(&folder);
    let whole: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    // The names alone: the frames know their pack.
    fs::write(&files[0], &whole[1]).unwrap();
    fs::write(&files[1], &whole[0]).unwrap();
    let again = open(&folder);
    assert_eq!(again.get(&digests[0]).unwrap(), b"one secret");
    assert_eq!(again.get(&digests[1]).unwrap(), b"two secret");
    // The frames, behind the other heads; then the encrypted bytes, behind the other entries.
    for behind in [48, 48 + 64 + 32] {
        fs::write(&files[0], [&whole[0][..behind], &whole[1][behind..]].concat()).unwrap();
        fs::write(&files[1], [&whole[1][..behind], &whole[0][behind..]].concat()).unwrap();
        let again = open(&folder);
        for digest in &digests {
            let read = again.get(digest);
            assert!(matches!(read, Err(Error::Corrupt { .. } | Error::Missing { .. })), "{read:?}");
        }
        assert!(again.verify().unwrap().damage.len() >= 2);
    }
}

#[test]
fn a_digest_that_a_writer_lied_about_is_found_out() {
    let folder = Folder::new();
    let store = open(&folder);
    let digest = Digest256::of(b"the truth");
    for bytes in [noise(100, 6), noise(2 * MIB, 6)] {
        let mut writer = store.writer().unwrap();
        writer.write_all(&bytes).unwrap();
        writer.commit(&digest).unwrap();
        corrupt(store.get(&digest));
        corrupt(store.get_many(&[digest], &mut |_, _| panic!("bytes of another digest were given out")));
        assert_eq!(store.verify().unwrap().damage.len(), 1);
    }
    fs::remove_file(data(&folder).remove(0)).unwrap();
    let batch = store.batch().unwrap();
    batch.put(&[(digest, b"a lie")]).unwrap();
    batch.commit().unwrap();
    corrupt(store.get(&digest));
}
