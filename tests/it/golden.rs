//! The formats do not change: we read what other programs wrote, and they read what we write.

use criu_rpc::{Digest256, ProcsBlob};

/// The manifest of another program that reads and writes the same blobs.
mod theirs {
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub(super) struct Digest256(pub(super) String);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    pub(super) enum ProcsBlob {
        #[serde(rename = "procs.criu.v1")]
        Criu { criu_dump: Digest256, pids: Vec<i32> },
        #[serde(rename = "procs.unsupported.v1")]
        Unsupported { unsupported_on: String, note: String },
    }
}

const CRIU: &[u8] = include_bytes!("../data/procs.criu.v1.json");
const CHUNKED: &[u8] = include_bytes!("../data/procs.criu.v2.json");
const LABELLED: &[u8] = include_bytes!("../data/procs.criu.v2-labels.json");
const UNSUPPORTED: &[u8] = include_bytes!("../data/procs.unsupported.v1.json");

fn criu() -> ProcsBlob {
    ProcsBlob::Criu { criu_dump: Digest256::of(b"an archive"), pids: vec![4242.into(), 17.into()] }
}

fn unsupported() -> ProcsBlob {
    ProcsBlob::Unsupported {
        unsupported_on: "macos".to_owned(),
        note: "no criu here: \"4242\" and 17 were not captured — ünd weiter".to_owned(),
    }
}

#[test]
fn manifests_are_written_as_ever() {
    assert_eq!(String::from_utf8(criu().to_json()).unwrap(), String::from_utf8_lossy(CRIU));
    assert_eq!(String::from_utf8(unsupported().to_json()).unwrap(), String::from_utf8_lossy(UNSUPPORTED));
}

#[test]
fn manifests_of_old_are_read() {
    assert_eq!(ProcsBlob::from_json(CRIU).unwrap(), criu());
    assert_eq!(ProcsBlob::from_json(UNSUPPORTED).unwrap(), unsupported());
}

#[test]
fn a_chunked_manifest_is_read_and_written_as_ever() {
    let manifest = ProcsBlob::from_json(CHUNKED).unwrap();
    assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), String::from_utf8_lossy(CHUNKED));
    let ProcsBlob::Chunked(blob) = manifest else { panic!("{manifest:?}") };
    assert_eq!(blob.pids, [4242, 17]);
    let [tree] = blob.trees.as_slice() else { panic!("{blob:?}") };
    assert_eq!((tree.root.as_raw(), tree.image_bytes, tree.memory_bytes), (4242, 51_234, 17_313_792));
    let images = tree.images;
    assert_eq!((images.bytes, images.depth, images.digest), (1890, 0, Digest256::of(b"a listing")));
    let host = &blob.host;
    assert_eq!([&host.criu, &host.kernel, &host.arch], ["4.2.1", "6.18.5", "x86_64"]);
    assert_eq!(host.cpu, ["aes", "avx", "avx2"]);
    assert_eq!((blob.taken, blob.frozen_us), (1_795_392_000, Some(9120)));
    assert_eq!(blob.parent, Some(Digest256::of(b"a capture")));
    assert!(blob.labels.is_empty() && blob.attached.is_empty());
}

#[test]
fn a_manifest_with_labels_is_read_and_written_as_ever() {
    let manifest = ProcsBlob::from_json(LABELLED).unwrap();
    assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), String::from_utf8_lossy(LABELLED));
    let ProcsBlob::Chunked(mut blob) = manifest else { panic!("{manifest:?}") };
    let labels: Vec<_> = blob.labels.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert_eq!(labels, [("agent", "a \"b\""), ("step", "17")]);
    let attached: Vec<_> = blob.attached.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
    assert_eq!(attached, [("files", Digest256::of(b"a file system")), ("log", Digest256::of(b"a log"))]);
    // Without them it is a manifest of before.
    (blob.labels, blob.attached) = Default::default();
    assert_eq!(ProcsBlob::Chunked(blob).to_json(), CHUNKED);
}

#[test]
fn other_programs_read_what_we_write() {
    let digest = Digest256::of(b"an archive").to_string();
    let theirs: theirs::ProcsBlob = serde_json::from_slice(&criu().to_json()).unwrap();
    let expected = theirs::ProcsBlob::Criu { criu_dump: theirs::Digest256(digest), pids: vec![4242, 17] };
    assert_eq!(theirs, expected);

    let theirs: theirs::ProcsBlob = serde_json::from_slice(&unsupported().to_json()).unwrap();
    assert!(
        matches!(theirs, theirs::ProcsBlob::Unsupported { unsupported_on, .. } if unsupported_on == "macos")
    );
}

#[test]
fn we_read_what_other_programs_write() {
    for ours in [criu(), unsupported()] {
        let theirs: theirs::ProcsBlob = serde_json::from_slice(&ours.to_json()).unwrap();
        let json = serde_json::to_vec(&theirs).unwrap();
        assert_eq!(json, ours.to_json());
        assert_eq!(ProcsBlob::from_json(&json).unwrap(), ours);
    }
}
