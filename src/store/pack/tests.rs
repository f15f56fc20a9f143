//! Tests that frames round-trip, and that damage stays local.

use std::io;

use super::*;
use crate::store::{StoreOptions, codec::Codec};
#[cfg(feature = "encryption")]
use crate::{
    Error,
    store::{Key, Padding},
};

/// Makes a pack of frames, and returns its bytes.
fn pack(codec: &Codec, frames: &[&[&[u8]]]) -> (PackId, Vec<u8>) {
    let id = PackId::new();
    let mut bytes = header(&id).to_vec();
    for blobs in frames {
        let mut builder = Builder::new(codec);
        blobs.iter().for_each(|blob| builder.push(&codec.name(&Digest256::of(blob)).unwrap(), blob));
        let at = bytes.len() as u64;
        bytes.extend_from_slice(builder.seal().at(&id, at).unwrap());
    }
    (id, bytes)
}

fn plain() -> Codec {
    StoreOptions::new().alone()
}

/// Returns a codec of each kind that this build has.
fn codecs() -> Vec<Codec> {
    let all = [
        StoreOptions::new(),
        #[cfg(feature = "encryption")]
        StoreOptions::new().encryption(Key::from_bytes([7; 32])).padding(Padding::Padme),
    ];
    let codecs = all.iter().map(StoreOptions::alone);
    #[cfg(feature = "compression")]
    let codecs = codecs.chain(all.iter().map(|options| options.clone().compression(true).alone()));
    codecs.collect()
}

fn found(bytes: &[u8]) -> (Vec<Frame>, Vec<std::ops::Range<u64>>) {
    let (mut frames, mut damaged) = (Vec::new(), Vec::new());
    let each = |found| match found {
        Found::Frame(frame) => frames.push(frame),
        Found::Damaged(range) => damaged.push(range),
    };
    scan(bytes, each).unwrap();
    (frames, damaged)
}

/// Returns the intact blobs that a scan finds.
fn whole(codec: &Codec, bytes: &[u8]) -> Vec<Digest256> {
    let mut whole = Vec::new();
    for frame in found(bytes).0 {
        let start = usize::try_from(frame.at).unwrap() + frame.head;
        let stored = &bytes[start.min(bytes.len())..bytes.len().min(start + frame.stored)];
        let mut scratch = Scratch::default();
        let Ok(opened) = frame.open(codec, stored, &mut scratch) else { continue };
        let verified = (0..frame.entries.len()).filter_map(|n| frame.verified(codec, n, &opened).ok());
        whole.extend(verified.map(Digest256::of));
    }
    whole
}

const BLOBS: [&[&[u8]]; 3] = [&[b"one", b"", b"three"], &[&[7; 5000]], &[b"five", &[1; 7_000]]];

#[test]
fn a_scan_finds_what_was_packed() {
    for codec in codecs() {
        let (id, bytes) = pack(&codec, &BLOBS);
        let (frames, damaged) = found(&bytes);
        assert_eq!(damaged, []);
        assert_eq!(scan(&*bytes, |_| ()).unwrap(), Some(id));
        assert_eq!(frames.len(), 3);
        let all: Vec<_> = BLOBS.concat().into_iter().map(Digest256::of).collect();
        assert_eq!(whole(&codec, &bytes), all);
        assert_eq!(frames[2].end(), bytes.len() as u64);
        let lengths: usize = frames[0].entries.iter().map(|entry| entry.length).sum();
        assert_eq!(lengths, if codec.is_plain() { 8 } else { frames[0].stored });
    }
}

/// A frame is opened in its place only, and only by a codec like the one that wrote it.
#[test]
fn a_frame_of_another_kind_of_store_is_damaged() {
    let codecs = codecs();
    for (writer, reader) in codecs.iter().flat_map(|writer| codecs.iter().map(move |reader| (writer, reader)))
    {
        let (_, bytes) = pack(writer, &BLOBS);
        let expected = if writer.is_plain() == reader.is_plain() { 6 } else { 0 };
        assert_eq!(whole(reader, &bytes).len(), expected, "{writer:?} {reader:?}");
    }
}

#[test]
fn a_builder_makes_one_frame_after_the_other() {
    for codec in codecs() {
        let (id, mut builder, mut bytes) = (PackId::new(), Builder::new(&codec), Vec::new());
        bytes.extend_from_slice(&header(&id));
        for length in [70_000, 5, 0, 262_144, 262_145, 100] {
            let blob = vec![7; length];
            builder.push(&codec.name(&Digest256::of(&blob)).unwrap(), &blob);
            let at = bytes.len() as u64;
            bytes.extend_from_slice(builder.seal().at(&id, at).unwrap());
            builder.clear();
        }
        assert_eq!(whole(&codec, &bytes).len(), 6);
    }
}

#[cfg(feature = "encryption")]
#[test]
fn an_encrypted_frame_has_neither_bytes_nor_lengths_nor_digests() {
    for codec in codecs().into_iter().filter(|codec| !codec.is_plain()) {
        let secret = b"correct horse battery staple".repeat(10);
        let (_, bytes) = pack(&codec, &[&[&secret, b"short"]]);
        for needle in [&secret[..16], Digest256::of(&secret).as_bytes(), Digest256::of(b"short").as_bytes()] {
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
        }
        assert!(!bytes.windows(4).any(|window| window == 280_u32.to_le_bytes()), "a length shows");
    }
}

/// A frame of an encrypted pack at another place, with a header that was made to fit.
#[cfg(feature = "encryption")]
#[test]
fn an_encrypted_frame_that_was_moved_or_changed_is_damaged() {
    let codec = StoreOptions::new().encryption(Key::from_bytes([7; 32])).alone();
    let (id, bytes) = pack(&codec, &[&[b"one", b"two"], &[b"six", b"ten"]]);
    let (frames, _) = found(&bytes);
    let (one, other) = (&frames[0], &frames[1]);
    let stored = |frame: &Frame| {
        let start = usize::try_from(frame.at).unwrap() + frame.head;
        bytes[start..start + frame.stored].to_vec()
    };
    let opens = |frame: &Frame, stored: &[u8]| {
        assert!(frame.has_checksum(stored));
        match frame.open(&codec, stored, &mut Scratch::default()) {
            Ok(_) => true,
            Err(Error::Corrupt { .. }) => false,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(opens(one, &stored(one)) && opens(other, &stored(other)));
    assert_eq!(one.pack, id);
    // The contents of another frame, another place, another pack, other names, in another order.
    assert!(!opens(one, &stored(other)));
    let changes: [fn(&mut Frame, &Frame); 4] = [
        |frame, _| frame.at += 1,
        |frame, _| frame.pack = PackId::new(),
        |frame, other| frame.entries.clone_from(&other.entries),
        |frame, _| frame.entries.swap(0, 1),
    ];
    for change in changes {
        let mut changed = one.clone();
        change(&mut changed, other);
        assert!(!opens(&changed, &stored(one)), "{changed:?}");
    }
    // Another key, and none.
    let stranger = StoreOptions::new().encryption(Key::from_bytes([8; 32])).alone();
    assert!(matches!(one.open(&stranger, &stored(one), &mut Scratch::default()), Err(Error::Corrupt { .. })));
    let locked = StoreOptions::new().without_key().alone();
    assert!(matches!(one.open(&locked, &stored(one), &mut Scratch::default()), Err(Error::Store { .. })));
}

#[cfg(feature = "encryption")]
#[test]
fn equal_frames_are_encrypted_with_other_nonces() {
    let codec = StoreOptions::new().encryption(Key::from_bytes([7; 32])).alone();
    let mut builder = Builder::new(&codec);
    let mut frame = || {
        builder.push(&codec.name(&Digest256::of(b"one")).unwrap(), b"one");
        let sealed = builder.seal();
        let head = sealed.head();
        let stored = sealed.at(&PackId([7; 16]), 48).unwrap()[head..].to_vec();
        builder.clear();
        stored
    };
    assert_ne!(frame(), frame());
}

#[test]
fn a_flipped_bit_anywhere_costs_one_frame_at_most() {
    for codec in codecs() {
        let (_, good) = pack(&codec, &BLOBS);
        let all = whole(&codec, &good).len();
        let places = (0..400.min(good.len())).chain((400..good.len()).step_by(97));
        for place in places {
            let mut bytes = good.clone();
            bytes[place] ^= 1 << (place % 8);
            let left = whole(&codec, &bytes).len();
            assert!(left >= all - 3, "{left} blobs are left after a flipped bit at {place}");
            // zstd ignores some bits. Readers with the key need no checksum.
            let checked = |frame: &Frame| {
                let start = usize::try_from(frame.at).unwrap() + frame.head;
                !frame.is_sealed() || frame.has_checksum(&bytes[start..start + frame.stored])
            };
            let (frames, damaged) = found(&bytes);
            let named = left < all || !damaged.is_empty() || !frames.iter().all(checked);
            let ignored = codec.is_plain() && codec.compresses();
            assert!(named || ignored, "the flipped bit at {place} has no effect");
        }
    }
}

#[test]
fn a_pack_that_is_cut_short_gives_what_is_left() {
    for codec in codecs() {
        let (_, good) = pack(&codec, &BLOBS);
        let mut last = 0;
        for length in 0..good.len() {
            if length % 61 == 0 || length < 500 {
                let left = whole(&codec, &good[..length]).len();
                assert!(left >= last);
                last = left;
            }
        }
        // The last blob is lost; with it its whole frame, if that is compressed or encrypted.
        let expected = if codec.is_plain() && !codec.compresses() { 5 } else { 4 };
        assert_eq!(last, expected, "{codec:?}");
    }
}

#[test]
fn a_pack_within_a_blob_is_not_taken_for_one() {
    let (_, inner) = pack(&plain(), &[&[b"somebody's memory"]]);
    let (_, mut bytes) = pack(&plain(), &[&[b"first"], &[&inner], &[b"last"]]);
    let second = usize::try_from(found(&bytes).0[1].at).unwrap();
    bytes[second + 50] ^= 1;
    let (frames, damaged) = found(&bytes);
    assert_eq!((frames.len(), damaged.len()), (2, 1));
    assert_eq!(whole(&plain(), &bytes), [Digest256::of(b"first"), Digest256::of(b"last")]);
}

#[test]
fn a_frame_elsewhere_is_none() {
    let (_, bytes) = pack(&plain(), &BLOBS);
    let moved = [&bytes[..48], &[0], &bytes[48..]].concat();
    assert!(found(&moved).0.is_empty());
}

#[test]
fn a_newer_version_is_named() {
    let mut bytes = header(&PackId::new());
    bytes[8] = 2;
    let check = short(&Digest256::of(&bytes[..32]));
    bytes[32..].copy_from_slice(&check);
    let error = scan(&bytes[..], |_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn ids_are_written_and_parsed() {
    let id = PackId::new();
    assert_eq!(PackId::parse(&id.hex()), Some(id));
    assert_ne!(PackId::new(), id);
    assert_eq!(PackId::parse("0"), None);
    assert_eq!(PackId::parse(&id.hex().to_uppercase().replace('0', "+")), None);
}
