//! Collections of a folder in which everything is encrypted.

use std::{io::Write, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ProcsBlob};

use super::{MIB, open};
use crate::stores::{Folder, fresh};

#[test]
fn a_collection_keeps_what_captures_need_and_nothing_else() {
    let folder = Folder::new();
    let store = open(fresh(&folder));
    let capture = |byte: u8| {
        let archive = vec![byte; 5 * MIB]; // in several parts
        let criu_dump = Digest256::of(&archive);
        let mut writer = store.writer().unwrap();
        writer.write_all(&archive).unwrap();
        writer.commit(&criu_dump).unwrap();
        let manifest = ProcsBlob::Criu { criu_dump, pids: vec![i32::from(byte).into()] };
        (store.put(&manifest.to_json()).unwrap(), criu_dump, archive)
    };
    let (kept, its, archive) = capture(1);
    let (lost, also_lost, _) = capture(2);
    assert_eq!(store.gc(&[kept, lost], Duration::ZERO).unwrap(), criu_rpc::store::Gc::default());

    let condemned = store.gc(&[kept], Duration::ZERO).unwrap().condemned;
    assert!(condemned.bytes > 5 << 20, "{condemned:?}");
    assert!(store.get(&also_lost).is_ok(), "it is given out until it is swept");
    assert!(store.gc(&[kept], Duration::ZERO).unwrap().swept.bytes > 5 << 20);
    assert!(matches!(store.get(&lost), Err(Error::Missing { .. })));
    assert!(matches!(store.get(&also_lost), Err(Error::Missing { .. })));
    assert_eq!(store.get(&its).unwrap(), archive);
    assert!(store.get(&kept).is_ok());

    // The key stays known. A capture that is missing is reported before anything is collected.
    let unknown = Digest256::of(b"a manifest");
    let error = store.gc(&[kept, unknown], Duration::ZERO).unwrap_err();
    let Error::Capture { capture, source, .. } = error else { panic!("{error:?}") };
    assert!(
        capture == unknown && matches!(*source, Error::Missing { digest } if digest == unknown),
        "{source:?}"
    );
    assert!(open(store.inner()).get(&its).is_ok());
}

#[test]
fn a_purge_leaves_the_captures_to_keep_and_no_record_of_others() {
    let folder = Folder::new();
    let store = open(fresh(&folder));
    let placeholder = |note: &str| {
        format!(r#"{{"kind":"procs.unsupported.v1","unsupported_on":"macos","note":"{note}"}}"#).into_bytes()
    };
    let batch = store.batch().unwrap();
    let [kept, secret] = ["kept", "secret"].map(placeholder);
    let filler: Vec<_> = (0..50).map(|n| placeholder(&format!("{n}"))).collect();
    for bytes in filler.iter().chain([&kept, &secret]) {
        batch.put(&[(Digest256::of(bytes), bytes)]).unwrap();
    }
    batch.commit().unwrap();
    let mut live: Vec<_> = filler.iter().map(|bytes| Digest256::of(bytes)).collect();
    live.push(Digest256::of(&kept));
    for _ in 0..3 {
        store.gc(&live, Duration::ZERO).unwrap();
    }
    let secret = Digest256::of(&secret);
    assert!(store.is_marked(&secret).unwrap() && !store.is_marked(&live[0]).unwrap());
    let gc = store.purge(&live).unwrap();
    assert_eq!((gc.swept.blobs, gc.postponed.blobs), (1, 0));
    assert!(store.get(&secret).is_err() && !store.is_marked(&secret).unwrap());
    assert!(live.iter().all(|digest| store.get(digest).is_ok()));
}
