//! Entry points for fuzzers of packs and of encrypted blobs: see `crate::fuzz`.

#![allow(clippy::unwrap_used)]

use super::{
    StoreOptions,
    codec::Codec,
    name::Name,
    pack::{self, Builder, Found, Frame, PackId, Scratch, scan},
};
use crate::Digest256;

/// Scans a pack and reads its blobs. Checksums of headers are made right, as no fuzzer finds them.
pub(crate) fn pack(bytes: &[u8]) {
    let id = PackId::parse(&"7".repeat(32)).unwrap();
    let mut pack = pack::header(&id).to_vec();
    let mut at = pack.len();
    pack.extend_from_slice(bytes);
    while let Some(next) = Frame::mend(&mut pack, &id, at) {
        at = next;
    }
    for codec in [StoreOptions::new().alone(), StoreOptions::new().without_key().alone()] {
        read(&codec, &pack);
        read(&codec, bytes);
    }
}

/// Encrypts blobs, changes some of the bytes, and reads them. Only the same blobs may come back.
/// Also encrypts any bytes as the contents of a frame.
///
/// The input has a byte of options, the number of changes, each change in three bytes, and blobs.
#[cfg(feature = "encryption")]
pub(crate) fn sealed(bytes: &[u8]) {
    use super::{Key, Padding};

    let Some(([choices, count], rest)) = bytes.split_first_chunk() else { return };
    let mut options = StoreOptions::new().encryption(Key::from_bytes([7; 32]));
    if choices & 1 != 0 {
        options = options.padding(Padding::Padme);
    }
    #[cfg(feature = "compression")]
    let options = options.compression(choices & 2 != 0);
    let codec = options.alone();
    let (changes, rest) = rest.split_at(rest.len().min(usize::from(count % 8) * 3));
    let changes = changes.as_chunks::<3>().0;
    let blobs: Vec<&[u8]> = rest.chunks(usize::from(choices >> 2) * 16 + 1).take(500).collect();

    let id = PackId::parse(&"7".repeat(32)).unwrap();
    let mut builder = Builder::new(&codec);
    for blob in &blobs {
        if builder.takes(blob.len()) {
            builder.push(&codec.name(&Digest256::of(blob)).unwrap(), blob);
        }
    }
    let mut pack = pack::header(&id).to_vec();
    let at = pack.len();
    pack.extend_from_slice(builder.seal().at(&id, at as u64).unwrap());
    change(&mut pack[at..], changes);
    Frame::mend(&mut pack, &id, at);
    for found in read(&codec, &pack) {
        assert!(blobs.iter().any(|blob| **blob == *found), "a blob that was never stored");
    }

    let entries: Vec<Name> = blobs.iter().map(|blob| Name::plain(Digest256::of(blob))).collect();
    let mut pack = pack::header(&id).to_vec();
    pack.extend(Frame::around(codec.keys().unwrap(), &id, at as u64, &entries[..entries.len().min(8)], rest));
    read(&codec, &pack);

    single(&codec, rest, changes);
}

/// Encrypts a blob that is a file by itself, changes some of the bytes, and reads it.
#[cfg(feature = "encryption")]
fn single(codec: &Codec, blob: &[u8], changes: &[[u8; 3]]) {
    let name = codec.name(&Digest256::of(blob)).unwrap();
    let mut file = Vec::new();
    let mut sink = |bytes: &[u8]| {
        file.extend_from_slice(bytes);
        Ok(())
    };
    let mut encoder = codec.encoder().unwrap();
    encoder.write(blob, &mut sink).unwrap();
    encoder.finish(&name, &mut sink).unwrap();
    let changed = change(&mut file, changes);
    let file = &file[..];
    assert!(changed || codec.is_whole(&name, &file).unwrap());
    let Ok(opened) = codec.open(&name, file, String::new) else { return assert!(changed) };
    match opened.range(0, blob.len() + 1) {
        Ok(read) => assert_eq!(read, blob, "another blob"),
        Err(_) => assert!(changed),
    }
    let _ = opened.range(7, 100);
    let _ = codec.is_whole(&name, &file);
}

/// Flips bits at some positions; returns true if that changed something.
#[cfg(feature = "encryption")]
fn change(bytes: &mut [u8], changes: &[[u8; 3]]) -> bool {
    let before = bytes.to_vec();
    for [low, high, flip] in changes {
        let place = usize::from(u16::from_le_bytes([*low, *high])) % bytes.len();
        bytes[place] ^= flip;
    }
    before != bytes
}

/// Reads all blobs of a pack that are undamaged.
fn read(codec: &Codec, pack: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let _ = scan(pack, |found| match found {
        Found::Frame(frame) => frames.push(frame),
        Found::Damaged(range) => assert!(range.start < range.end),
    });
    let (mut blobs, mut scratch) = (Vec::new(), Scratch::default());
    for frame in frames {
        let start = usize::try_from(frame.at).unwrap() + frame.head;
        let stored = &pack[start.min(pack.len())..pack.len().min(start.saturating_add(frame.stored))];
        frame.has_checksum(stored);
        let Ok(opened) = frame.open(codec, stored, &mut scratch) else { continue };
        for (index, entry) in frame.entries.iter().enumerate() {
            frame.end_of(entry);
            if let Ok(blob) = frame.verified(codec, index, &opened) {
                blobs.push(blob.to_vec());
            }
        }
    }
    blobs
}
